"""Every kernel compiles to machine code for GPUs that are not here."""

import os
import subprocess
import sys

import aot
import pytest


def compile_all(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, aot.__file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def assert_table(done, targets):
    header, *rows = done.stdout.splitlines()
    assert header.split()[-len(targets) :] == targets
    assert all(row.count("(0)") == len(targets) for row in rows), done.stdout
    assert done.returncode == 0, done.stderr
    return rows


def test_every_kernel_compiles_for_hopper_without_spills():
    """One variant of each kernel."""
    rows = assert_table(
        compile_all("--targets", "90", "--only", "draw|pairs$|sum|spectral|loss.*fp32, K=64"), ["sm_90"]
    )
    assert len(rows) == 11


@pytest.mark.slow
def test_all_variants_compile_for_all_targets():
    rows = assert_table(compile_all(), ["sm_80", "sm_90", "sm_100"])
    assert len(rows) == len(list(aot.variants()))
