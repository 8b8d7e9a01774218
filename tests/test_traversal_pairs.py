"""The counter-based samplers: bits, laws, range and gap."""

import math

import pytest
import torch
from _crgan_kernels import samplers
from _crgan_kernels._triton import jit, tl
from scipy.stats import chisquare, kstest

from crgan.ops import random_index, sample_latents, traversal_pairs

GAPS = [0, 1e-9, 0.1, 0.5, 1, 1.5, 1.9, 1.999, 1.9999999, math.nextafter(2, 0)]

KNOWN = [  # counter, key and output of Philox 4x32-10, as published with the algorithm
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def sample_inputs():
    """batch, num_codes, num_noise, gap, seed, step"""
    sizes = [(64, 5, 5), (1, 1, 1), (7, 3, 0), (33, 10, 60), (3, 256, 2), (0, 2, 2), (30, 2, 5)]
    counters = [(0, 0), (1, 1), (2**64 - 1, 2**33 + 1), (2**31, 2**31), (2**63, 2**62 + 5)]
    return [(*sizes[i % len(sizes)], GAPS[i % len(GAPS)], *counters[i % len(counters)]) for i in range(35)]


@jit
def words_kernel(out, block, stream, seed, step, N: tl.constexpr):
    words = samplers.block_words(tl.load(block + tl.arange(0, N)), tl.load(stream), seed, step)
    for i in tl.static_range(4):
        tl.store(out + i * N + tl.arange(0, N), words[i].to(tl.int64))


@pytest.mark.parametrize("known", KNOWN)
def test_philox_known_answers(known, device):
    """Block, stream, step low and step high are the counter's four words."""
    counter, key, expected = ([int(word, 16) for word in words.split()] for words in known)
    seed = key[0] | key[1] << 32
    assert samplers.philox_ref(torch.tensor(counter, device=device)[:, None], seed)[:, 0].tolist() == expected
    out = torch.zeros(4, 1, dtype=torch.int64, device=device)
    step = counter[2] | counter[3] << 32
    block, stream, step = torch.tensor([[c - 2**64 if c >= 2**63 else c] for c in (*counter[:2], step)], device=device)
    words_kernel[(1,)](out, block, stream, samplers.signed(seed), step, N=1)
    assert out[:, 0].tolist() == expected


@pytest.mark.parametrize("inputs", sample_inputs(), ids=str)
def test_kernel_gives_the_bits_of_the_reference(inputs, device):
    """On any device, with the step as a number or in memory; the reference runs on the CPU."""
    batch, num_codes, num_noise, gap, seed, step = inputs
    calls = [
        lambda step, **how: traversal_pairs(batch, num_codes, num_noise, gap, seed, step, **how),
        lambda step, **how: sample_latents(batch, num_codes, num_noise, seed, step, **how),
        lambda step, **how: [random_index(batch, num_codes, seed, step, **how)],
        lambda step, **how: [random_index(batch, 2**31, seed, step, **how)],
    ]
    for call in calls:
        expected = call(step, device="cpu", impl="ref")
        for place in (step, torch.tensor(step, device=device)):
            for impl in ("triton", "ref"):
                for mine, theirs in zip(call(place, device=device, impl=impl), expected, strict=True):
                    assert (mine.shape, mine.dtype, mine.is_contiguous()) == (theirs.shape, theirs.dtype, True)
                    assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize("gap", GAPS)
def test_pair_shares_one_code_and_keeps_range_and_gap(gap):
    """c_I is equal to the bit, all others differ by the gap or more, and no rounding breaks either bound."""
    c1, c2, z, index = traversal_pairs(4096, 5, 3, gap, 7, 1, device="cpu")
    assert z.shape == (4096, 3)
    assert all(values.abs().max() <= 1 for values in (c1, c2, z))
    shared = torch.arange(5) == index[:, None]
    assert torch.equal(c1[shared], c2[shared])
    assert (c1 - c2).double().abs()[~shared].min() >= gap
    assert (c1.double() - c2.double()).abs()[~shared].min() >= gap


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.9])
def test_pair_laws(gap):
    """Shared code uniform on [-1, 1); the others, pulled back by gap / 2, independent uniform on
    [-1 + gap/2, 1 - gap/2]; either of the pair is the larger as often; index uniform."""
    c1, c2, z, index = traversal_pairs(20000, 4, 2, gap, 11, 3, device="cpu")
    shared = torch.arange(4) == index[:, None]
    bound = 1 - gap / 2
    up = torch.where(c1 > c2, gap / 2, -gap / 2)
    first, second = (c1 - up)[~shared], (c2 + up)[~shared]
    for values, limit in ((c1[shared], 1), (z, 1), (first, bound), (second, bound)):
        assert kstest(values.flatten(), "uniform", (-limit, 2 * limit)).pvalue > 0.001
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1].item()) < 4 / len(first) ** 0.5
    assert abs((c1 > c2)[~shared].double().mean().item() - 0.5) < 2 / len(first) ** 0.5
    assert chisquare(index.bincount(minlength=4)).pvalue > 0.001


def test_latents_and_indices_are_uniform():
    """Codes, noise and indices follow their laws, also an odd number of values."""
    c, z = sample_latents(9999, 3, 2, 5, 0, device="cpu")
    for values in (c, z):
        assert kstest(values.flatten(), "uniform", (-1, 2)).pvalue > 0.001
        assert -1 <= values.min() <= values.max() < 1
    assert abs(torch.corrcoef(c.T)[0, 1].item()) < 4 / 9999**0.5
    counts = random_index(30001, 7, 5, 0, device="cpu").bincount(minlength=7)
    assert len(counts) == 7
    assert chisquare(counts).pvalue > 0.001
    assert random_index(5, 1, 5, 0, device="cpu").tolist() == [0] * 5


def test_seed_step_and_purpose_make_numbers_of_their_own():
    """Nothing is drawn twice: all values of several seeds, steps and purposes differ (up to chance)."""
    draws = []
    for seed, step in [(0, 0), (0, 1), (1, 0), (2**32, 0), (0, 2**32)]:
        draws += sample_latents(50, 3, 4, seed, step, device="cpu")
        draws += traversal_pairs(50, 1, 4, 0.0, seed, step, device="cpu")[1:3]
    values = torch.cat([d.flatten() for d in draws])
    assert len(values.unique()) >= len(values) - 3  # 24 bits, 3,000 values: 0.27 coincidences are expected


@pytest.mark.gpu
def test_graph_draws_anew_at_each_replay():
    """The step lives in memory: a captured launch follows it."""
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    traversal_pairs(64, 5, 5, 0.1, 3, step, device="cuda")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = traversal_pairs(64, 5, 5, 0.1, 3, step, device="cuda")
    for value in (5, 2**40):
        step.fill_(value)
        graph.replay()
        expected = traversal_pairs(64, 5, 5, 0.1, 3, value, device="cpu")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(drawn, expected))
