"""The samplers of training: latents, indices of a data set, and paired latent traversals, each in one launch.

Every random number comes from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
a block of four 32-bit words is a pure function of the key, which is the 64-bit seed, low word first, and the counter
(block, stream, step low, step high). Each purpose has a stream of its own. No generator state exists.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ._triton import device_guard, jit, tl

LATENTS, PAIR_CODES, PAIR_INDEX, PAIR_NOISE, DATA_INDEX = range(5)  # the streams
PAIR_STREAMS = {"CODES": PAIR_CODES, "INDEX": PAIR_INDEX, "NOISE": PAIR_NOISE}

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
UNIT = 2.0**-23  # codes lie on this grid, which float32 holds exactly in [-1, 1]

# So few numbers are drawn at a time that latency dominates and nothing is left to tune. Without fused multiply-adds,
# rounding is the same as in the reference.
CONFIG = {"BLOCK": 128, "enable_fp_fusion": False}


def philox_ref(counter: Tensor, seed: int) -> Tensor:
    """Apply ten rounds of Philox to each column of counter: [4, N] int64 of 32-bit words to the same."""
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


def words_ref(blocks: dict[int, int], seed: int, step: int | Tensor, device: torch.device) -> list[Tensor]:
    """Return the first blocks[s] blocks of each stream s, [4, blocks[s]] int64, in one pass.

    Word i of block e is value i * blocks[s] + e of those drawn, so that neighbouring threads write neighbours.
    """
    sizes = list(blocks.values())
    counter = torch.empty(4, sum(sizes), dtype=torch.int64, device=device)
    for stream, part in zip(blocks, counter.split(sizes, dim=1)):
        part[0] = torch.arange(part.shape[1], device=device)
        part[1] = stream
    counter[2] = step & MASK
    counter[3] = step >> 32
    return list(philox_ref(counter, seed).split(sizes, dim=1))


def _uniform(words: Tensor) -> Tensor:
    """Return words as float32, uniform on [-1, 1), by their top 24 bits: no rounding."""
    return ((words >> 8) - 2**23).float() * UNIT


def draw_ref(n: int, high: int, stream: int, seed: int, step: int | Tensor, device: torch.device) -> Tensor:
    """Draw n integers below `high`; with high = 0, n floats that are uniform on [-1, 1)."""
    words = words_ref({stream: -(-n // 4)}, seed, step, device)[0].flatten()[:n]
    return words * high >> 32 if high else _uniform(words)


def traversal_pairs_ref(
    batch: int, num_codes: int, num_noise: int, gap: float, seed: int, step: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Codes are whole numbers in units of 2^-23 until the last lines. What the floats then hold is exact: |c| <= 1 and
    # |c1 - c2| >= gap hold to the last bit, and no fused multiply-add can make kernel and reference differ.
    blocks = {PAIR_CODES: -(-batch * num_codes // 2), PAIR_INDEX: batch, PAIR_NOISE: -(-batch * num_noise // 4)}
    code_words, index_words, noise_words = words_ref(blocks, seed, step, device)
    z = _uniform(noise_words.flatten()[: batch * num_noise]).view(batch, num_noise)
    index = index_words[0] * num_codes >> 32

    half = math.ceil(gap * 2**22)  # gap / 2 in units of 2^-23, rounded up: no gap is smaller than asked
    bound = 2**23 - half
    word1, word2 = (code_words[i::2].flatten()[: batch * num_codes].view(batch, num_codes) for i in (0, 1))
    value1 = (word1 * (2 * bound + 1) >> 32) - bound  # on [-1 + gap/2, 1 - gap/2]
    value2 = (word2 * (2 * bound + 1) >> 32) - bound
    push = torch.where(value1 >= value2, half, -half)  # the larger goes up, the smaller down
    shared = torch.arange(num_codes, device=device) == index[:, None]  # [B, K]
    value = (word1 >> 8) - 2**23  # the shared code keeps the whole of [-1, 1)
    c1 = torch.where(shared, value, value1 + push).float() * UNIT
    c2 = torch.where(shared, value, value2 - push).float() * UNIT
    return c1, c2, z, index


@jit
def block_words(block, stream, seed, step):
    """Return the four uint32 words of each block. `step` is an int64 or a pointer to one."""
    if step.dtype.is_ptr():
        step = tl.load(step)
    step = step + tl.full([], 0, tl.int64)  # a small argument arrives as int32
    low = (step & 0xFFFFFFFF).to(tl.uint32)
    high = (step >> 32).to(tl.uint32)
    return tl.philox(seed, block.to(tl.uint32), tl.full([], stream, tl.uint32), low, high)


@jit
def to_unit(word):
    """Convert uint32 to float32, uniform on [-1, 1), by its top 24 bits."""
    return ((word >> 8).to(tl.int32) - 8388608).to(tl.float32) * (1 / 8388608)


@jit(do_not_specialize=["n", "blocks", "high", "seed", "step"])
def draw_kernel(out, n, blocks, high, seed, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Draw indices below `high` where `out` holds integers, else uniform floats."""
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = block_words(block, STREAM, seed, step)
    for i in tl.static_range(4):
        place = i * blocks + block
        if out.dtype.element_ty.is_int():
            value = tl.umulhi(words[i], high.to(tl.uint32)).to(tl.int64)
        else:
            value = to_unit(words[i])
        tl.store(out + place, value, mask=(block < blocks) & (place < n))


@jit
def _store_code(c1, c2, index, place, mask, word1, word2, num_codes, half, seed, step, STREAM: tl.constexpr):
    row = place // num_codes
    code = place - row * num_codes
    row_index = tl.umulhi(block_words(row, STREAM, seed, step)[0], num_codes.to(tl.uint32)).to(tl.int32)
    tl.store(index + row, row_index.to(tl.int64), mask=mask & (code == 0))

    bound = 8388608 - half
    span = (2 * bound + 1).to(tl.uint32)
    value1 = tl.umulhi(word1, span).to(tl.int32) - bound
    value2 = tl.umulhi(word2, span).to(tl.int32) - bound
    push = tl.where(value1 >= value2, half, -half)
    shared = code == row_index
    value = (word1 >> 8).to(tl.int32) - 8388608
    value1 = tl.where(shared, value, value1 + push)
    value2 = tl.where(shared, value, value2 - push)
    tl.store(c1 + place, value1.to(tl.float32) * (1 / 8388608), mask=mask)
    tl.store(c2 + place, value2.to(tl.float32) * (1 / 8388608), mask=mask)


@jit(do_not_specialize=["batch", "num_codes", "num_noise", "half", "seed", "step"])
def traversal_pairs_kernel(
    c1, c2, z, index,  # [B, K], [B, K], [B, Z], [B]
    batch, num_codes, num_noise, half, seed, step,
    CODES: tl.constexpr, INDEX: tl.constexpr, NOISE: tl.constexpr,  # streams
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw, per thread, two codes of the pair and four noise values; every thread draws the indices it needs."""
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = batch * num_codes
    blocks = (n + 1) // 2
    words = block_words(block, CODES, seed, step)
    for i in tl.static_range(2):
        place = i * blocks + block
        mask = (block < blocks) & (place < n)
        word1, word2 = words[2 * i], words[2 * i + 1]
        _store_code(c1, c2, index, place, mask, word1, word2, num_codes, half, seed, step, INDEX)

    n = batch * num_noise
    blocks = (n + 3) // 4
    words = block_words(block, NOISE, seed, step)
    for i in tl.static_range(4):
        place = i * blocks + block
        tl.store(z + place, to_unit(words[i]), mask=(block < blocks) & (place < n))


def signed(seed: int) -> int:
    """Return the seed's 64 bits as the signed integer that a launch can pass."""
    return seed - 2**64 if seed >= 2**63 else seed


def _launch(kernel: Any, blocks: int, out: Tensor, *arguments: Any, **streams: int) -> None:
    if blocks:
        with device_guard(out.device):
            kernel[(-(-blocks // CONFIG["BLOCK"]),)](out, *arguments, **streams, **CONFIG)


def draw_triton(n: int, high: int, stream: int, seed: int, step: int | Tensor, device: torch.device) -> Tensor:
    out = torch.empty(n, dtype=torch.int64 if high else torch.float32, device=device)
    blocks = -(-n // 4)
    _launch(draw_kernel, blocks, out, n, blocks, high, signed(seed), step, STREAM=stream)
    return out


def traversal_pairs_triton(
    batch: int, num_codes: int, num_noise: int, gap: float, seed: int, step: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c1, c2 = torch.empty(2, batch, num_codes, device=device)
    z = torch.empty(batch, num_noise, device=device)
    index = torch.empty(batch, dtype=torch.int64, device=device)
    sizes = batch, num_codes, num_noise, math.ceil(gap * 2**22)
    blocks = max(-(-batch * num_codes // 2), -(-batch * num_noise // 4))
    _launch(traversal_pairs_kernel, blocks, c1, c2, z, index, *sizes, signed(seed), step, **PAIR_STREAMS)
    return c1, c2, z, index
