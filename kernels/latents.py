"""Draws without structure: codes and noise of a plain step, indices of a data set."""

from __future__ import annotations  # those of the kernels name types of Triton, which may not be there

import torch
from torch import Tensor

from ._triton import device_guard, jit, tl
from .philox import DATA_INDEX, LATENTS, UNIT, block_words, signed, to_unit, words_ref

# Few numbers are drawn at a time: a launch is its latency, and nothing is left to tune. Nor may anything be rounded
# otherwise than in the reference.
CONFIG = {"BLOCK": 128, "enable_fp_fusion": False}


def sample_latents_ref(
    batch: int, num_codes: int, num_noise: int, seed: int, step: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    n = batch * (num_codes + num_noise)
    (words,) = words_ref({LATENTS: -(-n // 4)}, seed, step, device)
    return _split(uniform_ref(words, n), batch, num_codes, num_noise)


def random_index_ref(n: int, high: int, seed: int, step: int | Tensor, device: torch.device) -> Tensor:
    (words,) = words_ref({DATA_INDEX: -(-n // 4)}, seed, step, device)
    return flat_words(words, n) * high >> 32


def flat_words(words: Tensor, n: int) -> Tensor:
    """Word i of block e, words[i, e], is value i * blocks + e of n: whole runs for neighbouring threads."""
    return words.reshape(-1)[:n]


def uniform_ref(words: Tensor, n: int) -> Tensor:
    """The first n words as float32, uniform on [-1, 1), by their top 24 bits: no rounding."""
    return ((flat_words(words, n) >> 8) - 2**23).float() * UNIT


def _split(values: Tensor, batch: int, num_codes: int, num_noise: int) -> tuple[Tensor, Tensor]:
    c, z = values.split([batch * num_codes, batch * num_noise])
    return c.view(batch, num_codes), z.view(batch, num_noise)


@jit(do_not_specialize=["n", "blocks", "high", "seed", "step"])
def draw_kernel(out, n, blocks, high, seed, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Indices below `high` where `out` holds integers, else uniform floats."""
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = block_words(block, STREAM, seed, step)
    for i in tl.static_range(4):
        place = i * blocks + block
        if out.dtype.element_ty.is_int():
            value = tl.umulhi(words[i], high.to(tl.uint32)).to(tl.int64)
        else:
            value = to_unit(words[i])
        tl.store(out + place, value, mask=(block < blocks) & (place < n))


def _draw(out: Tensor, stream: int, high: int, seed: int, step: int | Tensor) -> Tensor:
    blocks = -(-out.numel() // 4)
    if blocks:
        with device_guard(out.device):
            grid = (-(-blocks // CONFIG["BLOCK"]),)
            draw_kernel[grid](out, out.numel(), blocks, high, signed(seed), step, STREAM=stream, **CONFIG)
    return out


def sample_latents_triton(
    batch: int, num_codes: int, num_noise: int, seed: int, step: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    out = torch.empty(batch * (num_codes + num_noise), device=device)
    return _split(_draw(out, LATENTS, 0, seed, step), batch, num_codes, num_noise)


def random_index_triton(n: int, high: int, seed: int, step: int | Tensor, device: torch.device) -> Tensor:
    return _draw(torch.empty(n, dtype=torch.int64, device=device), DATA_INDEX, high, seed, step)
