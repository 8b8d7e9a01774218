"""A pool from end to end on two cores: eight short runs, their selection, and what handing work to Ray costs.

Each provider trains and scores the same pool; the results are compared bit for bit before a time counts.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from crgan import checkpoint, cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from ray_nodes import ENVIRONMENT, Nodes

pytestmark = pytest.mark.slow
RUNS, CORES = 8, 2
GRID = f"quick --seeds 0:{RUNS} --steps 300 --device cpu --checkpoint-every 1000".split()
SIZES = ["--groups", "80", "--group-size", "100", "--scale-samples", "12000", "--device", "cpu"]
ENCODES = RUNS**2 * (80 * 100 + 12_000)
seconds: dict[str, float] = {}


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray")
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def timed(benchmark, provider, threads, module, *flags):
    """Run a command once and return its seconds."""

    def command():
        words = [sys.executable, "-m", f"crgan.{module}", *map(str, flags)]
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": threads}
        process = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr

    start = time.perf_counter()
    benchmark.pedantic(command, rounds=1, iterations=1)
    seconds[provider] = time.perf_counter() - start
    return seconds[provider]


@pytest.mark.parametrize("provider", ["local", "ray"])
def test_sweep(benchmark, provider, nodes, folder):
    benchmark.group = "sweep of 8 runs on 2 cores"
    flags = ["--jobs", CORES]
    if provider == "ray":
        for name in ("a", "b"):
            nodes.start(name)
        flags = ["--ray", nodes.address]
    taken = timed(benchmark, provider, "1", "sweep", *GRID, "--out", folder / provider, *flags)
    for run in (folder / "local").glob("[!.]*"):
        a, b = (checkpoint.latest(folder / pool / run.name) / "model.safetensors" for pool in ("local", provider))
        assert a.read_bytes() == b.read_bytes()
    ratio, overhead = taken / seconds["local"], (taken - seconds["local"]) * CORES / RUNS
    benchmark.extra_info |= {"ratio_to_local": ratio, "overhead_s_per_run": overhead}
    print(f"\nsweep, {provider}: {taken:.1f} s, {ratio:.2f} x local, {overhead:+.2f} s a run")


@pytest.mark.parametrize("provider", ["local-2-threads", "local-1-thread", "ray-2-workers", "ray-1-worker"])
def test_selection(benchmark, provider, nodes, folder):
    benchmark.group = "selection among 8 models, all pairs"
    out, is_ray = folder / f"scores-{provider}", provider.startswith("ray")
    if provider == "ray-1-worker":
        nodes.kill("b")
        time.sleep(5)
    flags = [folder / "local", "--out", out, *SIZES, *(["--ray", nodes.address] if is_ray else [])]
    taken = timed(benchmark, provider, "2" if provider == "local-2-threads" else "1", "select", *flags)
    if is_ray:
        with h5py.File(folder / "scores-local-1-thread" / "scores.h5") as a, h5py.File(out / "scores.h5") as b:
            assert (a["B"][:] == b["B"][:]).all()
    ratio = taken / seconds["local-2-threads"]
    benchmark.extra_info |= {"encodes_per_s": ENCODES / taken, "ratio_to_local": ratio}
    print(f"\nselection, {provider}: {taken:.1f} s, {ENCODES / taken:,.0f} encodes/s, {ratio:.2f} x local")


def test_dispatch(benchmark, nodes):
    """What a block costs beside its work: one that does nothing, on a worker that is there."""
    os.environ |= ENVIRONMENT
    cluster.connect(nodes.address)

    def nothing(threads):  # defined here, so that it travels to the workers
        return threads

    def blocks():
        ended = [piece for piece in cluster.scatter(nothing, {n: () for n in range(200)}, 1) if piece is not None]
        assert sorted(ended) == [(n, 1) for n in range(200)]

    blocks()
    benchmark.pedantic(blocks, rounds=5, iterations=1)
    benchmark.extra_info["ms_per_block"] = statistics.median(benchmark.stats.stats.data) / 200 * 1e3
    print(f"\ndispatch: {benchmark.extra_info['ms_per_block']:.2f} ms a block")
