"""What all commands share, `crgan COMMAND`, and the small commands."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import crgan
from crgan import InputError, __main__, cli, pictures
from crgan.loading import open_models

TINY = "--data circular_dsprites --num-codes 3 --width 4 --hidden 8 --batch-size 4 --steps 2 --cr-start 1 --device cpu"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with two runs, one of which has noise."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        __main__.main(["train", *TINY.split(), "--out=~/plain"])
        __main__.main(["train", *TINY.split(), "--out=~/run", "--num-noise=2", "--spectral-norm=all"])
        yield folder


def refused(capsys, *words):
    with pytest.raises(SystemExit, match="2"):
        __main__.main([str(word) for word in words])
    return capsys.readouterr().err


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_command_is_there(capsys):
    __main__.main([])
    said = capsys.readouterr().out
    for name in __main__.COMMANDS:
        assert f"\n  {name} " in said
        with pytest.raises(SystemExit, match="0"):
            __main__.main([name, "--help"])
    assert "did you mean evaluate" in refused(capsys, "evalute")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in ("sweep", "traverse", "export", "data"))])
def test_help_does_not_wait_for_torch(words):
    code = f"import sys; from crgan.__main__ import main\ntry: main({words})\nexcept SystemExit: pass\n"
    done = python(code + "print(sorted({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_public_names_are_all_there():
    assert all(getattr(crgan, name) is not None for name in dir(crgan))
    with pytest.raises(AttributeError):
        crgan.nothing  # noqa: B018


def test_commands_are_imported_where_the_system_offers_less_and_run_by_runpy():
    """As on macOS and Windows, without fcntl and sched_getaffinity."""
    modules = ", ".join(f"crgan.{name}" for name in (*__main__.COMMANDS[:5], "cluster", "exporting", "__main__"))
    code = f"import os, sys\nsys.modules['fcntl'] = None\ndel os.sched_getaffinity\nimport {modules}\n"
    code += "from pathlib import Path\nwith crgan.train.lock(Path('/nowhere')) as acquired: assert acquired\n"
    assert (done := python(code)).returncode == 0, done.stderr
    code = "import runpy, sys; sys.argv[1:] = ['--dry-run']; runpy.run_module('crgan.train', run_name='__main__')"
    assert (done := python(code)).returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "auto"


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
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


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


def test_data_sets_are_listed(capsys):
    __main__.main(["data"])
    said = capsys.readouterr().out
    assert "dsprites: 737,280 images 1 x 64 x 64" in said
    assert "3dshapes.h5" in said
    assert all(name in said for name in crgan.data.NAMES)
    assert "dsprites" in refused(capsys, "data", "dsprite")
    assert "/nowhere" in refused(capsys, "data", "mnist", "--root", "/nowhere")


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


def test_what_is_no_traversal_is_refused(home, capsys):
    for flags, named in (
        ("x.jpg", "x.jpg"),
        ("x.png --codes 4", "--codes holds 4"),
        ("x.gif --steps 0", "steps is 0"),
    ):
        assert named in refused(capsys, "traverse", home / "run", "--out", *flags.split())


@pytest.mark.parametrize("name", ["run", "plain"])
def test_an_exported_model_is_the_model(home, name):
    """With noise and from the command line; without noise and from Python."""
    folder, source = home / f"exported-{name}", home / name
    if name == "run":
        __main__.main(["export", "~/run", f"~/{folder.name}"])
    else:
        crgan.export(crgan.load(source), folder)
    model, (opened,) = crgan.load(source), open_models([str(folder)])
    codes, noise = torch.rand(5, 3), torch.rand(5, model.num_noise)
    images = model.generate(codes, noise=noise)
    program = torch.export.load(folder / "generate.pt2").module()
    assert torch.equal(program(*[codes, noise][: 1 + (model.num_noise > 0)]), images)
    assert torch.equal(opened.encode(images), model.encode(images))
    assert (opened.num_codes, opened.num_noise, opened.prior) == (3, model.num_noise, "uniform")
    assert pictures.traversal_picture(opened.model).tobytes() == pictures.traversal_picture(model).tobytes()
    assert "[64, 1, 64, 64]" in (folder / "README.md").read_text()


def test_what_cannot_be_exported_is_named(home, tmp_path):
    with pytest.raises(InputError, match="run folder"):
        crgan.export(home / "run", home / "run")
    with pytest.raises(InputError, match="object"):
        crgan.export(object(), tmp_path)
