"""Files on their way to a data set: missing, damaged, locked, and converted into the cache."""

import fcntl
import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import data_files as files
import h5py
import numpy as np
import pytest
import torch
from data_files import arrays, as_float, everything, refused, use_small_files, write_grid

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


def changed(change):
    """Write a NORB file of a changed array."""
    return lambda array: files.norb_bytes(change(array))


BLANK = np.zeros((40, 64, 64, 3), np.int32)
BROKEN = [
    ("dsprites", {"imgs": None, "pictures": np.zeros(3, np.uint8)}, "imgs"),
    ("dsprites", {"imgs": np.zeros((72, 32, 32), np.uint8)}, "imgs: shape should be (72, 64, 64), got (72, 32, 32)"),
    ("dsprites", {"imgs": np.zeros((72, 64, 64), np.complex64)}, "complex64"),
    ("dsprites", {"imgs": arrays("dsprites")[0] * 255}, "255"),
    ("dsprites", {"imgs": arrays("dsprites")[0] / 2}, "fractions"),
    ("dsprites", {"latents_values": np.zeros((72, 6), np.int64)}, "int64"),
    ("dsprites", {"latents_values": arrays("dsprites")[1][::-1]}, "in order"),
    ("shapes3d", {"images": np.zeros((192, 64, 64), np.uint8)}, "images"),
    ("cars3d", {"change": lambda im: im[:64]}, "car_000_mesh.mat: im"),
    ("cars3d", {"change": lambda im: im.astype(np.float64)}, "float64"),
    ("cars3d", {"cars": 3}, "24, got 18"),
    ("cars3d", {"cut": 500}, "nips2015-analogy-data.tar.gz"),
    ("smallnorb", {"dat": lambda a: files.norb_bytes(a)[:-5]}, "dat.mat"),
    ("smallnorb", {"dat": changed(lambda a: a.astype(np.int32))}, "507333717"),
    ("smallnorb", {"cat": lambda a: files.norb_bytes(a)[:-5]}, "cat.mat"),
    ("smallnorb", {"cat": changed(lambda a: a + 5)}, "category"),
    ("smallnorb", {"info": changed(lambda a: a[:, :3])}, "(60, 3)"),
    ("smallnorb", {"info": changed(lambda a: a + 1)}, "azimuths"),
    ("teapots", {"images": BLANK + 256}, "256"),
    ("teapots", {"images": BLANK * np.nan}, "nan"),
    ("teapots", {"images": BLANK[:, :3]}, "(40, 3, 64, 3)"),
    ("teapots", {"values": files.teapot_values(5)}, "gts"),
    ("teapots", {"values": files.teapot_values(40) + 7}, "0 to 9"),
    ("teapots", {"values": files.teapot_values(40) * np.nan}, "0 to 9"),
    ("celeba", {"size": (100, 100)}, "(178, 218)"),
    ("celeba", {"count": 4}, "img_align_celeba.zip"),
    ("celeba", {"damage": True}, "000001.jpg"),
    ("celeba", {"values": "0 1"}, "got [0, 1]"),
    ("celeba", {"names": "Young"}, "columns"),
    ("celeba", {"first": 2}, "order"),
    ("mnist", {"form": "idx", "images": files.idx_bytes(files.DIGITS)[:-7]}, "train-images"),
    ("mnist", {"form": "idx", "images": files.idx_bytes(files.DIGITS, kind=13)}, "first four bytes"),
    ("mnist", {"form": "idx", "images": files.idx_bytes(files.DIGITS[:, :20])}, "(20, 28)"),
    ("rmnist", {"form": "idx", "labels": files.idx_bytes(files.LABELS[:5])}, "12, got 5"),
    ("rmnist", {"form": "idx", "labels": files.idx_bytes(files.LABELS + 5)}, "digit"),
    ("rbmn", {"form": "idx", "images": files.idx_bytes(files.DIGITS[:0])}, "0, got 12"),
    ("adrenalmnist3d", {"val_labels": np.zeros((3, 1), np.uint8)}, "11"),
    ("adrenalmnist3d", {"test_labels": np.full((3, 1), 2, np.uint8)}, "label runs from 0 to 1"),
]


@pytest.mark.parametrize(("name", "how", "says"), BROKEN)
def test_broken_files(tmp_path, name, how, says):
    files.WRITERS[name](tmp_path, **how)
    refused(name, tmp_path, says)


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
