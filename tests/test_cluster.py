"""Sweep and selection on a real Ray cluster of several nodes on this machine, of which some are killed half-way."""

import json
import os
import re
import signal
from itertools import product

import pytest
from processes import cut_power, finish, ray_cluster, start, wait_for
from run_folders import pairs_in, tensors_of

from crgan import InputError, checkpoint, cluster
from crgan.selection import scores

pytestmark = pytest.mark.slow
SETTINGS = {"data": "circular_dsprites", "num-codes": 2, "width": 4, "hidden": 8, "batch-size": 4, "cr-start": 100}
SIZES = "--groups 200 --group-size 20 --scale-samples 20000 --device cpu".split()  # noqa: SIM905


def sweep(out, *flags):
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    common = ["--seeds", "0:3", "--steps", 400, "--checkpoint-every", 50, "--out", out]
    return start("sweep", "quick", *settings, *common, *flags)


@pytest.fixture(scope="module")
def nodes():
    with ray_cluster() as nodes:
        nodes.add_node()
        nodes.add_node()
        yield nodes


@pytest.fixture(scope="module")
def local_pool(tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "pool"
    finish(sweep(out, "--jobs", 2, "--device", "cpu"))
    return out


def runs_of(pool):
    return sorted(path for path in pool.iterdir() if not path.name.startswith("."))


def log_of(run):
    path = run.parent / ".sweep" / f"{run.name}.log"
    return path.read_text() if path.exists() else ""


def step_of(run):
    folder = checkpoint.latest(run)
    return int(folder.name.removeprefix("step-")) if folder else 0


def test_a_sweep_outlives_a_worker_and_a_node(nodes, local_pool, tmp_path):
    pool = tmp_path / "pool"
    process = sweep(pool, "--ray", nodes.address)
    wait_for(lambda: pool.exists() and sum(step_of(run) >= 100 for run in runs_of(pool)) == 2)
    first = next(run for run in runs_of(pool) if step_of(run) >= 100)
    worker = int(re.search(r"process (\d+)", log_of(first)).group(1))
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: log_of(first).count("continuing from") == 1)  # it came back
    cut_power(nodes)
    finish(process)
    logs = [log_of(run) for run in runs_of(pool)]
    assert sum(log.count("process") for log in logs) == 3 + 2  # three runs, two of them taken up again
    assert sum(log.count("continuing from") for log in logs) == 2
    for run in runs_of(local_pool):
        assert tensors_of(run) == tensors_of(pool / run.name)
        assert (pool / run.name / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    states = json.loads((pool / ".sweep" / "sweep.json").read_text())
    assert [row["state"] for row in states] == ["done"] * 3


def test_a_selection_outlives_a_node(nodes, local_pool, tmp_path):
    nodes.add_node()
    runs = runs_of(local_pool)
    here, there = tmp_path / "here", tmp_path / "there"
    finish(start("select", *runs, "--out", here, *SIZES))
    process = start("select", *runs, "--out", there, *SIZES, "--ray", nodes.address)
    wait_for(lambda: pairs_in(there / "scores.h5") > 0)
    cut_power(nodes)
    assert pairs_in(there / "scores.h5") < 9  # some pairs are in, others in flight
    finish(process)
    a, b = (scores.read(folder / "scores.h5") for folder in (here, there))
    assert a[:4] == b[:4]
    assert a.known.keys() == b.known.keys() == set(product(a.keys, a.keys))
    assert all((pair.votes == b.known[keys].votes).all() for keys, pair in a.known.items())
    a, b = (json.loads((folder / "ranking.json").read_text()) for folder in (here, there))
    assert a["models"] == b["models"]
    assert a["encodes"] == b["encodes"] == 9 * (200 * 20 + 20_000)
    race = [tmp_path / "race here", tmp_path / "race there"]
    for out, more in zip(race, ([], ["--ray", nodes.address])):
        finish(start("select", *runs, "--out", out, *SIZES, "--budget", 0.1, *more))
    a, b = (json.loads((folder / "ranking.json").read_text()) for folder in race)
    assert a["models"] == b["models"]
    assert a["encodes"] == b["encodes"] > 0


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"there is no Ray cluster at '127\.0\.0\.1:6398'"):
        cluster.connect("127.0.0.1:6398")
