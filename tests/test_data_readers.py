"""Every reader on small files of the published schema, and on missing, damaged and locked ones; the cache."""

import fcntl
import json
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import data_files as files
import h5py
import numpy as np
import pytest
import torch
from data_files import as_float, refused, stored, write_grid
from PIL import Image

from crgan import checkpoint, ops, train
from crgan.data import READERS, RealImages, load, readers
from crgan.errors import InputError
from crgan.evaluate import evaluate
from crgan.files import write_atomically


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """The readers expect small files, and convert them into this folder."""
    for name, factors in files.SMALL.items():
        monkeypatch.setitem(READERS, name, READERS[name]._replace(read=partial(READERS[name].read, factors=factors)))
    monkeypatch.setattr(readers, "CARS3D", {"elevation": 2, "azimuth": 3, "object": 4})
    for name, count in (("NORB_IMAGES", 60), ("CELEBA_IMAGES", 5), ("MNIST_IMAGES", 12)):
        monkeypatch.setattr(readers, name, count)
    folder = tmp_path_factory.mktemp("data") / "cache"
    monkeypatch.setenv("CRGAN_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", files.SMALL)
def test_grid_files_map_index_and_factors_to_their_images(tmp_path, cache, name, compressed):
    path = write_grid(tmp_path, name, compressed=compressed)
    expected, dataset = as_float(stored(name), 1 if name in files.BINARY else 255), load(name, tmp_path)
    assert torch.equal(dataset[:], expected)
    assert torch.equal(dataset.images(dataset.factors(torch.arange(len(dataset)))), expected)
    assert (dataset.image_shape, dataset.source) == (expected.shape[1:], str(path))
    # Plain uint8 of an npz file is mapped where it lies; anything else through one cache, which the next load reuses.
    cached = {file: file.stat().st_mtime_ns for file in cache.glob("*.uint8")}
    assert len(cached) == (compressed or path.suffix == ".h5")
    assert torch.equal(load(name, path)[:], expected)
    assert cached == {file: file.stat().st_mtime_ns for file in cache.glob("*.uint8")}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("file", "dtype"), [(0, np.float32), (0, np.float64), (0, bool), (0, np.int64), (1, np.uint8)])
def test_binary_images_of_any_type(tmp_path, file, dtype):
    images = stored("dsprites")
    write_grid(tmp_path, "dsprites", file, images=images.astype(dtype))
    assert torch.equal(load("dsprites", tmp_path)[:], as_float(images, 1))


def test_cars3d(tmp_path):
    files.write_cars(tmp_path)
    dataset = load("cars3d", tmp_path)
    elevation, azimuth, car = dataset.factors(torch.arange(24)).T
    expected = ((azimuth * 2 + elevation) * 10 + car).float() / 255
    torch.testing.assert_close(dataset[:], expected[:, None, None, None].expand(24, 3, 64, 64))


@pytest.mark.parametrize("zipped", [True, False])
def test_smallnorb(tmp_path, zipped):
    parts = files.write_norb(tmp_path, zipped)
    dataset = load("smallnorb", tmp_path)
    grey = np.concatenate([part["dat"][:, 0, 0, 0] for part in parts])
    torch.testing.assert_close(dataset[:][:, 0, 32, 32], torch.from_numpy(grey / np.float32(255)))
    table = np.concatenate([np.c_[p["cat"], p["info"][:, 1], p["info"][:, 2] // 2, p["info"][:, 3]] for p in parts])
    factors = dataset.factors(torch.arange(120))
    assert torch.equal(factors, torch.from_numpy(table).long())


def test_teapots(tmp_path):
    files.write_teapots(tmp_path)
    dataset = load("teapots", tmp_path)
    assert torch.equal(dataset[:], as_float(files.TEAPOTS))
    assert torch.equal(dataset.continuous_factors, torch.from_numpy(files.TEAPOT_VALUES))


def test_celeba(tmp_path):
    files.write_celeba(tmp_path)
    dataset = load("celeba", tmp_path)
    expected = torch.tensor([[40 * i / 255, 0, 0] for i in range(1, 6)])  # and nothing of the white border
    torch.testing.assert_close(dataset[:].mean((2, 3)), expected, atol=0.02, rtol=0)
    assert dataset.factor_names == ("Smiling", "Young")
    assert dataset.factors(torch.arange(5))[:, 0].tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(InputError, match="table"):
        dataset.index(torch.tensor([[1, 0]]))
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert load("celeba", tmp_path).factor_sizes == ()


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (200, 100), (255, 0, 0)).save(tmp_path / "a.png")
    exif, half = Image.Exif(), np.zeros((64, 64, 3), np.uint8)
    exif[0x0112], half[:30] = 3, 255  # white above, shown turned by 180 degrees
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    Image.new("L", (64, 64), 51).save(tmp_path / "b.jpg")
    Image.new("RGBA", (30, 90), (0, 0, 255, 255)).save(tmp_path / "sub" / "c.PNG")
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(tmp_path / "transparent.png")
    Image.fromarray(np.full((64, 64), 257 * 51, np.uint16)).save(tmp_path / "wide.png")  # 16 bits a pixel
    (tmp_path / "folder.png").mkdir()
    for place, mark in (("run", "metrics.jsonl"), ("choice", "ranking.json"), (".hidden", "a")):
        (tmp_path / place).mkdir()
        (tmp_path / place / mark).write_text("{}")
        Image.new("RGB", (64, 64)).save(tmp_path / place / "not-data.png")
    dataset = load("folder", tmp_path)
    grey, below = [0.2, 0.2, 0.2], dataset[:][:, :, 50, 32]
    torch.testing.assert_close(below, torch.tensor([[1, 0, 0], grey, [0, 0, 1.0], [1, 1, 1], [1, 1, 1], grey]))
    assert (dataset.image_shape, dataset.source) == ((3, 64, 64), str(tmp_path))
    with pytest.raises(InputError, match="no factors"):
        dataset.sample_factors(1)
    (tmp_path / "a.png").unlink()
    assert "5 pictures" in load("folder", tmp_path).identity != dataset.identity


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
    torch.testing.assert_close(load("folder", data)[:], torch.full((3, 3, 64, 64), 0.2))


def test_broken_folder(tmp_path, monkeypatch):
    refused("folder", tmp_path)
    picture = tmp_path / "x.tiff"
    Image.fromarray(np.ones((8, 8), np.float32)).save(picture)
    refused("folder", tmp_path, picture, "32 bits")
    Image.new("RGB", (64, 64)).save(picture)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        refused("folder", tmp_path, picture, "decompression bomb")
    monkeypatch.setattr(readers, "_rgb", lambda _: struct.unpack("i", b""))  # as Pillow does on some damaged pictures
    refused("folder", tmp_path, picture, "buffer")


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist_rmnist_and_rbmn(tmp_path, form):
    files.write_mnist(tmp_path, form)
    dataset, turned, blocked = (load(name, tmp_path) for name in ("mnist", "rmnist", "rbmn"))
    plain = dataset[:]
    assert torch.equal(plain, as_float(np.pad(files.DIGITS, ((0, 0), (2, 2), (2, 2)))))
    assert dataset.factors(torch.arange(12))[:, 0].tolist() == files.LABELS.tolist()
    images = turned[:].view(12, 4, 1, 32, 32)
    assert torch.equal(images, torch.stack([plain.rot90(k, (2, 3)) for k in range(4)], 1))
    assert turned.factors(torch.tensor([4 * 7 + 3])).tolist() == [[7, 3]]
    under = blocked[:].view(12, 4, 4, 32, 32)
    for b, (y, x) in enumerate([(6, 6), (6, 16), (16, 6), (16, 16)]):
        expected = images[:, :, 0].clone()
        expected[:, :, y : y + 10, x : x + 10] = 128 / 255
        assert torch.equal(under[:, :, b], expected)
    assert blocked.factors(torch.tensor([16 * 9 + 4 * 2 + 3])).tolist() == [[9, 2, 3]]


@pytest.mark.parametrize(("name", "each"), [("mnist", 1), ("rmnist", 4)])
def test_digits_beyond_the_first_thousand_are_read(tmp_path, name, each):
    digits = np.random.default_rng(0).integers(0, 256, (1_001, 28, 28), np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=digits, y_train=np.arange(1_001) % 10)
    dataset = load(name, tmp_path)
    assert len(dataset) == 1_001 * each
    assert torch.equal(dataset[1_000 * each][:, 2:-2, 2:-2], as_float(digits)[1_000])


def test_images_of_another_shape_are_converted_anew(tmp_path):
    source = tmp_path / "source"
    source.touch()
    for side in (28, 32):  # as another version of a reader may want them
        assert readers.cached("digits", [source], (1, side), [np.ones((1, side), np.uint8)]).shape == (1, side)


def test_adrenalmnist3d(tmp_path):
    contents = files.write_adrenal(tmp_path)
    dataset = load("adrenalmnist3d", tmp_path)
    volumes = np.concatenate([contents[f"{part}_images"] for part in ("train", "val", "test")])
    assert torch.equal(dataset[:][:, :, 2:-2, 2:-2], as_float(volumes.reshape(-1, 28, 28)))
    assert dataset.factors(torch.tensor([6 * 28 + 11])).tolist() == [[contents["val_labels"][1, 0], 11]]


def test_a_step_gets_the_images_of_its_draw(tmp_path):
    files.write_mnist(tmp_path)
    for dataset in (load("mnist", tmp_path), load("squares")):
        batch = RealImages(dataset, 5, seed=3, device=torch.device("cpu"))
        for step in (0, 7):
            batch.fetch(step)
            index = ops.random_index(5, dataset.num_images, 3, step, device="cpu")
            assert torch.equal(batch.images(torch.tensor(step)), dataset.images(index))


RUNS = [("mpi3d_toy", "cpu"), ("rbmn", "cpu"), ("folder", "cpu"), pytest.param("cars3d", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("name", "device"), RUNS)
def test_trains_on_it_and_scores_it(tmp_path, small_scores, name, device):
    """With steps enough for a captured CUDA graph, after three that are not."""
    root, run = tmp_path / "files", tmp_path / "run"
    root.mkdir()
    files.WRITERS[name](root)
    flags = f"--data {name} --root {root} --steps 6 --width 2 --hidden 8 --batch-size 4 --cr-start 1 --out {run}"
    train.main([*flags.split(), "--device", device])
    assert checkpoint.latest(run).name == "step-000000006"
    several = sum(size > 1 for size in load(name, root).factor_sizes) > 1
    assert ('{"step": 6, "factor_vae": ' in (run / "metrics.jsonl").read_text()) == several
    if several:
        evaluate((str(run),), metrics_=("factor_vae",), device=device)  # on the data that the run remembers
        ((scores,),) = json.loads((run / "metrics.json").read_text()).values()
        assert scores["data"] == name


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_comes_with_a_way_to_get_it(tmp_path, name):
    refused(name, tmp_path, READERS[name].files[0], READERS[name].publisher)
    if name not in files.BINARY:
        with pytest.raises(InputError, match="--root"):
            load(name)


def test_names_and_roots(tmp_path, monkeypatch):
    for name, root, says in (("dsprite", None, "dsprites"), ("squares", tmp_path, "squares"), ("folder", "", "''")):
        with pytest.raises(InputError, match=says):
            load(name, root)
    (tmp_path / "x").mkdir()
    path = write_grid(tmp_path / "x", "dsprites")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("dsprites", "~/x").source == str(path)


def norb(change):
    return lambda array: files.norb_bytes(change(array))


BLANK = np.zeros((40, 64, 64, 3), np.int32)
BROKEN = [
    ("dsprites", {"key": "pictures"}, "imgs"),
    ("dsprites", {"images": stored("dsprites")[1:]}, "71 images"),
    ("dsprites", {"images": stored("dsprites") * 255, "compressed": False}, "255"),
    ("shapes3d", {"images": np.zeros((192, 64, 64), np.uint8)}, "images"),
    ("cars3d", {"change": lambda im: im[:64]}, "car_000_mesh.mat"),
    ("cars3d", {"cars": 3}, "24, got 18"),
    ("smallnorb", {"dat": lambda a: files.norb_bytes(a)[:-5]}, "dat.mat"),
    ("smallnorb", {"dat": norb(lambda a: a.astype(np.int32))}, "dat.mat"),
    ("smallnorb", {"cat": norb(lambda a: a + 5)}, "category"),
    ("teapots", {"images": BLANK + 256}, "256"),
    ("teapots", {"values": files.TEAPOT_VALUES[:5]}, "rows"),
    ("celeba", {"size": (100, 100)}, "(178, 218)"),
    ("celeba", {"damage": True}, "000001.jpg"),
    ("mnist", {"form": "idx", "cut": -7}, "train-images"),
    ("rmnist", {"labels": files.LABELS + 5}, "digit"),
    ("adrenalmnist3d", {"val_labels": np.zeros((3, 1), np.uint8)}, "rows"),
]


@pytest.mark.parametrize(("name", "how", "says"), BROKEN)
def test_broken_files(tmp_path, name, how, says):
    files.WRITERS[name](tmp_path, **how)
    refused(name, tmp_path, says)


def test_truncated_files(tmp_path, cache):
    for name, compressed in (("mpi3d_real", True), ("mpi3d_real", False), ("shapes3d", True)):
        path = write_grid(tmp_path, name, compressed=compressed)
        whole = path.read_bytes()
        damaged = whole[:5000] + bytes(5000) + whole[10000:]  # under an intact directory
        for content in (whole[: len(whole) // 2], b"nothing of the kind", *([damaged] if compressed else [])):
            path.write_bytes(content)
            refused(name, tmp_path, path)
    assert not list(cache.glob("*mpi*"))


def test_a_pickle_in_disguise_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    evil = np.array([Evil()], dtype=object)
    write_grid(tmp_path, "mpi3d_toy", images=np.broadcast_to(evil[:, None, None], (1, 64, 64, 3)))
    refused("mpi3d_toy", tmp_path)
    files.write_teapots(tmp_path, values=evil)
    refused("teapots", tmp_path)
    (tmp_path / "teapots.npz").write_bytes(pickle.dumps(evil))
    refused("teapots", tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_lock_is_no_damage(tmp_path, monkeypatch):
    path = write_grid(tmp_path, "shapes3d")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load("shapes3d", tmp_path).num_images == 192
    for number in (11, 37):  # held open elsewhere; a file system without locks
        monkeypatch.setattr(h5py, "File", Mock(side_effect=OSError(number, "unable to lock file")))
        with pytest.raises(OSError, match="unable to lock") as error:
            load("shapes3d", tmp_path)
        assert error.value.filename == str(path)


def test_the_cache(tmp_path, monkeypatch):
    """It lies where the user says, is made anew from a changed file, and never believed when it is damaged."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for value, folder in (("~/mine", home / "mine"), ("", home / ".cache/crgan")):
        monkeypatch.setenv("CRGAN_CACHE", value)
        for seed in (0, 1):
            images = stored("mpi3d_toy", seed)
            write_grid(tmp_path, "mpi3d_toy", images=images)
            assert torch.equal(load("mpi3d_toy", tmp_path)[:], as_float(images))
            assert len(list(folder.glob("mpi3d_toy-*"))) == seed + 1
    for file in folder.glob("mpi3d_toy-*"):
        file.write_bytes(file.read_bytes()[:-1])
    refused("mpi3d_toy", tmp_path, folder, "remove it")


def test_many_that_load_at_once_convert_once(tmp_path, monkeypatch):
    write_grid(tmp_path, "mpi3d_toy")
    made = Mock(side_effect=write_atomically)
    monkeypatch.setattr(readers, "write_atomically", made)
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: load("mpi3d_toy", tmp_path)[:], range(4)))
    made.assert_called_once()
    assert torch.equal(torch.stack(loaded), loaded[0].expand(4, -1, -1, -1, -1))
