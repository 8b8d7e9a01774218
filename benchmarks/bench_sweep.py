"""A pool from end to end on two cores: eight short runs, their selection, and what handing work to Ray costs.

Each provider trains and scores the same pool; the results are compared bit for bit.
"""

import sys
import time
from pathlib import Path

import h5py
import pytest

from crgan import cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from processes import cut_power, finish, ray_cluster, start
from run_folders import tensors_of

pytestmark = pytest.mark.slow
RUNS, CORES = 8, 2
GRID = f"quick --seeds 0:{RUNS} --steps 300 --device cpu --checkpoint-every 1000".split()
SIZES = ["--groups", "80", "--group-size", "100", "--scale-samples", "12000", "--device", "cpu"]
ENCODES = RUNS**2 * (80 * 100 + 12_000)
seconds: dict[str, float] = {}


@pytest.fixture(scope="module")
def nodes():
    with ray_cluster() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def time_command(benchmark, provider, *command, threads=1):
    """Run a command once, note its seconds and return them."""
    benchmark.pedantic(lambda: finish(start(*command, threads=threads)), rounds=1, iterations=1)
    seconds[provider] = benchmark.stats["min"]
    return seconds[provider]


@pytest.mark.parametrize("provider", ["local", "ray"])
def test_sweep(benchmark, provider, nodes, folder):
    flags = ["--jobs", CORES]
    if provider == "ray":
        nodes.add_node()
        nodes.add_node()
        flags = ["--ray", nodes.address]
    taken = time_command(benchmark, provider, "sweep", *GRID, "--out", folder / provider, *flags)
    for run in (folder / "local").glob("[!.]*"):
        assert tensors_of(run) == tensors_of(folder / provider / run.name)
    benchmark.extra_info["speedup_over_local"] = seconds["local"] / taken
    benchmark.extra_info["overhead_s_per_run"] = (taken - seconds["local"]) * CORES / RUNS
    print(f"\nsweep, {provider}: {benchmark.extra_info}")


@pytest.mark.parametrize("provider", ["local-2-threads", "local-1-thread", "ray-2-workers", "ray-1-worker"])
def test_selection(benchmark, provider, nodes, folder):
    """Among 8 models, all pairs."""
    out, flags = folder / f"scores-{provider}", []
    if provider.startswith("ray"):
        flags = ["--ray", nodes.address]
    if provider == "ray-1-worker":
        cut_power(nodes)
        time.sleep(5)
    command = ["select", folder / "local", "--out", out, *SIZES, *flags]
    taken = time_command(benchmark, provider, *command, threads=2 if provider == "local-2-threads" else 1)
    if provider.startswith("ray"):
        with h5py.File(folder / "scores-local-1-thread" / "scores.h5") as a, h5py.File(out / "scores.h5") as b:
            assert (a["B"][:] == b["B"][:]).all()
    benchmark.extra_info["encodes_per_s"] = ENCODES / taken
    benchmark.extra_info["speedup_over_local_2_threads"] = seconds["local-2-threads"] / taken
    print(f"\nselection, {provider}: {benchmark.extra_info}")


def test_dispatch(benchmark, nodes):
    """What a block costs beside its work: 200 that do nothing, on a worker that is there."""
    cluster.connect(nodes.address)

    def nothing(threads):  # defined here, so that it travels to the workers
        return threads

    def blocks():
        ended = [piece for piece in cluster.scatter(nothing, {n: () for n in range(200)}, 1) if piece is not None]
        assert sorted(ended) == [(n, 1) for n in range(200)]

    benchmark.pedantic(blocks, rounds=5, iterations=1, warmup_rounds=1)
    benchmark.extra_info["ms_per_block"] = benchmark.stats["median"] / 200 * 1e3
    print(f"\ndispatch: {benchmark.extra_info}")
