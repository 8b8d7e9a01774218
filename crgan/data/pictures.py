"""Photographs: CelebA, and a user's own folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from crgan.data.dataset import Dataset
from crgan.data.storage import as_table, cached, expect, find, reader, shrink, sound
from crgan.errors import InputError

CELEBA_IMAGES = 202_599
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def celeba(root: str | Path | None) -> Dataset:
    """CelebA (Liu et al. 2015), aligned: the central 128 px of each photograph at 3x32x32.

    The 40 binary attributes are its factors where `list_attr_celeba.txt` lies beside the archive.
    """
    path = find("celeba", root, ["img_align_celeba.zip"], "CelebA (Liu et al. 2015), Align&Cropped Images")
    with sound(path, "zip file"), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    expect(path, "number of images", len(names), CELEBA_IMAGES)

    def pictures() -> Iterator[np.ndarray]:
        with sound(path, "zip file"), zipfile.ZipFile(path) as archive:
            for name in names:
                with sound(path / name, "image"), archive.open(name) as file, Image.open(file) as image:
                    expect(path / name, "size", image.size, (178, 218))
                    yield shrink(image.convert("RGB").crop((25, 45, 153, 173)), 32)[None]

    images = cached([path], "32px", (len(names), 32, 32, 3), pictures())
    dataset = Dataset("celeba", (3, 32, 32), len(names), read=reader(path, images))
    attributes = path.with_name("list_attr_celeba.txt")
    if not attributes.is_file():
        return dataset
    with sound(attributes, "list of attributes"):
        count, header, *rows = attributes.read_text().splitlines()
        expect(attributes, "number of images", [int(count), len(rows)], [len(names)] * 2)
        expect(attributes, "order of images", [row.split()[0] for row in rows], [Path(name).name for name in names])
        values = np.array([row.split()[1:] for row in rows], np.int64)
    attribute_names = tuple(header.split())
    sizes = (2,) * len(attribute_names)
    expect(attributes, "number of columns", values.shape[1], len(sizes))
    table = as_table(attributes, np.where(np.abs(values) == 1, values + 1 >> 1, -1), sizes)
    return replace(dataset, factor_names=attribute_names, factor_sizes=sizes, table=table)


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)  # a telephone's picture lies as its sensor did
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{path} has pixels of 32 bits, whose range is unknown; expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _is_ours(place: Path) -> bool:
    run = (place / "config.json").is_file() and (place / "metrics.jsonl").is_file()
    return run or ((place / "ranking.json").is_file() and (place / "similarity.png").is_file())


def folder(root: str | Path | None) -> Dataset:
    """All images in a folder and its subfolders, in the order of their names: the central square at 3x64x64.

    Leaves out what is hidden, and what this library wrote: pictures of runs and selections.
    """
    if root is None or not Path(root).is_dir():
        raise InputError(f"folder needs a folder of images as root (--root), got {root}")
    root = Path(root)
    found = [path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()]
    ours = {place for place in {path.parent for path in found} if _is_ours(place)}
    hidden = [any(part.startswith(".") for part in path.relative_to(root).parts) for path in found]
    files = sorted(path for path, skip in zip(found, hidden) if not skip and path.parent not in ours)
    if not files:
        raise InputError(f"{root} holds no images ({', '.join(sorted(_SUFFIXES))})")

    def pictures() -> Iterator[np.ndarray]:
        for path in files:
            try:
                with Image.open(path) as file:
                    image = _rgb(path, file)
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all of these for damaged files
                raise InputError(f"{path} is no picture that can be read ({error}); move it out of {root}") from None
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            yield shrink(image.crop((left, top, left + side, top + side)), 64)[None]

    images = cached(files, f"in-{root.resolve().name[:50]}", (len(files), 64, 64, 3), pictures())
    return Dataset("folder", (3, 64, 64), len(files), read=reader(root, images))
