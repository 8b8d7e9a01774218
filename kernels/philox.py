"""The counter-based generator behind every random number of training: Philox 4x32-10.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A block of four 32-bit
words is a pure function of

    key      the 64-bit seed, low word first
    counter  (block, stream, step low, step high)

so no generator state exists: each purpose has a stream of its own, each training step its own counters, and
any device computes the same bits in any order.
"""

from __future__ import annotations  # those of the kernels name types of Triton, which may not be there

import torch
from torch import Tensor

from ._triton import jit, tl

LATENTS, PAIR_CODES, PAIR_INDEX, PAIR_NOISE, DATA_INDEX = range(5)  # the streams

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
UNIT = 2.0**-23  # codes lie on this grid, which float32 holds exactly in [-1, 1]


def philox_ref(counter: Tensor, seed: int) -> Tensor:
    """Ten rounds on each column of counter, [4, N] int64 of 32-bit words, to [4, N] int64 of 32-bit words."""
    # constants are computed on the device: a graph capture allows no copy from the host
    rounds = torch.arange(10, device=counter.device)
    keys = [key + rounds * increment for key, increment in zip((seed & MASK, seed >> 32), KEY_INCREMENTS)]
    first, second = MULTIPLIERS
    multipliers = torch.arange(first, second - 1, second - first, device=counter.device)[:, None]
    even, odd = counter[0::2], counter[1::2]  # words 0, 2 and words 1, 3: both halves of a round at once
    for key in torch.stack(keys, dim=1)[..., None]:
        # an int64 product wraps, which leaves its 64 bits right; what is above a word's 32 bits is cut off late
        product = ((even & MASK) * multipliers).flip(0)
        even, odd = (product >> 32) ^ odd ^ key, product
    return torch.stack((even, odd), dim=1).flatten(0, 1) & MASK


def words_ref(
    blocks: dict[int, int],  # stream: number of blocks
    seed: int,
    step: int | Tensor,  # Tensor: 0-d int64
    device: torch.device,
) -> list[Tensor]:
    """The first blocks of several streams, each [4, blocks] int64, in one pass (an op on few numbers costs
    its launch)."""
    counter = torch.empty(4, sum(blocks.values()), dtype=torch.int64, device=device)
    for (stream, n), part in zip(blocks.items(), counter.split(list(blocks.values()), dim=1)):
        part[0] = torch.arange(n, device=device)
        part[1] = stream
    counter[2] = step & MASK
    counter[3] = step >> 32
    return list(philox_ref(counter, seed).split(list(blocks.values()), dim=1))


@jit
def block_words(block, stream, seed, step):
    """The four uint32 words of each block. `step` is an int64 or a pointer to one."""
    if step.dtype.is_ptr():
        step = tl.load(step)
    step = step + tl.full([], 0, tl.int64)  # a small argument arrives as int32
    low = (step & 0xFFFFFFFF).to(tl.uint32)
    high = (step >> 32).to(tl.uint32)
    return tl.philox(seed, block.to(tl.uint32), tl.full([], stream, tl.uint32), low, high)


@jit
def to_unit(word):
    """uint32 to float32, uniform on [-1, 1), by its top 24 bits."""
    return ((word >> 8).to(tl.int32) - 8388608).to(tl.float32) * (1 / 8388608)


def signed(seed: int) -> int:
    """The seed's 64 bits as the signed integer that a launch can pass."""
    return seed - 2**64 if seed >= 2**63 else seed
