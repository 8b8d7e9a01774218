"""Every reader on small files of the published schema, and on broken ones."""

import fcntl
import gzip
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from crgan import PRESETS, checkpoint, ops, train
from crgan.data import NAMES, READERS, load, photos, storage
from crgan.errors import InputError
from crgan.evaluate import evaluate
from crgan.files import write_atomically

SMALL = {
    "dsprites": {"color": 1, "shape": 3, "scale": 2, "orientation": 2, "posX": 3, "posY": 2},
    "circular_dsprites": {"angle": 4, "radius": 3},
    "shapes3d": {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 2},
    "mpi3d_toy": {"color": 2, "shape": 3, "size": 2, "camera": 1, "background": 2, "dof1": 2, "dof2": 3},
}
SMALL |= {f"mpi3d_{kind}": SMALL["mpi3d_toy"] for kind in ("realistic", "real", "complex")}
BINARY = ("dsprites", "circular_dsprites")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """The readers expect small files, and convert them into a folder of the test."""
    for name, factors in SMALL.items():
        small = replace(READERS[name], read=partial(READERS[name].read, factors=factors))
        monkeypatch.setitem(READERS, name, small)
    monkeypatch.setattr(photos, "CARS3D", {"elevation": 2, "azimuth": 3, "object": 4})
    monkeypatch.setattr(photos, "NORB_IMAGES", 60)
    monkeypatch.setattr(photos, "CELEBA_IMAGES", 5)
    monkeypatch.setenv("CRGAN_CACHE", str(tmp_path_factory.mktemp("cache") / "new"))
    return Path(os.environ["CRGAN_CACHE"])


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


# Full grids


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_grid_files_map_index_and_factors_to_their_images(tmp_path, cache, name, compressed):
    path = write_grid(tmp_path, name, compressed=compressed)
    dataset = load(name, tmp_path)
    expected = as_float(arrays(name)[0], 1 if name in BINARY else 255)
    assert torch.equal(everything(dataset), expected)
    assert (dataset.image_shape, dataset.source) == (expected.shape[1:], str(path))
    factors = dataset.factors(torch.arange(dataset.num_images))
    unravelled = np.stack(np.unravel_index(np.arange(len(expected)), dataset.factor_sizes), -1)
    assert torch.equal(factors, torch.from_numpy(unravelled))
    assert torch.equal(dataset.images(factors), expected)
    # Plain uint8 of an npz file is mapped where it lies; anything else through one cache, which the next load reuses.
    files = list(cache.glob("*.npy"))
    assert len(files) == (compressed or path.suffix == ".h5")
    times = [file.stat().st_mtime_ns for file in files]
    assert torch.equal(everything(load(name, path)), expected)
    assert [file.stat().st_mtime_ns for file in cache.glob("*.npy")] == times
    assert list(tmp_path.iterdir()) == [path]


def test_published_sizes(monkeypatch):
    monkeypatch.undo()
    counts = {name: prod(READERS[name].read.keywords["factors"].values()) for name in SMALL}
    mpi3d = {f"mpi3d_{kind}": 1_036_800 for kind in ("toy", "realistic", "real")} | {"mpi3d_complex": 460_800}
    assert counts == mpi3d | {"dsprites": 737_280, "circular_dsprites": 1_080, "shapes3d": 480_000}


def test_large_arrays_are_mapped(tmp_path):
    for compressed in (True, False):
        path = write_grid(tmp_path, "mpi3d_toy", compressed=compressed)
        assert isinstance(storage.images(path, "images", (-1, 64, 64, 3)), np.memmap)


def test_dsprites_hdf5_equals_npz(tmp_path):
    write_grid(tmp_path, "dsprites", file=1)
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(arrays("dsprites")[0], 1))


def test_a_rendered_and_a_read_set_are_interchangeable(tmp_path, monkeypatch):
    monkeypatch.undo()
    rendered = load("circular_dsprites")
    images = everything(rendered)[:, 0].byte().numpy()
    factors = rendered.factors(torch.arange(1080)).double() * torch.tensor([2 * np.pi / 40, 1.0])
    np.savez(tmp_path / "cdsprites_ndarray_64x64.npz", imgs=images, latents_values=factors.numpy())
    read = load("circular_dsprites", tmp_path)
    for field in ("name", "image_shape", "num_images", "factor_names", "factor_sizes"):
        assert getattr(read, field) == getattr(rendered, field)
    assert (rendered.source, rendered.identity) == ("rendered", "rendered")
    index = torch.randint(1080, (64,))
    assert torch.equal(read.images(index), rendered.images(index))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int64])
def test_binary_images_of_any_type(tmp_path, dtype):
    images = arrays("dsprites")[0]
    write_grid(tmp_path, "dsprites", imgs=images.astype(dtype))
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(images, 1))


def test_truncated_files(tmp_path, cache):
    for name, compressed in (("mpi3d_real", True), ("mpi3d_real", False), ("shapes3d", True)):
        path = write_grid(tmp_path, name, compressed=compressed)
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"nothing of the kind"):
            path.write_bytes(content)
            refused(name, tmp_path, path)
    # A damaged middle under an intact directory is found out during the conversion.
    path = write_grid(tmp_path, "mpi3d_real")
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes(5000) + whole[10000:])
    refused("mpi3d_real", tmp_path, path)
    assert {file.name for file in cache.iterdir()} <= {".lock"}


def test_a_pickle_in_disguise_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "mpi3d_toy.npz"
    path.write_bytes(pickle.dumps(Evil()))
    refused("mpi3d_toy", tmp_path, path)
    np.savez(path, images=np.array([Evil()], dtype=object))
    refused("mpi3d_toy", tmp_path, "images")
    np.savez(tmp_path / "teapots.npz", images=np.zeros((1, 64, 64, 3), np.int32), gts=np.array([Evil()], dtype=object))
    refused("teapots", tmp_path, "teapots.npz")
    assert not (tmp_path / "owned").exists()


# Files, locks and the cache


def test_hdf5_files_that_another_process_has_locked(tmp_path, monkeypatch):
    path = write_grid(tmp_path, "shapes3d")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load("shapes3d", tmp_path).num_images == 192

    def fails(*args, **kwargs):
        raise BlockingIOError(11, "unable to lock file")

    monkeypatch.setattr(h5py, "File", fails)
    with pytest.raises(BlockingIOError) as error:  # not InputError: the file is not damaged
        load("shapes3d", tmp_path)
    assert error.value.filename == str(path)


def test_a_changed_file_is_converted_anew(tmp_path):
    write_grid(tmp_path, "mpi3d_toy")
    load("mpi3d_toy", tmp_path)
    images = arrays("mpi3d_toy", seed=1)[0]
    write_grid(tmp_path, "mpi3d_toy", images=images)
    assert torch.equal(everything(load("mpi3d_toy", tmp_path)), as_float(images))


def test_where_the_cache_lies(tmp_path, monkeypatch):
    write_grid(tmp_path, "mpi3d_toy")
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for variable, value, folder in (
        ("CRGAN_CACHE", "~/mine", home / "mine"),
        ("CRGAN_CACHE", "", home / ".cache/crgan"),
        ("XDG_CACHE_HOME", str(home / "xdg"), home / "xdg/crgan"),
    ):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(variable, value)
        load("mpi3d_toy", tmp_path)
        assert len(list(folder.glob("mpi3d_toy-*.npy"))) == 1
    (home / "file").touch()
    monkeypatch.setenv("CRGAN_CACHE", str(home / "file"))
    refused("mpi3d_toy", tmp_path, home / "file", "CRGAN_CACHE")


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, cache):
    write_grid(tmp_path, "mpi3d_toy")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            load("mpi3d_toy", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename.startswith(f"{cache}/mpi3d_toy")
    assert {file.name for file in cache.iterdir()} <= {".lock"}


def test_a_killed_conversion_leaves_nothing_for_long(tmp_path, cache):
    path = write_grid(tmp_path, "mpi3d_toy")

    def blocks():
        yield np.zeros((1, 4), np.uint8)
        os._exit(9)

    process = get_context("fork").Process(target=storage.cached, args=("killed", [path], (2, 4), blocks()))
    process.start()
    process.join()
    (leftover,) = cache.glob(".killed-*")
    (cache / ".mine").mkdir()
    load("mpi3d_toy", tmp_path)
    assert not leftover.exists()
    assert (cache / ".mine").is_dir()


def test_a_damaged_cache_asks_to_be_removed(tmp_path, cache):
    write_grid(tmp_path, "mpi3d_toy")
    load("mpi3d_toy", tmp_path)
    (file,) = cache.glob("*.npy")
    for content in (file.read_bytes()[:-1], b""):
        file.write_bytes(content)
        refused("mpi3d_toy", tmp_path, file, "remove it")


def test_many_that_load_at_once_convert_once(tmp_path, monkeypatch):
    write_grid(tmp_path, "mpi3d_toy")
    made = []
    monkeypatch.setattr(storage, "write_atomically", lambda *args: (made.append(args), write_atomically(*args)))
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: everything(load("mpi3d_toy", tmp_path)), range(4)))
    assert len(made) == 1
    assert all(torch.equal(images, loaded[0]) for images in loaded)


# Names and roots


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_comes_with_a_way_to_get_it(tmp_path, name):
    refused(name, tmp_path, READERS[name].files[0], READERS[name].publisher)
    if name not in BINARY:
        with pytest.raises(InputError, match="--root"):
            load(name)


def test_names_and_roots(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"dsprite'.*'dsprites'"):
        load("dsprite")
    with pytest.raises(InputError, match=r"xyz.*squares"):
        load("xyz")
    with pytest.raises(InputError, match="squares"):
        load("squares", tmp_path)
    for name in ("folder", "dsprites"):
        with pytest.raises(InputError, match='""'):
            load(name, "")
    write_grid(tmp_path, "dsprites")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("dsprites", "~").source == str(tmp_path / READERS["dsprites"].files[0])


# Cars3D


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


def test_cars3d(tmp_path):
    write_cars(tmp_path)
    dataset = load("cars3d", tmp_path)
    assert (dataset.image_shape, dataset.factor_sizes) == ((3, 64, 64), (2, 3, 4))
    images = everything(dataset)
    elevation, azimuth, car = dataset.factors(torch.arange(24)).T
    expected = ((azimuth * 2 + elevation) * 10 + car).float() / 255
    torch.testing.assert_close(images, expected[:, None, None, None].expand(images.shape))


# SmallNORB


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


@pytest.mark.parametrize("zipped", [True, False])
def test_smallnorb(tmp_path, zipped):
    parts = write_norb(tmp_path, zipped)
    dataset = load("smallnorb", tmp_path)
    assert (dataset.image_shape, dataset.num_images, dataset.factor_sizes) == ((1, 64, 64), 120, (5, 9, 18, 6))
    grey = np.concatenate([part["dat"][:, 0, 0, 0] for part in parts])
    torch.testing.assert_close(everything(dataset)[:, 0, 32, 32], torch.from_numpy(grey / np.float32(255)))
    table = np.concatenate([np.c_[p["cat"], p["info"][:, 1], p["info"][:, 2] // 2, p["info"][:, 3]] for p in parts])
    index = torch.arange(120)
    assert torch.equal(dataset.factors(index), torch.from_numpy(table).long())
    assert torch.equal(dataset.factors(dataset.index(dataset.factors(index))), dataset.factors(index))


# 3D Teapots


def teapot_values(n, seed=0):
    return np.random.default_rng(seed).random((n, 5)) * [2 * np.pi, np.pi / 2, 1, 1, 1]


TEAPOTS = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.int32)


def write_teapots(folder, images=TEAPOTS, values=None):
    np.savez_compressed(folder / "teapots.npz", images=images, gts=teapot_values(40) if values is None else values)


def test_teapots_single_file(tmp_path):
    write_teapots(tmp_path)
    dataset = load("teapots", tmp_path)
    assert torch.equal(everything(dataset), as_float(TEAPOTS))
    classes = (teapot_values(40) / [2 * np.pi, np.pi / 2, 1, 1, 1] * 10).astype(int)
    assert torch.equal(dataset.factors(torch.arange(40)), torch.from_numpy(classes))
    np.savez_compressed(tmp_path / "teapots.npz", images=TEAPOTS)
    assert load("teapots", tmp_path).factor_names == ()


def test_teapots_of_infogan_cr(tmp_path):
    (tmp_path / "train_data").mkdir()
    images = np.random.default_rng(1).random((30, 64, 64, 3))
    np.savez(tmp_path / "train_data/data.npz", imgs=images, latents=teapot_values(30))
    dataset = load("teapots", tmp_path)
    torch.testing.assert_close(everything(dataset), as_float(images, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    assert dataset.factor_sizes == (10,) * 5


# CelebA and a folder of images


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


def test_celeba(tmp_path):
    write_celeba(tmp_path)
    dataset = load("celeba", tmp_path)
    assert (dataset.num_images, dataset.image_shape) == (5, (3, 32, 32))
    images = everything(dataset)
    expected = torch.tensor([[40 * i / 255, 0, 0] for i in range(1, 6)])
    torch.testing.assert_close(images[:, :, 16, 16], expected, atol=3 / 255, rtol=0)
    assert images[:, 1:].max() < 0.1  # nothing of the white border
    assert dataset.factor_names == ("Smiling", "Young")
    assert dataset.factors(torch.arange(5))[:, 0].tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(InputError, match=r"\[1, 0\]"):
        dataset.index(torch.tensor([[1, 0]]))
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert load("celeba", tmp_path).factor_sizes == ()


def write_folder(folder):
    for i in range(6):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(folder / f"{i}.png")


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (200, 100), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 51).save(tmp_path / "b.jpg")
    Image.new("RGBA", (30, 90), (0, 0, 255, 255)).save(tmp_path / "sub" / "c.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.full((64, 64), 257 * 51, np.uint16)).save(tmp_path / "wide.png")  # 16 bits a pixel
    dataset = load("folder", tmp_path)
    middle = everything(dataset)[:, :, 32, 32]
    torch.testing.assert_close(middle, torch.tensor([[1, 0, 0], [0.2, 0.2, 0.2], [0, 0, 1.0], [0.2, 0.2, 0.2]]))
    assert (dataset.image_shape, dataset.num_images, dataset.source) == ((3, 64, 64), 4, str(tmp_path))
    for place, files in {"run": ("config.json", "metrics.jsonl"), "choice": ("ranking.json",), ".hidden": ()}.items():
        (tmp_path / place).mkdir()
        for name in ("samples.png", "similarity.png"):
            Image.new("RGB", (64, 64)).save(tmp_path / place / name)
        for name in files:
            (tmp_path / place / name).write_text("{}")
    assert load("folder", tmp_path).num_images == 4  # what is hidden or was written by this library is no data
    with pytest.raises(InputError, match="no factors"):
        dataset.sample_factors(1)


def test_folder_turns_photographs_and_puts_transparent_ones_on_white(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # shown turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(tmp_path / "b.png")
    turned, clear = everything(load("folder", tmp_path))
    assert turned[:, 5].max() == 0
    assert turned[:, 60].min() == 1
    assert clear.min() == 1


def test_folder_follows_links_and_takes_any_name(tmp_path):
    data, elsewhere = tmp_path / os.fsdecode(b"data \xff"), tmp_path / "elsewhere"
    for place in (data, elsewhere / "deep"):
        place.mkdir(parents=True)
    for path in (data / os.fsdecode(b"\xe9.png"), data / ("ü" * 120 + ".png"), elsewhere / "deep" / "[red].png"):
        with path.open("wb") as file:
            Image.new("RGB", (64, 64), (51, 51, 51)).save(file, "png")
    (data / "link").symlink_to(elsewhere)
    (elsewhere / "deep" / "loop").symlink_to(data)
    (data / "broken.png").symlink_to(tmp_path / "nowhere")
    images = everything(load("folder", data))
    torch.testing.assert_close(images, torch.full((3, 3, 64, 64), 0.2))


def test_folder_notices_pictures_that_come_and_go(tmp_path):
    data = tmp_path / "a"
    data.mkdir()
    write_folder(data)
    before = load("folder", data).identity
    data = data.rename(tmp_path / "b")
    assert load("folder", data).identity == before
    (data / "0.png").rename(data / "9.png")
    assert load("folder", data).identity != before
    (data / "9.png").unlink()
    assert "5 pictures" in load("folder", data).identity


def test_broken_folder(tmp_path, monkeypatch):
    for root in (tmp_path / "none", tmp_path):
        refused("folder", root)
    with pytest.raises(InputError, match="--root"):
        load("folder")
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tiff")
    refused("folder", tmp_path, "x.tiff", "32 bits")
    (tmp_path / "x.tiff").unlink()
    (tmp_path / "x.png").write_bytes(pickle.dumps([1]))
    refused("folder", tmp_path, "x.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        refused("folder", tmp_path, "x.png", "4096 pixels")
    monkeypatch.setattr(photos, "_rgb", lambda *_: struct.unpack("i", b""))  # as Pillow does on some damaged pictures
    refused("folder", tmp_path, "x.png", "buffer")


# MNIST and its variants, AdrenalMNIST3D


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


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist(tmp_path, form):
    write_mnist(tmp_path, form)
    dataset = load("mnist", tmp_path)
    assert torch.equal(everything(dataset), as_float(np.pad(DIGITS, ((0, 0), (2, 2), (2, 2)))))
    assert dataset.factors(torch.arange(12))[:, 0].tolist() == LABELS.tolist()


def test_rmnist_and_rbmn(tmp_path):
    write_mnist(tmp_path)
    plain = everything(load("mnist", tmp_path))
    turned = load("rmnist", tmp_path)
    images = everything(turned).view(12, 4, 1, 32, 32)
    for k in range(4):
        assert torch.equal(images[:, k], plain.rot90(k, (2, 3)))
    assert turned.factor_names == ("digit", "angle")
    assert turned.factors(torch.tensor([4 * 7 + 3])).tolist() == [[7, 3]]
    blocked = load("rbmn", tmp_path)
    assert (blocked.factor_sizes, blocked.num_images) == ((10, 4, 4), 12 * 16)
    under = everything(blocked).view(12, 4, 4, 32, 32)
    for b, (y, x) in enumerate([(6, 6), (6, 16), (16, 6), (16, 16)]):
        expected = images[:, :, 0].clone()
        expected[:, :, y : y + 10, x : x + 10] = 128 / 255
        assert torch.equal(under[:, :, b], expected)
    assert torch.equal(blocked.factors(blocked.index(torch.tensor([[9, 2, 3]]))), torch.tensor([[9, 2, 3]]))


def write_adrenal(folder, **changes):
    rng = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 5), ("val", 2), ("test", 3)):
        contents[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28, 28), dtype=np.uint8)
        contents[f"{part}_labels"] = rng.integers(0, 2, (n, 1), dtype=np.uint8)
    contents |= changes
    np.savez_compressed(folder / "adrenalmnist3d.npz", **contents)
    return contents


def test_adrenalmnist3d(tmp_path):
    contents = write_adrenal(tmp_path)
    dataset = load("adrenalmnist3d", tmp_path)
    volumes = np.concatenate([contents[f"{part}_images"] for part in ("train", "val", "test")])
    expected = np.pad(volumes.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    assert torch.equal(everything(dataset), as_float(expected))
    label = np.concatenate([contents[f"{part}_labels"] for part in ("train", "val", "test")])
    assert dataset.factors(torch.tensor([6 * 28 + 11])).tolist() == [[label[6, 0], 11]]


# All of them


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


def changed(change):
    """Write a NORB file of a changed array."""
    return lambda array: norb_bytes(change(array))


BLANK = np.zeros((40, 64, 64, 3), np.int32)
BROKEN = [
    ("dsprites", {"imgs": None, "pictures": np.zeros(3, np.uint8)}, "imgs"),
    ("dsprites", {"imgs": np.zeros((72, 32, 32), np.uint8)}, "imgs: shape should be (72, 64, 64), got (72, 32, 32)"),
    ("dsprites", {"imgs": np.zeros((71, 64, 64), np.uint8)}, "(71, 64, 64)"),
    ("dsprites", {"imgs": np.zeros((72, 64, 64), np.complex64)}, "complex64"),
    ("dsprites", {"imgs": np.array([{}] * 72, dtype=object)}, "imgs"),
    ("dsprites", {"imgs": arrays("dsprites")[0] * 255}, "255"),
    ("dsprites", {"imgs": arrays("dsprites")[0] / 2}, "fractions"),
    ("dsprites", {"latents_values": None}, "latents_values"),
    ("dsprites", {"latents_values": np.zeros((72, 6), np.int64)}, "int64"),
    ("dsprites", {"latents_values": arrays("dsprites")[1][::-1]}, "in order"),
    ("shapes3d", {"images": np.zeros((192, 64, 64), np.uint8)}, "images"),
    ("shapes3d", {"labels": None}, "labels"),
    ("cars3d", {"key": "pictures"}, "im"),
    ("cars3d", {"change": lambda im: im[:64]}, "car_000_mesh.mat: im"),
    ("cars3d", {"change": lambda im: im.astype(np.float64)}, "float64"),
    ("cars3d", {"cars": 3}, "24, got 18"),
    ("cars3d", {"cars": 5}, "24, got 30"),
    ("cars3d", {"cut": 500}, "nips2015-analogy-data.tar.gz"),
    ("smallnorb", {"dat": lambda a: norb_bytes(a)[:-5]}, "dat.mat"),
    ("smallnorb", {"dat": changed(lambda a: a.astype(np.int32))}, "507333717"),
    ("smallnorb", {"dat": changed(lambda a: a[:, :, :90])}, "90"),
    ("smallnorb", {"cat": lambda a: norb_bytes(a)[:-5]}, "cat.mat"),
    ("smallnorb", {"cat": changed(lambda a: a + 5)}, "category"),
    ("smallnorb", {"info": changed(lambda a: a[:, :3])}, "(60, 3)"),
    ("smallnorb", {"info": changed(lambda a: a + 1)}, "azimuths"),
    ("smallnorb", {"info": lambda a: b""}, "info.mat"),
    ("teapots", {"images": BLANK + 256}, "256"),
    ("teapots", {"images": BLANK - 1}, "-1"),
    ("teapots", {"images": BLANK * np.nan}, "nan"),
    ("teapots", {"images": BLANK[:, :3]}, "(40, 3, 64, 3)"),
    ("teapots", {"images": BLANK[:0]}, "(0, 64, 64, 3)"),
    ("teapots", {"values": teapot_values(5)}, "gts"),
    ("teapots", {"values": teapot_values(40) + 7}, "0 to 9"),
    ("teapots", {"values": teapot_values(40) * np.nan}, "0 to 9"),
    ("celeba", {"size": (100, 100)}, "(178, 218)"),
    ("celeba", {"count": 4}, "img_align_celeba.zip"),
    ("celeba", {"damage": True}, "000001.jpg"),
    ("celeba", {"rows": 4}, "[4, 4]"),
    ("celeba", {"values": "0 1"}, "[-1, 0, 1]"),
    ("celeba", {"values": "-1 yes"}, "list_attr_celeba.txt"),
    ("celeba", {"names": "Young"}, "columns"),
    ("celeba", {"first": 2}, "order"),
    ("mnist", {"form": "idx", "images": idx_bytes(DIGITS)[:-7]}, "train-images"),
    ("mnist", {"form": "idx", "images": idx_bytes(DIGITS, kind=13)}, "first four bytes"),
    ("mnist", {"form": "idx", "images": idx_bytes(DIGITS[:, :20])}, "(20, 28)"),
    ("mnist", {"form": "idx", "images": pickle.dumps([1, 2])}, "first four bytes"),
    ("rmnist", {"form": "idx", "labels": idx_bytes(LABELS[:5])}, "12, got 5"),
    ("rmnist", {"form": "idx", "labels": idx_bytes(LABELS + 5)}, "digit"),
    ("rbmn", {"form": "idx", "images": idx_bytes(DIGITS[:0]), "labels": idx_bytes(LABELS[:0])}, "no images"),
    ("adrenalmnist3d", {"val_images": np.zeros((2, 64, 64, 64), np.uint8)}, "val_images"),
    ("adrenalmnist3d", {"val_labels": np.zeros((3, 1), np.uint8)}, "11"),
    ("adrenalmnist3d", {"test_labels": np.full((3, 1), 2, np.uint8)}, "label runs from 0 to 1"),
]


@pytest.mark.parametrize(("name", "how", "says"), BROKEN)
def test_broken_files(tmp_path, name, how, says):
    WRITERS[name](tmp_path, **how)
    refused(name, tmp_path, says)


@pytest.mark.parametrize("name", [name for name in NAMES if name in WRITERS])
def test_the_callers_default_type_and_device_do_not_matter(tmp_path, name):
    WRITERS[name](tmp_path)
    index = torch.arange(5)
    expected = load(name, tmp_path).images(index)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        dataset = load(name, tmp_path)
        images = dataset.images(index)
        factors = dataset.sample_factors(3) if dataset.factor_names else index
        again = dataset.images(factors)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
    assert torch.equal(images, expected)
    assert again.device.type == "cpu"
    assert images.dtype == again.dtype == torch.float32


def test_a_step_gets_the_images_of_its_draw(tmp_path):
    """The same for a file, which the host reads before the step, as for a set that is rendered within it."""
    write_mnist(tmp_path)
    cfg = replace(PRESETS["quick"], batch_size=5, seed=3)
    for dataset in (load("mnist", tmp_path), load("squares")):
        batch = train._Batch(dataset, cfg, torch.device("cpu"))
        for step in (0, 7):
            batch.fetch(step)
            index = ops.random_index(5, dataset.num_images, 3, step, device="cpu")
            assert torch.equal(batch.images(torch.tensor(step)), dataset.images(index))


RUNS = [(name, "cpu") for name in ("mpi3d_toy", "rbmn", "folder")]
RUNS += [pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("cars3d", "rmnist")]


@pytest.mark.parametrize(("name", "device"), RUNS)
def test_trains_on_it_and_scores_it(tmp_path, monkeypatch, name, device):
    """With steps enough for a captured CUDA graph, after three that are not."""
    root, run = tmp_path / "files", tmp_path / "run"
    root.mkdir()
    WRITERS[name](root)
    flags = f"--data {name} --root {root} --steps 6 --width 2 --hidden 8 --batch-size 4 --cr-start 1 --out {run}"
    monkeypatch.setattr(train.metrics, "evaluate", partial(train.metrics.evaluate, scale_samples=64, groups=10))
    train.main([*flags.split(), "--device", device])
    assert checkpoint.latest(run).name == "step-000000006"
    several = sum(size > 1 for size in load(name, root).factor_sizes) > 1
    assert ('{"step": 6, "factor_vae": ' in (run / "metrics.jsonl").read_text()) == several
    if several:
        evaluate((str(run),), metrics_=("factor_vae",), device=device)  # on the data that the run remembers
        assert json.loads((run / "metrics.json").read_text())["data"] == name
