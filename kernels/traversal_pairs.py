"""A batch of paired latent traversals: the input of the contrastive regularizer."""

import math

import torch
from torch import Tensor

from .latents import flat_words
from .philox import PAIR_CODES, PAIR_INDEX, PAIR_NOISE, UNIT, words_ref


def grid_gap(gap: float) -> int:
    """Half the gap in units of 2^-23, rounded up, so that no rounding can make a gap smaller than asked."""
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
    z = ((flat_words(noise_words, batch * num_noise) >> 8) - 2**23).float() * UNIT
    index = index_words[0] * num_codes >> 32

    # Whole numbers in units of 2^-23: what the floats hold is exact, so |c| <= 1 and |c1 - c2| >= gap hold to
    # the last bit. The shared code is uniform on [-1, 1), the others on [-1 + gap/2, 1 - gap/2].
    half = grid_gap(gap)
    bound = 2**23 - half
    shared = torch.arange(num_codes, device=device) == index[:, None]  # [B, K]
    first = flat_words(code_words[0::2], n).view(batch, num_codes)
    second = flat_words(code_words[1::2], n).view(batch, num_codes)
    same = (first >> 8) - 2**23
    first = (first * (2 * bound + 1) >> 32) - bound
    second = (second * (2 * bound + 1) >> 32) - bound
    push = torch.where(first >= second, half, -half)  # the larger up, the smaller down
    c1 = torch.where(shared, same, first + push).float() * UNIT
    c2 = torch.where(shared, same, second - push).float() * UNIT
    return c1, c2, z.view(batch, num_noise), index
