"""Files on their way to a data set: missing, damaged, locked, and converted into the cache."""

import fcntl
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import data_files as files
import h5py
import numpy as np
import pytest
import torch
from data_files import as_float, everything, refused, stored, use_small_files, write_grid

from crgan.data import READERS, load, storage
from crgan.errors import InputError
from crgan.files import write_atomically


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    return use_small_files(monkeypatch, tmp_path_factory.mktemp("data") / "cache")


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_comes_with_a_way_to_get_it(tmp_path, name):
    refused(name, tmp_path, READERS[name].files[0], READERS[name].publisher)
    if name not in files.BINARY:
        with pytest.raises(InputError, match="--root"):
            load(name)


def test_names_and_roots(tmp_path, monkeypatch):
    for name, root, says in (
        ("dsprite", None, "dsprites"),
        ("xyz", None, "squares"),
        ("squares", tmp_path, "squares"),
        ("folder", "", "''"),
        ("dsprites", "", "''"),
    ):
        with pytest.raises(InputError, match=says):
            load(name, root)
    write_grid(tmp_path, "dsprites")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("dsprites", "~").source == str(tmp_path / READERS["dsprites"].files[0])


def norb(change):
    return lambda array: files.norb_bytes(change(array))


BLANK = np.zeros((40, 64, 64, 3), np.int32)
BROKEN = [
    ("dsprites", {"key": "pictures"}, "imgs"),
    ("dsprites", {"images": np.zeros((72, 32, 32), np.uint8)}, "(64, 64)"),
    ("dsprites", {"images": stored("dsprites")[1:]}, "71 images"),
    ("dsprites", {"images": stored("dsprites") * 255}, "255"),
    ("dsprites", {"images": stored("dsprites") * 255, "compressed": False}, "255"),
    ("shapes3d", {"images": np.zeros((192, 64, 64), np.uint8)}, "images"),
    ("cars3d", {"change": lambda im: im[:64]}, "car_000_mesh.mat"),
    ("cars3d", {"cars": 3}, "24, got 18"),
    ("cars3d", {"cut": 500}, "nips2015-analogy-data.tar.gz"),
    ("smallnorb", {"dat": lambda a: files.norb_bytes(a)[:-5]}, "dat.mat"),
    ("smallnorb", {"dat": norb(lambda a: a.astype(np.int32))}, "507333717"),
    ("smallnorb", {"cat": norb(lambda a: a + 5)}, "category"),
    ("smallnorb", {"info": norb(lambda a: a[:, :3])}, "info.mat"),
    ("teapots", {"images": BLANK + 256}, "256"),
    ("teapots", {"images": BLANK * np.nan}, "nan"),
    ("teapots", {"values": files.TEAPOT_VALUES[:5]}, "gts"),
    ("celeba", {"size": (100, 100)}, "(178, 218)"),
    ("celeba", {"count": 4}, "img_align_celeba.zip"),
    ("celeba", {"damage": True}, "000001.jpg"),
    ("celeba", {"rows": 3}, "list_attr_celeba.txt"),
    ("mnist", {"form": "idx", "cut": -7}, "train-images"),
    ("mnist", {"form": "idx", "cut": 8}, "2051"),
    ("mnist", {"form": "gz", "labels": files.LABELS.astype(">i4")}, "labels"),
    ("rmnist", {"labels": files.LABELS + 5}, "digit"),
    ("rbmn", {"labels": files.LABELS[:5]}, "mnist.npz"),
    ("adrenalmnist3d", {"val_labels": np.zeros((3, 1), np.uint8)}, "table"),
    ("adrenalmnist3d", {"test_labels": np.full((3, 1), 2, np.uint8)}, "label"),
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
    assert {file.name for file in cache.iterdir()} <= {".lock"}


def test_a_pickle_in_disguise_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path, evil = tmp_path / "mpi3d_toy.npz", np.array([Evil()], dtype=object)
    path.write_bytes(pickle.dumps(evil))
    refused("mpi3d_toy", tmp_path, path)
    write_grid(tmp_path, "mpi3d_toy", images=np.broadcast_to(evil[:, None, None], (1, 64, 64, 3)))
    refused("mpi3d_toy", tmp_path, path)
    files.write_teapots(tmp_path, values=evil)
    refused("teapots", tmp_path, "teapots.npz")
    assert not (tmp_path / "owned").exists()


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


def test_the_cache(tmp_path, monkeypatch):
    """It lies where the user says, is made anew from a changed file, and never believed when it is damaged."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for value, folder in (("~/mine", home / "mine"), ("", home / ".cache/crgan")):
        monkeypatch.setenv("CRGAN_CACHE", value)
        for seed in (0, 1):
            images = stored("mpi3d_toy", seed)
            write_grid(tmp_path, "mpi3d_toy", images=images)
            assert torch.equal(everything(load("mpi3d_toy", tmp_path)), as_float(images))
            assert len(list(folder.glob("mpi3d_toy-*"))) == seed + 1
    for file in folder.glob("mpi3d_toy-*"):
        file.write_bytes(file.read_bytes()[:-1])
    refused("mpi3d_toy", tmp_path, folder, "remove it")
    (home / "file").touch()
    monkeypatch.setenv("CRGAN_CACHE", str(home / "file"))
    with pytest.raises(OSError, match="home/file"):
        load("mpi3d_toy", tmp_path)


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


def test_many_that_load_at_once_convert_once(tmp_path, monkeypatch):
    write_grid(tmp_path, "mpi3d_toy")
    made = []
    monkeypatch.setattr(storage, "write_atomically", lambda *args: (made.append(args), write_atomically(*args)))
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: everything(load("mpi3d_toy", tmp_path)), range(4)))
    assert len(made) == 1
    assert all(torch.equal(images, loaded[0]) for images in loaded)
