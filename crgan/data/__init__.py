"""Data sets by name: some are drawn from their factors, some read from published files."""

from __future__ import annotations

from pathlib import Path

from crgan.data import shapes3d, sprites
from crgan.data.dataset import Dataset
from crgan.errors import InputError

__all__ = ["NAMES", "Dataset", "load"]

_PROCEDURAL = {
    "squares": sprites.squares,
    "dsprites": sprites.dsprites,
    "circular_dsprites": sprites.circular_dsprites,
    "shapes3d_like": shapes3d.shapes3d_like,
}
NAMES = tuple(_PROCEDURAL)


def load(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of that name, one of `NAMES`.

    Without `root`, sets that can be drawn from their factors are; the others need the folder of their
    published files. Raises InputError for an unknown name and for a file that is missing or not as published.
    """
    if name not in NAMES:
        raise InputError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    return _PROCEDURAL[name]()
