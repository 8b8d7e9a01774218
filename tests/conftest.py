"""Triton's kernels run in its interpreter, on the CPU, unless the tests marked `gpu` are asked for."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_settings():
    """A test that draws draws the same each time, and may change the defaults of torch."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def refused(capsys):
    """Calls a command with arguments that it must refuse, and returns what it wrote to stderr, on one line."""

    def call(command, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command([str(arg) for arg in args])
        assert stop.value.code == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in error
        return error

    return call


@pytest.fixture
def small_scores(monkeypatch):
    """Evaluations on few images: what they score is tested with the metrics."""
    import crgan.metrics

    evaluate, small = crgan.metrics.evaluate, {"groups": 20, "group_size": 10, "scale_samples": 100}
    monkeypatch.setattr(crgan.metrics, "evaluate", lambda *args, **sizes: evaluate(*args, **{**sizes, **small}))


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
