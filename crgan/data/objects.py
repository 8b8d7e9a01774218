"""Photographs and renderings of objects: Cars3D, SmallNORB, 3D Teapots."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedReader
from math import pi
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io
from PIL import Image

from crgan.data.dataset import Dataset, grid
from crgan.data.storage import as_table, cached, expect, find, images, reader, shrink, small, sound
from crgan.errors import InputError

CARS3D = {"elevation": 4, "azimuth": 24, "object": 183}
SMALLNORB = {"category": 5, "elevation": 9, "azimuth": 18, "lighting": 6}
NORB_IMAGES = 24_300  # in each of its two files
TEAPOTS = {"azimuth": 2 * pi, "elevation": pi / 2, "red": 1.0, "green": 1.0, "blue": 1.0}  # upper ends
_LEVELS = 10  # classes per factor that the teapots' random values are sorted into


def cars3d(root: str | Path | None) -> Dataset:
    """Cars3D (Reed et al. 2015), 3x64x64: 4 elevations, 24 azimuths, 183 cars, in the archive's order."""
    files = ["nips2015-analogy-data.tar.gz"]
    path = find("cars3d", root, files, "Deep Visual Analogy-Making (Reed et al. 2015)")
    elevations, azimuths, cars = CARS3D.values()

    def blocks() -> Iterator[np.ndarray]:
        with sound(path, "tar.gz archive"), tarfile.open(path) as archive:
            for member in archive:
                if not PurePosixPath(member.name).match("cars/*.mat"):
                    continue
                where = path / member.name
                with sound(where, "MATLAB file"):
                    im = scipy.io.loadmat(archive.extractfile(member), variable_names=["im"])["im"]
                expect(where, "im: dtype", im.dtype, np.dtype(np.uint8))
                expect(where, "im: shape", im.shape, (128, 128, 3, azimuths, elevations))
                pictures = im.transpose(4, 3, 0, 1, 2).reshape(-1, 128, 128, 3)
                yield np.stack([shrink(Image.fromarray(picture), 64) for picture in pictures])

    views = elevations * azimuths
    stored = cached([path], "cars", (cars * views, 64, 64, 3), blocks())
    by_car = reader(path, stored)
    return grid("cars3d", CARS3D, (3, 64, 64), read=lambda index: by_car(index % cars * views + index // cars))


def smallnorb(root: str | Path | None) -> Dataset:
    """SmallNORB (LeCun et al. 2004), 1x64x64, first camera, training then testing images.

    The ten instances of a category are not a factor: each cell of the factors holds ten images.
    """
    halves = []
    for stem in ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"):
        names = [(f"{stem}-{part}.mat", f"{stem}-{part}.mat.gz") for part in ("dat", "cat", "info")]
        halves.append([find("smallnorb", root, n, "the small NORB data set, V1.0 (LeCun et al. 2004)") for n in names])

    def pictures() -> Iterator[np.ndarray]:
        for dat, _, _ in halves:
            with _norb(dat, 0x1E3D4C55, (NORB_IMAGES, 2, 96, 96)) as file:
                for _ in range(NORB_IMAGES):
                    pair = np.frombuffer(file.read(2 * 96 * 96), np.uint8).reshape(2, 96, 96)
                    yield shrink(Image.fromarray(pair[0]), 64)[None]

    columns = []
    for _, cat, info in halves:
        with _norb(cat, 0x1E3D4C54, (NORB_IMAGES,)) as file:
            category = np.frombuffer(file.read(), "<i4").reshape(NORB_IMAGES)
        with _norb(info, 0x1E3D4C54, (NORB_IMAGES, 4)) as file:
            _, elevation, azimuth, lighting = np.frombuffer(file.read(), "<i4").reshape(NORB_IMAGES, 4).T
        if (azimuth % 2).any():
            raise InputError(f"{info}: azimuths should be even numbers from 0 to 34")
        columns.append(np.stack([category, elevation, azimuth // 2, lighting], 1))
    table = as_table(halves[0][2], np.concatenate(columns), tuple(SMALLNORB.values()))
    stored = cached([dat for dat, _, _ in halves], "64px", (2 * NORB_IMAGES, 64, 64), pictures())
    read = reader(halves[0][0], stored)
    return Dataset(
        "smallnorb", (1, 64, 64), len(stored), tuple(SMALLNORB), tuple(SMALLNORB.values()), read=read, table=table
    )


@contextmanager
def _norb(path: Path, magic: int, shape: tuple[int, ...]) -> Iterator[gzip.GzipFile | BufferedReader]:
    """A file of NORB's own format, checked and open at its first number."""
    with sound(path, "NORB file"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        kind, rank = np.frombuffer(file.read(8), "<i4").tolist()
        expect(path, "magic number", kind, magic)
        expect(path, "number of axes", rank, len(shape))
        found = np.frombuffer(file.read(4 * max(3, rank)), "<i4").tolist()  # at least three are stored
        expect(path, "shape", tuple(found[:rank]), shape)
        yield file


def teapots(root: str | Path | None) -> Dataset:
    """3D Teapots (Eastwood and Williams 2018), 3x64x64, from either published layout.

    The five generative values are random, without a grid: each is sorted into ten equal classes, where the
    file has them (`gts` or `latents`). `groups` holds the layout's metric data where it is there.
    """
    files = ["teapots.npz", "train_data/data.npz"]
    source = "Eastwood and Williams 2018 (teapots.npz) or with InfoGAN-CR (train_data/data.npz)"
    path = find("teapots", root, files, source)
    single = path.name == "teapots.npz"
    stored = images(path, "images" if single else "imgs", (-1, 64, 64, 3))
    dataset = Dataset("teapots", (3, 64, 64), len(stored), read=reader(path, stored))
    with sound(path, "npz file"), np.load(path, allow_pickle=False) as file:
        has_values = "gts" in file or not single
    if has_values:
        values = small(path, ["gts" if single else "latents"], (len(stored), 5), "f") / [*TEAPOTS.values()] * _LEVELS
        # The upper end belongs to the last class; NaN becomes a class that does not exist.
        classes = np.nan_to_num(np.where(values == _LEVELS, _LEVELS - 1, np.floor(values)), nan=-1)
        sizes = (_LEVELS,) * 5
        table = as_table(path, classes.astype(np.int64), sizes)
        dataset = replace(dataset, factor_names=tuple(TEAPOTS), factor_sizes=sizes, table=table)
    metric = path.parent.parent / "metric_data" / "data.npz"
    if path.name == "data.npz" and metric.is_file():
        groups = images(metric, "imgs", (-1, 100, 64, 64, 3)).reshape(-1, 64, 64, 3)
        labels = small(metric, ["labels"], (len(groups) // 100,), "ui").repeat(100)[:, None]
        table = as_table(metric, labels, (5,))
        read = reader(metric, groups)
        shared = Dataset("teapots groups", (3, 64, 64), len(groups), ("shared factor",), (5,), read=read, table=table)
        dataset = replace(dataset, groups=shared)
    return dataset
