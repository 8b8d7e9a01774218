"""The interface of every data set: images by index or by factors, and the arithmetic between the two."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in [0, 1] with their factors of variation.

    Give either `render` or `read`. `render` draws images on the device of the request, without a host sync, so that
    `images` may run inside a captured CUDA graph.

    Factors are class numbers, `factors[:, f]` in [0, factor_sizes[f]). Without a `table` they form the full grid,
    slowest first, and image i is the i-th cell. With a `table` each image has its own row; cells may then hold many
    images or none. Data sets without factors have empty `factor_names`.

    `len(dataset)`, `dataset[...]` and `torch.utils.data.DataLoader(dataset)` work as with any map-style data set.
    """

    name: str
    image_shape: tuple[int, int, int]  # C, H, W
    num_images: int
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    render: Callable[[Tensor], Tensor] | None = None  # factors [n, F] int64 -> [n, C, H, W] float32 in [0, 1]
    read: Callable[[Tensor], Tensor] | None = None  # index [n] int64 -> [n, C, H, W] uint8, or floats in [0, 1]
    max_value: int = 255  # of images stored as uint8: what becomes 1.0
    table: Tensor | None = None  # [num_images, F] int64
    continuous_factors: Tensor | None = None  # [num_images, F] float64 as measured; `table` then holds their classes
    source: str = ""  # "rendered", "memory", or the path of the file or folder that is read
    identity: str = ""  # tells data apart wherever they lie: a run stores it to notice that its data changed

    def __post_init__(self) -> None:
        sizes, shape = self.factor_sizes, (self.num_images, len(self.factor_sizes))
        if (self.render is None) == (self.read is None):
            raise InputError(f"{self.name} should have either render or read")
        if self.num_images < 1:
            raise InputError(f"{self.name} holds no images")
        if len(self.factor_names) != len(sizes):
            raise InputError(f"{self.name}: {self.factor_names} should name {len(sizes)} factors")
        if self.table is None:
            if sizes and prod(sizes) != self.num_images:
                cells = f"{prod(sizes)} combinations of its factors {sizes}"
                raise InputError(f"{self.name} has {self.num_images} images for {cells}; give the factors as table")
            return
        if self.table.dtype != torch.int64 or self.table.shape != shape:
            got = f"{self.table.dtype} {list(self.table.shape)}"
            raise InputError(f"{self.name}: table should be int64 {list(shape)}, got {got}")
        if prod(sizes) >= 2**63:
            raise InputError(f"{self.name}: {sizes} are too many combinations of factors to number")
        self._checked(self.table)

    def images(
        self,
        x: Tensor,  # [n] index or [n, F] factors, int64
    ) -> Tensor:
        """Return images [n, C, H, W] float32 in [0, 1], on the device of `x`.

        Raises InputError for a wrong shape or type and, on the CPU, for a value out of range.
        """
        if x.dtype != torch.int64 or x.dim() not in (1, 2):
            raise InputError(f"images() takes int64 indices [n] or factors [n, F], got {x.dtype} {list(x.shape)}")
        if self.render is not None:
            return self.render(self._checked(x) if x.dim() == 2 else self.factors(x))
        index = self._checked(x) if x.dim() == 1 else self.index(x)
        return self.to_float(self.stored(index).to(x.device))

    def stored(
        self,
        index: Tensor,  # [n] int64
    ) -> Tensor:
        """Read images [n, C, H, W] as they are stored: uint8 in 0..max_value, or float32 in [0, 1]."""
        assert self.read is not None
        images = self.read(index)
        shape, is_float = (len(index), *self.image_shape), images.is_floating_point()
        if images.shape != shape or not (is_float or images.dtype == torch.uint8):
            got = f"{images.dtype} {list(images.shape)}"
            raise InputError(f"{self.name}: read() should return uint8 or floats {list(shape)}, got {got}")
        top = 1 if is_float else self.max_value
        if top < 255 and len(index) and images.device.type == "cpu":
            low, high = torch.aminmax(images)
            if not (low >= 0 and high <= top):  # also for NaN
                got = f"{images.dtype} from {low:g} to {high:g}"
                raise InputError(f"{self.source or self.name}: images should lie in 0 to {top}, got {got}")
        return images.float() if is_float else images

    def to_float(self, stored: Tensor) -> Tensor:
        """Scale images from `stored` to float32 in [0, 1]."""
        return stored.float().div_(self.max_value) if stored.dtype == torch.uint8 else stored

    def factors(
        self,
        index: Tensor,  # [n] int64
    ) -> Tensor:
        """Return the factors [n, F] int64 of images, on the device of `index`."""
        self._need_factors()
        index = self._checked(index)
        if self.table is not None:
            return self.table[index.to(self.table.device)].to(index.device)
        steps = (prod(self.factor_sizes[f + 1 :]) for f in range(len(self.factor_sizes)))
        return torch.stack([index // step % size for step, size in zip(steps, self.factor_sizes)], -1)

    def index(
        self,
        factors: Tensor,  # [n, F] int64
    ) -> Tensor:
        """Return the index [n] of an image with each row of factors.

        Where a cell holds several images, consecutive rows get different ones. Raises InputError where no image has the
        factors.
        """
        self._need_factors()
        cell = self._cell(self._checked(factors))
        if self.table is None:
            return cell
        cells, order = self._sorted_cells
        wanted = cell.to(cells.device)
        first, last = torch.searchsorted(cells, wanted), torch.searchsorted(cells, wanted, right=True)
        missing = (first == last).nonzero()
        if len(missing):
            lacking = factors[missing[0, 0]].tolist()
            raise InputError(f"{self.name} has no image with factors {lacking}; draw them by sample_factors()")
        row = torch.arange(len(wanted), device=cells.device)
        return order[first + (row + wanted) % (last - first)].to(factors.device)

    def sample_factors(self, n: int, seed: int = 0) -> Tensor:
        """Draw factors [n, F] int64 on the CPU, uniformly over the grid (with a table: over its rows)."""
        self._need_factors()
        generator = torch.Generator("cpu").manual_seed(seed)
        sizes = (self.num_images,) if self.table is not None else self.factor_sizes
        drawn = [torch.randint(size, (n,), generator=generator, device="cpu") for size in sizes]
        return torch.stack(drawn, -1) if self.table is None else self.table.cpu()[drawn[0]]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, key: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return image [C, H, W] at an integer, or images [n, C, H, W] at a slice, a list or a tensor."""
        n = len(self)
        if isinstance(key, slice):
            return self.images(torch.arange(*key.indices(n), device="cpu"))
        if np.ndim(key) == 0:
            index = operator.index(key)  # type: ignore[arg-type]
            if not -n <= index < n:
                raise IndexError(f"{self.name} has {n} images, got index {index}")
            return self.images(torch.tensor([index % n], device="cpu"))[0]
        rows = torch.as_tensor(key, device=getattr(key, "device", "cpu"))
        if rows.dim() != 1 or rows.dtype == torch.bool or (rows.is_floating_point() and len(rows)):
            raise InputError(f"{self.name}[...] takes an integer, a slice or integers [n], got {key!r:.80}")
        rows = rows.long()
        return self.images(torch.where(rows < 0, rows + n, rows))

    def __getitems__(self, index: Sequence[int]) -> list[Tensor]:
        """Return images of a DataLoader's batch, read at once."""
        return list(self[index])

    @cached_property
    def _sorted_cells(self) -> tuple[Tensor, Tensor]:
        assert self.table is not None
        cells, order = self._cell(self.table).sort(stable=True)
        return cells, order

    def _cell(self, factors: Tensor) -> Tensor:
        cell = factors[:, 0]
        for f, size in enumerate(self.factor_sizes[1:], 1):
            cell = cell * size + factors[:, f]
        return cell

    def _need_factors(self) -> None:
        if not self.factor_names:
            raise InputError(f"{self.name} has no factors of variation; use indices")

    def _checked(self, x: Tensor) -> Tensor:
        names, sizes = self.factor_names, self.factor_sizes
        if x.dim() == 2 and x.shape[1] != len(sizes):
            raise InputError(f"{self.name} has {len(sizes)} factors {names}, got {x.shape[1]} columns")
        if x.device.type != "cpu" or not len(x):  # reading a value back would stall the device
            return x
        columns = zip(names, sizes, x.unbind(1)) if x.dim() == 2 else [("index", self.num_images, x)]
        for what, size, column in columns:
            low, high = torch.aminmax(column)
            if low < 0 or high >= size:
                raise InputError(f"{self.name}: {what} runs from 0 to {size - 1}, got {int(low)} to {int(high)}")
        return x


def grid(name: str, factors: dict[str, int], image_shape: tuple[int, int, int], **fields: Any) -> Dataset:
    """Make a data set whose images are the cells of a full grid of `factors`, slowest first."""
    sizes = tuple(factors.values())
    return Dataset(name, image_shape, prod(sizes), tuple(factors), sizes, **fields)
