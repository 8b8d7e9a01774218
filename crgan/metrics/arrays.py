"""What every metric does to its arguments before it computes."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, NotFiniteError


def codes_array(codes: Any, name: str, shape: str) -> Tensor:
    """`codes` (numpy or torch, any float type) as a floating tensor of the dimensions named in `shape`.

    Raises InputError for another number of dimensions or an empty array, NotFiniteError for values that are not finite.
    """
    x = float_array(codes, name, shape)
    if not all(map(math.isfinite, torch.aminmax(x))):  # a tenth of the time of isfinite(x).all()
        raise NotFiniteError(f"{name} holds values that are not finite; a model that gives them cannot be scored")
    return x


def float_array(codes: Any, name: str, shape: str) -> Tensor:
    """`codes_array` without the look at every value."""
    x = _tensor(codes)
    if x.dim() != len(shape.split()) or x.numel() == 0:
        raise InputError(f"{name} has shape {list(x.shape)}; expected a non-empty array [{shape}]")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _tensor(array: Any) -> Tensor:
    if isinstance(array, np.ndarray):  # torch takes neither negative strides nor foreign byte orders
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    x = torch.as_tensor(array).detach()
    return x if x.is_floating_point() else x.long()


def factors_array(factors: Any, codes: Tensor, name: str = "factors") -> Tensor:
    """`factors` as int64 [N, F] with the N rows of `codes`, on its device."""
    y = _tensor(factors)
    if y.dim() != 2 or y.shape[0] != codes.shape[0] or y.shape[1] == 0:
        raise InputError(f"{name} has shape {list(y.shape)}; expected [N, F] with N = {codes.shape[0]} as the codes")
    if y.is_floating_point() and not torch.equal(y, y.round()):
        raise InputError(f"{name} holds fractions; expected the integer class of each factor")
    low, high = y.aminmax(dim=0)
    if (low == high).any() and not name.startswith("test"):
        constant = int((low == high).nonzero()[0])
        raise InputError(f"{name}[:, {constant}] is constant in these {len(y)} rows; leave it out or give more rows")
    return y.to(device=codes.device, dtype=torch.int64)


def fit_and_test(codes: Any, factors: Any, test: tuple[Any, Any] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and factors to fit on and to score on; the same ones where `test` is None."""
    codes = codes_array(codes, "codes", "N K")
    factors = factors_array(factors, codes)
    if test is None:
        return codes, factors, codes, factors
    test_codes = codes_array(test[0], "test codes", "N K")
    test_factors = factors_array(test[1], test_codes, "test factors")
    if (found := (test_codes.shape[1], test_factors.shape[1])) != (wanted := (codes.shape[1], factors.shape[1])):
        raise InputError(
            f"test has {found[0]} codes and {found[1]} factors; expected the {wanted[0]} and {wanted[1]} to fit on"
        )
    return codes, factors, test_codes, test_factors


def labels_array(labels: Any, codes: Tensor, name: str = "factor") -> Tensor:
    """`labels` as int64 [G], one factor's index for each group of `codes` [G, ...]."""
    y = _tensor(labels)
    if y.shape != codes.shape[:1] or y.is_floating_point() or (y.numel() and int(y.min()) < 0):
        raise InputError(f"{name} has shape {list(y.shape)}, {y.dtype}; expected {codes.shape[0]} indices >= 0")
    return y.to(device=codes.device, dtype=torch.int64)


def active_dimensions(points: Tensor, min_std: float = 0.0, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Standard deviation of each code over `points` [N, K] (float64 [K]) and the mask of the codes that vary.

    A code varies if its deviation is at least `min_std` and `varies` says so.
    """
    columns = points.double()
    mean = columns.mean(0)
    std = ((columns - mean).square_().sum(0) / max(len(points) - ddof, 1)).sqrt()
    return std, (std >= min_std) & varies(std, mean)


def varies(std: Tensor, mean: Tensor) -> Tensor:  # float64 both
    """Whether codes of this deviation and mean are more than float32 constants, by whose deviation no group may be
    divided: one of about 1e-8 times the mean is rounding, and of one below 1e-19 the squares underflow."""
    float32 = torch.finfo(torch.float32)
    return (std > float32.eps * mean.abs()) & (std.square() >= float32.tiny)
