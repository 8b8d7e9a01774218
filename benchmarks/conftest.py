"""What several benchmarks share: the limit of the machine, and the way to time a call on its device."""

from collections.abc import Callable
from functools import cache
from timeit import repeat

import pytest
import torch

CALLS = {"cpu": 1, "cuda": 20}  # calls per timed round: on a GPU a graph of 20, so that its launch counts little


@cache
def copy_bandwidth(device: str) -> float:
    """GB/s, read and written, of the best of 10 copies of 256 MiB."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_of_10(lambda i: target.copy_(source), device) / 1e9


@cache
def matrix_rate(device: str) -> float:
    """TFLOP/s of the best of 10 products of float32 matrices of side 2,048."""
    a = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / best_of_10(lambda i: a @ a, device) / 1e12


def best_of_10(call: Callable[[int], object], device: str) -> float:
    """Seconds of a call, of the best of 10 rounds."""
    return min(repeat(rounds(call, device), repeat=10, number=1)) / CALLS[device]


def rounds(call: Callable[[int], object], device: str) -> Callable[[], object]:
    """A function that runs `call(i)` for i from 0 to CALLS[device] - 1, on a GPU by replay of a captured graph, as
    training does. There each call keeps its results, and should have inputs of its own where they are small: else the
    next one would find them in the cache."""
    if device == "cpu":
        return lambda: call(0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = [call(i) for i in range(CALLS[device])]

    def replay(results: object = results) -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


rates: dict[tuple[str, str], float] = {}  # GB/s of a group and provider, in the best round, as for the copies


@pytest.fixture
def measure(benchmark):
    """Times `call`, notes its rate against the machine's copy bandwidth and its speed against other providers."""

    def run(call: Callable[[int], object], group: str, provider: str, device: str, num_bytes: int) -> None:
        benchmark.group = group
        benchmark(rounds(call, device))
        best = benchmark.stats["min"] / CALLS[device]
        rate = rates[group, provider] = num_bytes / best / 1e9
        notes = {"us_per_call": best * 1e6, "gb_per_s": rate, "share_of_copy_bandwidth": rate / copy_bandwidth(device)}
        for baseline in ("reference", "compile", "numpy loop", "read once", "copy"):
            if provider != baseline and (group, baseline) in rates:
                notes[f"speedup_over_{baseline.replace(' ', '_')}"] = rate / rates[group, baseline]
        benchmark.extra_info |= {key: float(f"{value:.4g}") for key, value in notes.items()}
        print(f"\n{group}, {device}, {provider}: {benchmark.extra_info}")

    return run


def pytest_configure(config):
    if hasattr(config.option, "benchmark_columns"):
        config.option.benchmark_columns = ["min", "median", "rounds"]  # its whole table is 200 columns wide
