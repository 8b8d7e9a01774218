"""Data sets by name: some are rendered from their factors, some read from published files."""

import os
from dataclasses import replace
from pathlib import Path

from ..errors import InputError, check_name
from .dataset import Dataset, RealImages, from_images
from .readers import READERS, folder, reading
from .rendered import RENDERED

__all__ = ["NAMES", "READERS", "RENDERED", "Dataset", "RealImages", "from_images", "load"]

NAMES = tuple({**RENDERED, **READERS, "folder": None})


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Return the data set of that name, one of `NAMES`.

    Without `root`, data sets that can be rendered from their factors are. The others are read from the folder `root` of
    their published files, "folder" from all pictures in `root`. Raises InputError for an unknown name, and for a file
    that is missing or not as published.
    """
    check_name("data set", name, NAMES)
    if root is None and name in RENDERED:
        return RENDERED[name]
    reader = READERS.get(name)
    if root is not None and reader is None and name != "folder":
        raise InputError(f"{name} is rendered from its factors and has no files: leave root (--root) out")
    origin = f"; it is published with {reader.publisher}" if reader else ""
    if not root:
        files = " or ".join(reader.files) if reader else "pictures"
        raise InputError(f"{name} is read from {files}: expected their folder as root (--root), got {root!r}{origin}")
    path = Path(os.path.expanduser(root))
    if reader is None:
        return replace(folder(path), source=os.path.abspath(path))
    found = [p for p in (path, *(path / file for file in reader.files)) if p.name in reader.files and p.is_file()]
    if not found:
        raise InputError(f"{name} needs {' or '.join(reader.files)} in {root}, which has none{origin}")
    with reading(path := found[0]):
        dataset = reader.read(path)
    return replace(dataset, source=os.path.abspath(path), identity=f"{path.name}, {path.stat().st_size} bytes")
