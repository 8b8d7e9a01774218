"""Sweeps: which runs a grid has, and runs that are finished, half done, failed, or killed with the sweep."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest

from crgan import PRESETS, InputError, checkpoint, cluster
from crgan import sweep as sweeps
from crgan.sweep import Run, expand, main
from crgan.train import train

SETTINGS = {"data": "circular_dsprites", "num-codes": 2, "width": 4, "hidden": 8, "batch-size": 4, "cr-start": 10}
SMALL = [*(f"--{name}={value}" for name, value in SETTINGS.items()), "--steps"]


def bytes_of(run):
    return [path.read_bytes() for path in sorted(checkpoint.latest(run).glob("*.safetensors"))]


def rows_of(pool):
    return json.loads((pool / ".sweep" / "sweep.json").read_text())


# ---------------------------------------------------------------- the grid


def test_the_grid_is_every_combination(tmp_path):
    runs = expand("quick", tmp_path, ["cr-weight=0,0.5", "gap_switch=None,7"], "3:6", flags=["--lr-g", "1e-4"])
    assert len(runs) == 2 * 2 * 3
    assert runs[0].name == "cr_weight=0,gap_switch=None,seed=3"
    assert runs[0].out == tmp_path / runs[0].name
    assert {(r.cfg.cr_weight, r.cfg.gap_switch, r.cfg.seed) for r in runs} == {
        (w, g, s) for w in (0.0, 0.5) for g in (None, 7) for s in (3, 4, 5)
    }
    base = replace(PRESETS["quick"], lr_g=1e-4)
    assert all(replace(r.cfg, cr_weight=1.0, gap_switch=None, seed=0) == base for r in runs)


def test_a_list_of_settings(tmp_path):
    listed = tmp_path / "runs.jsonl"
    listed.write_text('{"seed": 4, "lr-g": 0.002}\n\n{"cr_weight": 0, "network": "dcgan"}\n')
    runs = expand("quick", tmp_path, ["gap=0,1"], "", listed)
    assert [r.name for r in runs] == [
        "lr_g=0.002,gap=0,seed=4", "lr_g=0.002,gap=1,seed=4",
        "cr_weight=0,network=dcgan,gap=0,seed=0", "cr_weight=0,network=dcgan,gap=1,seed=0",
    ]  # fmt: skip
    listed.write_text(json.dumps([{"seed": 4}, {"seed": 5}]))
    assert [r.cfg.seed for r in expand("quick", tmp_path, [], "", listed)] == [4, 5]


def test_a_name_is_one_that_file_systems_take(tmp_path):
    given = [f"{f.name}={value}" for f in fields(PRESETS["quick"]) if (value := getattr(PRESETS["quick"], f.name))]
    runs = expand("quick", tmp_path, given, "0,1") + expand("quick", tmp_path, [f"root=/{'é' * 120}/x"])
    assert len({run.name for run in runs}) == 3
    for run in runs:
        run.log.parent.mkdir(exist_ok=True)
        run.log.touch()


@pytest.mark.parametrize(
    ("settings", "seeds", "listed", "message"),
    [
        (["widht=1"], "", None, "'widht'; did you mean width"),
        (["data=dsprite"], "", None, "'dsprite'; did you mean dsprites"),
        ([], "0:0", None, "0:0"),
        ([], "1,1", None, "seed=1"),
        (["cr_weight=0,0.0"], "", None, "cr_weight=0,seed=0"),
        (["width=8", "width=16"], "", None, "width"),
        (["seed=5,6"], "0:2", None, "seed"),
        ([], "0:2", '{"seed": 1}', "seed"),
        ([], "", "{seed: 1}", "runs.jsonl"),
        ([], "", "[1, 2]", "runs.jsonl"),
        ([], "", "\n", "runs.jsonl"),
        ([], "", '{"sede": 1}', "sede"),
    ],
)
def test_what_is_no_sweep_is_named(tmp_path, settings, seeds, listed, message):
    path = None
    if listed is not None:
        path = tmp_path / "runs.jsonl"
        path.write_text(listed)
    with pytest.raises(InputError, match=message):
        expand("quick", tmp_path, settings, seeds, path)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["nope"], "nope"),
        (["quick", "--jobs", "0"], "--jobs is 0"),
        (["quick", "--device", "tpu"], "tpu"),
        (["quick", "--set", "lr-g=fast"], "'fast'"),
        (["quick", "--set", "width=0"], "width is 0"),
        (["quick", "--stpes", "3"], "--stpes"),
        (["cars3d", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_a_bad_flag_is_named_before_anything_runs(tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--out", str(tmp_path / "pool")])
    assert named in capsys.readouterr().err
    assert not (tmp_path / "pool").exists()


def test_what_a_dry_run_prints_can_be_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["quick", "--seeds=3", "--set", "cr-weight=0", "--steps=20", "--out=~/pool", "--root=~/data", "--dry-run"])
    words = shlex.split(capsys.readouterr().out)
    assert words[:4] == ["python", "-m", "crgan.train", "quick"]
    assert sweeps.parse_run(words[3:]) == replace(
        PRESETS["quick"], seed=3, cr_weight=0.0, steps=20, threads=1, root=str(tmp_path / "data")
    )
    assert words[-1] == str(tmp_path / "pool" / "cr_weight=0,seed=3")


def test_the_last_step_and_score_are_read(tmp_path):
    run = Run("a", [], PRESETS["quick"], tmp_path)
    run.look()
    assert (run.step, run.score) == (0, None)
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 100, "factor_vae": 0.5}\n\0\0\n' + b'{"step": 200, "d": 1.4}\n' * 100 + b'{"step": 300, "d"'
    )
    run.look()
    assert (run.step, run.score) == (200, 0.5)


# ---------------------------------------------------------------- runs


def test_finished_half_done_and_failed_runs(tmp_path, capsys):
    """Of three runs one is half done before, one cannot be trained; the same command again has one left to do."""
    listed, pool = tmp_path / "runs.jsonl", tmp_path / "pool"
    listed.write_text('{"seed": 0}\n{"seed": 1}\n{"seed": 2, "lr_g": 1e30}\n')
    flags = [*SMALL, "30", "--device", "cpu"]
    half, other, broken = runs = expand("quick", pool, [], "", listed, flags)
    train(replace(half.cfg, steps=20), half.out, "cpu")
    capsys.readouterr()
    command = ["quick", *flags, "--list", str(listed), "--out", str(pool), "--jobs", "2"]
    with pytest.raises(SystemExit, match="1"):
        main(command)
    said = capsys.readouterr().err
    assert said.startswith(f"failed: {broken.name}: error: the loss")
    assert str(broken.log) in said
    assert "continuing from" in half.log.read_text()
    assert all(run.finished() for run in (half, other))
    assert [row["state"] for row in rows_of(pool)] == ["done", "done", "failed"]
    assert [row["factor_vae"] is None for row in rows_of(pool)] == [False, False, True]
    shown = {path.name for path in pool.iterdir() if not path.name.startswith(".")}
    assert shown == {run.name for run in runs}  # what DIR/* hands on

    written = half.log.stat().st_mtime_ns, other.log.stat().st_mtime_ns
    with pytest.raises(SystemExit, match="1"):
        main(command)
    assert (half.log.stat().st_mtime_ns, other.log.stat().st_mtime_ns) == written
    if os.environ.get("OMP_NUM_THREADS") == "1":  # the same bits as without a sweep and an interruption
        train(half.cfg, tmp_path / "straight", "cpu")
        assert bytes_of(tmp_path / "straight") == bytes_of(half.out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_with_its_sweep_a_run_saves_and_goes_on(tmp_path, number):
    flags = [*SMALL, "100000", "--seeds", "0:2", "--jobs", "2", "--device", "cpu", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "crgan.sweep", "quick", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    runs, deadline = [tmp_path / "seed=0", tmp_path / "seed=1"], time.monotonic() + 120
    while not all((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGTERM else -9)
    logs = [tmp_path / ".sweep" / f"{run.name}.log" for run in runs]
    while not all("stopped after step" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGTERM:
        assert [row["state"] for row in rows_of(tmp_path)] == ["stopped"] * 2


def test_a_run_that_a_signal_ends_says_so(tmp_path, monkeypatch):
    started, start = [], cluster.start_python
    monkeypatch.setattr(cluster, "start_python", lambda *given: started.append(start(*given)) or started[-1])
    (run,) = expand("quick", tmp_path, [], "0", flags=[*SMALL, "100000"])
    run.log.parent.mkdir(parents=True)
    ends = sweeps.run_here([run], jobs=1, threads=1, gpus=0)
    next(ends)
    started[0].kill()
    name, error = next(end for end in ends if end)
    assert name == run.name
    assert "signal 9" in str(error)


def test_runs_share_the_gpus_that_are_visible(tmp_path, monkeypatch):
    """Which needs none: the runs only say what they see."""
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(
        cluster,
        "start_python",
        lambda arguments, log, environment: seen.append(environment) or subprocess.Popen("true"),
    )
    runs = expand("quick", tmp_path, [], "0:3")
    assert sorted(end for end in sweeps.run_here(runs, jobs=3, threads=2, gpus=2) if end) == [
        (run.name, 0) for run in runs
    ]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in seen] == ["2", "5", "2"]
    assert all(environment["OMP_NUM_THREADS"] == "2" for environment in seen)
