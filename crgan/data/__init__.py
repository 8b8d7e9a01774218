"""Data sets by name: some are drawn from their factors, some read from published files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from crgan.data import digits, grids, objects, pictures, shapes3d, sprites
from crgan.data.dataset import Dataset
from crgan.errors import InputError

__all__ = ["NAMES", "RENDERED", "Dataset", "load"]

RENDERED = {
    "squares": sprites.squares,
    "dsprites": sprites.dsprites,
    "circular_dsprites": sprites.circular_dsprites,
    "shapes3d_like": shapes3d.shapes3d_like,
}
_READ: dict[str, Callable[[str | Path | None], Dataset]] = {
    **{name: partial(grids.published, name) for name in grids.PUBLISHED},
    "cars3d": objects.cars3d,
    "smallnorb": objects.smallnorb,
    "teapots": objects.teapots,
    "celeba": pictures.celeba,
    "mnist": digits.mnist,
    "rmnist": digits.rmnist,
    "rbmn": digits.rbmn,
    "adrenalmnist3d": digits.adrenalmnist3d,
    "folder": pictures.folder,
}
NAMES = tuple({**RENDERED, **_READ})


def load(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of that name, one of `NAMES`.

    Without `root`, sets that can be drawn from their factors are; the others need the folder of their
    published files. Raises InputError for an unknown name and for a file that is missing or not as published.
    """
    if name not in NAMES:
        raise InputError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    if name in RENDERED and root is None:
        return RENDERED[name]()
    if name not in _READ:
        raise InputError(f"{name} is drawn from its factors and has no files: leave root (--root) out")
    return _READ[name](root)
