"""Every reader on small files of the published schema."""

import json
import os
import pickle
import struct
from dataclasses import replace
from functools import partial
from math import prod

import data_files as files
import numpy as np
import pytest
import torch
from data_files import as_float, everything, refused
from PIL import Image

from crgan import PRESETS, checkpoint, ops, train
from crgan.data import READERS, load, readers
from crgan.data.batches import RealImages
from crgan.errors import InputError
from crgan.evaluate import evaluate


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    return files.use_small_files(monkeypatch, tmp_path_factory.mktemp("data") / "cache")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", files.SMALL)
def test_grid_files_map_index_and_factors_to_their_images(tmp_path, cache, name, compressed):
    path = files.write_grid(tmp_path, name, compressed=compressed)
    expected, times = as_float(files.stored(name), 1 if name in files.BINARY else 255), []
    for root in (tmp_path, path):
        dataset = load(name, root)
        assert torch.equal(everything(dataset), expected)
        times.append([file.stat().st_mtime_ns for file in cache.glob("*.uint8")])
    assert (dataset.image_shape, dataset.source) == (expected.shape[1:], str(path))
    assert torch.equal(dataset.images(dataset.factors(torch.arange(dataset.num_images))), expected)
    # Plain uint8 of an npz file is mapped where it lies; anything else through one cache, which the next load reuses.
    assert times[0] == times[1]
    assert len(times[0]) == (compressed or path.suffix == ".h5")
    assert list(tmp_path.iterdir()) == [path]


def test_published_sizes(monkeypatch):
    monkeypatch.undo()
    counts = {name: prod(READERS[name].read.keywords["factors"].values()) for name in files.SMALL}
    mpi3d = {f"mpi3d_{kind}": 1_036_800 for kind in ("toy", "realistic", "real")} | {"mpi3d_complex": 460_800}
    assert counts == mpi3d | {"dsprites": 737_280, "circular_dsprites": 1_080, "shapes3d": 480_000}


def test_dsprites_hdf5_equals_npz(tmp_path):
    files.write_grid(tmp_path, "dsprites", file=1)
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(files.stored("dsprites"), 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int64])
def test_binary_images_of_any_type(tmp_path, dtype):
    images = files.stored("dsprites")
    files.write_grid(tmp_path, "dsprites", images=images.astype(dtype))
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(images, 1))


def test_cars3d(tmp_path):
    files.write_cars(tmp_path)
    dataset = load("cars3d", tmp_path)
    images = everything(dataset)
    elevation, azimuth, car = dataset.factors(torch.arange(24)).T
    expected = ((azimuth * 2 + elevation) * 10 + car).float() / 255
    torch.testing.assert_close(images, expected[:, None, None, None].expand(24, 3, 64, 64))


@pytest.mark.parametrize("zipped", [True, False])
def test_smallnorb(tmp_path, zipped):
    parts = files.write_norb(tmp_path, zipped)
    dataset = load("smallnorb", tmp_path)
    assert (dataset.image_shape, dataset.num_images, dataset.factor_sizes) == ((1, 64, 64), 120, (5, 9, 18, 6))
    grey = np.concatenate([part["dat"][:, 0, 0, 0] for part in parts])
    torch.testing.assert_close(everything(dataset)[:, 0, 32, 32], torch.from_numpy(grey / np.float32(255)))
    table = np.concatenate([np.c_[p["cat"], p["info"][:, 1], p["info"][:, 2] // 2, p["info"][:, 3]] for p in parts])
    factors = dataset.factors(torch.arange(120))
    assert torch.equal(factors, torch.from_numpy(table).long())
    assert torch.equal(dataset.factors(dataset.index(factors)), factors)


def test_teapots(tmp_path):
    files.write_teapots(tmp_path)
    dataset = load("teapots", tmp_path)
    assert torch.equal(everything(dataset), as_float(files.TEAPOTS))
    assert torch.equal(dataset.continuous_factors, torch.from_numpy(files.TEAPOT_VALUES))
    low, span = files.TEAPOT_VALUES.min(0), np.ptp(files.TEAPOT_VALUES, 0)
    middle = low + (dataset.factors(torch.arange(40)).numpy() + 0.5) / 10 * span
    assert (np.abs(files.TEAPOT_VALUES - middle) <= span / 20 + 1e-9).all()
    np.savez_compressed(tmp_path / "teapots.npz", images=files.TEAPOTS)
    assert load("teapots", tmp_path).factor_names == ()


def test_celeba(tmp_path):
    files.write_celeba(tmp_path)
    dataset = load("celeba", tmp_path)
    images = everything(dataset)
    expected = torch.tensor([[40 * i / 255, 0, 0] for i in range(1, 6)])
    torch.testing.assert_close(images[:, :, 16, 16], expected, atol=3 / 255, rtol=0)
    assert images.shape == (5, 3, 32, 32)
    assert images[:, 1:].max() < 0.1  # nothing of the white border
    assert dataset.factor_names == ("Smiling", "Young")
    assert dataset.factors(torch.arange(5))[:, 0].tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(InputError, match=r"\[1, 0\]"):
        dataset.index(torch.tensor([[1, 0]]))
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert load("celeba", tmp_path).factor_sizes == ()


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (200, 100), (255, 0, 0)).save(tmp_path / "a.png")
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
    grey = [0.2, 0.2, 0.2]
    middle = everything(dataset)[:, :, 32, 32]
    torch.testing.assert_close(middle, torch.tensor([[1, 0, 0], grey, [0, 0, 1.0], [1, 1, 1], grey]))
    assert (dataset.image_shape, dataset.source) == ((3, 64, 64), str(tmp_path))
    with pytest.raises(InputError, match="no factors"):
        dataset.sample_factors(1)
    (tmp_path / "a.png").unlink()
    assert "4 pictures" in load("folder", tmp_path).identity != dataset.identity


def test_folder_turns_photographs(tmp_path):
    pixels, exif = np.zeros((64, 96, 3), np.uint8), Image.Exif()
    pixels[:32] = 255  # white above
    exif[0x0112] = 3  # shown turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    (turned,) = everything(load("folder", tmp_path))
    assert turned[:, 5].max() < turned[:, 60].min()


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
    torch.testing.assert_close(everything(load("folder", data)), torch.full((3, 3, 64, 64), 0.2))


def test_broken_folder(tmp_path, monkeypatch):
    for root in (tmp_path / "none", tmp_path):
        refused("folder", root)
    picture = tmp_path / "x.tiff"
    Image.fromarray(np.ones((8, 8), np.float32)).save(picture)
    refused("folder", tmp_path, picture, "32 bits")
    picture.write_bytes(pickle.dumps([1]))
    refused("folder", tmp_path, picture)
    Image.new("RGB", (64, 64)).save(picture)
    monkeypatch.setattr(readers, "_rgb", lambda _: struct.unpack("i", b""))  # as Pillow does on some damaged pictures
    refused("folder", tmp_path, picture, "buffer")


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist_rmnist_and_rbmn(tmp_path, form):
    files.write_mnist(tmp_path, form)
    dataset, turned, blocked = (load(name, tmp_path) for name in ("mnist", "rmnist", "rbmn"))
    plain = everything(dataset)
    assert torch.equal(plain, as_float(np.pad(files.DIGITS, ((0, 0), (2, 2), (2, 2)))))
    assert dataset.factors(torch.arange(12))[:, 0].tolist() == files.LABELS.tolist()
    images = everything(turned).view(12, 4, 1, 32, 32)
    assert torch.equal(images, torch.stack([plain.rot90(k, (2, 3)) for k in range(4)], 1))
    assert turned.factors(torch.tensor([4 * 7 + 3])).tolist() == [[7, 3]]
    assert (blocked.factor_names, blocked.factor_sizes) == (("digit", "angle", "block"), (10, 4, 4))
    under = everything(blocked).view(12, 4, 4, 32, 32)
    for b, (y, x) in enumerate([(6, 6), (6, 16), (16, 6), (16, 16)]):
        expected = images[:, :, 0].clone()
        expected[:, :, y : y + 10, x : x + 10] = 128 / 255
        assert torch.equal(under[:, :, b], expected)
    assert torch.equal(blocked.factors(blocked.index(torch.tensor([[9, 2, 3]]))), torch.tensor([[9, 2, 3]]))


def test_adrenalmnist3d(tmp_path):
    contents = files.write_adrenal(tmp_path)
    dataset = load("adrenalmnist3d", tmp_path)
    volumes = np.concatenate([contents[f"{part}_images"] for part in ("train", "val", "test")])
    expected = np.pad(volumes.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    assert torch.equal(everything(dataset), as_float(expected))
    assert dataset.factors(torch.tensor([6 * 28 + 11])).tolist() == [[contents["val_labels"][1, 0], 11]]


def test_a_step_gets_the_images_of_its_draw(tmp_path):
    """The same for a file, which the host reads before the step, as for a set that is rendered within it."""
    files.write_mnist(tmp_path)
    cfg = replace(PRESETS["quick"], batch_size=5, seed=3)
    for dataset in (load("mnist", tmp_path), load("squares")):
        batch = RealImages(dataset, cfg.images_per_step, cfg.seed, torch.device("cpu"))
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
    files.WRITERS[name](root)
    flags = f"--data {name} --root {root} --steps 6 --width 2 --hidden 8 --batch-size 4 --cr-start 1 --out {run}"
    monkeypatch.setattr(train.metrics, "evaluate", partial(train.metrics.evaluate, scale_samples=64, groups=10))
    train.main([*flags.split(), "--device", device])
    assert checkpoint.latest(run).name == "step-000000006"
    several = sum(size > 1 for size in load(name, root).factor_sizes) > 1
    assert ('{"step": 6, "factor_vae": ' in (run / "metrics.jsonl").read_text()) == several
    if several:
        evaluate((str(run),), metrics_=("factor_vae",), device=device)  # on the data that the run remembers
        ((scores,),) = json.loads((run / "metrics.json").read_text()).values()
        assert scores["data"] == name
