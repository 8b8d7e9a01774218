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
import torch
from crgan.together import Task, train_together

from crgan import PRESETS, InputError, checkpoint
from crgan import sweep as sweeps
from crgan.sweep import Run, expand, main
from crgan.train import train

COMMON = ["data=circular_dsprites", "num_codes=2", "width=4", "hidden=8", "batch_size=4", "cr_start=10"]


def settings(*more):
    return [part for setting in (*COMMON, *more) for part in ("--set", setting)]


def bytes_of(run):
    return [path.read_bytes() for path in sorted(checkpoint.latest(run).glob("*.safetensors"))]


# ---------------------------------------------------------------- the grid


def test_the_grid_is_every_combination(tmp_path):
    runs = expand("quick", tmp_path, ["cr_weight=0.5,1", "gap_switch=None,7"], "3:6")
    assert len(runs) == 2 * 2 * 3
    assert runs[0].name == "cr_weight=0.5,gap_switch=None,seed=3"
    assert runs[0].out == tmp_path / runs[0].name
    assert {(r.cfg.cr_weight, r.cfg.gap_switch, r.cfg.seed) for r in runs} == {
        (w, g, s) for w in (0.5, 1.0) for g in (None, 7) for s in (3, 4, 5)
    }
    assert runs[0].flags == ["quick", "--cr-weight", "0.5", "--gap-switch", "None", "--seed", "3"]
    assert all(replace(r.cfg, cr_weight=1.0, gap_switch=None, seed=0) == PRESETS["quick"] for r in runs)


def test_a_list_of_settings(tmp_path):
    listed = tmp_path / "runs.jsonl"
    listed.write_text('{"seed": 4, "lr_g": 0.002}\n\n{"cr_weight": 0, "network": "dcgan"}\n')
    runs = expand("quick", tmp_path, ["gap=0,1"], "", listed)
    assert [r.name for r in runs] == [
        "lr_g=0.002,gap=0.0,seed=4", "lr_g=0.002,gap=1.0,seed=4",
        "cr_weight=0.0,network=dcgan,gap=0.0,seed=0", "cr_weight=0.0,network=dcgan,gap=1.0,seed=0",
    ]  # fmt: skip
    listed.write_text(json.dumps([{"seed": 4}, {"seed": 5}]))
    assert [r.cfg.seed for r in expand("quick", tmp_path, [], "", listed)] == [4, 5]


def test_a_long_name_is_cut_to_what_a_file_system_takes(tmp_path):
    values = [f"{field.name}={getattr(PRESETS['quick'], field.name)}" for field in fields(PRESETS["quick"])]
    given = [value for value in values if value.partition("=")[2] != "None"]
    runs = expand("quick", tmp_path, [*(value for value in given if not value.startswith("seed")), "seed=0,1"])
    assert len({run.name for run in runs}) == 2
    for run in runs:
        run.log.parent.mkdir(exist_ok=True)
        run.log.touch()


@pytest.mark.parametrize(
    ("settings", "seeds", "listed", "message"),
    [
        (["lambda=1"], "", None, "'lambda' is no field"),
        (["lr_g=fast"], "", None, "'fast' is no value of lr_g"),
        (["network=resnet"], "", None, "'resnet' is no value of network"),
        (["width=0"], "", None, "width is 0; expected a finite number of at least 1"),
        ([], "0:0", None, "--seeds is '0:0'; expected first:end"),
        ([], "1,1", None, "seed=1 is in this sweep twice"),
        (["width=8", "width=16"], "", None, "width is set twice"),
        (["seed=5,6"], "0:2", None, "seeds are given by --set seed= and by --seeds"),
        ([], "0:2", '{"seed": 1}', "seed is given by .* and by a flag"),
        (["width=8"], "", '{"width": 4}', "width is given by .* and by a flag"),
        ([], "", "{seed: 1}", "is no list of runs"),
        ([], "", "[1, 2]", "is no list of runs"),
        ([], "", "\n", "is no list of runs .it is empty"),
        ([], "", '{"sede": 1}', "'sede' is no field"),
    ],
)
def test_what_is_no_sweep_is_named(tmp_path, settings, seeds, listed, message):
    path = None
    if listed is not None:
        path = tmp_path / "runs.jsonl"
        path.write_text(listed)
    with pytest.raises(InputError, match=message):
        expand("quick", tmp_path, settings, seeds, path)


def test_what_a_dry_run_prints_can_be_run(tmp_path, capsys):
    out = tmp_path / "a pool"
    main(["quick", "--seeds", "3", "--set", "cr-weight=0", "--out", str(out), "--dry-run"])
    words = shlex.split(capsys.readouterr().out)
    name = str(out / "cr_weight=0.0,seed=3")
    assert words == [*["python", "-m", "crgan.train", "quick", "--cr-weight", "0.0", "--seed", "3", "--out"], name]


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    for flags in (["nope"], ["quick", "--jobs", "0"], ["quick", "--device", "tpu"]):
        with pytest.raises(SystemExit, match="2"):
            main([*flags, "--out", str(tmp_path / "pool")])
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "pool").exists()


def test_steps_scores_and_rates_are_read_as_they_are_written(tmp_path):
    run = Run("a", [], PRESETS["quick"], tmp_path)
    run.look()
    assert (run.step, run.score, run.rate()) == (0, None, None)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 100, "d": 1.4}\n{"step": 100, "factor_vae": 0.5}\n{"step": 200, "d"')
    run.look()
    assert (run.step, run.score, run.rate()) == (100, 0.5, None)  # the unfinished line is left for later
    time.sleep(0.05)
    metrics.write_text(metrics.read_text() + ': 1.3}\n{"step": 300, "d": 1.3}\n')
    run.look()
    assert (run.step, run.score) == (300, 0.5)
    assert 0 < run.rate() <= 200 / 0.05
    metrics.write_text('{"step": 100, "d": 1.4}\n')  # cut back: the run went on from a checkpoint
    run.look()
    assert run.step == 100
    metrics.write_bytes(metrics.read_bytes() + b"\0\0\0\n")  # a power cut
    run.look()
    assert run.step == 100


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("how", [["--jobs", "2"], ["--jobs", "1", "--parallel", "2"]])
def test_finished_half_done_and_failed_runs(tmp_path, capsys, how):
    """Of three runs one is half done before, one cannot be trained; the same command again has one left to do."""
    listed, pool = tmp_path / "runs.jsonl", tmp_path / "pool"
    listed.write_text('{"seed": 0}\n{"seed": 1}\n{"seed": 2, "lr_g": 1e30}\n')
    flags = ["quick", *settings("steps=30"), "--list", str(listed), "--out", str(pool), "--device", "cpu"]
    runs = expand("quick", pool, [*COMMON, "steps=30"], "", listed)
    half, other, broken = runs
    train(replace(half.cfg, steps=20), half.out, "cpu")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        main([*flags, *how])
    said = capsys.readouterr().err
    assert said.startswith(f"failed: {broken.name}: error: the loss")
    assert str(broken.log) in said
    assert said.count("\n") == 1
    assert "going on from" in half.log.read_text()
    assert all(run.finished() for run in (half, other))
    states = json.loads((pool / ".sweep" / "sweep.json").read_text())
    assert [row["state"] for row in states] == ["done", "done", "failed"]
    assert [row["factor_vae"] is None for row in states] == [False, False, True]
    shown = {path.name for path in pool.iterdir() if not path.name.startswith(".")}
    assert shown == {run.name for run in runs}  # what DIR/* hands on

    (pool / ".sweep" / "sweep.json").write_text(json.dumps([{"run": "of an earlier sweep"}, *states]))
    written = half.log.stat().st_mtime_ns, other.log.stat().st_mtime_ns
    with pytest.raises(SystemExit, match="1"):
        main(flags)
    assert (half.log.stat().st_mtime_ns, other.log.stat().st_mtime_ns) == written
    kept = json.loads((pool / ".sweep" / "sweep.json").read_text())
    assert [row["run"] for row in kept] == ["of an earlier sweep", *(run.name for run in runs)]
    train(half.cfg, tmp_path / "straight", "cpu")  # the same bits as without a sweep and an interruption
    if os.environ.get("OMP_NUM_THREADS") == "1":
        assert bytes_of(tmp_path / "straight") == bytes_of(half.out)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_runs_that_take_turns_end_with_the_bits_of_runs_alone(tmp_path, device):
    """Three runs of unlike length and arithmetic, two at a time."""
    base = expand("quick", tmp_path, COMMON)[0].cfg
    several = [
        replace(base, steps=20),
        replace(base, steps=30, seed=1, precision="float32"),
        replace(base, steps=25, seed=2),
    ]
    tasks = [Task(cfg, tmp_path / f"run{n}", tmp_path / f"{n}.log") for n, cfg in enumerate(several)]
    assert train_together(tasks, 2, torch.device(device)) == 0
    for cfg, task in zip(several, tasks):
        train(cfg, tmp_path / f"alone{cfg.seed}", device)
        assert bytes_of(task.out) == bytes_of(tmp_path / f"alone{cfg.seed}")
        assert "factor_vae" in task.log.read_text()


def test_a_process_that_a_signal_ends_says_so(tmp_path, monkeypatch):
    started = []

    class Remembered(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(sweeps.subprocess, "Popen", Remembered)
    (run,) = expand("quick", tmp_path, [*COMMON, "steps=100000"], "0", None)
    run.log.parent.mkdir(parents=True)
    steps = sweeps.run_here([run], "cpu", 1000, jobs=1, parallel=1, threads=1, gpus=0)
    next(steps)
    started[0].kill()
    assert run.state == "waiting"
    for _ in steps:
        pass
    assert run.state == "failed"
    assert run.log.read_text().splitlines()[-1] == "its process was ended by signal 9 (Killed)"


@pytest.mark.parametrize(("device", "runs"), [("cpu", 3), pytest.param("cuda", 12, marks=pytest.mark.gpu)])
def test_many_runs_take_turns_in_a_process(tmp_path, device, runs):
    """Codes that come in, blur, R1 and the regularizer: every phase that a step can have."""
    flags = ["dsprites-fast", *settings("code_steps=5", "blur_steps=12", "r1_every=4", "steps=20"), "--device", device]
    main([*flags, "--seeds", f"0:{runs}", "--parallel", str(runs), "--jobs", "1", "--out", str(tmp_path)])
    states = json.loads((tmp_path / ".sweep" / "sweep.json").read_text())
    assert [(row["state"], row["step"]) for row in states] == [("done", 20)] * runs


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", [["--jobs", "2"], ["--jobs", "1", "--parallel", "2"]])
def test_killed_with_its_sweep_a_run_saves_and_goes_on(tmp_path, number, how):
    flags = ["quick", *settings("steps=900"), "--seeds", "0:2", *how, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(out):
        full = [sys.executable, "-m", "crgan.sweep", *flags, "--out", str(out)]
        return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert command(straight).wait() == 0
    process = command(killed)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(number)
    assert process.wait() == (130 if number == signal.SIGTERM else -9)
    runs = sorted(path for path in killed.iterdir() if not path.name.startswith("."))
    while not all("stopped after step" in (killed / ".sweep" / f"{run.name}.log").read_text() for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert command(killed).wait() == 0
    for run in runs:
        assert bytes_of(run) == bytes_of(straight / run.name)
