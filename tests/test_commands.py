"""What all commands share, `crgan COMMAND`, and the small commands."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import crgan
from crgan import PRESETS, InputError, __main__, cli
from crgan.loading import open_models
from crgan.train import fit as train

TINY = replace(
    PRESETS["quick"], data="circular_dsprites", num_codes=3, width=4, hidden=8, batch_size=4, steps=2, cr_start=1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("commands") / "run"
    train(replace(TINY, num_noise=2, spectral_norm="all"), out, "cpu")
    return out


def refused(capsys, *words):
    with pytest.raises(SystemExit, match="2"):
        __main__.main([str(word) for word in words])
    return capsys.readouterr().err


def test_every_command_is_there(capsys):
    for name in __main__.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            __main__.main([name, "--help"])
    assert "did you mean evaluate" in refused(capsys, "evalute")


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_named_and_a_closed_pipe_is_not():
    def shell(line):
        done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], stderr=subprocess.PIPE, text=True)
        return done.returncode, done.stderr

    assert shell(f"{sys.executable} -m crgan --help > /dev/full") == (
        2,
        "error: standard output: No space left on device\n",
    )
    assert shell(f"{sys.executable} -m crgan --help | true") == (1, "")


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


def test_progress_without_a_terminal_is_lines_and_leaves_out_what_is_aside(capsys):
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
    assert bar.rate() > 50 / 0.1


def test_data_sets_are_listed(capsys):
    __main__.main(["data"])
    said = capsys.readouterr().out
    assert "dsprites: 737,280 images 1 x 64 x 64" in said
    assert "3dshapes.h5" in said
    assert all(name in said for name in crgan.data.NAMES)
    assert "dsprites" in refused(capsys, "data", "dsprite")
    assert "/nowhere" in refused(capsys, "data", "mnist", "--root", "/nowhere")


@pytest.mark.parametrize("flags", [["--steps", "4"], ["--steps", "3", "--codes", "3", "1", "--base", "7"]])
def test_a_traversal_is_drawn(run, tmp_path, flags):
    for suffix in ("png", "gif"):
        __main__.main(["traverse", str(run), "--out", str(tmp_path / f"codes.{suffix}"), *flags])
    steps = int(flags[1])
    with Image.open(tmp_path / "codes.gif") as moving, Image.open(tmp_path / "codes.png") as still:
        assert moving.n_frames == 2 * steps - 2
        assert still.height == moving.height
        assert still.width > moving.width


def test_what_is_no_traversal_is_refused(run, capsys):
    assert "x.jpg" in refused(capsys, "traverse", run, "--out", "x.jpg")
    assert "--codes holds 4" in refused(capsys, "traverse", run, "--out", "x.png", "--codes", 4)


def test_an_exported_model_is_the_model(run, tmp_path):
    """With noise and from a run folder; without noise and from Python."""
    train(TINY, tmp_path / "plain", "cpu")
    __main__.main(["export", str(run), str(tmp_path / "a")])
    crgan.export(crgan.load(tmp_path / "plain"), tmp_path / "b")
    for source, folder in ((run, tmp_path / "a"), (tmp_path / "plain", tmp_path / "b")):
        model, (opened,) = crgan.load(source), open_models([str(folder)])
        codes, noise = torch.rand(5, 3), torch.rand(5, model.num_noise)
        images = model.generate(codes, noise=noise)
        program = torch.export.load(folder / "generate.pt2").module()
        assert torch.equal(program(*[codes, noise][: 1 + (model.num_noise > 0)]), images)
        assert torch.equal(opened.encode(images), model.encode(images))
        assert (opened.num_codes, opened.num_noise, opened.prior) == (3, model.num_noise, "uniform")
        assert "[64, 1, 64, 64]" in (folder / "README.md").read_text()


def test_what_cannot_be_exported_is_named(run, tmp_path):
    with pytest.raises(InputError, match="run folder"):
        crgan.export(run, run)
    with pytest.raises(InputError, match="object"):
        crgan.export(object(), tmp_path)
