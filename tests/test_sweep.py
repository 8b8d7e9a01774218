"""Sweeps: which runs a grid has, and runs that are finished, half done, failed, or killed with the sweep."""

import json
import os
import shlex
import signal
import subprocess
from dataclasses import replace
from itertools import product

import pytest
from processes import start, wait_for
from run_folders import tensors_of

from crgan import PRESETS, cli, report, sweep
from crgan.sweep import Run, expand, main
from crgan.train import fit as train
from crgan.train import parse

SETTINGS = {"data": "circular_dsprites", "num-codes": 2, "width": 4, "hidden": 8, "batch-size": 4, "cr-start": 10}
SMALL = [*(f"--{name}={value}" for name, value in SETTINGS.items()), "--device", "cpu", "--steps"]


def rows_of(pool):
    return json.loads((pool / ".sweep" / "sweep.json").read_text())


def test_the_grid_is_every_combination(tmp_path):
    runs = expand("quick", tmp_path, ["cr-weight=0,0.5", "gap_switch=None,7", "seed=3:6"], ["--lr-g", "1e-4"])
    base, grid = replace(PRESETS["quick"], lr_g=1e-4), product((0.0, 0.5), (None, 7), (3, 4, 5))
    assert [r.cfg for r in runs] == [replace(base, cr_weight=w, gap_switch=g, seed=s) for w, g, s in grid]
    assert runs[0].out == tmp_path / "cr_weight=0,gap_switch=None,seed=3"
    names = [run.out.name for run in expand("quick", tmp_path, ["width=8", "width=16"])]
    assert names == ["width=8,seed=0", "width=16,seed=0"]


MISTAKES = {
    "nope": "nope",
    "quick --jobs 0": "--jobs is 0",
    "quick --device tpu": "tpu",
    "quick --seeds 0:0": "0:0",
    "quick --set lr-g=fast": "'fast'",
    "quick --set widht=1": "--widht",
    "quick --set width=0": "width is 0",
    "quick --set data=dsprite": "'dsprite'; did you mean dsprites",
    "quick --stpes 3": "--stpes",
    "cars3d --root /nowhere": "/nowhere",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_bad_flag_is_named_before_anything_runs(tmp_path, refused, flags):
    assert MISTAKES[flags] in refused(main, *flags.split(), "--out", tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("root", ["--root=~/data", "--set root=~/data"])
def test_what_a_dry_run_prints_can_be_run(tmp_path, capsys, monkeypatch, root):
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["quick", "--seeds=3", "--set", "cr-weight=0", "--steps=20", "--out=~/pool", *root.split(), "--dry-run"])
    words = shlex.split(capsys.readouterr().out)
    assert words[:4] == ["python", "-m", "crgan.train", "quick"]
    _, cfg, flags = parse(words[3:])
    changes = {"seed": 3, "cr_weight": 0.0, "steps": 20, "threads": 1, "root": str(tmp_path / "data")}
    assert cfg == replace(PRESETS["quick"], **changes)
    assert flags.out.match(f"{tmp_path}/pool/cr_weight=0,*seed=3")


def test_the_last_step_is_read(tmp_path):
    run = Run([], PRESETS["quick"], tmp_path)
    assert run.step == 0
    rows = b'{"step": 100, "factor_vae": 0.5}\n\0\0\n' + b'{"step": 200, "d": 1.4}\n' * 100 + b'{"step": 300, "d"'
    (tmp_path / "metrics.jsonl").write_bytes(rows)
    assert run.step == 200


def test_runs_of_an_earlier_grid_stay_in_the_table(tmp_path, monkeypatch):
    def train(runs, *_):
        for run in runs:
            run.out.mkdir()  # which fails for a run that is done
            yield run, 0

    monkeypatch.setattr(sweep, "run_here", train)
    for seeds in ("0:2", "1:3"):
        main(["quick", "--seeds", seeds, "--out", str(tmp_path)])
    assert [(row["name"], row["state"]) for row in rows_of(tmp_path)] == [(f"seed={n}", "done") for n in range(3)]


def test_finished_half_done_and_failed_runs(tmp_path, capsys):
    """Of three runs one is half done before, one cannot be trained; the same command again has one left to do."""
    pool, setting = tmp_path / "pool", "lr_g=1e-4,1e-3,1e30"
    half, other, broken = expand("quick", pool, [setting], [*SMALL, "30", "--threads=1"])
    train(replace(half.cfg, steps=20), half.out, "cpu")
    command = ["quick", *SMALL, "30", "--set", setting, "--out", str(pool), "--jobs", "2"]
    states = []
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="1"):
            main(command)
        said = capsys.readouterr().err
        assert f"failed: {broken.out.name}: error: the loss" in said
        assert str(broken.log) in said
        assert [row["state"] for row in rows_of(pool)] == ["done", "done", "failed"]
        states.append((half.log.stat().st_mtime_ns, other.log.stat().st_mtime_ns))
    assert states[0] == states[1]
    assert "continuing from" in half.log.read_text()
    assert {path for path in pool.glob("[!.]*")} == {run.out for run in (half, other, broken)}  # what DIR/* hands on
    report.main([str(pool)])
    assert (pool / "report.html").read_text().count("<td>failed</td>") == 1
    if os.environ.get("OMP_NUM_THREADS") == "1":  # the same bits as without a sweep and an interruption
        train(half.cfg, tmp_path / "straight", "cpu")
        assert tensors_of(tmp_path / "straight") == tensors_of(half.out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_with_its_sweep_a_run_saves_and_goes_on(tmp_path, number):
    flags = [*SMALL, "100000", "--seeds", "0:2", "--jobs", "2", "--out", str(tmp_path)]
    process = start("sweep", "quick", *flags)
    files = [tmp_path / f"seed={seed}" / "metrics.jsonl" for seed in (0, 1)]
    wait_for(lambda: all(file.exists() and file.stat().st_size for file in files))
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -9)
    logs = [tmp_path / ".sweep" / f"seed={seed}.log" for seed in (0, 1)]
    wait_for(lambda: all("stopped after step" in log.read_text() for log in logs))
    if number == signal.SIGTERM:
        assert [row["state"] for row in rows_of(tmp_path)] == ["stopped"] * 2


def test_runs_share_the_gpus_and_tell_their_exit_codes(tmp_path, monkeypatch):
    """Which needs no GPU: the runs only say what they see."""
    seen = []

    def start(arguments, log, environment):
        seen.append(environment)
        return subprocess.Popen(["sh", "-c", "kill -9 $$" if len(seen) == 2 else "true"])

    monkeypatch.setattr(cli, "start_python", start)
    runs = expand("quick", tmp_path, ["seed=0:3"])
    ends = dict(end for end in sweep.run_here(runs, jobs=3, threads=2, gpus=["2", "5"]) if end)
    assert [ends[run] for run in runs] == [0, -9, 0]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in seen] == ["2", "5", "2"]
    assert all(environment["OMP_NUM_THREADS"] == "2" for environment in seen)
