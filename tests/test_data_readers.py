"""Every reader on small files of the published schema, and on broken ones."""

import gzip
import io
import json
import pickle
import re
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from crgan import PRESETS, checkpoint, ops, train
from crgan.data import NAMES, grids, load, objects, pictures
from crgan.errors import InputError
from crgan.evaluate import evaluate
from crgan.files import write_atomically

FULL = {name: dict(what.factors) for name, what in grids.PUBLISHED.items()}
SMALL = {
    "dsprites": {"color": 1, "shape": 3, "scale": 2, "orientation": 2, "posX": 3, "posY": 2},
    "circular_dsprites": {"angle": 4, "radius": 3},
    "shapes3d": {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 2},
    "mpi3d_toy": {"color": 2, "shape": 3, "size": 2, "camera": 1, "background": 2, "dof1": 2, "dof2": 3},
}
SMALL |= {f"mpi3d_{kind}": SMALL["mpi3d_toy"] for kind in ("realistic", "real", "complex")}


@pytest.fixture(autouse=True)
def small_schemas(monkeypatch):
    for name, factors in SMALL.items():
        monkeypatch.setitem(grids.PUBLISHED, name, replace(grids.PUBLISHED[name], factors=factors))
    monkeypatch.setattr(objects, "CARS3D", {"elevation": 2, "azimuth": 3, "object": 4})
    monkeypatch.setattr(objects, "NORB_IMAGES", 60)
    monkeypatch.setattr(pictures, "CELEBA_IMAGES", 5)


def arrays(name, seed=0):
    """Images and factor values of a small published file."""
    what = grids.PUBLISHED[name]
    sizes = tuple(what.factors.values())
    rng = np.random.default_rng(seed)
    images = rng.integers(0, what.levels + 1, (prod(sizes), *what.image), dtype=np.uint8)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) + 0.5 for n in sizes), indexing="ij"), -1)
    return images, grid.reshape(-1, len(sizes))


def write_grid(folder, name, file=None, compressed=True, **changes):
    """A published file with `changes` to its arrays (None leaves one out)."""
    what = grids.PUBLISHED[name]
    images, values = arrays(name)
    contents = {what.key: images}
    if what.values:
        contents[what.values[0]] = values
    contents |= changes
    contents = {key: value for key, value in contents.items() if value is not None}
    path = folder / (file or what.files[0])
    if path.suffix == ".npz":
        metadata = {"metadata": np.array({"never": "read"}, dtype=object)} if name == "dsprites" else {}
        (np.savez_compressed if compressed else np.savez)(path, **contents, **metadata)
    else:
        with h5py.File(path, "w") as out:
            for key, value in contents.items():
                if file and key.startswith("latents_"):
                    key = key.replace("_", "/")  # the HDF5 form of dSprites has a group
                out.create_dataset(key, data=value, compression="gzip" if compressed else None)
    return path


def as_float(images, levels=255):
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(images.astype(np.float32) / levels)


def everything(dataset):
    return dataset.images(torch.arange(dataset.num_images))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_grid_files_map_index_and_factors_to_their_images(tmp_path, name, compressed):
    write_grid(tmp_path, name, compressed=compressed)
    dataset = load(name, tmp_path)
    what = grids.PUBLISHED[name]
    expected = as_float(arrays(name)[0], what.levels)
    assert torch.equal(everything(dataset), expected)
    assert dataset.image_shape == tuple(expected.shape[1:])
    factors = dataset.factors(torch.arange(dataset.num_images))
    unravelled = np.stack(np.unravel_index(np.arange(len(expected)), dataset.factor_sizes), -1)
    assert torch.equal(factors, torch.from_numpy(unravelled))
    assert torch.equal(dataset.images(factors), expected)
    # Plain uint8 is mapped where it lies; anything else goes through one cache, which the next load reuses.
    caches = list(tmp_path.glob("crgan-cache/*.npy"))
    assert len(caches) == int(compressed)
    if compressed:
        before = caches[0].stat().st_mtime_ns
        assert torch.equal(everything(load(name, tmp_path)), expected)
        assert caches[0].stat().st_mtime_ns == before


def test_published_sizes():
    counts = {name: prod(sizes.values()) for name, sizes in FULL.items()}
    mpi3d = {f"mpi3d_{kind}": 1_036_800 for kind in ("toy", "realistic", "real")}
    assert counts == mpi3d | {
        "dsprites": 737_280,
        "circular_dsprites": 1_080,
        "shapes3d": 480_000,
        "mpi3d_complex": 460_800,
    }


def test_a_file_of_the_published_size_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.undo()
    sizes = tuple(FULL["shapes3d"].values())
    hues = np.linspace(0, 0.9, 10)
    values = (hues, hues, hues, np.linspace(0.75, 1.25, 8), np.arange(4.0), np.linspace(-30, 30, 15))
    labels = np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, 6)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # 5.9 GB that take no room on the disk
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        space = h5py.h5s.create_simple((prod(sizes), 64, 64, 3))
        h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, layout)
        file["images"][-1, 5] = 255
        file["labels"] = labels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = load("shapes3d", tmp_path)
    images = dataset.images(torch.tensor([[0] * 6, [9, 9, 9, 7, 3, 14]]))
    assert images.sum((1, 2, 3)).tolist() == [0, 64 * 3]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, f"{grown} KiB more for a file of 5.9 GB"


def test_dsprites_hdf5_equals_npz(tmp_path):
    write_grid(tmp_path, "dsprites", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5")
    expected = as_float(arrays("dsprites")[0], 1)
    assert torch.equal(everything(load("dsprites", tmp_path)), expected)


def test_a_rendered_and_a_read_dsprites_are_interchangeable(tmp_path, monkeypatch):
    monkeypatch.undo()
    rendered = load("circular_dsprites")
    images = everything(rendered)[:, 0].byte().numpy()
    factors = rendered.factors(torch.arange(1080)).double() * torch.tensor([2 * np.pi / 40, 1.0])
    np.savez(tmp_path / "cdsprites_ndarray_64x64.npz", imgs=images, latents_values=factors.numpy())
    read = load("circular_dsprites", tmp_path)
    for field in ("name", "image_shape", "num_images", "factor_names", "factor_sizes"):
        assert getattr(read, field) == getattr(rendered, field)
    index = torch.randint(1080, (64,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.images(index), rendered.images(index))
    assert torch.equal(read.images(read.factors(index)), rendered.images(rendered.factors(index)))


def test_the_file_itself_can_be_the_root(tmp_path):
    path = write_grid(tmp_path, "mpi3d_toy")
    assert load("mpi3d_toy", path).num_images == prod(SMALL["mpi3d_toy"].values())


def test_a_changed_file_is_converted_anew(tmp_path):
    write_grid(tmp_path, "mpi3d_toy")
    load("mpi3d_toy", tmp_path)
    images = arrays("mpi3d_toy", seed=1)[0]
    write_grid(tmp_path, "mpi3d_toy", images=images)
    assert torch.equal(everything(load("mpi3d_toy", tmp_path)), as_float(images))


def test_a_cache_for_which_there_is_no_room_is_named(tmp_path):
    write_grid(tmp_path, "mpi3d_toy")
    script = (
        "import resource, signal, sys, crgan; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from crgan.data import grids\n"
        f"grids.PUBLISHED['mpi3d_toy'].factors.update({SMALL['mpi3d_toy']})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: crgan.data.load('mpi3d_toy', sys.argv[1])\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"{tmp_path}/crgan-cache/mpi3d_toy-images-\w+\.npy File too large\n", done.stdout), done
    assert not list(tmp_path.glob("crgan-cache/*"))


def test_a_damaged_cache_asks_to_be_removed(tmp_path):
    write_grid(tmp_path, "mpi3d_toy")
    load("mpi3d_toy", tmp_path)
    (cache,) = tmp_path.glob("crgan-cache/*")
    for content in (cache.read_bytes()[:-1], b""):
        cache.write_bytes(content)
        with pytest.raises(InputError, match=rf"{cache} is damaged .*; remove it, and it is made again"):
            load("mpi3d_toy", tmp_path)


def test_a_cache_takes_the_place_of_the_one_before(tmp_path):
    write_grid(tmp_path, "mpi3d_toy")
    before = everything(load("mpi3d_toy", tmp_path))
    others = [tmp_path / "crgan-cache" / name for name in ("mpi3d_real-images-00000000.npy", "mine.npy")]
    for other in others:
        other.touch()
    write_grid(tmp_path, "mpi3d_toy", images=arrays("mpi3d_toy", seed=1)[0])
    assert not torch.equal(everything(load("mpi3d_toy", tmp_path)), before)
    assert len(list(tmp_path.glob("crgan-cache/*"))) == 3
    assert all(other.exists() for other in others)


def test_where_the_cache_of_files_that_cannot_be_written_beside_goes(tmp_path, monkeypatch):
    data, home = tmp_path / "data", tmp_path / "home"
    data.mkdir()
    write_grid(data, "mpi3d_toy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (data / "crgan-cache").write_text("in the way")
    images = everything(load("mpi3d_toy", data))
    assert [path.suffix for path in (home / "crgan").iterdir()] == [".npy"]
    (data / "crgan-cache").unlink()
    (home / "crgan").rename(data / "crgan-cache")  # made before, and read-only now
    monkeypatch.setattr("os.access", lambda *_: False)
    assert torch.equal(everything(load("mpi3d_toy", data)), images)
    write_grid(data, "mpi3d_toy", images=arrays("mpi3d_toy", seed=1)[0])
    with pytest.raises(InputError, match=rf"neither {data}/crgan-cache nor {home}/crgan can be written"):
        load("mpi3d_toy", data)


def test_many_that_load_at_once_convert_once(tmp_path, monkeypatch):
    write_grid(tmp_path, "mpi3d_toy")
    made = []

    def write(path, how):
        made.append(path)
        write_atomically(path, how)

    monkeypatch.setattr("crgan.data.storage.write_atomically", write)
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: everything(load("mpi3d_toy", tmp_path)), range(4)))
    assert len(made) == 1
    assert all(torch.equal(images, loaded[0]) for images in loaded)


BROKEN = {
    "wrong key": ({"imgs": None, "pictures": np.zeros(3, np.uint8)}, "no such entry"),
    "wrong shape": ({"imgs": np.zeros((72, 32, 32), np.uint8)}, "imgs: shape should be"),
    "too few": ({"imgs": np.zeros((71, 64, 64), np.uint8)}, "imgs: shape should be"),
    "wrong dtype": ({"imgs": np.zeros((72, 64, 64), np.complex64)}, "imgs should be .* numbers, got complex64"),
    "pickle": ({"imgs": np.array([{}] * 72, dtype=object)}, "imgs"),
    "no factors": ({"latents_values": None}, "no such entry.*latents_values"),
    "factors of another type": ({"latents_values": np.zeros((72, 6), np.int64)}, "float numbers"),
    "factors out of order": ({"latents_values": arrays("dsprites")[1][:1].repeat(72, 0)}, None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_npz(tmp_path, case):
    changes, message = BROKEN[case]
    if message is None:
        changes, message = {"latents_values": arrays("dsprites")[1][::-1]}, "grid of factors in order"
    path = write_grid(tmp_path, "dsprites", **changes)
    with pytest.raises(InputError, match=message) as error:
        load("dsprites", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_hdf5(tmp_path):
    path = write_grid(tmp_path, "shapes3d")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=re.escape(f"{path} cannot be read as HDF5 file")):
        load("shapes3d", tmp_path)
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(InputError, match="cannot be read as HDF5 file"):
        load("shapes3d", tmp_path)
    write_grid(tmp_path, "shapes3d", images=np.zeros((192, 64, 64), np.uint8))
    with pytest.raises(InputError, match="images: shape should be"):
        load("shapes3d", tmp_path)
    write_grid(tmp_path, "shapes3d", labels=None)
    with pytest.raises(InputError, match="no such entry"):
        load("shapes3d", tmp_path)


@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_npz(tmp_path, compressed):
    path = write_grid(tmp_path, "mpi3d_real", compressed=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as npz file"):
        load("mpi3d_real", tmp_path)
    # A damaged middle under a sound directory: the compressed member is found out while it is converted.
    if compressed:
        path.write_bytes(whole[:5000] + bytes(5000) + whole[10000:])
        with pytest.raises(InputError, match="cannot be read as npz file"):
            load("mpi3d_real", tmp_path)
        assert not list(tmp_path.glob("crgan-cache/*"))  # nothing half-made is left


def test_a_pickle_in_disguise_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "mpi3d_toy.npz"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="cannot be read as npz file"):
        load("mpi3d_toy", tmp_path)
    np.savez(path, images=np.array([Evil()], dtype=object))
    with pytest.raises(InputError, match="images"):
        load("mpi3d_toy", tmp_path)
    teapots = tmp_path / "teapots.npz"
    np.savez(teapots, images=np.zeros((1, 64, 64, 3), np.int32), gts=np.array([Evil()], dtype=object))
    with pytest.raises(InputError, match=r"teapots\.npz.*allow_pickle"):
        load("teapots", tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_images_out_of_range(tmp_path, compressed):
    images = arrays("dsprites")[0] * 255
    write_grid(tmp_path, "dsprites", compressed=compressed, imgs=images)
    with pytest.raises(InputError, match="values from 0 to 1, got 255"):
        everything(load("dsprites", tmp_path))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("squares", "shapes3d_like", "folder")])
def test_a_missing_file_comes_with_a_way_to_get_it(tmp_path, name):
    with pytest.raises(InputError, match=r"needs .* which has none; it is published with .*\d{4}"):
        load(name, tmp_path)
    if name not in ("dsprites", "circular_dsprites"):
        with pytest.raises(InputError, match="give its folder as root"):
            load(name)


def test_unknown_and_fileless_names(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'dsprite'; choose one of squares, dsprites"):
        load("dsprite")
    with pytest.raises(InputError, match="has no files"):
        load("squares", tmp_path)


# Cars3D


def write_cars(folder, change=lambda im: im, key="im", cut=None, cars=4):
    path = folder / "nips2015-analogy-data.tar.gz"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for car in range(cars):
            views = np.arange(2 * 3).reshape(3, 2) * 10 + car
            im = np.broadcast_to(views, (128, 128, 3, 3, 2)).astype(np.uint8)
            data = io.BytesIO()
            scipy.io.savemat(data, {key: change(im), "mask": rng.random(3)}, do_compression=True)
            for name in (f"data/cars/car_{car:03}_mesh.mat", f"data/sprites/other_{car}.mat"):
                info = tarfile.TarInfo(name)
                info.size = len(data.getvalue())
                archive.addfile(info, io.BytesIO(data.getvalue()))
    if cut:
        path.write_bytes(path.read_bytes()[:cut])
    return path


def test_cars3d(tmp_path):
    write_cars(tmp_path)
    dataset = load("cars3d", tmp_path)
    assert (dataset.image_shape, dataset.factor_sizes) == ((3, 64, 64), (2, 3, 4))
    images = everything(dataset)
    elevation, azimuth, car = dataset.factors(torch.arange(24)).T
    expected = ((azimuth * 2 + elevation) * 10 + car).float() / 255
    torch.testing.assert_close(images, expected[:, None, None, None].expand(images.shape))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"key": "pictures"}, "no such entry in this MATLAB file: im"),
        ({"change": lambda im: im[:64]}, "im: shape should be"),
        ({"change": lambda im: im.astype(np.float64)}, "im: dtype should be uint8"),
        ({"cars": 3}, "number of images should be 24, got 18"),
        ({"cars": 5}, "number of images should be 24, got 30"),
        ({"cut": 900}, "cannot be read as"),
    ],
)
def test_broken_cars3d(tmp_path, how, message):
    path = write_cars(tmp_path, **how)
    with pytest.raises(InputError, match=message) as error:
        load("cars3d", tmp_path)
    assert str(path) in str(error.value)


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
    assert (dataset.image_shape, dataset.num_images) == ((1, 64, 64), 120)
    assert dataset.factor_sizes == (5, 9, 18, 6)
    grey = np.concatenate([part["dat"][:, 0, 0, 0] for part in parts])
    torch.testing.assert_close(everything(dataset)[:, 0, 32, 32], torch.from_numpy(grey / np.float32(255)))
    table = np.concatenate([np.c_[p["cat"], p["info"][:, 1], p["info"][:, 2] // 2, p["info"][:, 3]] for p in parts])
    index = torch.arange(120)
    assert torch.equal(dataset.factors(index), torch.from_numpy(table).long())
    assert torch.equal(dataset.factors(dataset.index(dataset.factors(index))), dataset.factors(index))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("dat", lambda a: norb_bytes(a)[:-5], "cannot be read as"),
        ("dat", lambda a: norb_bytes(a.astype(np.int32)), "magic number should be 507333717"),
        ("dat", lambda a: norb_bytes(a[:, :, :90]), "shape should be"),
        ("cat", lambda a: norb_bytes(a)[:-5], "cannot be read as NORB file"),
        ("cat", lambda a: norb_bytes(a + 5), "factor 0 should have classes 0 to 4"),
        ("info", lambda a: norb_bytes(a[:, :3]), "shape should be"),
        ("info", lambda a: norb_bytes(a + 1), "azimuths should be even"),
        ("info", lambda a: b"", "cannot be read as NORB file"),
    ],
)
def test_broken_smallnorb(tmp_path, part, change, message):
    write_norb(tmp_path, **{part: change})
    with pytest.raises(InputError, match=message):
        load("smallnorb", tmp_path)


# 3D Teapots


def teapot_values(n, seed=0):
    return np.random.default_rng(seed).random((n, 5)) * [2 * np.pi, np.pi / 2, 1, 1, 1]


def test_teapots_single_file(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.int32)
    values = teapot_values(40)
    np.savez_compressed(tmp_path / "teapots.npz", images=images, gts=values)
    dataset = load("teapots", tmp_path)
    assert torch.equal(everything(dataset), as_float(images))
    classes = (values / [2 * np.pi, np.pi / 2, 1, 1, 1] * 10).astype(int)
    assert torch.equal(dataset.factors(torch.arange(40)), torch.from_numpy(classes))
    np.savez_compressed(tmp_path / "teapots.npz", images=images)
    assert load("teapots", tmp_path).factor_names == ()


def test_teapots_with_metric_data(tmp_path):
    rng = np.random.default_rng(1)
    for part in ("train_data", "metric_data"):
        (tmp_path / part).mkdir()
    images, groups = rng.random((30, 64, 64, 3)), rng.random((3, 100, 64, 64, 3), dtype=np.float32)
    np.savez(tmp_path / "train_data/data.npz", imgs=images, latents=teapot_values(30))
    labels = np.array([0, 1, 4], np.int32)
    np.savez(tmp_path / "metric_data/data.npz", imgs=groups, labels=labels)
    dataset = load("teapots", tmp_path)
    torch.testing.assert_close(everything(dataset), as_float(images, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    index = torch.arange(300)
    assert torch.equal(dataset.groups.factors(index)[:, 0], torch.tensor([0, 1, 4]).repeat_interleave(100))
    expected = as_float(groups.reshape(-1, 64, 64, 3), 1)
    torch.testing.assert_close(dataset.groups.images(index), expected, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "values", "message"),
    [
        (np.full((4, 64, 64, 3), 256, np.int32), teapot_values(4), "values from 0 to 255, got 256"),
        (np.full((4, 64, 64, 3), -1, np.int32), teapot_values(4), "values from 0 to 255, got -1"),
        (np.full((4, 64, 64, 3), np.nan), teapot_values(4), "values from 0 to 1, got nan"),
        (np.zeros((4, 64, 64, 3), np.int32), teapot_values(5), "gts: shape should be"),
        (np.zeros((4, 64, 64, 3), np.int32), teapot_values(4) + 7, "classes 0 to 9"),
        (np.zeros((4, 64, 64, 3), np.int32), teapot_values(4) * np.nan, "classes 0 to 9"),
        (np.zeros((4, 3, 64, 64), np.int32), teapot_values(4), "images: shape should be"),
        (np.zeros((0, 64, 64, 3), np.int32), teapot_values(0), "images: shape should be"),
    ],
)
def test_broken_teapots(tmp_path, images, values, message):
    np.savez(tmp_path / "teapots.npz", images=images, gts=values)
    with pytest.raises(InputError, match=message):
        load("teapots", tmp_path)


# CelebA and a folder of images


def write_celeba(folder, size=(178, 218), count=5, attributes=None, damage=False):
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(1, count + 1):
            picture = Image.new("RGB", size, (255, 255, 255))
            picture.paste((40 * i, 0, 0), (25, 45, 153, 173))  # what the crop keeps
            data = io.BytesIO()
            picture.save(data, "jpeg", quality=95)
            content = data.getvalue()[:300] if damage else data.getvalue()
            archive.writestr(f"img_align_celeba/{i:06}.jpg", content)
    if attributes:
        (folder / "list_attr_celeba.txt").write_text(attributes)


def attributes(rows=5, values="-1 1", names="Smiling Young", first=1):
    lines = [f"{i:06}.jpg  {values if i % 2 else '1  1'}" for i in range(first, first + rows)]
    return "\n".join([str(rows), names, *lines]) + "\n"


def test_celeba(tmp_path):
    write_celeba(tmp_path, attributes=attributes())
    dataset = load("celeba", tmp_path)
    assert (dataset.num_images, dataset.image_shape) == (5, (3, 32, 32))
    images = everything(dataset)
    expected = torch.tensor([[40 * i / 255, 0, 0] for i in range(1, 6)])
    torch.testing.assert_close(images[:, :, 16, 16], expected, atol=3 / 255, rtol=0)
    assert images[:, 1:].max() < 0.1  # nothing of the white border
    assert dataset.factor_names == ("Smiling", "Young")
    assert dataset.factors(torch.arange(5))[:, 0].tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(InputError, match="no image with factors"):
        dataset.index(torch.tensor([[1, 0]]))
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert load("celeba", tmp_path).factor_sizes == ()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"size": (100, 100)}, r"size should be \(178, 218\)"),
        ({"count": 4}, "number of images should be 5, got 4"),
        ({"damage": True}, "000001.jpg cannot be read as image"),
        ({"attributes": attributes(rows=4)}, "number of images should be"),
        ({"attributes": attributes(values="0 1")}, "classes 0 to 1, got -1"),
        ({"attributes": attributes(values="-1 yes")}, "cannot be read as list of attributes"),
        ({"attributes": attributes(names="Young")}, "number of columns should be 1"),
        ({"attributes": attributes(first=2)}, "order of images"),
    ],
)
def test_broken_celeba(tmp_path, how, message):
    write_celeba(tmp_path, **how)
    with pytest.raises(InputError, match=message):
        load("celeba", tmp_path)


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
    assert (dataset.image_shape, dataset.num_images) == ((3, 64, 64), 4)
    for place, files in {"run": ("config.json", "metrics.jsonl"), "choice": ("ranking.json",), ".hidden": ()}.items():
        (tmp_path / place).mkdir()
        for name in ("samples.png", "similarity.png"):
            Image.new("RGB", (64, 64)).save(tmp_path / place / name)
        for name in files:
            (tmp_path / place / name).write_text("{}")
    assert load("folder", tmp_path).num_images == 4  # neither its own cache nor what this library wrote is data
    with pytest.raises(InputError, match="no factors"):
        dataset.sample_factors(1, seed=0)


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


def test_broken_folder(tmp_path):
    with pytest.raises(InputError, match="needs a folder"):
        load("folder", tmp_path / "none")
    with pytest.raises(InputError, match="needs a folder"):
        load("folder")
    with pytest.raises(InputError, match="holds no images"):
        load("folder", tmp_path)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match=r"x.tiff has pixels of 32 bits"):
        load("folder", tmp_path)
    (tmp_path / "x.tiff").unlink()
    (tmp_path / "x.png").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match=r"x.png is no picture that can be read"):
        load("folder", tmp_path)


# MNIST and its variants, AdrenalMNIST3D


def idx_bytes(array, kind=8):
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def digits(n=12):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)


def write_mnist(folder, form, images=None, labels=None):
    images = digits()[0] if images is None else images
    labels = digits()[1] if labels is None else labels
    if form == "npz":
        np.savez(folder / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        if form == "idx":
            (folder / name).write_bytes(idx_bytes(array))
        if form == "gz":
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist(tmp_path, form):
    write_mnist(tmp_path, form)
    dataset = load("mnist", tmp_path)
    images, labels = digits()
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    assert torch.equal(everything(dataset), as_float(padded))
    assert dataset.factors(torch.arange(12))[:, 0].tolist() == labels.tolist()


def test_rmnist_and_rbmn(tmp_path):
    write_mnist(tmp_path, "npz")
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


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx_bytes(digits()[0])[:-7], idx_bytes(digits()[1]), "train-images.*cannot be read as IDX file"),
        (idx_bytes(digits()[0], kind=13), idx_bytes(digits()[1]), "first four bytes should be"),
        (idx_bytes(digits()[0][:, :20]), idx_bytes(digits()[1]), "shape should be"),
        (idx_bytes(digits()[0]), idx_bytes(digits()[1][:5]), "number of labels should be 12, got 5"),
        (idx_bytes(digits()[0]), idx_bytes(digits()[1] + 5), "classes 0 to 9"),
        (idx_bytes(digits()[0][:0]), idx_bytes(digits()[1][:0]), "holds no images"),
        (pickle.dumps([1, 2]), idx_bytes(digits()[1]), "first four bytes should be"),
    ],
)
def test_broken_mnist(tmp_path, images, labels, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    for name in ("mnist", "rmnist"):
        with pytest.raises(InputError, match=message):
            load(name, tmp_path)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": np.zeros((2, 64, 64, 64), np.uint8)}, "val_images: shape should be"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, "number of labels should be"),
        ({"test_labels": np.full((3, 1), 2, np.uint8)}, "classes 0 to 1, got"),
    ],
)
def test_broken_adrenalmnist3d(tmp_path, changes, message):
    write_adrenal(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load("adrenalmnist3d", tmp_path)


# ---------------------------------------------------------------- the commands, on every one of them


def write_teapots(folder):
    images = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.int32)
    np.savez_compressed(folder / "teapots.npz", images=images, gts=teapot_values(40))


def write_folder(folder):
    for i in range(6):
        Image.new("RGB", (50, 60), (40 * i, 0, 0)).save(folder / f"{i}.png")


WRITERS = {
    **{name: lambda folder, name=name: write_grid(folder, name) for name in grids.PUBLISHED},
    "cars3d": write_cars,
    "smallnorb": write_norb,
    "teapots": write_teapots,
    "celeba": lambda folder: write_celeba(folder, attributes=attributes()),
    **{name: lambda folder: write_mnist(folder, "npz") for name in ("mnist", "rmnist", "rbmn")},
    "adrenalmnist3d": write_adrenal,
    "folder": write_folder,
}


def test_a_step_gets_the_images_of_its_draw(tmp_path):
    """The same for a file, which the host reads before the step, as for a set that is drawn within it."""
    write_mnist(tmp_path, "npz")
    cfg = replace(PRESETS["quick"], batch_size=5, seed=3)
    for dataset in (load("mnist", tmp_path), load("squares")):
        batch = train._Batch(dataset, cfg, torch.device("cpu"))
        for step in (0, 7):
            batch.fetch(step)
            index = ops.random_index(5, dataset.num_images, 3, step, device="cpu")
            assert torch.equal(batch.images(torch.tensor(step)), dataset.images(index))


READERS = [(name, "cpu") for name in NAMES if name in WRITERS]
READERS += [pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("cars3d", "rmnist")]


@pytest.mark.parametrize(("name", "device"), READERS)
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
    metric, part = ("factor_vae", "score") if several else ("reconstruction", "psnr")
    evaluate((str(run),), metrics_=(metric,), device=device)  # on the data that the run remembers
    ((scores,),) = json.loads((run / "metrics.json").read_text()).values()
    assert scores["data"] == name
    assert np.isfinite(scores["metrics"][metric][part])
