"""Draws without structure: codes and noise of a plain step, indices of a data set."""

import torch
from torch import Tensor

from .philox import DATA_INDEX, LATENTS, UNIT, words_ref


def flat_words(words: Tensor, n: int) -> Tensor:
    """Word i of block e, words[i, e], is value i * blocks + e of n: whole runs for neighbouring threads."""
    return words.reshape(-1)[:n]


def sample_latents_ref(
    batch: int, num_codes: int, num_noise: int, seed: int, step: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    n = batch * (num_codes + num_noise)
    (words,) = words_ref({LATENTS: -(-n // 4)}, seed, step, device)
    values = ((flat_words(words, n) >> 8) - 2**23).float() * UNIT  # the top 24 bits, exact
    return split_latents(values, batch, num_codes, num_noise)


def split_latents(values: Tensor, batch: int, num_codes: int, num_noise: int) -> tuple[Tensor, Tensor]:
    c, z = values.split([batch * num_codes, batch * num_noise])
    return c.view(batch, num_codes), z.view(batch, num_noise)


def random_index_ref(n: int, high: int, seed: int, step: int | Tensor, device: torch.device) -> Tensor:
    (words,) = words_ref({DATA_INDEX: -(-n // 4)}, seed, step, device)
    return flat_words(words, n) * high >> 32
