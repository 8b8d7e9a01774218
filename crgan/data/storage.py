"""Image arrays in published files, checked and mapped into memory: no large one is ever loaded whole.

An array that lies in its file as plain uint8 is mapped as it is. Any other is converted once, with a progress
bar, into a .npy cache in `crgan-cache/` beside it (or, where that cannot be written, in `~/.cache/crgan`), whose
name changes with the files' names, sizes and times; it replaces the one before. Not HDF5: that does not survive a full
disk.
"""

from __future__ import annotations

import glob
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from crgan.errors import InputError
from crgan.files import lock, write_atomically

_BLOCK = 1 << 24  # bytes converted at a time
Shape = tuple[int, ...]


def find(name: str, root: str | Path | None, files: Sequence[str], source: str) -> Path:
    """The first of `files` that is in `root` (or is `root`); InputError with the way to get them where none is."""
    where = f"it is published with {source}"
    if root is None:
        raise InputError(f"{name} is read from {files[0]}: give its folder as root (--root); {where}")
    root = Path(root)
    if root.is_file() and root.name in [Path(file).name for file in files]:
        return root
    for file in files:
        if (root / file).is_file():
            return root / file
    raise InputError(f"{name} needs {' or '.join(files)} in {root}, which has none; {where}")


@contextmanager
def sound(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a damaged file makes the libraries raise into one InputError that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except KeyError as error:
        raise InputError(f"{path}: no such entry in this {kind}: {error.args[0]}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename:
            raise  # the operating system's word, not the file's
        raise InputError(f"{path} cannot be read as {kind}, fetch it again ({error})") from error


def expect(path: Path, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise InputError(f"{path}: {what} should be {wanted}, got {got}")


def small(path: Path, keys: Sequence[str], shape: Shape, kinds: str) -> np.ndarray:
    """A small array of a .npz or HDF5 file, by the first of `keys` that is there; `kinds`: numpy's letters."""
    npz = path.suffix == ".npz"
    with (
        sound(path, "npz file" if npz else "HDF5 file"),
        np.load(path, allow_pickle=False) if npz else h5py.File(path) as file,
    ):
        key = next((key for key in keys if key in file), keys[0])
        array = file[key][()]
        _check(path, key, array.shape, array.dtype, shape, kinds)
        return array


def images(path: Path, key: str, shape: Shape) -> np.ndarray:
    """Images [N, ...] uint8 of a .npz or HDF5 file; -1 in `shape` matches any length."""
    return (_npz_images if path.suffix == ".npz" else _hdf5_images)(path, key, shape)


def _npz_images(path: Path, key: str, shape: Shape) -> np.ndarray:
    with sound(path, "npz file"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{key}.npy")
        with archive.open(entry) as member:
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            found, fortran, dtype = read[np.lib.format.read_magic(member)[0]](member)
            _check(path, key, found, dtype, shape, "buif")
            expect(path, f"{key}: order of the axes", "Fortran" if fortran else "C", "C")
            if dtype == np.uint8 and entry.compress_type == zipfile.ZIP_STORED:
                with open(path, "rb") as raw:  # the member's own header may be longer than the directory says
                    raw.seek(entry.header_offset + 26)
                    names = np.frombuffer(raw.read(4), "<u2").sum(dtype=int)
                start = entry.header_offset + 30 + int(names) + member.tell()
                return np.memmap(path, np.uint8, "r", start, found)
            row = prod(found[1:]) * dtype.itemsize
            blocks = (
                np.frombuffer(member.read((stop - start) * row), dtype).reshape(-1, *found[1:])
                for start, stop in _spans(found[0], row)
            )
            return cached([path], key, found, blocks)


def _hdf5_images(path: Path, key: str, shape: Shape) -> np.ndarray:
    with sound(path, "HDF5 file"), h5py.File(path) as file:
        data = file[key]
        _check(path, key, data.shape, data.dtype, shape, "buif")
        offset = data.id.get_offset()
        if offset is not None and data.dtype == np.uint8:
            return np.memmap(path, np.uint8, "r", offset, data.shape)
        row, chunk = data.nbytes // len(data), data.chunks[0] if data.chunks else 1
        # Whole chunks, if they are not too large: a part of one costs as much to unpack.
        blocks = (data[start:stop] for start, stop in _spans(len(data), row, chunk if chunk * row < 2**29 else 1))
        return cached([path], key.replace("/", "-"), data.shape, blocks)


def cached(sources: Sequence[Path], tag: str, shape: Shape, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """The uint8 images [N, ...] that `blocks` yields in order, mapped from a cache that is made on first use."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    stem = f"{sources[0].stem[:100]}-{tag}"
    name = f"{stem}-{zlib.crc32(repr(stats).encode()):08x}.npy"
    target = _cache_folder(sources[0].parent, name) / name

    def write(temporary: Path) -> None:
        at = 0
        with temporary.open("wb") as file, Progress(console=Console(stderr=True), transient=True) as progress:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            task = progress.add_task(f"Converting {sources[0].name} once", total=shape[0])
            for block in blocks:
                file.write(np.ascontiguousarray(_as_uint8(sources[0], tag, block)).data)
                at += len(block)
                progress.update(task, completed=at)
        expect(sources[0], "number of images", at, shape[0])

    if not target.is_file():
        with lock(target.parent, timeout=-1):  # many processes may start at once, and the file is large
            if not target.is_file():
                write_atomically(target, write)
                if target.parent.parent == sources[0].parent:  # else the cache of other files may be called the same
                    for older in set(target.parent.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * 8}.npy")) - {target}:
                        older.unlink(missing_ok=True)  # of the files before they changed
    try:
        return np.load(target, mmap_mode="r", allow_pickle=False).reshape(shape)
    except (ValueError, EOFError) as error:
        raise InputError(f"{target} is damaged ({error}); remove it, and it is made again") from None


def _cache_folder(beside: Path, name: str) -> Path:
    """The first of the two places that has the cache, else that can take it."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [beside / "crgan-cache", Path(user) / "crgan"]
    for place in places:
        if (place / name).is_file():
            return place
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    raise InputError(f"neither {places[0]} nor {places[1]} can be written; set XDG_CACHE_HOME to a folder that can")


def _spans(count: int, row: int, chunk: int = 1) -> Iterator[tuple[int, int]]:
    step = chunk * max(1, _BLOCK // row // chunk)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def reader(path: Path, images: np.ndarray, levels: int = 255, pad: int = 0) -> Callable[[Tensor], Tensor]:
    """`Dataset.read` for uint8 images [N, H, W] or [N, H, W, C], with a border of `pad` zeros."""

    def read(index: Tensor) -> Tensor:
        block = torch.from_numpy(images[index.cpu().numpy()])
        if levels < 255 and block.numel() and int(block.max()) > levels:
            raise InputError(f"{path}: images should hold values from 0 to {levels}, got {int(block.max())}")
        block = block[:, None] if block.dim() == 3 else block.permute(0, 3, 1, 2)
        return torch.nn.functional.pad(block, (pad,) * 4) if pad else block

    return read


def shrink(image: Image.Image, size: int) -> np.ndarray:
    """Array of the image at size x size pixels."""
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def check_grid(path: Path, key: str, values: np.ndarray, sizes: Shape) -> None:
    """InputError unless row i of `values` [N, F] holds the factor values of cell i of the grid."""
    table = values.reshape(*sizes, len(sizes))
    for f in range(len(sizes)):
        column = np.moveaxis(table[..., f], f, -1)
        steps = column.reshape(-1, sizes[f])[0]
        if not (np.diff(steps) > 0).all() or (column != steps).any():
            raise InputError(f"{path}: {key} should run through the grid of factors in order; column {f} does not")


def as_table(path: Path, rows: np.ndarray, sizes: Shape) -> Tensor:
    """`Dataset.table` of class numbers [N, F]; InputError where one is out of range, and for none."""
    if not len(rows):
        raise InputError(f"{path} holds no images")
    for f, size in enumerate(sizes):
        low, high = rows[:, f].min(), rows[:, f].max()
        if low < 0 or high >= size:
            raise InputError(f"{path}: factor {f} should have classes 0 to {size - 1}, got {low} to {high}")
    return torch.from_numpy(rows.astype(np.int64))


def _check(path: Path, key: str, found: Shape, dtype: np.dtype, shape: Shape, kinds: str) -> None:
    if len(found) != len(shape) or any(want not in (-1, got) or not got for got, want in zip(found, shape)):
        expect(path, f"{key}: shape", found, shape)
    if dtype.kind not in kinds:
        names = {"b": "bool", "u": "unsigned", "i": "integer", "f": "float"}
        raise InputError(f"{path}: {key} should be {' or '.join(names[k] for k in kinds)} numbers, got {dtype}")


def _as_uint8(path: Path, key: str, block: np.ndarray) -> np.ndarray:
    if block.dtype == np.uint8:
        return block
    top = 1 if block.dtype.kind == "f" else 255
    if not ((block >= 0) & (block <= top)).all():  # also false for NaN
        raise InputError(f"{path}: {key} should hold values from 0 to {top}, got {block.min()} to {block.max()}")
    return (block * 255).round().astype(np.uint8) if block.dtype.kind == "f" else block.astype(np.uint8)
