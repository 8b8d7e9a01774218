"""The votes of 200 pairs: reading the codes once, the reference, the extension, and a numpy loop."""

import statistics
import time

import numpy as np
import pytest
import torch
from conftest import CALLS, copy_bandwidth, rounds

from crgan import group_votes
from crgan.ops import group_votes_ref

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS, GROUPS, SIZE, CODES = 200, 500, 100, 5
LOOP = "numpy loop, a tenth of the pairs"
LOOPED = PAIRS // 10  # its time is scaled to all pairs
seconds: dict[str, float] = {}  # per call, the best round, of each provider


def numpy_loop(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Group by group, in the order of the definition."""
    votes = np.empty(codes.shape[:2], np.int64)
    for pair in range(len(codes)):
        for group in range(GROUPS):
            votes[pair, group] = np.argmin(np.var(codes[pair, group] / scale[pair], axis=0))
    return votes


@pytest.fixture(scope="module")
def drawn():
    """Codes [200, 500, 100, 5] float32 of spreads of their own, their scale, and the right votes."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(PAIRS, GROUPS, SIZE, CODES, generator=draw)
    codes *= torch.rand(PAIRS, GROUPS, 1, CODES, generator=draw).add(0.5)
    scale = torch.ones(PAIRS, CODES)
    truth = torch.cat([group_votes_ref(part.double(), torch.ones(CODES)) for part in codes.split(20)])
    return codes.to(DEVICE), scale.to(DEVICE), truth


def alternating(calls, times: int = 40) -> list[float]:
    """Seconds of each call, the median of some in turns: a machine's bandwidth wanders."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(times):
        for call, list_ in zip(calls, taken):
            begin = time.perf_counter()
            call()
            list_.append(time.perf_counter() - begin)
    return [statistics.median(list_) for list_ in taken]


@pytest.mark.parametrize("provider", ["read once", "reference", LOOP, "ext"])
def test_group_votes(benchmark, drawn, provider):
    """gb_per_s counts the codes once; their share is of the rate at which torch.sum reads them, and a GPU copies."""
    codes, scale, truth = drawn
    calls, pairs = CALLS[DEVICE], PAIRS
    if provider == "read once":
        timed = rounds(lambda i: codes.sum(), DEVICE)
    elif provider == LOOP:
        calls, pairs = 1, LOOPED
        arrays = codes[:LOOPED].cpu().numpy(), scale[:LOOPED].cpu().numpy()
        assert (numpy_loop(*arrays) != truth[:LOOPED].numpy()).mean() <= 1e-4

        def timed():
            numpy_loop(*arrays)
    else:
        impl = "ext" if provider == "ext" else "ref"
        wrong = group_votes(codes, scale, impl=impl).cpu() != truth  # in float32 two spreads may be as good as equal
        assert wrong.float().mean() <= 1e-4
        timed = rounds(lambda i: group_votes(codes, scale, impl=impl), DEVICE)

    benchmark.group = f"group_votes [200, 500, 100, 5] float32, {DEVICE}"
    benchmark(timed)
    best = seconds[provider] = benchmark.stats["min"] / calls * PAIRS / pairs
    notes = {"ms_for_all_pairs": best * 1e3, "gb_per_s": codes.nbytes / best / 1e9}
    if provider == "ext":
        read, voted = alternating((rounds(lambda i: codes.sum(), DEVICE), timed))
        notes["times_of_reading_once"] = voted / read
    if DEVICE == "cuda":
        notes["share_of_copy_bandwidth"] = notes["gb_per_s"] / copy_bandwidth(DEVICE)
    for baseline in ("reference", LOOP):
        if provider == "ext" and baseline in seconds:
            notes[f"speedup_over_{baseline.split(',')[0].replace(' ', '_')}"] = seconds[baseline] / best
    benchmark.extra_info |= {key: float(f"{value:.4g}") for key, value in notes.items()}
    print(f"\n{benchmark.group}, {provider}: " + ", ".join(f"{key} {value:.4g}" for key, value in notes.items()))
