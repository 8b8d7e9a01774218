"""The vote tables of 200 pairs: reading the codes once, the reference, that compiled, the extension, numpy."""

import functools
import statistics
import time

import numpy as np
import pytest
import torch
from conftest import CALLS, copy_bandwidth, rounds

from crgan.ops import vote_table, vote_table_ref

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS, GROUPS, SIZE, CODES = 200, 500, 100, 5
LOOP = "numpy loop, a tenth of the pairs"
LOOPED = PAIRS // 10  # its time is scaled to all pairs
RATIOS = {
    "reference": "speedup_over_reference",
    "compile": "speedup_over_compile",
    LOOP: "speedup_over_numpy_loop",
}
seconds: dict[tuple[float, str], float] = {}  # per call, the best round, of a mean and provider


def numpy_loop(codes: np.ndarray, scale: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Group by group, in the order of the definition."""
    votes = np.zeros((len(codes), CODES, CODES), dtype=np.int32)
    for pair in range(len(codes)):
        for group in range(GROUPS):
            winner = np.argmin(np.var(codes[pair, group] / scale[pair], axis=0))
            votes[pair, winner, factor[group]] += 1
    return votes


def wrong(votes: torch.Tensor, truth: torch.Tensor) -> float:
    """The share of groups whose vote went elsewhere: in float32 two spreads may be as good as equal."""
    return float((votes.cpu() - truth).abs().sum() / 2 / truth.sum())


@pytest.fixture(scope="module", params=[0.0, 1e4], ids="mean={:g}".format)
def drawn(request):
    """The mean; codes [200, 500, 100, 5] float32 of spreads of their own about it, scale, factor; the right table."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(PAIRS, GROUPS, SIZE, CODES, generator=draw)
    codes = codes * torch.rand(PAIRS, GROUPS, 1, CODES, generator=draw).add(0.5) + request.param
    scale, factor = torch.ones(PAIRS, CODES), torch.arange(GROUPS) % CODES
    truth = vote_table_ref(codes.double(), scale.double(), factor, CODES)
    return request.param, [t.to(DEVICE) for t in (codes, scale, factor)], truth


def share_of_reading(codes: torch.Tensor, timed) -> float:
    """The time of torch.sum over that of `timed`, each the median of 40, in turns: a machine's bandwidth wanders."""
    calls = rounds(lambda i: codes.sum(), DEVICE), timed
    times: tuple[list[float], list[float]] = [], []
    for _ in range(40):
        for call, taken in zip(calls, times):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return statistics.median(times[0]) / statistics.median(times[1])


@pytest.mark.parametrize("provider", ["read once", *RATIOS, "ext"])
def test_vote_table(benchmark, drawn, provider):
    """gb_per_s counts the codes once; their share is of the rate at which torch.sum reads them, and a GPU copies."""
    mean, inputs, truth = drawn
    codes, scale, factor = inputs
    calls, pairs = CALLS[DEVICE], PAIRS
    if provider == "read once":
        timed = rounds(lambda i: codes.sum(), DEVICE)
        torch.testing.assert_close(codes.sum(), codes.double().sum().float(), rtol=1e-4, atol=1e2)
    elif provider == LOOP:
        calls, pairs = 1, LOOPED
        arrays = [t.cpu().numpy() for t in (codes[:LOOPED], scale[:LOOPED], factor)]
        assert wrong(torch.from_numpy(numpy_loop(*arrays)), truth[:LOOPED]) <= 1e-4

        def timed():
            numpy_loop(*arrays)
    else:
        op = functools.partial(vote_table, impl="ext" if provider == "ext" else "ref")
        op = torch.compile(op, fullgraph=True) if provider == "compile" else op
        assert wrong(op(*inputs, CODES), truth) <= 1e-4
        timed = rounds(lambda i: op(*inputs, CODES), DEVICE)

    benchmark.group = f"vote_table [200, 500, 100, 5] float32, mean {mean:g}, {DEVICE}"
    benchmark(timed)
    best = seconds[mean, provider] = benchmark.stats["min"] / calls * PAIRS / pairs
    notes = {"ms_for_all_pairs": best * 1e3, "gb_per_s": codes.nbytes / best / 1e9}
    if provider == "ext":
        notes["share_of_read_bandwidth"] = share_of_reading(codes, timed)
    if DEVICE == "cuda":
        notes["share_of_copy_bandwidth"] = notes["gb_per_s"] / copy_bandwidth(DEVICE)
    for baseline, name in RATIOS.items():
        if provider != baseline and (mean, baseline) in seconds:
            notes[name] = seconds[mean, baseline] / best
    benchmark.extra_info |= {key: float(f"{value:.4g}") for key, value in notes.items()}
    print(f"\n{benchmark.group}, {provider}: " + ", ".join(f"{key} {value:.4g}" for key, value in notes.items()))
