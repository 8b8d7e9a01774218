"""MNIST, its rotated and blocked variants, and slices of AdrenalMNIST3D: 28 px images on 32 px, zeros around."""

import gzip
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset
from .storage import Reader, expect, find, images, read_array, reader, reading

_TURNS, _BLOCKS, _SLICES = 4, 4, 28
_SOURCE = "MNIST (LeCun et al. 1998)"


def mnist(path: Path) -> Dataset:
    """Read the training images of MNIST, 1x32x32; the factor is the digit."""
    if path.suffix == ".npz":
        stored = images(path, "x_train", (-1, 28, 28))
        labels = read_array(path, ["y_train"], (len(stored),), "ui")
    else:
        stored = _idx(path, 3)
        expect(path, "shape", stored.shape[1:], (28, 28))
        files = ["train-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz"]
        labels_path = find("mnist", path.parent, files, _SOURCE)
        labels = _idx(labels_path, 1)
        expect(labels_path, "number of labels", len(labels), len(stored))
    table = torch.from_numpy(labels[:, None].astype(np.int64))
    return Dataset("mnist", (1, 32, 32), len(stored), ("digit",), (10,), read=reader(stored, pad=2), table=table)


def rotated(path: Path, name: str, blocks: int) -> Dataset:
    """Read RMNIST (1 block) or RBMN (4 blocks).

    RMNIST shows every digit turned counter-clockwise by k * 90 degrees: image 4 i + k is MNIST's image i so turned, so
    that the images 4 i and 4 i + k are the pair (x, x turned). RBMN hides one quadrant by a grey block of 10 px: image
    16 i + 4 k + b is RMNIST's image 4 i + k with block b, by rows from the upper left. The block's size, colour and
    places are our choice.
    """
    plain = mnist(path)

    def read(index: Tensor) -> Tensor:
        index, block = index.cpu() // blocks, index.cpu() % blocks
        digits = plain.stored(index // _TURNS)
        turned = torch.stack([digits.rot90(k, (2, 3)) for k in range(_TURNS)])
        digits = turned[index % _TURNS, torch.arange(len(index), device="cpu")]
        if blocks == 1:
            return digits
        half = (torch.arange(32, device="cpu") - 6) // 10  # 0 and 1 within the blocks' rows and columns
        row, column = half == (block // 2)[:, None], half == (block % 2)[:, None]
        return digits.masked_fill((row[:, :, None] & column[:, None, :])[:, None], 128)

    cells = torch.cartesian_prod(*(torch.arange(n, device="cpu") for n in (plain.num_images, _TURNS, blocks)))
    factors = {"digit": 10, "angle": _TURNS, **({"block": blocks} if blocks > 1 else {})}
    table = torch.cat([plain.factors(cells[:, 0]), cells[:, 1 : len(factors)]], 1)
    names, sizes = tuple(factors), tuple(factors.values())
    return Dataset(name, (1, 32, 32), len(table), names, sizes, read=read, table=table)


def _idx(path: Path, rank: int) -> np.ndarray:
    """Read the uint8 array of an IDX file (magic 0, 0, 8, number of axes; big-endian sizes)."""
    with reading(path, "IDX file"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        expect(path, "first four bytes", file.read(4), bytes([0, 0, 8, rank]))
        shape = np.frombuffer(file.read(4 * rank), ">i4")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def adrenalmnist3d(path: Path) -> Dataset:
    """Read the 28 slices of each volume of AdrenalMNIST3D, 1x32x32: training, validation, then test volumes.

    The factors are the volume's label and the slice.
    """
    parts = ("train", "val", "test")
    stored = np.concatenate([images(path, f"{part}_images", (-1, _SLICES, 28, 28)) for part in parts])
    labels = np.concatenate([read_array(path, [f"{part}_labels"], (-1, 1), "ui") for part in parts])
    expect(path, "number of labels", len(labels), len(stored))
    slices = np.tile(np.arange(_SLICES), len(stored))[:, None]
    table = torch.from_numpy(np.concatenate([labels.repeat(_SLICES, 0), slices], 1).astype(np.int64))
    read = reader(stored.reshape(-1, 28, 28), pad=2)
    return Dataset("adrenalmnist3d", (1, 32, 32), len(table), ("label", "slice"), (2, _SLICES), read=read, table=table)


_MNIST_FILES = ("mnist.npz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")
READERS = {
    "mnist": Reader(_MNIST_FILES, _SOURCE, mnist),
    "rmnist": Reader(_MNIST_FILES, _SOURCE, partial(rotated, name="rmnist", blocks=1)),
    "rbmn": Reader(_MNIST_FILES, _SOURCE, partial(rotated, name="rbmn", blocks=_BLOCKS)),
    "adrenalmnist3d": Reader(("adrenalmnist3d.npz",), "MedMNIST v2 (Yang et al. 2023)", adrenalmnist3d),
}
