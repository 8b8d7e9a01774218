"""Pictures of objects and people: Cars3D, SmallNORB, 3D Teapots, CelebA, and a user's own folder."""

import gzip
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from math import pi
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io
import torch
from PIL import Image, ImageOps

from ..errors import InputError
from .dataset import Dataset, grid
from .storage import Reader, cached, expect, find, images, read_array, reader, reading

CARS3D = {"elevation": 4, "azimuth": 24, "object": 183}
SMALLNORB = {"category": 5, "elevation": 9, "azimuth": 18, "lighting": 6}
NORB_IMAGES = 24_300  # in each of its two files
TEAPOTS = {"azimuth": 2 * pi, "elevation": pi / 2, "red": 1.0, "green": 1.0, "blue": 1.0}  # upper ends
CELEBA_IMAGES = 202_599
_NORB_SOURCE = "the small NORB data set, V1.0 (LeCun et al. 2004)"
_CLASSES = 10  # per factor, that the teapots' random values are sorted into
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def shrink(image: Image.Image, size: int) -> np.ndarray:
    """Return the image at size x size pixels, as an array."""
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def cars3d(path: Path) -> Dataset:
    """Read Cars3D (Reed et al. 2015), 3x64x64: 4 elevations, 24 azimuths, 183 cars, in the archive's order."""
    elevations, azimuths, cars = CARS3D.values()

    def blocks() -> Iterator[np.ndarray]:
        with reading(path, "tar.gz archive"), tarfile.open(path) as archive:
            for member in archive:
                if not PurePosixPath(member.name).match("cars/*.mat"):
                    continue
                where = path / member.name
                with reading(where, "MATLAB file"):
                    im = scipy.io.loadmat(archive.extractfile(member), variable_names=["im"])["im"]
                expect(where, "im: dtype", im.dtype, np.dtype(np.uint8))
                expect(where, "im: shape", im.shape, (128, 128, 3, azimuths, elevations))
                pictures = im.transpose(4, 3, 0, 1, 2).reshape(-1, 128, 128, 3)
                yield np.stack([shrink(Image.fromarray(picture), 64) for picture in pictures])

    views = elevations * azimuths
    by_car = reader(cached("cars3d", [path], (cars * views, 64, 64, 3), blocks()))
    return grid("cars3d", CARS3D, (3, 64, 64), read=lambda index: by_car(index % cars * views + index // cars))


def smallnorb(path: Path) -> Dataset:
    """Read SmallNORB (LeCun et al. 2004), 1x64x64, first camera, training then testing images.

    The ten instances of a category are not a factor: each cell of the factors holds ten images.
    """
    files, tables = [], []
    for stem in ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"):
        dat, cat, info = (
            find("smallnorb", path.parent, [f"{stem}-{part}.mat", f"{stem}-{part}.mat.gz"], _NORB_SOURCE)
            for part in ("dat", "cat", "info")
        )
        _, elevation, azimuth, lighting = _norb(info, np.int32, (NORB_IMAGES, 4)).T
        if (azimuth % 2).any():
            raise InputError(f"{info}: azimuths should be even numbers from 0 to 34")
        category = _norb(cat, np.int32, (NORB_IMAGES,))
        files.append(dat)
        tables.append(np.stack([category, elevation, azimuth // 2, lighting], 1))

    def blocks() -> Iterator[np.ndarray]:
        for dat in files:
            for left, _ in _norb(dat, np.uint8, (NORB_IMAGES, 2, 96, 96)):
                yield shrink(Image.fromarray(left), 64)[None]

    table = torch.from_numpy(np.concatenate(tables).astype(np.int64))
    read = reader(cached("smallnorb", files, (len(table), 64, 64), blocks()))
    names, sizes = tuple(SMALLNORB), tuple(SMALLNORB.values())
    return Dataset("smallnorb", (1, 64, 64), len(table), names, sizes, read=read, table=table)


def _norb(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Read a file of NORB's own format: magic number, number of axes, at least three sizes, the array."""
    with reading(path, "NORB file"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        magic, rank = np.frombuffer(file.read(8), "<i4").tolist()
        expect(path, "magic number", magic, 0x1E3D4C55 if dtype == np.uint8 else 0x1E3D4C54)
        expect(path, "number of axes", rank, len(shape))
        expect(path, "shape", tuple(np.frombuffer(file.read(4 * max(3, rank)), "<i4").tolist()[:rank]), shape)
        return np.frombuffer(file.read(), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def teapots(path: Path) -> Dataset:
    """Read 3D Teapots (Eastwood and Williams 2018), 3x64x64, from either published layout.

    The five generative values are random, without a grid: each is sorted into ten equal classes, where the file has
    them (`gts` or `latents`).
    """
    single = path.name == "teapots.npz"
    key = "gts" if single else "latents"
    stored = images(path, "images" if single else "imgs", (-1, 64, 64, 3))
    dataset = Dataset("teapots", (3, 64, 64), len(stored), read=reader(stored))
    with reading(path, "npz file"), np.load(path, allow_pickle=False) as file:
        if single and key not in file:
            return dataset
    values = read_array(path, [key], (len(stored), 5), "f") / [*TEAPOTS.values()] * _CLASSES
    # The upper end belongs to the last class; NaN becomes a class that does not exist.
    classes = np.nan_to_num(np.where(values == _CLASSES, _CLASSES - 1, np.floor(values)), nan=-1)
    table = torch.from_numpy(classes.astype(np.int64))
    return replace(dataset, factor_names=tuple(TEAPOTS), factor_sizes=(_CLASSES,) * 5, table=table)


def celeba(path: Path) -> Dataset:
    """Read CelebA (Liu et al. 2015), aligned: the central 128 px of each photograph at 3x32x32.

    The 40 binary attributes are its factors where `list_attr_celeba.txt` lies beside the archive.
    """
    with reading(path, "zip file"), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    expect(path, "number of images", len(names), CELEBA_IMAGES)

    def blocks() -> Iterator[np.ndarray]:
        with reading(path, "zip file"), zipfile.ZipFile(path) as archive:
            for name in names:
                with reading(path / name, "picture"), archive.open(name) as file, Image.open(file) as image:
                    expect(path / name, "size", image.size, (178, 218))
                    yield shrink(image.convert("RGB").crop((25, 45, 153, 173)), 32)[None]

    stored = cached("celeba", [path], (len(names), 32, 32, 3), blocks())
    dataset = Dataset("celeba", (3, 32, 32), len(names), read=reader(stored))
    attributes = path.with_name("list_attr_celeba.txt")
    if not attributes.is_file():
        return dataset
    with reading(attributes, "list of attributes"):
        count, header, *rows = (line.split() for line in attributes.read_text().splitlines())
        expect(attributes, "number of images", [*map(int, count), len(rows)], [len(names)] * 2)
        expect(attributes, "order of images", [row[0] for row in rows], [Path(name).name for name in names])
        values = np.array([row[1:] for row in rows], np.int64)
    expect(attributes, "number of columns", values.shape[1], len(header))
    expect(attributes, "values", np.unique(values).tolist(), [-1, 1])
    table = torch.from_numpy((values + 1) // 2)
    return replace(dataset, factor_names=tuple(header), factor_sizes=(2,) * len(header), table=table)


def folder(root: Path) -> Dataset:
    """Read all pictures in a folder and its subfolders, in the order of their names: the central square at 3x64x64.

    Follows links. Leaves out what is hidden, and what this library wrote: pictures of runs and selections.
    """
    files = sorted(_pictures(root))
    if not files:
        raise InputError(f"{root} holds no images ({', '.join(sorted(_SUFFIXES))})")

    def blocks() -> Iterator[np.ndarray]:
        for path in files:
            with reading(path, "picture", f"move it out of {root}"), Image.open(path) as file:
                image = _rgb(path, file)
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                yield shrink(image.crop((left, top, left + side, top + side)), 64)[None]

    read = reader(cached("folder", files, (len(files), 64, 64, 3), blocks()))
    listing = sha256(b"\0".join(b"%s %d" % (os.fsencode(f.relative_to(root)), f.stat().st_size) for f in files))
    identity = f"{len(files)} pictures, their names and sizes {listing.hexdigest()[:16]}"
    return Dataset("folder", (3, 64, 64), len(files), read=read, identity=identity)


def _pictures(root: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        key = (status := os.stat(place)).st_dev, status.st_ino
        run, selection = {"config.json", "metrics.jsonl"}, {"ranking.json", "similarity.png"}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and key not in seen)
        if key not in seen and not run <= {*names} and not selection <= {*names}:
            found = (Path(place, name) for name in names if not name.startswith("."))
            yield from (path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file())
        seen.add(key)


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)  # a telephone's picture lies as its sensor did
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{path} has pixels of 32 bits, whose range is unknown; expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


READERS = {
    "cars3d": Reader(("nips2015-analogy-data.tar.gz",), "Deep Visual Analogy-Making (Reed et al. 2015)", cars3d),
    "smallnorb": Reader(
        tuple(f"smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat{end}" for end in ("", ".gz")), _NORB_SOURCE, smallnorb
    ),
    "teapots": Reader(
        ("teapots.npz", "train_data/data.npz"),
        "Eastwood and Williams 2018 (teapots.npz) or with InfoGAN-CR (train_data/data.npz)",
        teapots,
    ),
    "celeba": Reader(("img_align_celeba.zip",), "CelebA (Liu et al. 2015), Align&Cropped Images", celeba),
}
