"""What all commands share, `crgan COMMAND`, and the small commands."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from processes import wait_for
from run_folders import write_run

import crgan
from crgan import __main__, cli


def test_every_command_is_there(capsys, refused):
    __main__.main([])
    said = capsys.readouterr().out
    for name in __main__.COMMANDS:
        assert f"\n  {name} " in said
        with pytest.raises(SystemExit, match="0"):
            __main__.main([name, "--help"])
    assert "did you mean evaluate" in refused(__main__.main, "evalute")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in ("sweep", "traverse", "export", "data"))])
def test_help_does_not_wait_for_torch(words):
    code = f"import sys; from crgan.__main__ import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_public_names_are_all_there():
    assert all(getattr(crgan, name) is not None for name in dir(crgan))
    with pytest.raises(AttributeError):
        crgan.nothing  # noqa: B018


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, capsys):
    __main__.main(["train", "dsprites", "--dry-run", "--cr-weight", "3", "--out", str(tmp_path / "run")])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == {**vars(crgan.PRESETS["dsprites"]), "cr_weight": 3.0}
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("options", ["-m crgan --help", "-u -m crgan data squares", "-m crgan sweep --help"])
def test_a_full_disk_under_stdout_is_named_and_a_closed_pipe_is_not(options):
    def shell(target):
        line = f"{sys.executable} {options} {target}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True)
        return done.returncode, done.stderr

    assert shell("> /dev/full") == (2, "error: standard output: No space left on device\n")
    assert shell("| true") == (1, "")


@pytest.mark.parametrize(("path", "named"), [(None, "[Errno 28] "), ("/data/x", "/data/x: ")])
def test_errors_of_the_system_name_what_is_known(capsys, path, named):
    with pytest.raises(SystemExit, match="2"), cli.command_process():
        raise OSError(errno.ENOSPC, "No space left on device", path)
    assert capsys.readouterr().err == f"error: {named}No space left on device\n"


def test_a_child_ends_with_its_parent():
    child = "import time, crgan.cli\nwith crgan.cli.command_process():\n    print('up', flush=True); time.sleep(60)"
    parent = f"import os, subprocess, sys\nos.environ[{cli.PARENT!r}] = str(os.getpid())\n"
    parent += f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); p.stdout.readline()\n"
    parent += "print(p.pid, flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, timeout=60)
    wait_for(lambda: not Path(f"/proc/{int(done.stdout)}").exists(), seconds=10)


def test_progress_without_a_terminal_is_a_line_every_minute_that_leaves_out_what_is_aside(capsys):
    assert cli.progress().every == 60
    with cli.progress(every=1e-9) as bar:
        bar.start("training", 200, 50, "steps")
        for done in (100, 150, 200):
            with bar.aside("evaluating"):
                time.sleep(0.1)
            bar.update(done, "loss 0.5")
    first, _, last = capsys.readouterr().err.splitlines()
    assert first == "training: 100 of 200 (50%), loss 0.5"
    assert last.startswith("training: 200 of 200 (100%), ")
    assert last.endswith(" steps/s loss 0.5")
    assert bar.task.speed > 50 / 0.1


def test_data_sets_are_listed(capsys, refused):
    __main__.main(["data"])
    said = capsys.readouterr().out
    assert "dsprites: 737,280 images 1 x 64 x 64" in said
    assert "3dshapes.h5" in said
    assert all(name in said for name in crgan.data.NAMES)
    assert "dsprites" in refused(__main__.main, "data", "dsprite")
    assert "/nowhere" in refused(__main__.main, "data", "mnist", "--root", "/nowhere")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("flags", [["--steps", "4"], ["--steps", "3", "--codes", "3", "1", "--base", "7"]])
def test_a_traversal_is_drawn(home, flags):
    for suffix in ("png", "gif"):
        __main__.main(["traverse", "~/run", "--out", f"~/codes.{suffix}", *flags])
    steps = int(flags[1])
    with Image.open(home / "codes.gif") as moving, Image.open(home / "codes.png") as still:
        assert moving.n_frames == 2 * steps - 2  # to and fro
        assert moving.info["loop"] == 0  # for ever
        assert still.height == moving.height
        assert still.width > moving.width


def test_what_is_no_traversal_is_refused(home, refused):
    for flags, named in (("x.jpg", "x.jpg"), ("x.png --codes 5", "--codes holds 5"), ("x.gif --steps 0", "steps is 0")):
        assert named in refused(__main__.main, "traverse", "~/run", "--out", *flags.split())
