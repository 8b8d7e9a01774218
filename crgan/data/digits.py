"""MNIST, its rotated and blocked variants, and slices of AdrenalMNIST3D: 28 px images on 32 px, zeros around."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crgan.data.dataset import Dataset
from crgan.data.storage import as_table, expect, find, images, reader, small, sound

_DIGITS, _TURNS, _BLOCKS, _SLICES = 10, 4, 4, 28
_SOURCE = "MNIST (LeCun et al. 1998)"


def mnist(root: str | Path | None, name: str = "mnist") -> Dataset:
    """The training images of MNIST, 1x32x32; the factor is the digit."""
    files = ["mnist.npz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    path = find(name, root, files, _SOURCE)
    if path.suffix == ".npz":
        stored = images(path, "x_train", (-1, 28, 28))
        labels = small(path, ["y_train"], (len(stored),), "ui")
    else:
        stored = _idx(path, 3)
        expect(path, "shape", stored.shape[1:], (28, 28))
        labels_files = ["train-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz"]
        labels_path = find(name, path.parent, labels_files, _SOURCE)
        labels = _idx(labels_path, 1)
        expect(labels_path, "number of labels", len(labels), len(stored))
    table = as_table(path, labels[:, None], (_DIGITS,))
    read = reader(path, stored, pad=2)
    return Dataset(name, (1, 32, 32), len(stored), ("digit",), (_DIGITS,), read=read, table=table)


def rmnist(root: str | Path | None) -> Dataset:
    """RMNIST: every digit turned counter-clockwise by k * 90 degrees. Image 4 i + k is MNIST's image i so turned:
    the images 4 i and 4 i + k are the pair (x, x turned)."""
    plain = mnist(root, "rmnist")

    def read(index: Tensor) -> Tensor:
        return _turned(plain, index // _TURNS, index % _TURNS)

    return _variant(plain, read, angle=_TURNS)


def rbmn(root: str | Path | None) -> Dataset:
    """RBMN: RMNIST with a grey block of 10 px over one quadrant. Image 16 i + 4 k + b is image 4 i + k of RMNIST
    with block b, by rows from the upper left. Size, colour and places of the block are our choice."""
    plain = mnist(root, "rbmn")

    def read(index: Tensor) -> Tensor:
        images = _turned(plain, index // (_TURNS * _BLOCKS), index // _BLOCKS % _TURNS)
        block = (index % _BLOCKS).to(images.device)[:, None]
        half = (torch.arange(32, device=images.device) - 6) // 10  # 0 and 1 within the blocks' rows and columns
        hidden = (half == block // 2)[:, :, None] & (half == block % 2)[:, None, :]
        return images.masked_fill(hidden[:, None], 128)

    return _variant(plain, read, angle=_TURNS, block=_BLOCKS)


def _turned(plain: Dataset, which: Tensor, turns: Tensor) -> Tensor:
    assert plain.read is not None
    images = plain.read(which)
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(_TURNS)])
    return turned[turns.to(images.device), torch.arange(len(images), device=images.device)]


def _variant(plain: Dataset, read: Callable[[Tensor], Tensor], **factors: int) -> Dataset:
    """`plain` with every image in all combinations of further factors."""
    assert plain.table is not None
    further = torch.cartesian_prod(*(torch.arange(size) for size in factors.values())).view(-1, len(factors))
    copies = len(further)
    table = torch.cat([plain.table.repeat_interleave(copies, 0), further.repeat(plain.num_images, 1)], 1)
    return replace(
        plain,
        num_images=len(table),
        factor_names=(*plain.factor_names, *factors),
        factor_sizes=(*plain.factor_sizes, *factors.values()),
        read=read,
        table=table,
    )


def _idx(path: Path, rank: int) -> np.ndarray:
    """The uint8 array of an IDX file (magic 0, 0, 8, number of axes; big-endian sizes)."""
    with sound(path, "IDX file"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        expect(path, "first four bytes", file.read(4), bytes([0, 0, 8, rank]))
        shape = np.frombuffer(file.read(4 * rank), ">i4")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def adrenalmnist3d(root: str | Path | None) -> Dataset:
    """The 28 slices of each volume of AdrenalMNIST3D, 1x32x32, of training, validation and test volumes in turn;
    the factors are the volume's label and the slice."""
    path = find("adrenalmnist3d", root, ["adrenalmnist3d.npz"], "MedMNIST v2 (Yang et al. 2023)")
    parts = ("train", "val", "test")
    stored = np.concatenate([images(path, f"{part}_images", (-1, _SLICES, 28, 28)) for part in parts])
    labels = np.concatenate([small(path, [f"{part}_labels"], (-1, 1), "ui") for part in parts])
    expect(path, "number of labels", len(labels), len(stored))
    slices = np.tile(np.arange(_SLICES), len(stored))[:, None]
    sizes = (2, _SLICES)
    table = as_table(path, np.concatenate([labels.repeat(_SLICES, 0), slices], 1), sizes)
    read = reader(path, stored.reshape(-1, 28, 28), pad=2)
    names = ("label", "slice")
    return Dataset("adrenalmnist3d", (1, 32, 32), len(table), names, sizes, read=read, table=table)
