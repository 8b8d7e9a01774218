"""Triton's kernels run in its interpreter, on the CPU, unless the tests marked `gpu` are asked for."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """A test that draws draws the same each time."""
    torch.manual_seed(0)


@pytest.fixture
def small_scores(monkeypatch):
    """Evaluations on few images: what they score is tested with the metrics."""
    import crgan.train as module

    whole = module.metrics.evaluate

    def few(*args, **sizes):
        return whole(*args, **{**sizes, "groups": 20, "group_size": 10, "scale_samples": 100})

    monkeypatch.setattr(module.metrics, "evaluate", few)


def pytest_configure(config):
    marks = config.getoption("markexpr")
    if "gpu" in marks and "not gpu" not in marks:
        return
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
    try:
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return  # the tests of the kernels will say it
    if triton < (3, 7) and numpy >= (2, 4):
        raise pytest.UsageError("triton < 3.7 cannot interpret with numpy >= 2.4: run `pip install 'numpy<2.4'`")
