"""Data sets by name: some are rendered from their factors, some read from published files."""

import os
from dataclasses import replace
from pathlib import Path

from ..errors import InputError, check_name
from .dataset import Dataset, RealImages, from_images
from .readers import READERS, folder, reading
from .rendered import RENDERED

__all__ = ["NAMES", "READERS", "RENDERED", "Dataset", "RealImages", "from_images", "load"]

NAMES = tuple(dict.fromkeys([*RENDERED, *READERS, "folder"]))


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
    if reader is None and name != "folder":
        raise InputError(f"{name} is rendered from its factors and has no files: leave root (--root) out")
    needed = f"{' or '.join(reader.files)}, published with {reader.publisher}" if reader else "pictures"
    if not root:
        raise InputError(f"{name} is read from {needed}: expected their folder as root (--root), got {root!r}")
    path = Path(root).expanduser()
    if reader is None:
        return folder(path)
    candidates = [path] if path.name in reader.files else [path / file for file in reader.files]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(f"{name} needs {needed}; {root} has none")
    with reading(file):
        dataset = reader.read(file)
    return replace(dataset, source=os.path.abspath(file), identity=f"{file.name}, {file.stat().st_size} bytes")
