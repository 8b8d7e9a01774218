"""Whether a device has bfloat16, and context managers for exact arithmetic, eval mode and torch's defaults."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the processor multiplies bfloat16 natively. Where it does not, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Context manager: deterministic cuDNN algorithms, and no TF32 in matrix products and convolutions."""
    cudnn: Any = torch.backends.cudnn
    settings = [(cudnn, "deterministic", True), (cudnn, "benchmark", False), (cudnn.conv, "fp32_precision", "ieee")]
    settings.append((torch.backends.cuda.matmul, "fp32_precision", "ieee"))
    with ExitStack() as stack:
        for owner, name, value in settings:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Context manager: put modules into eval mode, and restore the mode of each submodule afterwards."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Context manager: tensors are made in float32 on the CPU, whatever the caller's defaults are."""
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":  # else it would slow every call for nothing
            stack.enter_context(torch.device("cpu"))
        yield
