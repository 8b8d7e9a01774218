"""Data sets by name: some are rendered from their factors, some read from published files."""

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from ..errors import InputError
from . import digits, photos, published, shapes3d, sprites
from .arrays import from_images
from .dataset import Dataset
from .storage import find

__all__ = ["NAMES", "READERS", "RENDERED", "Dataset", "from_images", "load"]

RENDERED = {
    "squares": sprites.squares,
    "dsprites": sprites.dsprites,
    "circular_dsprites": sprites.circular_dsprites,
    "shapes3d_like": shapes3d.shapes3d_like,
}
READERS = {**published.READERS, **photos.READERS, **digits.READERS}
NAMES = tuple({**RENDERED, **READERS, "folder": None})


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Return the data set of that name, one of `NAMES`.

    Without `root`, data sets that can be rendered from their factors are. The others are read from the folder `root` of
    their published files, "folder" from all pictures in `root`. Raises InputError for an unknown name, and for a file
    that is missing or not as published.
    """
    if name not in NAMES:
        close = get_close_matches(str(name), NAMES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(NAMES)}"
        raise InputError(f"unknown data set {name!r}; {hint}")
    if root is None and name in RENDERED:
        return replace(RENDERED[name](), source="rendered", identity="rendered")
    if root is not None and name not in READERS and name != "folder":
        raise InputError(f"{name} is rendered from its factors and has no files: leave root (--root) out")
    if root == "":
        raise InputError(f'root (--root) is ""; expected the folder of the files of {name}')
    path = None if root is None else Path(os.path.expanduser(root))
    if name == "folder":
        if path is None or not path.is_dir():
            raise InputError(f"folder needs a folder of images as root (--root), got {root}")
        return replace(photos.folder(path), source=os.path.abspath(path))
    reader = READERS[name]
    path = find(name, path, reader.files, reader.publisher)
    try:
        dataset = reader.read(path)
    except InputError as error:
        if str(path.parent) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    return replace(dataset, source=os.path.abspath(path), identity=f"{path.name}, {path.stat().st_size} bytes")
