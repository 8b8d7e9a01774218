"""Checks and conversions that the metrics share."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, NotFiniteError

Array = NDArray[Any]


def codes_array(codes: Any, name: str, shape: str) -> Tensor:
    """Return `codes` (torch, numpy, pandas, lists) as a float32 or float64 tensor of the dimensions named in `shape`.

    Raises InputError for what holds no numbers, another number of dimensions or an empty array, NotFiniteError for
    values that are not finite.
    """
    x = _tensor(codes, name)
    if x.dim() != len(shape.split()) or x.numel() == 0:
        raise InputError(f"{name} has shape {list(x.shape)}; expected a non-empty array [{shape}]")
    x = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    if not all(map(math.isfinite, torch.aminmax(x))):  # a tenth of the time of isfinite(x).all()
        raise NotFiniteError(f"{name} holds values that are not finite; a model that gives them cannot be scored")
    return x


def factors_array(factors: Any, num_rows: int, name: str = "factors", continuous: bool = False) -> Array:
    """Return `factors` as [num_rows, F]: int64 classes, or float64 where some column holds fractions.

    Raises InputError for another shape, for a column without variation and, unless `continuous`, for fractions.
    """
    y = _classes(factors, name)
    if y.dim() != 2 or len(y) != num_rows or y.shape[1] == 0:
        raise InputError(f"{name} has shape {list(y.shape)}; expected [N, F] with N = {num_rows} as the codes")
    if y.is_floating_point() and not continuous:
        raise InputError(f"{name} holds fractions, and this metric needs classes; expected the class of each factor")
    constant = (y == y[0]).all(0)
    if constant.any() and not name.startswith("test"):
        f = int(constant.nonzero()[0])
        raise InputError(f"{name}[:, {f}] is constant in these {len(y)} rows; leave it out or give more rows")
    return y.numpy(force=True)


def is_continuous(factors: Array) -> Array:  # [N, F] -> [F] bool
    """Return which factors hold fractions."""
    return (factors != np.round(factors)).any(0)


def fit_and_test(
    codes: Any, factors: Any, test: tuple[Any, Any] | None, continuous: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Return codes and factors to fit on and to score on; the same ones where `test` is None."""
    x = codes_array(codes, "codes", "N K").numpy(force=True)
    y = factors_array(factors, len(x), continuous=continuous)
    if test is None:
        return x, y, x, y
    test_x = codes_array(test[0], "test codes", "N K").numpy(force=True)
    test_y = factors_array(test[1], len(test_x), "test factors", continuous)
    found, expected = (test_x.shape[1], test_y.shape[1]), (x.shape[1], y.shape[1])
    if found != expected:
        raise InputError(
            f"test has {found[0]} codes and {found[1]} factors; expected the {expected[0]} and {expected[1]} to fit on"
        )
    return x, y, test_x, test_y


def labels_array(labels: Any, codes: Tensor, name: str = "factor") -> Tensor:
    """Return `labels` as int64 [G] on the device of `codes` [G, ...]: the index of each group's factor."""
    y = _classes(labels, name)
    if y.shape != codes.shape[:1] or y.is_floating_point() or (y.numel() and int(y.min()) < 0):
        raise InputError(f"{name} has shape {list(y.shape)}, {y.dtype}; expected {codes.shape[0]} indices >= 0")
    return y.to(codes.device)


def active_dimensions(points: Any, min_std: float = 0.0, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of each code over `points` [N, K] (float64 [K]) and the mask of those that vary.

    A code varies if its standard deviation is at least `min_std` and `varies` says so.
    """
    columns = torch.as_tensor(points).double()
    mean = columns.mean(0)
    std = ((columns - mean).square_().sum(0) / max(len(columns) - ddof, 1)).sqrt()
    return std, (std >= min_std) & varies(std, mean)


def varies(std: Tensor, mean: Tensor) -> Tensor:  # float64 both
    """Return whether codes of this standard deviation and mean are more than float32 constants.

    A deviation of about 1e-8 times the mean is rounding. Squares of one below 1e-19 underflow.
    """
    float32 = torch.finfo(torch.float32)
    return (std > float32.eps * mean.abs()) & (std.square() >= float32.tiny)


def _classes(values: Any, name: str) -> Tensor:
    """Return whole numbers as int64, numbers with fractions as float64."""
    y = _tensor(values, name)
    if not y.is_floating_point():
        return y
    y = y.double()
    if not y.isfinite().all():
        raise NotFiniteError(f"{name} holds values that are not finite; expected a value of each factor")
    return y.long() if torch.equal(y, y.round()) else y


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        x = values.detach()
    else:
        try:
            array = np.asarray(values)
            dtype = np.float64 if array.dtype == object else array.dtype.newbyteorder("=")  # type: ignore[union-attr]
            x = torch.from_numpy(np.require(array, dtype, ["C", "W"]))  # torch takes no negative strides
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} is no array of numbers ({error}); expected a tensor, an array or lists") from None
    if x.is_complex():
        raise InputError(f"{name} holds complex numbers; expected real ones")
    return x if x.is_floating_point() else x.long()
