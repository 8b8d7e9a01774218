"""Data sets of images that are already in memory."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .dataset import Dataset

_CLASSES = 10  # per continuous factor


def from_images(
    images: Any, factors: Any = None, factor_names: Sequence[str] | None = None, name: str = "images"
) -> Dataset:
    """Make a data set of images in memory, and of their factors where those are known.

    `images`: a tensor, an array, or a torch data set of images or (image, label) pairs, which is read once; numeric
    labels serve as factors. Shape [N, C, H, W], [N, H, W, C] or, for grey, [N, H, W]; whole numbers from 0 to 255 (or
    only 0 and 1), or floats in [0, 1].

    `factors` [N] or [N, F]: whole numbers are classes from 0. Floats are continuous: `continuous_factors` keeps them,
    and `factors()` gives ten equal classes from the minimum to the maximum of each.

    Raises InputError for what does not fit.
    """
    if not isinstance(images, Tensor | np.ndarray):
        if not hasattr(images, "__len__"):
            raise InputError(f"{name}: expected a tensor, an array or a data set with a length, got {images!r:.80}")
        items = [images[i] for i in range(len(images))]
        if items and isinstance(items[0], tuple):
            labels = [_array(item[1]) for item in items if len(item) > 1]
            items = [item[0] for item in items]
            if factors is None and labels and all(label.dtype.kind in "biuf" for label in labels):
                factors = _stack(name, labels)
                factor_names = factor_names or (["label"] if factors.ndim == 1 else None)
        images = _stack(name, [_array(item) for item in items])
    pixels = _pixels(name, _array(images))
    some = np.ascontiguousarray(pixels[:: len(pixels) // 64 + 1])
    return Dataset(
        name,
        pixels.shape[1:],
        len(pixels),
        read=lambda index: torch.from_numpy(pixels[index.cpu().numpy()]),
        max_value=255 if pixels.max() > 1 else 1,
        source="memory",
        identity=f"{len(pixels)} images, hash of a part {sha256(some.data).hexdigest()[:16]}",
        **({} if factors is None else _factors(name, _array(factors), len(pixels), factor_names)),
    )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    if len(shapes := {array.shape for array in arrays}) != 1:
        raise InputError(f"{name}: expected images, or labels, of one shape, got {sorted(shapes)[:3] or 'none'}")
    return np.stack(arrays)


def _pixels(name: str, array: np.ndarray) -> np.ndarray:
    """Return images [N, C, H, W], uint8 or float32."""
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[3] < shape[1]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] > 4 or 0 in shape:
        raise InputError(
            f"{name}: expected images [N, C <= 4, H, W], [N, H, W, C <= 4] or [N, H, W], got {list(shape)}"
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers as images, got {array.dtype}")
    low, high, is_float = array.min(), array.max(), array.dtype.kind == "f"
    if not (low >= 0 and high <= (1 if is_float else 255)):  # also for NaN
        got = f"{array.dtype} from {low} to {high}"
        raise InputError(f"{name}: expected images of floats in [0, 1] or of whole numbers from 0 to 255, got {got}")
    return array.astype(np.float32 if is_float else np.uint8, copy=False)


def _factors(name: str, values: np.ndarray, count: int, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the fields of `Dataset` that describe factors."""
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != count or not values.shape[1] or values.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers [{count}, F] as factors, got {values.dtype} {list(values.shape)}")
    continuous = None
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(f"{name}: factors should be finite, got {values[~np.isfinite(values)][0]}")
        continuous = torch.from_numpy(values.astype(np.float64))
        low, span = values.min(0), np.ptp(values, 0)
        values = np.minimum((values - low) / np.where(span > 0, span, 1) * _CLASSES, _CLASSES - 1)
    table = torch.from_numpy(values.astype(np.int64))
    sizes = tuple((table.amax(0) + 1).clamp(min=1).tolist())
    names = tuple(names or (f"factor{f}" for f in range(len(sizes))))
    return {"factor_names": names, "factor_sizes": sizes, "table": table, "continuous_factors": continuous}
