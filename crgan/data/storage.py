"""Published files: found, checked, and mapped into memory, so that no large array is ever loaded whole.

uint8 images that lie uncompressed in an .npz file are mapped in place. All others are converted once, with a progress
bar, into an .npy file in the user's cache folder: $CRGAN_CACHE, else `crgan` in $XDG_CACHE_HOME or in ~/.cache.
"""

import errno
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

import h5py
import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from ..errors import InputError
from ..files import lock, write_atomically
from .dataset import Dataset

_BLOCK = 1 << 24  # bytes converted at a time
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """A published data set: its files, of which one is needed, where to get them, and the function that reads it."""

    files: tuple[str, ...]
    publisher: str
    read: Callable[[Path], Dataset]


def find(name: str, root: Path | None, files: Sequence[str], publisher: str) -> Path:
    """Return the first of `files` that is in `root`, or `root` if it is one; where none is, say how to get it."""
    where = f"it is published with {publisher}"
    if root is None:
        raise InputError(f"{name} is read from {files[0]}: give its folder as root (--root); {where}")
    if root.is_file() and root.name in [Path(file).name for file in files]:
        return root
    for file in files:
        if (root / file).is_file():
            return root / file
    raise InputError(f"{name} needs {' or '.join(files)} in {root}, which has none; {where}")


@contextmanager
def reading(path: Path, kind: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into one InputError that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except KeyError as error:
        raise InputError(f"{path}: no such entry in this {kind}: {error.args[0]}") from error
    except Exception as error:
        # An error number says that the system could not open or read the file, not that it is damaged; but a damaged
        # offset is an invalid argument.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            error.filename = error.filename or str(path)
            raise
        raise InputError(f"{path} cannot be read as {kind}, {remedy} ({error})") from error


def expect(path: Path, what: str, got: object, wanted: object) -> None:
    """Raise InputError unless `got` is `wanted`."""
    if got != wanted:
        raise InputError(f"{path}: {what} should be {wanted}, got {got}")


def read_array(path: Path, keys: Sequence[str], shape: Shape, kinds: str) -> np.ndarray:
    """Read a small array of an .npz or HDF5 file, by the first of `keys` that is there; `kinds`: numpy's letters."""
    npz = path.suffix == ".npz"
    with (
        reading(path, "npz file" if npz else "HDF5 file"),
        np.load(path, allow_pickle=False) if npz else h5py.File(path, locking=False) as file,
    ):
        key = next((key for key in keys if key in file), keys[0])
        array = file[key][()]
        _check(path, key, array.shape, array.dtype, shape, kinds)
        return array


def images(path: Path, key: str, shape: Shape, max_value: int = 255) -> np.ndarray:
    """Map images [N, ...] uint8 of an .npz or HDF5 file; -1 in `shape` matches any length.

    Floats in [0, 1] become uint8 in 0..max_value.
    """
    if path.suffix != ".npz":
        with reading(path, "HDF5 file"), h5py.File(path, locking=False) as file:
            data = file[key]
            _check(path, key, data.shape, data.dtype, shape, "buif")
            # Whole chunks at a time: a part of one costs as much to unpack.
            chunk = data.chunks[0] if data.chunks else 1
            step = chunk * max(1, _BLOCK // (data.nbytes // len(data)) // chunk)
            blocks = (data[start : start + step] for start in range(0, len(data), step))
            return cached(f"{path.stem}-{key}", [path], data.shape, _as_uint8(path, key, blocks, max_value))
    with reading(path, "npz file"), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        found, fortran, dtype = read[np.lib.format.read_magic(member)[0]](member)
        _check(path, key, found, dtype, shape, "buif")
        expect(path, f"{key}: order of the axes", "Fortran" if fortran else "C", "C")
        entry = archive.getinfo(f"{key}.npy")
        if dtype == np.uint8 and entry.compress_type == zipfile.ZIP_STORED:
            with open(path, "rb") as raw:  # the member's own header may be longer than the directory says
                raw.seek(entry.header_offset + 26)
                names = np.frombuffer(raw.read(4), "<u2").sum(dtype=int)
            return np.memmap(path, np.uint8, "r", entry.header_offset + 30 + int(names) + member.tell(), found)
        row = prod(found[1:]) * dtype.itemsize
        step = max(1, _BLOCK // row)
        counts = (min(step, found[0] - start) for start in range(0, found[0], step))
        blocks = (np.frombuffer(member.read(n * row), dtype).reshape(n, *found[1:]) for n in counts)
        return cached(f"{path.stem}-{key}", [path], found, _as_uint8(path, key, blocks, max_value))


def cached(name: str, sources: Sequence[Path], shape: Shape, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Map the uint8 images [N, ...] that `blocks` yields in order, from a file that is made on first use.

    Its name depends on the paths, sizes and times of `sources`, so that changed ones are converted anew. One process
    converts while others wait.
    """
    stats = [(os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "crgan"
    folder = Path(os.path.expanduser(os.environ.get("CRGAN_CACHE") or default))
    target = folder / f"{name}-{sha256(repr(stats).encode()).hexdigest()[:16]}.npy"

    def write(temporary: Path) -> None:
        done = 0
        with temporary.open("wb") as file, Progress(console=Console(stderr=True), transient=True) as progress:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            task = progress.add_task(f"Converting {escape(name)} once", total=shape[0])
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
                done += len(block)
                progress.update(task, completed=done)
        expect(sources[0], "number of images", done, shape[0])

    if not target.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the cache {folder} cannot be made ({error}); set CRGAN_CACHE to a folder") from None
        with lock(folder, timeout=-1):
            for leftover in folder.glob(f".*-{'[0-9a-f]' * 16}-*"):  # of a process that was killed while it wrote
                shutil.rmtree(leftover, ignore_errors=True)
            if not target.is_file():
                write_atomically(target, write)
    try:
        return np.load(target, mmap_mode="r", allow_pickle=False).reshape(shape)
    except (ValueError, EOFError) as error:
        raise InputError(f"{target} is damaged ({error}); remove it, and it is made again") from None


def reader(images: np.ndarray, pad: int = 0) -> Callable[[Tensor], Tensor]:
    """Make `Dataset.read` for images [N, H, W] or [N, H, W, C], with a border of `pad` zeros."""

    def read(index: Tensor) -> Tensor:
        block = torch.from_numpy(images[index.cpu().numpy()])
        block = block[:, None] if block.dim() == 3 else block.permute(0, 3, 1, 2)
        return torch.nn.functional.pad(block, (pad,) * 4) if pad else block

    return read


def _check(path: Path, key: str, found: Shape, dtype: np.dtype, shape: Shape, kinds: str) -> None:
    if len(found) != len(shape) or any(want not in (-1, got) or not got for got, want in zip(found, shape)):
        expect(path, f"{key}: shape", found, shape)
    if dtype.kind not in kinds:
        names = {"b": "bool", "u": "unsigned", "i": "integer", "f": "float"}
        raise InputError(f"{path}: {key} should be {' or '.join(names[k] for k in kinds)} numbers, got {dtype}")


def _as_uint8(path: Path, key: str, blocks: Iterable[np.ndarray], max_value: int) -> Iterator[np.ndarray]:
    for block in blocks:
        if block.dtype == np.uint8:
            yield block
            continue
        is_float = block.dtype.kind == "f"
        top = 1 if is_float else 255
        if not ((block >= 0) & (block <= top)).all():  # also for NaN
            raise InputError(f"{path}: {key} should hold values from 0 to {top}, got {block.min()} to {block.max()}")
        if is_float and max_value == 1 and (block != block.round()).any():
            raise InputError(f"{path}: {key} should hold only 0 and 1, got fractions")
        yield (block * max_value).round().astype(np.uint8) if is_float else block.astype(np.uint8)
