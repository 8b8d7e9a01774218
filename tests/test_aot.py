"""Every kernel compiles to machine code for GPUs that are not here."""

import os
import subprocess
import sys

import aot
import pytest

ONE_OF_EACH = ["90"], "draw|pairs$|sum|spectral|loss.*fp32, K=64", 11
ALL = pytest.param(["80", "90", "100"], "", len(list(aot.variants())), marks=pytest.mark.slow)


@pytest.mark.parametrize(("targets", "only", "kernels"), [ONE_OF_EACH, ALL])
def test_kernels_compile_without_spills(targets, only, kernels):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, aot.__file__, "--targets", *targets, "--only", only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[-len(targets) :] == [f"sm_{target}" for target in targets]
    assert len(rows) == kernels
    assert all(row.count("(0)") == len(targets) for row in rows), done.stdout
