"""Small files of the published schemas, as the tests write them, and readers that expect them so small."""

import gzip
import io
import struct
import tarfile
import zipfile
from dataclasses import replace
from functools import partial
from math import prod

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from crgan.data import READERS, load, photos
from crgan.errors import InputError

SMALL = {
    "dsprites": {"color": 1, "shape": 3, "scale": 2, "orientation": 2, "posX": 3, "posY": 2},
    "circular_dsprites": {"angle": 4, "radius": 3},
    "shapes3d": {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 2},
    "mpi3d_toy": {"color": 2, "shape": 3, "size": 2, "camera": 1, "background": 2, "dof1": 2, "dof2": 3},
}
SMALL |= {f"mpi3d_{kind}": SMALL["mpi3d_toy"] for kind in ("realistic", "real", "complex")}
BINARY = ("dsprites", "circular_dsprites")


def use_small_files(monkeypatch, cache):
    """Make the readers expect small files, and convert them into `cache`."""
    for name, factors in SMALL.items():
        monkeypatch.setitem(READERS, name, replace(READERS[name], read=partial(READERS[name].read, factors=factors)))
    monkeypatch.setattr(photos, "CARS3D", {"elevation": 2, "azimuth": 3, "object": 4})
    monkeypatch.setattr(photos, "NORB_IMAGES", 60)
    monkeypatch.setattr(photos, "CELEBA_IMAGES", 5)
    monkeypatch.setenv("CRGAN_CACHE", str(cache))
    return cache


def arrays(name, seed=0):
    """Images and factor values of a small published file."""
    sizes, shape = tuple(SMALL[name].values()), (64, 64) if name in BINARY else (64, 64, 3)
    images = np.random.default_rng(seed).integers(0, 2 if name in BINARY else 256, (prod(sizes), *shape), np.uint8)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) + 0.5 for n in sizes), indexing="ij"), -1)
    return images, grid.reshape(-1, len(sizes))


def write_grid(folder, name, file=0, compressed=True, **changes):
    """A published file with `changes` to its arrays (None leaves one out)."""
    images, values = arrays(name)
    contents = {"imgs": images, "latents_values": values} if name in BINARY else {"images": images}
    contents |= {"labels": values} if name == "shapes3d" else {}
    contents = {key: value for key, value in (contents | changes).items() if value is not None}
    path = folder / READERS[name].files[file]
    if path.suffix == ".npz":
        metadata = {"metadata": np.array({"never": "read"}, dtype=object)} if name == "dsprites" else {}
        (np.savez_compressed if compressed else np.savez)(path, **contents, **metadata)
    else:
        with h5py.File(path, "w") as out:
            for key, value in contents.items():
                key = key.replace("latents_", "latents/")  # the HDF5 form of dSprites has a group
                out.create_dataset(key, data=value, compression="gzip" if compressed else None)
    return path


def as_float(images, max_value=255):
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(images.astype(np.float32) / max_value)


def everything(dataset):
    return dataset.images(torch.arange(dataset.num_images))


def refused(name, root, *parts):
    """The readers' errors are one sentence that names the file and what is wrong."""
    with pytest.raises(InputError) as error:
        everything(load(name, root))
    assert all(str(part) in str(error.value) for part in (root, *parts)), error.value
    assert "\n" not in str(error.value)


def write_cars(folder, change=lambda im: im, key="im", cut=None, cars=4):
    path = folder / "nips2015-analogy-data.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for car in range(cars):
            views = np.arange(2 * 3).reshape(3, 2) * 10 + car
            im = np.broadcast_to(views, (128, 128, 3, 3, 2)).astype(np.uint8)
            data = io.BytesIO()
            scipy.io.savemat(data, {key: change(im), "mask": np.ones(3)}, do_compression=True)
            for name in (f"data/cars/car_{car:03}_mesh.mat", f"data/sprites/other_{car}.mat"):
                info = tarfile.TarInfo(name)
                info.size = len(data.getvalue())
                archive.addfile(info, io.BytesIO(data.getvalue()))
    path.write_bytes(path.read_bytes()[:cut])


def norb_bytes(array):
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    return struct.pack(f"<ii{len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def write_norb(folder, zipped=False, **changes):
    rng = np.random.default_rng(0)
    parts = []
    for stem in ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"):
        info = np.stack([rng.integers(0, n, 60, dtype=np.int32) for n in (10, 9, 18, 6)], 1) * [1, 1, 2, 1]
        arrays = {
            "dat": rng.integers(0, 256, (60, 1, 1, 1), dtype=np.uint8) * np.ones((1, 2, 96, 96), np.uint8),
            "cat": rng.integers(0, 5, 60, dtype=np.int32),
            "info": info.astype(np.int32),
        }
        arrays["dat"][:, 1] = 0  # the second camera
        parts.append(arrays)
        for part, array in arrays.items():
            data = changes.get(part, norb_bytes)(array)
            path = folder / f"{stem}-{part}.mat{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return parts


def teapot_values(n, seed=0):
    return np.random.default_rng(seed).random((n, 5)) * [2 * np.pi, np.pi / 2, 1, 1, 1]


TEAPOTS = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.int32)


def write_teapots(folder, images=TEAPOTS, values=None):
    np.savez_compressed(folder / "teapots.npz", images=images, gts=teapot_values(40) if values is None else values)


def write_celeba(folder, size=(178, 218), count=5, damage=False, **listed):
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(1, count + 1):
            picture = Image.new("RGB", size, (255, 255, 255))
            picture.paste((40 * i, 0, 0), (25, 45, 153, 173))  # what the crop keeps
            data = io.BytesIO()
            picture.save(data, "jpeg", quality=95)
            archive.writestr(f"img_align_celeba/{i:06}.jpg", data.getvalue()[: 300 if damage else None])
    write_attributes(folder / "list_attr_celeba.txt", **listed)


def write_attributes(path, rows=5, values="-1 1", names="Smiling Young", first=1):
    lines = [f"{i:06}.jpg  {values if i % 2 else '1  1'}" for i in range(first, first + rows)]
    path.write_text("\n".join([str(rows), names, *lines]) + "\n")


def write_folder(folder):
    for i in range(6):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(folder / f"{i}.png")


def idx_bytes(array, kind=8):
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


DIGITS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def write_mnist(folder, form="npz", images=None, labels=None):
    images, labels = images or idx_bytes(DIGITS), labels or idx_bytes(LABELS)
    if form == "npz":
        np.savez(folder / "mnist.npz", x_train=DIGITS, y_train=LABELS, x_test=DIGITS, y_test=LABELS)
    for name, data in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        if form == "idx":
            (folder / name).write_bytes(data)
        if form == "gz":
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))


def write_adrenal(folder, **changes):
    rng = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 5), ("val", 2), ("test", 3)):
        contents[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28, 28), dtype=np.uint8)
        contents[f"{part}_labels"] = rng.integers(0, 2, (n, 1), dtype=np.uint8)
    contents |= changes
    np.savez_compressed(folder / "adrenalmnist3d.npz", **contents)
    return contents


WRITERS = {
    **{name: partial(write_grid, name=name) for name in SMALL},
    "cars3d": write_cars,
    "smallnorb": write_norb,
    "teapots": write_teapots,
    "celeba": write_celeba,
    **dict.fromkeys(("mnist", "rmnist", "rbmn"), write_mnist),
    "adrenalmnist3d": write_adrenal,
    "folder": write_folder,
}
