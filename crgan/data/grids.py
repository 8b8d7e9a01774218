"""Published files that hold the full grid of their factors in order."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from crgan.data import shapes3d, sprites
from crgan.data.dataset import Dataset, grid
from crgan.data.storage import check_grid, find, images, reader, small


@dataclass(frozen=True)
class Published:
    files: tuple[str, ...]
    factors: dict[str, int]  # sizes, slowest first
    image: tuple[int, int] | tuple[int, int, int]  # H, W or H, W, C, as stored
    source: str
    key: str = "images"
    values: tuple[str, ...] = ()  # names that the array of factor values goes by
    levels: int = 255


_MPI3D = {"color": 6, "shape": 6, "size": 2, "camera": 3, "background": 3, "dof1": 40, "dof2": 40}
_MPI3D_SOURCE = "MPI3D (Gondal et al. 2019, rr-learning/disentanglement_dataset on GitHub)"
_DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"

PUBLISHED = {
    "dsprites": Published(
        (f"{_DSPRITES}.npz", f"{_DSPRITES}.hdf5"),
        sprites.DSPRITES,
        (64, 64),
        "dSprites (Matthey et al. 2017, google-deepmind/dsprites-dataset on GitHub)",
        "imgs",
        ("latents_values", "latents/values"),
        levels=1,
    ),
    "circular_dsprites": Published(
        ("cdsprites_ndarray_64x64.npz",),
        sprites.CIRCULAR,
        (64, 64),
        "InfoGAN-CR (Lin et al. 2020, fjxmlzn/InfoGAN-CR on GitHub)",
        "imgs",
        ("latents_values",),
        levels=1,
    ),
    "shapes3d": Published(
        ("3dshapes.h5",),
        shapes3d.FACTORS,
        (64, 64, 3),
        "Shapes3D (Burgess and Kim 2018, google-deepmind/3d-shapes on GitHub)",
        values=("labels",),
    ),
    **{
        f"mpi3d_{kind}": Published((f"mpi3d_{kind}.npz",), _MPI3D, (64, 64, 3), _MPI3D_SOURCE)
        for kind in ("toy", "realistic", "real")
    },
    "mpi3d_complex": Published(
        ("real3d_complicated_shapes_ordered.npz",),
        {**_MPI3D, "color": 4, "shape": 4},
        (64, 64, 3),
        _MPI3D_SOURCE,
    ),
}


def published(name: str, root: str | Path | None) -> Dataset:
    """A set of `PUBLISHED`, its images mapped from the file; image i is the i-th cell of the grid of factors."""
    what = PUBLISHED[name]
    path = find(name, root, what.files, what.source)
    sizes = tuple(what.factors.values())
    stored = images(path, what.key, (prod(sizes), *what.image))
    if what.values:
        values = small(path, what.values, (prod(sizes), len(sizes)), "f")
        check_grid(path, what.values[0], values, sizes)
    shape = (what.image[2] if len(what.image) == 3 else 1, *what.image[:2])
    return grid(name, what.factors, shape, read=reader(path, stored, what.levels), levels=what.levels)
