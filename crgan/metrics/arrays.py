"""Checks of arrays that the metrics share."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, NotFiniteError

Array = NDArray[Any]
Pair = tuple[Any, Any]  # codes and factors, or groups and the factor that each shares
Scores = dict[str, Any]


def tensor(values: Any, name: str, shape: str) -> Tensor:
    """Return numbers (torch, numpy, pandas, lists) as float32 or float64, with the dimensions named in `shape`.

    Raises InputError for what holds no real numbers, another number of dimensions or an empty array, NotFiniteError for
    values that are not finite.
    """
    try:
        if not isinstance(values, Tensor):
            array = np.asarray(values)
            dtype = np.float64 if array.dtype == object else array.dtype.newbyteorder("=")  # type: ignore[union-attr]
            values = torch.from_numpy(np.require(array, dtype, ["C", "W"]))  # torch takes no negative strides
        wide = torch.promote_types(values.dtype, torch.float32 if values.is_floating_point() else torch.float64)
        x = values.detach().to(wide)
        low, high = torch.aminmax(x)  # refuses complex numbers and empty arrays
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is no array of real numbers ({error}); expected a tensor, array or lists") from None
    sizes = shape.split()
    if x.dim() != len(sizes) or any(size.isdigit() and int(size) != found for size, found in zip(sizes, x.shape)):
        raise InputError(f"{name} has shape {list(x.shape)}; expected [{shape}]")
    if not math.isfinite(low) or not math.isfinite(high):
        raise NotFiniteError(f"{name} holds values that are not finite; a model that gives them cannot be scored")
    return x


def fit_and_test(codes: Any, factors: Any, test: Pair | None = None) -> tuple[Array, Array, Array, Array]:
    """Return codes and factors to fit on, and those to score on: the same ones where `test` is None.

    Codes that are constant in the rows to fit on become 0. Raises InputError for shapes that do not agree, and for a
    factor that does not vary in these rows.
    """
    x, y = tensor(codes, "codes", "N K").numpy(force=True), tensor(factors, "factors", "N F").numpy(force=True)
    test_x, test_y = x, y
    if test is not None:
        test_x = tensor(test[0], "test codes", "M K").numpy(force=True)
        test_y = tensor(test[1], "test factors", "M F").numpy(force=True)
    if (len(x), len(test_x), x.shape[1], y.shape[1]) != (len(y), len(test_y), test_x.shape[1], test_y.shape[1]):
        train, held = f"codes {list(x.shape)}, factors {list(y.shape)}", f"{list(test_x.shape)}, {list(test_y.shape)}"
        raise InputError(f"{train}, and to test {held}; expected [N, K], [N, F], and to test [M, K], [M, F]")
    constant = (y == y[0]).all(0)
    if constant.any():
        raise InputError(f"factors[:, {constant.argmax()}] is constant in these {len(y)} rows; leave it out")
    active = active_dimensions(x)[1].numpy()
    return x * active, y, test_x * active, test_y


def group_factors(factor: Any, groups: Tensor) -> Tensor:
    """Return the index of each group's factor as int64 [G] on the device of `groups` [G, ...]."""
    y = tensor(factor, "factor", "G")
    if len(y) != len(groups) or (y != y.round()).any() or y.min() < 0:
        raise InputError(f"factor holds {len(y)} numbers from {y.min()}; expected {len(groups)} indices >= 0")
    return y.to(groups.device, torch.int64)


def active_dimensions(points: Any, min_std: float = 0.0, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Return the standard deviation (float64 [K]) of codes [N, K], and which of them vary and reach `min_std`."""
    columns = torch.as_tensor(points).double()
    mean = columns.mean(0)
    std = ((columns - mean).square_().sum(0) / max(len(columns) - ddof, 1)).sqrt()  # 5 times as fast as std_mean
    return std, (std >= min_std) & varies(std, mean)


def varies(std: Tensor, mean: Tensor) -> Tensor:  # float64 both
    """Return whether codes of this standard deviation and mean are more than float32 constants.

    A standard deviation up to 1.2e-7 times the mean is rounding; the square of one below 1e-19 underflows.
    """
    float32 = torch.finfo(torch.float32)
    return (std > float32.eps * mean.abs()) & (std.square() >= float32.tiny)
