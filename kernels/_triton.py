"""Triton, where it is installed (on Linux)."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit
except ImportError:  # the kernels are then plain functions that nothing calls
    triton, tl = None, SimpleNamespace(constexpr=None)

    def jit(fn: Any = None, **options: Any) -> Any:
        return fn or jit


HAS_COMPILER = bool(os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc"))))
INTERPRET = triton is not None and triton.knobs.runtime.interpret
# the smallest side of a matrix product that Triton compiles
MIN_DOT = 8 if triton is not None and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 16


def obstacle(device: torch.device) -> str:
    """Return why no Triton kernel can run on this device, and the way out; "" where one can."""
    if triton is None:
        return "Triton is not installed, run `pip install triton` (Linux)"
    if device.type == "cuda" and not HAS_COMPILER:
        return "Triton needs a C compiler to launch kernels: install gcc, or set CC"
    if device.type == "cuda" or (device.type == "cpu" and INTERPRET):
        return ""
    return f"Triton runs on cuda, not on {device.type} (for tests on the CPU, set TRITON_INTERPRET=1)"


def device_guard(device: torch.device) -> AbstractContextManager:
    """Make `device` current: Triton launches on the current one, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
