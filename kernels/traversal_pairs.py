"""A batch of paired latent traversals, the input of the contrastive regularizer, in one launch."""

from __future__ import annotations  # those of the kernels name types of Triton, which may not be there

import math

import torch
from torch import Tensor

from ._triton import device_guard, jit, tl
from .latents import CONFIG, flat_words, uniform_ref
from .philox import PAIR_CODES, PAIR_INDEX, PAIR_NOISE, UNIT, block_words, signed, to_unit, words_ref

# Codes are whole numbers in units of 2^-23 until the last line: what the floats then hold is exact, so |c| <= 1 and
# |c1 - c2| >= gap hold to the last bit, for every gap, and no fused multiply-add can tell kernel and reference apart.


def _half_gap(gap: float) -> int:
    """gap / 2 in units of 2^-23, rounded up: no gap is smaller than asked."""
    return math.ceil(gap * 2**22)


def traversal_pairs_ref(
    batch: int,
    num_codes: int,
    num_noise: int,
    gap: float,
    seed: int,
    step: int | Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = batch * num_codes
    blocks = {PAIR_CODES: -(-n // 2), PAIR_INDEX: batch, PAIR_NOISE: -(-batch * num_noise // 4)}
    code_words, index_words, noise_words = words_ref(blocks, seed, step, device)
    z = uniform_ref(noise_words, batch * num_noise).view(batch, num_noise)
    index = index_words[0] * num_codes >> 32

    half = _half_gap(gap)
    bound = 2**23 - half
    word1 = flat_words(code_words[0::2], n).view(batch, num_codes)
    word2 = flat_words(code_words[1::2], n).view(batch, num_codes)
    value1 = (word1 * (2 * bound + 1) >> 32) - bound  # on [-1 + gap/2, 1 - gap/2]
    value2 = (word2 * (2 * bound + 1) >> 32) - bound
    push = torch.where(value1 >= value2, half, -half)  # the larger up, the smaller down
    shared = torch.arange(num_codes, device=device) == index[:, None]  # [B, K]
    value = (word1 >> 8) - 2**23  # the shared code keeps the whole of [-1, 1)
    c1 = torch.where(shared, value, value1 + push).float() * UNIT
    c2 = torch.where(shared, value, value2 - push).float() * UNIT
    return c1, c2, z, index


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
    """Each thread draws two codes of the pair and four noise values; whoever needs an index draws it again."""
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


def traversal_pairs_triton(
    batch: int,
    num_codes: int,
    num_noise: int,
    gap: float,
    seed: int,
    step: int | Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c1, c2 = torch.empty(2, batch, num_codes, device=device)
    z = torch.empty(batch, num_noise, device=device)
    index = torch.empty(batch, dtype=torch.int64, device=device)
    blocks = max(-(-batch * num_codes // 2), -(-batch * num_noise // 4))
    if blocks:
        with device_guard(index.device):
            traversal_pairs_kernel[(-(-blocks // CONFIG["BLOCK"]),)](
                c1, c2, z, index, batch, num_codes, num_noise, _half_gap(gap), signed(seed), step,
                CODES=PAIR_CODES, INDEX=PAIR_INDEX, NOISE=PAIR_NOISE, **CONFIG,
            )  # fmt: skip
    return c1, c2, z, index
