"""Small files of the published schemas, as the tests write them."""

import gzip
import io
import tarfile
import zipfile
from functools import partial
from math import prod

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from crgan.data import READERS, load
from crgan.errors import InputError

SMALL = {
    "dsprites": {"color": 1, "shape": 3, "scale": 2, "orientation": 2, "posX": 3, "posY": 2},
    "circular_dsprites": {"angle": 4, "radius": 3},
    "shapes3d": {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 2},
}
MPI3D = {"color": 2, "shape": 3, "size": 2, "camera": 1, "background": 2, "dof1": 2, "dof2": 3}
SMALL |= {f"mpi3d_{kind}": MPI3D for kind in ("toy", "realistic", "real", "complex")}
BINARY = ("dsprites", "circular_dsprites")
RNG = np.random.default_rng(0)


def as_float(images, max_value=255):
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(images.astype(np.float32) / max_value)


def refused(name, root, *parts):
    with pytest.raises(InputError) as error:
        load(name, root)[:]
    assert all(str(part) in str(error.value) for part in (root, *parts)), error.value
    assert "\n" not in str(error.value)


def stored(name, seed=0):
    """The images of a small published grid."""
    top, shape = (2, (64, 64)) if name in BINARY else (256, (64, 64, 3))
    return np.random.default_rng(seed).integers(0, top, (prod(SMALL[name].values()), *shape), np.uint8)


def write_grid(folder, name, file=0, compressed=True, key=None, images=None):
    images = stored(name) if images is None else images
    key = key or ("imgs" if name in BINARY else "images")
    path = folder / READERS[name].files[file]
    if path.suffix == ".npz":
        metadata = {"metadata": np.array({"never": "read"}, dtype=object)}
        (np.savez_compressed if compressed else np.savez)(path, **{key: images}, **metadata)
    else:
        with h5py.File(path, "w") as out:
            out.create_dataset(key, data=images, compression="gzip" if compressed else None)
    return path


def write_cars(folder, change=lambda im: im, cars=4):
    with tarfile.open(folder / READERS["cars3d"].files[0], "w:gz") as archive:
        for car in range(cars):
            views, data = np.arange(2 * 3).reshape(3, 2) * 10 + car, io.BytesIO()
            scipy.io.savemat(data, {"im": change(np.broadcast_to(views, (128, 128, 3, 3, 2)).astype(np.uint8))})
            for name in (f"data/cars/car_{car:03}_mesh.mat", f"data/sprites/other_{car}.mat"):
                info = tarfile.TarInfo(name)
                info.size = len(data.getvalue())
                archive.addfile(info, io.BytesIO(data.getvalue()))


def headed(array, order, *header):
    return np.array(header, f"{order}i4").tobytes() + array.tobytes()


def norb_bytes(array):
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    return headed(array, "<", magic, array.ndim, *array.shape, *[1] * (3 - array.ndim))


def write_norb(folder, zipped=False, **changes):
    parts = []
    for stem in ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"):
        info = np.stack([RNG.integers(0, n, 60, dtype=np.int32) for n in (10, 9, 18, 6)], 1) * np.int32([1, 1, 2, 1])
        grey = RNG.integers(0, 256, (60, 1, 1, 1), dtype=np.uint8)
        dat = grey * np.array([1, 0], np.uint8)[:, None, None] * np.ones((96, 96), np.uint8)  # the first camera
        parts.append({"dat": dat, "cat": RNG.integers(0, 5, 60, dtype=np.int32), "info": info})
        for part, array in parts[-1].items():
            data = changes.get(part, norb_bytes)(array)
            path = folder / f"{stem}-{part}.mat{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return parts


TEAPOTS = RNG.integers(0, 256, (40, 64, 64, 3), dtype=np.int32)
TEAPOT_VALUES = RNG.random((40, 5)) * [2 * np.pi, np.pi / 2, 1, 1, 1]


def write_teapots(folder, images=TEAPOTS, values=TEAPOT_VALUES):
    np.savez_compressed(folder / "teapots.npz", images=images, gts=values)


def write_celeba(folder, size=(178, 218), damage=False):
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(1, 6):
            picture, data = Image.new("RGB", size, (255, 255, 255)), io.BytesIO()
            picture.paste((40 * i, 0, 0), (25, 45, 153, 173))  # what the crop keeps
            picture.save(data, "jpeg", quality=95)
            archive.writestr(f"img_align_celeba/{i:06}.jpg", data.getvalue()[: 300 if damage else None])
    lines = [f"{i:06}.jpg  {'-1 1' if i % 2 else '1  1'}" for i in range(1, 6)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["5", "Smiling Young ", *lines]) + "\n")


def write_folder(folder):
    for i in range(6):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(folder / f"{i}.png")


DIGITS, LABELS = RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)


def write_mnist(folder, form="npz", labels=LABELS, cut=None):
    if form == "npz":
        np.savez(folder / "mnist.npz", x_train=DIGITS, y_train=labels, x_test=DIGITS, y_test=labels)
        return
    for name, header, array in (("images-idx3", 2051, DIGITS), ("labels-idx1", 2049, labels)):
        data = headed(array, ">", header, *array.shape)[:cut]
        path = folder / f"train-{name}-ubyte{'.gz' if form == 'gz' else ''}"
        path.write_bytes(gzip.compress(data) if form == "gz" else data)


def write_adrenal(folder, **changes):
    contents = {}
    for part, n in (("train", 5), ("val", 2), ("test", 3)):
        contents[f"{part}_images"] = RNG.integers(0, 256, (n, 28, 28, 28), dtype=np.uint8)
        contents[f"{part}_labels"] = RNG.integers(0, 2, (n, 1), dtype=np.uint8)
    np.savez_compressed(folder / "adrenalmnist3d.npz", **(contents | changes))
    return contents


WRITERS = {name: partial(write_grid, name=name) for name in SMALL}
WRITERS |= dict.fromkeys(("mnist", "rmnist", "rbmn"), write_mnist)
WRITERS |= {"cars3d": write_cars, "smallnorb": write_norb, "teapots": write_teapots, "celeba": write_celeba}
WRITERS |= {"adrenalmnist3d": write_adrenal, "folder": write_folder}
