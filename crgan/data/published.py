"""Published files that hold the full grid of their factors in order."""

from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import shapes3d, sprites
from .dataset import Dataset, grid
from .storage import Reader, images, read_array, reader


def read_grid(
    path: Path,
    name: str,
    factors: dict[str, int],  # sizes, slowest first
    image: tuple[int, int] | tuple[int, int, int] = (64, 64, 3),  # as stored: H, W or H, W, C
    key: str = "images",
    values: tuple[str, ...] = (),  # names that the array of factor values goes by
    max_value: int = 255,
) -> Dataset:
    """Map the images from the file; image i is the i-th cell of the grid of factors."""
    sizes = tuple(factors.values())
    stored = images(path, key, (prod(sizes), *image), max_value)
    if values:
        check_order(path, values[0], read_array(path, values, (prod(sizes), len(sizes)), "f"), sizes)
    shape = (image[2] if len(image) == 3 else 1, image[0], image[1])
    return grid(name, factors, shape, read=reader(stored), max_value=max_value)


def check_order(path: Path, key: str, values: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Raise InputError unless row i of `values` [N, F] holds the factor values of cell i of the grid."""
    table = values.reshape(*sizes, len(sizes))
    for f, size in enumerate(sizes):
        column = np.moveaxis(table[..., f], f, -1)
        steps = column.reshape(-1, size)[0]
        if not (np.diff(steps) > 0).all() or (column != steps).any():
            raise InputError(f"{path}: {key} should run through the grid of factors in order; column {f} does not")


_DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
_VALUES = ("latents_values", "latents/values")
_read_flat = partial(read_grid, image=(64, 64), key="imgs", values=_VALUES, max_value=1)
_MPI3D = {"color": 6, "shape": 6, "size": 2, "camera": 3, "background": 3, "dof1": 40, "dof2": 40}
_MPI3D_FILES = {name: f"mpi3d_{name}.npz" for name in ("toy", "realistic", "real")}
_MPI3D_FILES["complex"] = "real3d_complicated_shapes_ordered.npz"

READERS = {
    "dsprites": Reader(
        (f"{_DSPRITES}.npz", f"{_DSPRITES}.hdf5"),
        "dSprites (Matthey et al. 2017, google-deepmind/dsprites-dataset on GitHub)",
        partial(_read_flat, name="dsprites", factors=sprites.DSPRITES),
    ),
    "circular_dsprites": Reader(
        ("cdsprites_ndarray_64x64.npz",),
        "InfoGAN-CR (Lin et al. 2020, fjxmlzn/InfoGAN-CR on GitHub)",
        partial(_read_flat, name="circular_dsprites", factors=sprites.CIRCULAR),
    ),
    "shapes3d": Reader(
        ("3dshapes.h5",),
        "Shapes3D (Burgess and Kim 2018, google-deepmind/3d-shapes on GitHub)",
        partial(read_grid, name="shapes3d", factors=shapes3d.FACTORS, values=("labels",)),
    ),
}
for _name, _file in _MPI3D_FILES.items():
    _factors = {**_MPI3D, "color": 4, "shape": 4} if _name == "complex" else _MPI3D
    READERS[f"mpi3d_{_name}"] = Reader(
        (_file,),
        "MPI3D (Gondal et al. 2019, rr-learning/disentanglement_dataset on GitHub)",
        partial(read_grid, name=f"mpi3d_{_name}", factors=_factors),
    )
