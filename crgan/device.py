"""The arithmetic of the networks' passes: what a processor has, and what torch may use while a step runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Until left, cuDNN takes only what repeats its bits, and GPUs multiply in TF32 only if that is the precision."""
    matmul, tf32 = torch.backends.cuda.matmul, precision == "tf32"
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        matmul.allow_tf32 = before
