"""The readers of published files, and of a folder of pictures.

No large array is ever loaded whole: images are converted once, a block at a time, into a file of plain bytes in the
cache folder, $CRGAN_CACHE or ~/.cache/crgan, and that file is mapped into memory. Photographs are cropped and resized
first.
"""

import errno
import gzip
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

from ..errors import InputError
from ..files import lock, named_errors, write_atomically
from .dataset import Dataset, check_range, expect, from_stored
from .rendered import CIRCULAR, DSPRITES, SHAPES3D

MPI3D = {"color": 6, "shape": 6, "size": 2, "camera": 3, "background": 3, "dof1": 40, "dof2": 40}
CARS3D = {"elevation": 4, "azimuth": 24, "object": 183}
SMALLNORB = {"category": 5, "elevation": 9, "azimuth": 18, "lighting": 6}
TEAPOTS = ("azimuth", "elevation", "red", "green", "blue")
NORB_IMAGES, MNIST_IMAGES, CELEBA_IMAGES = 24_300, 60_000, 202_599  # per file
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
_BORDER = ((0, 0), (2, 2), (2, 2))  # around images of 28 px
_BLOCK = 1_000  # images converted at a time


class FileError(InputError):
    """Raised for a file that cannot be used; the message names it."""


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
            raise  # the system could not open or read the file: it may be undamaged
        raise FileError(f"{path} is damaged or not as expected: {error}; replace or remove it") from error


def images(path: Path, key: str, shape: tuple[int, ...], max_value: int = 255) -> np.ndarray:
    """Map the images `key` [N, *shape] of an .npz or HDF5 file as uint8: floats in [0, 1] become 0..max_value."""
    name = f"{path.stem}-{key}"
    if path.suffix != ".npz":
        with h5py.File(path, locking=False) as file:
            data = file[key]
            expect(f"{key}: shape of an image", data.shape[1:], shape)
            chunk = data.chunks[0] if data.chunks else 1  # a part of a chunk costs as much to unpack as all of it
            step = chunk * max(1, _BLOCK // chunk)
            blocks = (data[start : start + step] for start in range(0, len(data), step))
            return cached(name, [path], data.shape, blocks, max_value)
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:  # numpy would read the array whole
        np.lib.format.read_magic(member)
        found, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        expect(f"{key}: shape of an image, Fortran order", (found[1:], is_fortran), (shape, False))
        entry = archive.getinfo(f"{key}.npy")
        if dtype == np.uint8 and entry.compress_type == zipfile.ZIP_STORED:  # such as MPI3D's 12 GB: mapped in place
            with path.open("rb") as raw:  # behind a zip header that ends with a name and an extra field
                raw.seek(entry.header_offset + 26)
                name_size, extra_size = np.frombuffer(raw.read(4), "<u2").tolist()
            offset = entry.header_offset + 30 + name_size + extra_size + member.tell()
            return np.memmap(path, np.uint8, "r", offset, found)
        size = _BLOCK * dtype.itemsize * prod(shape)
        parts = (member.read(size) for _ in range(0, found[0], _BLOCK))
        blocks = (np.frombuffer(part, dtype).reshape(-1, *shape) for part in parts)
        return cached(name, [path], found, blocks, max_value)


def cached(
    name: str, sources: Sequence[Path], shape: tuple[int, ...], blocks: Iterable[np.ndarray], max_value: int = 255
) -> np.ndarray:
    """Map uint8 images of `shape` [N, ...] from a cache file, which is written on first use from what `blocks` yields.

    Floats in [0, 1] become 0..max_value. The file's name depends on `shape` and on the paths, sizes and times
    of `sources`, so that changed ones are converted anew. One process converts while others wait.
    """
    stats = [(os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    folder = Path(os.environ.get("CRGAN_CACHE") or "~/.cache/crgan").expanduser()
    target = folder / f"{name}-{sha256(repr((stats, shape)).encode()).hexdigest()[:16]}.uint8"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file, Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"Converting {name} once", total=shape[0])
            for block in blocks:
                is_float = block.dtype.kind == "f"
                check_range(name, block, 1 if is_float else max_value)
                block = (block * max_value).round() if is_float else block
                file.write(block.astype(np.uint8).tobytes())
                progress.advance(task, len(block))
            expect("number of images", file.tell() // prod(shape[1:]), shape[0])

    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, timeout=-1):
            if not target.is_file():
                write_atomically(target, write)
    with reading(target):
        return np.memmap(target, np.uint8, "r", shape=shape)


def read_raw(path: Path, header: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read the array after a header of `header` bytes, in a plain or gzipped file."""
    unpack = gzip.decompress if path.suffix == ".gz" else bytes
    with reading(path):
        return np.frombuffer(unpack(path.read_bytes()), dtype, offset=header).reshape(shape)


def read_grid(path: Path, name: str, factors: dict[str, int]) -> Dataset:
    """Map the images of a full grid of factors: sprites are binary and 1x64x64, the others 3x64x64."""
    key, shape, max_value = ("imgs", (64, 64), 1) if "dsprites" in name else ("images", (64, 64, 3), 255)
    return from_stored(name, images(path, key, shape, max_value), factors, max_value=max_value)


def teapots(path: Path) -> Dataset:
    """Read 3D Teapots (Eastwood and Williams 2018), 3x64x64, with its five random factors, in ten classes each."""
    with np.load(path, allow_pickle=False) as file:
        return from_stored("teapots", images(path, "images", (64, 64, 3)), TEAPOTS, file["gts"])


def mnist(path: Path, name: str, **factors: int) -> Dataset:
    """Read the training images of MNIST, RMNIST (4 angles) or RBMN (4 angles, 4 blocks): 28 px on 1x32x32.

    Image 4 i + k of RMNIST is MNIST's image i turned counter-clockwise by k * 90 degrees. Image 16 i + 4 k + b of RBMN
    is the same with a grey block of 10 px over quadrant b, by rows from the upper left; the block is our choice.
    """
    angles, blocks = factors.get("angle", 1), factors.get("block", 1)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            stored, digits = file["x_train"], file["y_train"]
    else:
        labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        stored = read_raw(path, 16, "u1", (MNIST_IMAGES, 28, 28))
        digits = read_raw(labels, 8, "u1", (MNIST_IMAGES,))

    def variants() -> Iterator[np.ndarray]:
        for start in range(0, len(stored), _BLOCK):
            digit = np.pad(stored[start : start + _BLOCK], _BORDER)
            turned = np.stack([np.rot90(digit, k, (1, 2)) for k in range(angles)], 1).repeat(blocks, 1)
            for b in range(blocks if blocks > 1 else 0):
                y, x = 6 + 10 * (b // 2), 6 + 10 * (b % 2)
                turned[:, b::blocks, y : y + 10, x : x + 10] = 128
            yield turned.reshape(-1, 32, 32)

    image, angle, block = np.indices((len(digits), angles, blocks)).reshape(3, -1)
    table = np.stack([digits[image], angle, block], 1)[:, : len(factors)]
    return from_stored(name, cached(name, [path], (len(table), 32, 32), variants()), factors, table)


def adrenalmnist3d(path: Path) -> Dataset:
    """Read the 28 slices of each volume of AdrenalMNIST3D, 28 px on 1x32x32; factors are its label and the slice."""
    parts = ("train", "val", "test")
    with np.load(path, allow_pickle=False) as file:
        stored = np.concatenate([file[f"{part}_images"] for part in parts]).reshape(-1, 28, 28)
        labels = np.concatenate([file[f"{part}_labels"] for part in parts]).repeat(28)
    table = np.stack([labels, np.arange(len(labels)) % 28], 1)
    return from_stored("adrenalmnist3d", np.pad(stored, _BORDER), {"label": 2, "slice": 28}, table)


def cars3d(path: Path) -> Dataset:
    """Read Cars3D (Reed et al. 2015), 3x64x64: 4 elevations, 24 azimuths, 183 cars, in the archive's order."""
    from scipy.io import loadmat  # which takes a tenth of a second to import

    elevations, azimuths, count = CARS3D.values()

    def views() -> Iterator[np.ndarray]:
        cars = []
        with tarfile.open(path) as archive:
            for member in archive:
                if PurePosixPath(member.name).match("cars/*.mat"):
                    with reading(path / member.name):
                        im = loadmat(archive.extractfile(member), variable_names=["im"])["im"]
                        expect("im", (str(im.dtype), im.shape), ("uint8", (128, 128, 3, azimuths, elevations)))
                    pictures = im.transpose(4, 3, 0, 1, 2).reshape(-1, 128, 128, 3)
                    cars.append([_square(Image.fromarray(picture)) for picture in pictures])
        yield from np.stack(cars, 1)  # the archive goes car by car, the grid view by view

    return from_stored("cars3d", cached("cars3d", [path], (elevations * azimuths * count, 64, 64, 3), views()), CARS3D)


def smallnorb(path: Path) -> Dataset:
    """Read SmallNORB (LeCun et al. 2004), 1x64x64, first camera, training then testing images.

    The ten instances of a category are not a factor: each cell of the factors holds ten images.
    """
    testing = path.with_name(path.name.replace("46789", "01235").replace("training", "testing"))
    tables = []
    for file in (path, testing):
        category = read_raw(file.with_name(file.name.replace("-dat", "-cat")), 20, "<i4", (NORB_IMAGES,))
        info = read_raw(file.with_name(file.name.replace("-dat", "-info")), 20, "<i4", (NORB_IMAGES, 4))
        _, elevation, azimuth, lighting = info.T
        tables.append(np.stack([category, elevation, azimuth // 2, lighting], 1))

    def left() -> Iterator[np.ndarray]:
        for file in (path, testing):
            for pair in read_raw(file, 24, "u1", (NORB_IMAGES, 2, 96, 96)):
                yield _square(Image.fromarray(pair[0]))[None]

    stored = cached("smallnorb", [path, testing], (2 * NORB_IMAGES, 64, 64), left())
    return from_stored("smallnorb", stored, SMALLNORB, np.concatenate(tables))


def celeba(path: Path) -> Dataset:
    """Read CelebA (Liu et al. 2015), aligned: the central 128 px of each photograph at 3x32x32.

    The 40 binary attributes are its factors where `list_attr_celeba.txt` lies beside the archive.
    """

    def faces() -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".jpg")):
                with reading(path / name), archive.open(name) as file, Image.open(file) as image:
                    expect("size", image.size, (178, 218))
                    yield _square(image.convert("RGB").crop((25, 45, 153, 173)), 32)[None]

    stored = cached("celeba", [path], (CELEBA_IMAGES, 32, 32, 3), faces())
    attributes = path.with_name("list_attr_celeba.txt")
    if not attributes.is_file():
        return from_stored("celeba", stored, {})
    with reading(attributes):
        names = attributes.read_text().splitlines()[1].split()
        values = np.loadtxt(attributes, int, skiprows=2, usecols=range(1, 1 + len(names)), ndmin=2)
        return from_stored("celeba", stored, dict.fromkeys(names, 2), values == 1)


def folder(root: Path) -> Dataset:
    """Read all pictures in a folder and its subfolders, in the order of their names: the central square at 3x64x64.

    Follows links. Leaves out what is hidden, and what this library wrote: pictures of runs and selections.
    """
    files, seen = [], set()
    for parent, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or {"metrics.jsonl", "ranking.json"} & set(names):  # a link led back, or a run or a selection
            names.clear()
        folders[:] = [name for name in folders if not name.startswith(".") and real not in seen]
        seen.add(real)
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted(path for path in files if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        what = "holds no images" if root.is_dir() else "is no folder; expected one with images"
        raise InputError(f"{root} {what} ({', '.join(sorted(_SUFFIXES))})")

    def pictures() -> Iterator[np.ndarray]:
        for path in files:
            with reading(path), Image.open(path) as file:
                yield _square(_rgb(file))[None]

    identity = f"{len(files)} pictures, {sum(path.stat().st_size for path in files)} bytes"
    stored = cached("folder", files, (len(files), 64, 64, 3), pictures())
    return from_stored("folder", stored, {}, source=os.path.abspath(root), identity=identity)


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)  # phones store a picture as their sensor was held
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError("expected 8 or 16 bits a channel, got pixels of 32 bits, whose range is unknown")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _square(image: Image.Image, size: int = 64) -> np.ndarray:
    """Return the central square of the image at size x size pixels."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


class Reader(NamedTuple):
    """A published data set: its files, of which one is needed, where to get them, and the function that reads it."""

    files: Sequence[str]
    publisher: str
    read: Callable[[Path], Dataset]


_DSPRITES, _NORB = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64", "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat"
_MNIST = ("mnist.npz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"), "MNIST (LeCun et al. 1998)"
_MPI3D = "github.com/rr-learning/disentanglement_dataset"
_GRIDS = (  # name, factors, publisher, files
    ("dsprites", DSPRITES, "github.com/google-deepmind/dsprites-dataset", f"{_DSPRITES}.npz", f"{_DSPRITES}.hdf5"),
    ("circular_dsprites", CIRCULAR, "github.com/fjxmlzn/InfoGAN-CR", "cdsprites_ndarray_64x64.npz"),
    ("shapes3d", SHAPES3D, "github.com/google-deepmind/3d-shapes", "3dshapes.h5"),
    ("mpi3d_toy", MPI3D, _MPI3D, "mpi3d_toy.npz"),
    ("mpi3d_realistic", MPI3D, _MPI3D, "mpi3d_realistic.npz"),
    ("mpi3d_real", MPI3D, _MPI3D, "mpi3d_real.npz"),
    ("mpi3d_complex", {**MPI3D, "color": 4, "shape": 4}, _MPI3D, "real3d_complicated_shapes_ordered.npz"),
)
READERS = {name: Reader(files, url, partial(read_grid, name=name, factors=f)) for name, f, url, *files in _GRIDS} | {
    "cars3d": Reader(["nips2015-analogy-data.tar.gz"], "Deep Visual Analogy-Making (Reed et al. 2015)", cars3d),
    "smallnorb": Reader([_NORB, f"{_NORB}.gz"], "the small NORB data set, V1.0 (LeCun et al. 2004)", smallnorb),
    "teapots": Reader(["teapots.npz"], "3D Teapots (Eastwood and Williams 2018)", teapots),
    "celeba": Reader(["img_align_celeba.zip"], "CelebA (Liu et al. 2015), Align&Cropped Images", celeba),
    "mnist": Reader(*_MNIST, partial(mnist, name="mnist", digit=10)),
    "rmnist": Reader(*_MNIST, partial(mnist, name="rmnist", digit=10, angle=4)),
    "rbmn": Reader(*_MNIST, partial(mnist, name="rbmn", digit=10, angle=4, block=4)),
    "adrenalmnist3d": Reader(["adrenalmnist3d.npz"], "MedMNIST v2 (Yang et al. 2023)", adrenalmnist3d),
}
