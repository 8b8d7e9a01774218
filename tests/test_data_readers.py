"""Every reader on small files of the published schema, and on broken ones."""

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
from crgan.data import NAMES, READERS, load, photos
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
    dataset = load(name, tmp_path)
    expected = as_float(files.arrays(name)[0], 1 if name in files.BINARY else 255)
    assert torch.equal(everything(dataset), expected)
    assert (dataset.image_shape, dataset.source) == (expected.shape[1:], str(path))
    factors = dataset.factors(torch.arange(dataset.num_images))
    unravelled = np.stack(np.unravel_index(np.arange(len(expected)), dataset.factor_sizes), -1)
    assert torch.equal(factors, torch.from_numpy(unravelled))
    assert torch.equal(dataset.images(factors), expected)
    # Plain uint8 of an npz file is mapped where it lies; anything else through one cache, which the next load reuses.
    times = [file.stat().st_mtime_ns for file in cache.glob("*.npy")]
    assert len(times) == (compressed or path.suffix == ".h5")
    assert torch.equal(everything(load(name, path)), expected)
    assert [file.stat().st_mtime_ns for file in cache.glob("*.npy")] == times
    assert list(tmp_path.iterdir()) == [path]


def test_published_sizes(monkeypatch):
    monkeypatch.undo()
    counts = {name: prod(READERS[name].read.keywords["factors"].values()) for name in files.SMALL}
    mpi3d = {f"mpi3d_{kind}": 1_036_800 for kind in ("toy", "realistic", "real")} | {"mpi3d_complex": 460_800}
    assert counts == mpi3d | {"dsprites": 737_280, "circular_dsprites": 1_080, "shapes3d": 480_000}


def test_dsprites_hdf5_equals_npz(tmp_path):
    files.write_grid(tmp_path, "dsprites", file=1)
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(files.arrays("dsprites")[0], 1))


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
    images = files.arrays("dsprites")[0]
    files.write_grid(tmp_path, "dsprites", imgs=images.astype(dtype))
    assert torch.equal(everything(load("dsprites", tmp_path)), as_float(images, 1))


def test_cars3d(tmp_path):
    files.write_cars(tmp_path)
    dataset = load("cars3d", tmp_path)
    assert (dataset.image_shape, dataset.factor_sizes) == ((3, 64, 64), (2, 3, 4))
    images = everything(dataset)
    elevation, azimuth, car = dataset.factors(torch.arange(24)).T
    expected = ((azimuth * 2 + elevation) * 10 + car).float() / 255
    torch.testing.assert_close(images, expected[:, None, None, None].expand(images.shape))


@pytest.mark.parametrize("zipped", [True, False])
def test_smallnorb(tmp_path, zipped):
    parts = files.write_norb(tmp_path, zipped)
    dataset = load("smallnorb", tmp_path)
    assert (dataset.image_shape, dataset.num_images, dataset.factor_sizes) == ((1, 64, 64), 120, (5, 9, 18, 6))
    grey = np.concatenate([part["dat"][:, 0, 0, 0] for part in parts])
    torch.testing.assert_close(everything(dataset)[:, 0, 32, 32], torch.from_numpy(grey / np.float32(255)))
    table = np.concatenate([np.c_[p["cat"], p["info"][:, 1], p["info"][:, 2] // 2, p["info"][:, 3]] for p in parts])
    index = torch.arange(120)
    assert torch.equal(dataset.factors(index), torch.from_numpy(table).long())
    assert torch.equal(dataset.factors(dataset.index(dataset.factors(index))), dataset.factors(index))


def test_teapots_single_file(tmp_path):
    files.write_teapots(tmp_path)
    dataset = load("teapots", tmp_path)
    assert torch.equal(everything(dataset), as_float(files.TEAPOTS))
    classes = (files.teapot_values(40) / [2 * np.pi, np.pi / 2, 1, 1, 1] * 10).astype(int)
    assert torch.equal(dataset.factors(torch.arange(40)), torch.from_numpy(classes))
    np.savez_compressed(tmp_path / "teapots.npz", images=files.TEAPOTS)
    assert load("teapots", tmp_path).factor_names == ()


def test_teapots_of_infogan_cr(tmp_path):
    (tmp_path / "train_data").mkdir()
    images = np.random.default_rng(1).random((30, 64, 64, 3))
    np.savez(tmp_path / "train_data/data.npz", imgs=images, latents=files.teapot_values(30))
    dataset = load("teapots", tmp_path)
    torch.testing.assert_close(everything(dataset), as_float(images, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    assert dataset.factor_sizes == (10,) * 5


def test_celeba(tmp_path):
    files.write_celeba(tmp_path)
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
    for place, marks in {"run": ("config.json", "metrics.jsonl"), "choice": ("ranking.json",), ".hidden": ()}.items():
        (tmp_path / place).mkdir()
        for name in ("samples.png", "similarity.png"):
            Image.new("RGB", (64, 64)).save(tmp_path / place / name)
        for name in marks:
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
    files.write_folder(data)
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


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist(tmp_path, form):
    files.write_mnist(tmp_path, form)
    dataset = load("mnist", tmp_path)
    assert torch.equal(everything(dataset), as_float(np.pad(files.DIGITS, ((0, 0), (2, 2), (2, 2)))))
    assert dataset.factors(torch.arange(12))[:, 0].tolist() == files.LABELS.tolist()


def test_rmnist_and_rbmn(tmp_path):
    files.write_mnist(tmp_path)
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


def test_adrenalmnist3d(tmp_path):
    contents = files.write_adrenal(tmp_path)
    dataset = load("adrenalmnist3d", tmp_path)
    volumes = np.concatenate([contents[f"{part}_images"] for part in ("train", "val", "test")])
    expected = np.pad(volumes.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    assert torch.equal(everything(dataset), as_float(expected))
    label = np.concatenate([contents[f"{part}_labels"] for part in ("train", "val", "test")])
    assert dataset.factors(torch.tensor([6 * 28 + 11])).tolist() == [[label[6, 0], 11]]


@pytest.mark.parametrize("name", [name for name in NAMES if name in files.WRITERS])
def test_the_callers_default_type_and_device_do_not_matter(tmp_path, name):
    files.WRITERS[name](tmp_path)
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
