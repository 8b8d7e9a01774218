"""Triton's kernels run in its interpreter, on the CPU, unless the tests marked `gpu` are asked for."""

import os


def pytest_configure(config):
    marks = config.getoption("markexpr")
    if "gpu" not in marks or "not gpu" in marks:
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
