"""Published files, mapped into memory, so that no large array is ever loaded whole.

uint8 images that lie uncompressed in an .npz file are mapped in place. All others are converted once, with a progress
bar, into a file of plain bytes in the cache folder, $CRGAN_CACHE or ~/.cache/crgan.
"""

import errno
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..errors import InputError
from ..files import lock, named_errors, write_atomically
from .dataset import check_range, expect

_BLOCK = 1 << 24  # bytes converted at a time


class FileError(InputError):
    """Names the file that cannot be used."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign file causes into one error that names it."""
    try:
        with named_errors(path):
            yield
    except (FileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a damaged offset
            raise  # the system could not open or read the file: that is no damage
        raise FileError(f"{path} is damaged or not as expected: {error}; replace or remove it") from error


def images(path: Path, key: str, shape: tuple[int, ...], max_value: int = 255) -> np.ndarray:
    """Map the images `key` [N, *shape] of an .npz or HDF5 file as uint8: floats in [0, 1] become 0..max_value."""
    name = f"{path.stem}-{key}"
    if path.suffix != ".npz":
        with h5py.File(path, locking=False) as file:
            data = file[key]
            expect(f"{key}: shape of an image", data.shape[1:], shape)
            chunk = data.chunks[0] if data.chunks else 1  # a part of a chunk costs as much to unpack as all of it
            step = chunk * max(1, _BLOCK // (data.dtype.itemsize * prod(shape)) // chunk)
            blocks = (data[start : start + step] for start in range(0, len(data), step))
            return cached(name, [path], data.shape, blocks, max_value)
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        np.lib.format.read_magic(member)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        expect(f"{key}: shape of an image, Fortran order", (found[1:], fortran), (shape, False))
        entry, step = archive.getinfo(f"{key}.npy"), max(1, _BLOCK // (row := dtype.itemsize * prod(shape)))
        if dtype == np.uint8 and entry.compress_type == zipfile.ZIP_STORED:
            with open(path, "rb") as raw:  # the member's own header may be longer than the directory says
                raw.seek(entry.header_offset + 26)
                names = np.frombuffer(raw.read(4), "<u2").sum(dtype=int)
            return np.memmap(path, np.uint8, "r", entry.header_offset + 30 + int(names) + member.tell(), found)
        parts = (member.read(step * row) for _ in range(0, found[0], step))
        blocks = (np.frombuffer(part, dtype).reshape(-1, *shape) for part in parts)
        return cached(name, [path], found, blocks, max_value)


def cached(
    name: str, sources: Sequence[Path], shape: tuple[int, ...], blocks: Iterable[np.ndarray], max_value: int = 255
) -> np.ndarray:
    """Map uint8 images of `shape` [N, ...] from a file that is made on first use of the images that `blocks` yields.

    Floats in [0, 1] become 0..max_value. The file's name depends on the paths, sizes and times of `sources`, so that
    changed ones are converted anew. One process converts while others wait.
    """
    stats = [(os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    folder = Path(os.path.expanduser(os.environ.get("CRGAN_CACHE") or "~/.cache/crgan"))
    target = folder / f"{name}-{sha256(repr(stats).encode()).hexdigest()[:16]}.uint8"

    def write(temporary: Path) -> None:
        done = 0
        with temporary.open("wb") as file, Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"Converting {name} once", total=shape[0])
            for block in blocks:
                is_float = block.dtype.kind == "f"
                check_range(name, block, 1 if is_float else max_value)
                file.write(np.ascontiguousarray((block * max_value).round() if is_float else block, np.uint8).data)
                progress.update(task, completed=(done := done + len(block)))
        expect("number of images", done, shape[0])

    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, timeout=-1):
            if not target.is_file():
                write_atomically(target, write)
    with reading(target):
        return np.memmap(target, np.uint8, "r", shape=shape)
