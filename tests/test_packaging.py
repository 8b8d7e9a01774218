"""What an install provides: the compiled module, an import name for the kernels, commands that run from anywhere."""

import json
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest
import torch

import crgan

ROOT = Path(__file__).parents[1]


def test_the_extension_is_compiled_and_loads():
    votes = crgan.vote_table(
        torch.randn(6, 10, 3), torch.ones(3), torch.arange(6) % 3, 3, impl="ext"
    )  # raises without the extension
    assert votes.sum() == 6


def test_nothing_is_installed_under_the_bare_name_kernels():
    tops = {Path(file).parts[0] for file in files("crgan") or []}
    assert "kernels" not in tops


@pytest.mark.parametrize("here", ["root", "elsewhere"])
def test_imports_and_commands_work_from_the_root_and_elsewhere(here, tmp_path):
    where = ROOT if here == "root" else tmp_path
    code = "import crgan, torch; from crgan import ops; import _crgan_kernels, _crgan_C; print(_crgan_C.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).suffix == ".so"
    run = subprocess.run(
        [sys.executable, "-m", "crgan.train", "quick", "--dry-run"], cwd=where, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["config"]["data"] == "squares"
