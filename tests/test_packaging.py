"""What an install provides: the compiled module, an import name for the kernels, commands that run from anywhere.

The four cases (installed or editable, run from the repository's root or elsewhere) are built from the source
distribution into environments of their own, so they do not depend on how crgan is installed where the tests run.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import crgan

ROOT = Path(__file__).parents[1]
KINDS = ["wheel", "editable"]
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"CRGAN_CUDA": "0"}
CODES = [[[0, 1], [0, 9]], [[5, 3], [7, 3]], [[1, 2], [1, 8]]]  # the least spread: dimensions 0, 1 and 0
VOTES = [[2, 0], [0, 1]]
USE = f"""
import importlib.util, json, runpy, sys, torch, crgan, _crgan_kernels, _crgan_C
votes = crgan.vote_table(torch.tensor({CODES}).float(), torch.ones(2), torch.tensor([0, 1, 0]), 2, impl="ext")
kernels = importlib.util.find_spec("kernels")
found = {{module.__name__: module.__file__ for module in (crgan, _crgan_kernels, _crgan_C)}}
print(json.dumps(found | {{"kernels": kernels and kernels.origin, "votes": votes.tolist()}}))
sys.argv = ["train", "--dry-run"]
runpy.run_module("crgan.train", run_name="__main__", alter_sys=True)
"""  # the last line is what python -m runs; its own process would import torch once more


def run(*command, cwd) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Calls the hook that `pip` and `build` call in `source`; returns the file it made in `out`."""
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    out.mkdir()
    run(sys.executable, "-c", hook, cwd=source)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Made from a copy of the tree, without what earlier builds left there."""
    tree = tmp_path_factory.mktemp("sdist") / "tree"
    left = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=left)
    return build("sdist", tree, tree.parent / "dist")


def install(kind: str, sdist: Path, base: Path) -> tuple[Path, Path, Path]:
    """The unpacked source, the wheel made from it, and the environment's packages with that wheel among them."""
    shutil.unpack_archive(sdist, base)
    (source,) = base.iterdir()
    wheel = build(kind, source, base / "dist")
    venv.create(base / "venv", symlinks=True)
    (packages,) = base.glob("venv/lib/python*/site-packages")
    python = base / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=base)
    # Everything else comes from where the tests run, without their crgan: an installed one would hide the editable.
    for path in sys.path:
        if Path(path).name in ("site-packages", "dist-packages"):
            for other in Path(path).iterdir():
                if "crgan" not in other.name and not (packages / other.name).exists():
                    (packages / other.name).symlink_to(other)
    return source, wheel, packages


@pytest.fixture(scope="module")
def installs(sdist, tmp_path_factory) -> dict[str, tuple[Path, Path, Path]]:
    folders = [tmp_path_factory.mktemp(kind) for kind in KINDS]
    with ThreadPoolExecutor() as pool:  # one compiler each
        return dict(zip(KINDS, pool.map(install, KINDS, [sdist, sdist], folders), strict=True))


def test_an_old_setuptools_is_named():
    """Python 3.10 and 3.11 come with one that cannot read pyproject.toml; without build isolation pip takes it."""
    code = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1
    assert "65.5.0" in done.stderr
    assert "setuptools>=77" in done.stderr


def test_imports_without_what_other_systems_lack():
    """Triton and fcntl are Linux's or Unix's, os.sched_getaffinity is Linux's, and the extension may not be built."""
    code = """
import importlib, os, pathlib, pkgutil, sys
sys.modules |= dict.fromkeys(["triton", "fcntl", "_crgan_C", "_crgan_cuda"])
del os.sched_getaffinity
import torch, crgan
for module in pkgutil.walk_packages(crgan.__path__, "crgan."):
    importlib.import_module(module.name)
with crgan.files.lock(pathlib.Path("/nowhere")) as acquired:
    assert acquired
c1, c2, z, index = crgan.traversal_pairs(4, 3, 2, 0.5, 1, 1, device="cpu")
assert crgan.contrastive_loss(c1, torch.eye(3), torch.zeros(3), index).isfinite()
for call in (
    lambda: crgan.traversal_pairs(4, 3, 2, 0.5, 1, 1, device="cpu", impl="triton"),
    lambda: crgan.group_votes(torch.ones(1, 2, 3), torch.ones(3), impl="ext"),
):
    try:
        call()
    except crgan.InputError as error:
        print(error)
"""
    first, second = run(sys.executable, "-c", code, cwd=ROOT).splitlines()
    assert "pip install triton" in first
    assert "pip install --no-build-isolation ." in second


def test_nothing_is_installed_but_its_own_names(installs):
    _, wheel, _ = installs["wheel"]
    assert wheel.name.split("-")[1:4] == [crgan.__version__, "cp310", "abi3"]
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" not in name}
    assert tops == {"crgan", "_crgan_kernels", "_crgan_C.abi3.so"}  # above all no "kernels", another project's


@pytest.mark.parametrize("place", ["root", "elsewhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_imports_and_commands_work(installs, kind, place, tmp_path):
    source, _, packages = installs[kind]
    where = source if place == "root" else tmp_path
    python = packages.parents[2] / "bin/python"
    found, settings = run(python, "-c", USE, cwd=where).split("\n", 1)
    folder = source if kind == "editable" else packages
    assert json.loads(found) == {
        "crgan": str((source if place == "root" else folder) / "crgan/__init__.py"),
        "_crgan_kernels": str(folder / ("kernels" if kind == "editable" else "_crgan_kernels") / "__init__.py"),
        "_crgan_C": str(folder / "_crgan_C.abi3.so"),
        "kernels": str(source / "kernels/__init__.py") if place == "root" else None,
        "votes": VOTES,
    }
    assert json.loads(settings)["config"]["model"] == "infogan-cr"
