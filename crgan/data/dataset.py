"""What every data set offers: images by index or by factors, and the arithmetic between the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from crgan.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Images in [0, 1] with their factors of variation.

    Exactly one of `render` and `read` is set. Where `render` is set, images are drawn from their factors on
    the device of the request, without a host sync, so that `images` may run inside a captured CUDA graph.

    Factors are class numbers, `factors[:, f]` in [0, factor_sizes[f]). Without a `table` they form the full
    grid, slowest first, and image `i` is the i-th cell. With a `table` each image has its own row; cells may
    then hold many images or none. Sets without factors have empty `factor_names`.
    """

    name: str
    image_shape: tuple[int, int, int]  # C, H, W
    num_images: int
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    render: Callable[[Tensor], Tensor] | None = None  # factors [n, F] int64 -> [n, C, H, W] float32 in [0, 1]
    read: Callable[[Tensor], Tensor] | None = None  # index [n] int64 -> [n, C, H, W] uint8 in 0..levels
    levels: int = 255
    table: Tensor | None = None  # [num_images, F] int64
    groups: Dataset | None = None  # ready-made groups of 100 images; the table says which factor a group shares

    def images(
        self,
        x: Tensor,  # [n] index or [n, F] factors, int64
    ) -> Tensor:
        """Images [n, C, H, W] float32 in [0, 1], on the device of `x`. Raises InputError for a shape, type or
        (on the CPU) a value out of range."""
        if x.dtype != torch.int64 or x.dim() not in (1, 2):
            raise InputError(f"images() takes int64 indices [n] or factors [n, F], got {x.dtype} {list(x.shape)}")
        if self.render is not None:
            return self.render(self._checked(x) if x.dim() == 2 else self.factors(x))
        assert self.read is not None
        index = self._checked(x) if x.dim() == 1 else self.index(x)
        return self.read(index).to(x.device).to(torch.float32).div_(self.levels)

    def factors(
        self,
        index: Tensor,  # [n] int64
    ) -> Tensor:
        """Factors [n, F] int64 of images, on the device of `index`."""
        self._need_factors()
        index = self._checked(index)
        if self.table is not None:
            return self.table[index.to(self.table.device)].to(index.device)
        columns: list[Tensor] = []
        for size in reversed(self.factor_sizes):
            columns.insert(0, index % size)
            index = index // size
        return torch.stack(columns, -1)

    def index(
        self,
        factors: Tensor,  # [n, F] int64
    ) -> Tensor:
        """Index [n] of an image with these factors. Where a cell holds several images, consecutive rows of
        the request get different ones. Raises InputError where no image has the factors."""
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

    def sample_factors(self, n: int, seed: int) -> Tensor:
        """Factors [n, F] int64 on the CPU, uniform over the grid (of a table: over its rows)."""
        self._need_factors()
        generator = torch.Generator().manual_seed(seed)
        if self.table is not None:
            return self.table.cpu()[torch.randint(self.num_images, (n,), generator=generator)]
        return torch.stack([torch.randint(size, (n,), generator=generator) for size in self.factor_sizes], -1)

    @cached_property
    def _sorted_cells(self) -> tuple[Tensor, Tensor]:
        assert self.table is not None
        cells, order = self._cell(self.table).sort(stable=True)
        return cells, order

    def _cell(self, factors: Tensor) -> Tensor:
        cell = factors[:, 0]
        for f in range(1, len(self.factor_sizes)):
            cell = cell * self.factor_sizes[f] + factors[:, f]
        return cell

    def _need_factors(self) -> None:
        if not self.factor_names:
            raise InputError(f"{self.name} has no factors of variation; use indices")

    def _checked(self, x: Tensor) -> Tensor:
        width = len(self.factor_sizes)
        if x.dim() == 2 and x.shape[1] != width:
            raise InputError(f"{self.name} has {width} factors {self.factor_names}, got {x.shape[1]} columns")
        if x.device.type != "cpu" or not len(x):  # reading a value back would stall the device
            return x
        for f, size in enumerate(self.factor_sizes if x.dim() == 2 else (self.num_images,)):
            low, high = torch.aminmax(x[:, f] if x.dim() == 2 else x)
            if low < 0 or high >= size:
                what = f"factor {self.factor_names[f]}" if x.dim() == 2 else "index"
                raise InputError(f"{self.name}: {what} runs from 0 to {size - 1}, got {int(low)} to {int(high)}")
        return x


def grid(name: str, factors: dict[str, int], image_shape: tuple[int, int, int], **how) -> Dataset:
    """A set whose images are the cells of a full grid of `factors`, slowest first."""
    sizes = tuple(factors.values())
    return Dataset(name, image_shape, prod(sizes), tuple(factors), sizes, **how)
