"""The interface of every data set, data sets of arrays in memory or mapped from a file, and a training step's draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import InputError

_CLASSES = 10  # per continuous factor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in [0, 1] with their factors of variation.

    Give either `render` or `read`. `render` draws images on the device of the request, without a host sync, so that
    `images` may run inside a captured CUDA graph.

    Factors are class numbers, `factors[:, f]` in [0, factor_sizes[f]). Without a `table` they form the full grid,
    first factor slowest, and image i is the i-th cell. With a `table` each image has its own row.
    Data sets without factors have empty `factor_names`.

    `len(dataset)`, `dataset[...]` and `torch.utils.data.DataLoader(dataset)` work as with any map-style data set.
    """

    name: str
    image_shape: tuple[int, int, int]  # C, H, W
    num_images: int
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    render: Callable[[Tensor], Tensor] | None = None  # factors [n, F] int64 -> [n, C, H, W] float32 in [0, 1]
    read: Callable[[Tensor], Tensor] | None = None  # index [n] int64 -> [n, C, H, W] integers, or floats in [0, 1]
    max_value: int = 255  # of images stored as integers: the value that becomes 1.0
    table: Tensor | None = None  # [num_images, F] int64
    continuous_factors: Tensor | None = None  # [num_images, F] float64 as measured; `table` then holds their classes
    source: str = ""  # "rendered", "memory", or the path of the file or folder that is read
    identity: str = ""  # identifies the data wherever they are stored: a run keeps it to notice a change

    def __post_init__(self) -> None:
        n, names, sizes, table = self.num_images, self.factor_names, self.factor_sizes, self.table
        if (self.render is None) == (self.read is None):
            raise InputError(f"{self.name}: expected either render or read")
        if n < 1 or len(names) != len(sizes) or (table is None and sizes and prod(sizes) != n):
            raise InputError(f"{self.name}: {n} images do not fit factors {names} of sizes {sizes}; give their table")
        if table is not None:
            expect(f"{self.name}: table", (table.dtype, *table.shape), (torch.int64, n, len(sizes)))
            self._check_factors(table)

    def images(self, x: Tensor) -> Tensor:  # [n] index or [n, F] factors, int64
        """Return images [n, C, H, W] float32 in [0, 1], on the device of `x`.

        Raises InputError for a wrong shape or type and, on the CPU, for a value out of range.
        """
        if x.dtype != torch.int64 or x.dim() not in (1, 2):
            raise InputError(f"images() takes int64 indices [n] or factors [n, F], got {x.dtype} {list(x.shape)}")
        if self.render is not None:
            if x.dim() == 1:
                return self.render(self.factors(x))
            self._check_factors(x)
            return self.render(x)
        assert self.read is not None
        index, what = x if x.dim() == 1 else self.index(x), f"{self.source or self.name}: images"
        check_range(f"{self.name}: index", index, self.num_images - 1)
        stored = self.read(index)
        expect(f"{what}: shape", tuple(stored.shape), (len(index), *self.image_shape))
        is_float = stored.is_floating_point()
        check_range(what, stored, 1 if is_float else self.max_value)
        images = stored.to(x.device).float()
        return images if is_float else images.div_(self.max_value)

    def factors(self, index: Tensor) -> Tensor:  # [n] int64
        """Return the factors [n, F] int64 of images, on the device of `index`."""
        if not self.factor_names:
            raise InputError(f"{self.name} has no factors of variation; use indices")
        check_range(f"{self.name}: index", index, self.num_images - 1)
        if self.table is not None:
            return self.table[index.to(self.table.device)].to(index.device)
        columns = []
        for size in reversed(self.factor_sizes):  # the last factor is the fastest
            columns.append(index % size)
            index = index // size
        return torch.stack(columns[::-1], -1)

    def index(self, factors: Tensor) -> Tensor:  # [n, F] int64
        """Return the index [n] of the image with each row of factors. Raises InputError without a full grid."""
        self._check_factors(factors)
        if self.table is not None:
            raise InputError(f"{self.name} has a table in place of a grid of factors; use indices")
        index = torch.zeros_like(factors[:, 0])
        for size, column in zip(self.factor_sizes, factors.unbind(1)):
            index = index * size + column
        return index

    def sample_factors(self, n: int, seed: int = 0) -> Tensor:
        """Draw the factors [n, F] of random images, int64 on the CPU."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return self.factors(torch.randint(self.num_images, (n,), generator=generator, device="cpu"))

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, key: Any) -> Tensor:
        """Return image [C, H, W] at an integer, or images [n, C, H, W] at a slice, a list, a tensor or a mask."""
        index = torch.from_numpy(np.array(np.arange(self.num_images)[key]))
        return self.images(index) if index.dim() else self.images(index[None])[0]

    def __getitems__(self, index: Sequence[int]) -> list[Tensor]:  # a DataLoader's batch, read at once
        return list(self[index])

    def _check_factors(self, factors: Tensor) -> None:
        expect(f"{self.name}: number of factors", factors.shape[1], len(self.factor_sizes))
        for name, size, column in zip(self.factor_names, self.factor_sizes, factors.unbind(1)):
            check_range(f"{self.name}: {name}", column, size - 1)


def from_images(
    images: Any, factors: Any = None, factor_names: Sequence[str] | None = None, name: str = "images"
) -> Dataset:
    """Make a data set of images in memory, with their factors if those are known.

    `images`: a tensor, an array, or a torch data set of images or (image, ...) tuples, which is read once.
    Shape [N, C, H, W], [N, H, W, C] or, for grey, [N, H, W]; whole numbers from 0 to 255 (or only 0 and 1), or floats
    in [0, 1].

    `factors` [N] or [N, F]: whole numbers are classes from 0. Floats are continuous: `continuous_factors` keeps them,
    and `factors()` gives ten equal classes from the minimum to the maximum of each.

    Raises InputError for anything else.
    """
    if not isinstance(images, Tensor | np.ndarray):
        try:
            items = [images[i] for i in range(len(images))]
            images = np.stack([_array(item[0] if isinstance(item, tuple) else item) for item in items])
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: expected a sized sequence of images of one shape: {error}") from error
    pixels = _array(images)
    shape, is_float = list(pixels.shape), pixels.dtype.kind == "f"
    is_image = len(shape) == 3 or (len(shape) == 4 and min(shape[1], shape[3]) <= 4)
    if not is_image or pixels.dtype.kind not in "biuf":
        shapes = "[N, C <= 4, H, W], [N, H, W, C] or [N, H, W]"
        raise InputError(f"{name}: expected numbers {shapes}, got {pixels.dtype} {shape}")
    check_range(f"{name}: images", pixels, 1 if is_float else 255)
    pixels = pixels.astype(np.float32 if is_float else np.uint8, copy=False)
    if len(shape) == 4 and shape[1] <= shape[3]:
        pixels = pixels.transpose(0, 2, 3, 1)
    part = np.ascontiguousarray(pixels[:: len(pixels) // 64 + 1])
    identity = f"{len(pixels)} images, hash of a part {sha256(part.data).hexdigest()[:16]}"
    max_value = 255 if pixels.max(initial=0) > 1 else 1
    fields = {"max_value": max_value, "source": "memory", "identity": identity}
    names = [factor_names] if isinstance(factor_names, str) else factor_names or ()
    return from_stored(name, pixels, names, factors, **fields)


def from_stored(name: str, stored: np.ndarray, factors: Any, rows: Any = None, **fields: Any) -> Dataset:
    """Make a data set of stored images [N, H, W] or [N, H, W, C].

    `factors` maps the names of a full grid's factors to their sizes. Else `rows` [N] or [N, F] hold the factors of each
    image, as for `from_images`, and sizes that are not given are the largest class + 1.
    """
    stored = stored[..., None] if stored.ndim == 3 else stored
    height, width, channels = stored.shape[1:]
    sizes = tuple(factors.values()) if isinstance(factors, dict) else ()
    if rows is not None:
        rows = _array(rows)
        rows = rows[:, None] if rows.ndim == 1 else rows
        expect(f"{name}: number of rows of factors, of axes", (len(rows), rows.ndim), (len(stored), 2))
        if rows.dtype.kind not in "biuf" or not np.isfinite(rows).all():
            raise InputError(f"{name}: expected finite numbers as factors, got {rows.dtype} {rows!r:.80}")
        if rows.dtype.kind == "f":
            fields["continuous_factors"] = torch.from_numpy(rows.astype(np.float64))
            low, span = rows.min(0), np.ptp(rows, 0)
            rows = np.minimum((rows - low) / np.where(span > 0, span, 1) * _CLASSES, _CLASSES - 1)
        fields["table"] = torch.from_numpy(rows.astype(np.int64))
        sizes = sizes or tuple((fields["table"].amax(0) + 1).clamp(min=1).tolist())
        factors = factors or [f"factor{f}" for f in range(len(sizes))]

    def read(index: Tensor) -> Tensor:
        return torch.from_numpy(stored[index.cpu().numpy()]).permute(0, 3, 1, 2)

    return Dataset(name, (channels, height, width), len(stored), tuple(factors), sizes, read=read, **fields)


class RealImages:
    """Draw the `size` real images of each training step by seed and step.

    Rendered ones are drawn within the step, stored ones read before it into a buffer that a captured CUDA graph reads.
    """

    def __init__(self, dataset: Dataset, size: int, seed: int, device: torch.device):
        self.dataset = dataset
        self.draw = partial(ops.random_index, size, dataset.num_images, seed)
        self.buffer = None
        if dataset.read is not None:
            self.buffer = torch.empty((size, *dataset.image_shape), dtype=torch.float32, device=device)

    def fetch(self, step: int) -> None:
        """Read the stored images of step `step`, counted from 0."""
        if self.buffer is not None:
            images = self.dataset.images(self.draw(step, device="cpu")).contiguous()
            self.buffer.copy_(images.pin_memory() if self.buffer.is_cuda else images, non_blocking=True)

    def images(self, done: Tensor) -> Tensor:  # [B, C, H, W] float32 in [0, 1]
        """Return the images of the step whose number is in the 0-d int64 tensor `done`."""
        return self.dataset.images(self.draw(done, device=done.device)) if self.buffer is None else self.buffer


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu()
    return np.asarray(values)


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise InputError(f"{what}: expected {expected}, got {got}")


def check_range(what: str, values: Tensor | np.ndarray, top: int) -> None:
    if isinstance(values, Tensor) and values.device.type != "cpu":
        return  # reading a value back would stall the device
    if not ((values >= 0) & (values <= top)).all():  # also for NaN
        raise InputError(f"{what}: expected values from 0 to {top}, got {values.min()} to {values.max()}")
