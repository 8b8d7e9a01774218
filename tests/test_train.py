"""Training: schedules, what a step does, and a run that is killed, continued, misused."""

import copy
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import Mock, PropertyMock

import numpy as np
import pytest
import torch
from op_checks import READ_BACK, recorded
from PIL import Image
from processes import finish, start, wait_for
from run_folders import model_and_batch, tensors_of
from safetensors.torch import load_file, save

from crgan import PRESETS, Config, InputError, checkpoint, cli, data, load, metrics, ops, pictures
from crgan.config import Phase
from crgan.device import exact_arithmetic
from crgan.files import lock
from crgan.models import InfoGAN, build_model, infogan
from crgan.models.infogan import code_mask, make_optimisers, restart_h, train_step
from crgan.models.networks import normalise
from crgan.train import fit, main

SMALL = {"precision": "float32", "num_noise": 2, "width": 4, "hidden": 8, "batch_size": 4, "steps": 24, "cr_start": 8}
SMALL |= {"eval_every": 12, "ema": 0.9, "g_steps": 2, "r1_every": 3, "blur": 2.0, "blur_steps": 16}
TINY = replace(PRESETS["quick"], **SMALL)
FLAGS = [
    *("quick", "--num-noise", "2", "--width", "4", "--hidden", "8", "--batch-size", "4", "--steps", "60"),
    *("--cr-start", "20", "--eval-every", "1000", "--ema", "0.9", "--checkpoint-every", "7", "--device", "cpu"),
]


@pytest.fixture
def train(tmp_path, small_scores):
    """Trains TINY, or a variation of it, into a folder of this name."""
    return lambda name, device="cpu", cfg=TINY, **changes: fit(cfg, tmp_path / name, device, **changes)


@pytest.fixture
def run(tmp_path, train):
    """A finished run of TINY, that `train("run")` continues."""
    train("run")
    return tmp_path / "run"


def test_the_papers_schedule():
    paper, teapots = PRESETS["dsprites"], PRESETS["teapots"]
    assert paper.steps == 28 * 11_520
    assert paper.phase(287_999) == Phase(cr_weight=0.0, gap=0.0, r1=False, blur=False)
    assert paper.phase(288_000) == Phase(cr_weight=2.0, gap=0.0, r1=False, blur=False)
    assert [s for s in range(0, 322_560) if paper.restarts_h(s)] == [288_000]
    assert teapots.phase(84_999).gap == 1.9
    assert teapots.phase(85_000).gap == 0.0
    assert [s for s in range(0, teapots.steps) if teapots.restarts_h(s)] == [50_000, 85_000]
    assert PRESETS["dsprites-infogan"].steps == 288_000


def test_without_weight_the_regularizer_does_no_work():
    model, optimisers, x = model_and_batch(TINY)
    before = [p.clone() for p in model.contrastive.parameters()]
    model.contrastive.forward = None  # any pass through H would fail
    report = train_step(model, optimisers, x, TINY, Phase(0.0, 0.0, False, False), 0)
    assert set(report) == {"discriminator", "generator", "info"}
    assert all(torch.equal(a, b) for a, b in zip(before, model.contrastive.parameters()))


def test_codes_fade_in_one_after_another():
    assert code_mask(5, 100, 0, "cpu").tolist() == [1, 1, 0, 0, 0]
    assert code_mask(5, 100, torch.tensor(225), "cpu").tolist() == [1, 1, 1, 0.25, 0]
    assert code_mask(5, 100, 400, "cpu").tolist() == [1] * 5
    cfg = replace(TINY, num_codes=5, code_warmup_steps=100, cr_start=400)
    assert [step for step in (0, 399, 400) if cfg.phase(step).warmup] == [0, 399]
    assert not TINY.phase(0).warmup
    model, optimisers, x = model_and_batch(cfg)
    weight = model.generator.fully_connected[0].weight
    before = weight.detach().clone()
    train_step(model, optimisers, x, cfg, cfg.phase(0), 0)
    moved = (weight != before).any(0)
    assert moved[:2].all()
    assert not moved[2:5].any()  # codes that are not active yet


@pytest.mark.parametrize("q_std", ["one", "fitted"])
def test_a_step_equals_the_algorithm_written_out(q_std):
    """One G update against plain PyTorch: separate passes, full backward, no reuse."""
    cfg = replace(TINY, g_steps=1, ema=0.0, spectral_norm="all", h_norm="spectral", q_std=q_std)
    model, optimisers, x = model_and_batch(cfg)
    plain, plain_optimisers, _ = model_and_batch(cfg)
    phase = Phase(cr_weight=1.5, gap=1.0, r1=False, blur=False)
    for optimiser in (*optimisers.values(), *plain_optimisers.values()):
        # Adam's first step is lr * sign(gradient) where it outweighs eps: then rounding decides where it is near 0.
        optimiser.param_groups[0]["eps"] = 0.1
    train_step(model, optimisers, x, cfg, phase, 3)

    def descend(name, loss):
        plain.zero_grad()
        loss.backward()
        plain_optimisers[name].step()

    g, d, h = plain.generator, plain.discriminator, plain.contrastive
    c, z = ops.sample_latents(4, 4, cfg.num_noise, cfg.seed, 3, device="cpu")
    c1, c2, pair_z, index = ops.traversal_pairs(4, 4, cfg.num_noise, 1.0, cfg.seed, 3, device="cpu")
    loss = normalise(h)(g(c1, pair_z).detach(), g(c2, pair_z).detach(), index)
    descend("contrastive", loss)
    real, fake = normalise(d)(x), normalise(d)(g(c, z).detach())
    loss = infogan.discriminator_loss(real[0], fake[0]) + cfg.info_weight * infogan.info_loss(c, fake[1], q_std)
    descend("discriminator", loss)
    logits, codes = normalise(d)(g(c, z))
    loss = infogan.generator_loss(logits) + cfg.info_weight * infogan.info_loss(c, codes, q_std)
    descend("generator", loss + 1.5 * normalise(h)(g(c1, pair_z), g(c2, pair_z), index))
    for network in (d, h):
        normalise(network).advance()  # by the updated weights
    state = plain.state_dict()
    for name, a in [*model.named_parameters(), *((n, u) for n, u in model.named_buffers() if n.endswith(".u"))]:
        b = state[name]
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_h_and_its_optimiser_restart_in_place_and_keep_the_singular_vectors():
    cfg = replace(TINY, h_norm="spectral")
    model, optimisers, x = model_and_batch(cfg)
    train_step(model, optimisers, x, cfg, Phase(1.0, 0.0, False, False), 0)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.contrastive.state_dict().items()}
    state = optimisers["contrastive"].state[model.contrastive.head.weight]
    restart_h(model, optimisers, 8)
    for name, value in model.contrastive.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1]) == name.endswith(".u")
    assert state["step"] == 0
    assert not state["exp_avg"].any()
    train_step(model, optimisers, x, cfg, Phase(1.0, 0.0, False, False), 8)
    assert state["step"] == 1


@pytest.mark.parametrize("setting", ["tf32", "ieee", "none"])
def test_products_are_not_rounded_and_the_callers_settings_stay(setting):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.fp32_precision = setting
    before = cudnn.deterministic, cudnn.conv.fp32_precision
    with exact_arithmetic():
        assert cudnn.deterministic
        assert matmul.fp32_precision == cudnn.conv.fp32_precision == "ieee"
    assert (*before, setting) == (cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision)


def test_a_numbered_gpu_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert cli.device("auto") == torch.device("cuda")
    assert chosen == []
    assert cli.device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(InputError, match=r"'cuda:2'.* cuda:0, cuda:1"):
        cli.device("cuda:2")


@pytest.mark.parametrize("preset", ["dsprites", "dsprites-fast", "shapes3d_like", "teapots", "celeba"])
def test_a_step_reads_nothing_back(preset):
    cfg = replace(PRESETS[preset], width=2, hidden=8, batch_size=4, precision="bfloat16", ema=0.9)
    model = build_model(cfg, (1, 32, 32))
    optimisers = make_optimisers(model, cfg)
    step, phase = torch.zeros((), dtype=torch.int64), Phase(1.0, 1.0, True, cfg.blur > 0)
    losses, called = recorded(train_step, model, optimisers, torch.rand(4, 1, 32, 32), cfg, phase, step)
    assert {"convolution_backward", "_fused_adam_"} <= called.keys()
    assert not READ_BACK & called.keys()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("channels", "factor"), [(3, 2.5), (1, 2.2)])  # blocks of pixels take some more
def test_a_step_with_the_kernels_has_the_same_losses_and_fewer_operations(channels, factor, monkeypatch):
    """The paper's step, with Triton's interpreter in place of a GPU: nearly every operation is a launch there."""
    cfg, phase = replace(PRESETS["dsprites"], width=4, hidden=8, batch_size=4), Phase(2.0, 0.0, False, False)
    x, losses, counts, between = torch.rand(4, channels, 16, 16), [], [], {}
    for impl in ("ref", "triton"):
        monkeypatch.setattr(ops, "_compiled", lambda *given, impl=impl: impl == "triton")
        model = build_model(cfg, (channels, 16, 16))
        optimisers = make_optimisers(model, cfg)
        first = train_step(model, optimisers, x, cfg, phase, 0)
        # The same weights again: Adam's first step divides each gradient by its own size, so that what rounding left
        # of one near 0 counts in full.
        between = between or copy.deepcopy(model.state_dict())
        model.load_state_dict(between)
        second, called = recorded(train_step, model, optimisers, x, cfg, phase, 1)
        losses.append([loss.item() for loss in (*first.values(), *second.values())])
        counts.append(called.total())
    assert called["spectral_norm"] == 4  # D and H, before and after their updates
    assert called["spectral_norm_backward"] == 2
    assert factor * counts[1] < counts[0]
    assert losses[1] == pytest.approx(losses[0], 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_steps_equal_eager_ones(precision, tmp_path, train, monkeypatch):
    """Across a switch of the regularizer, a restart of H, steps with R1 and codes that come in."""
    monkeypatch.setattr("crgan.train.LOG_EVERY", 1)
    changes, rows = {"precision": precision, "steps": 40, "cr_start": 27, "code_warmup_steps": 9}, []
    for name in ("eager", "captured"):
        train(name, "cuda", cuda_graph=name == "captured", **changes)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows.append([row for row in map(json.loads, lines) if "generator" in row])
    assert len(rows[0]) == 40
    assert rows[1] == [pytest.approx(row, rel=2e-2 if precision == "bfloat16" else 1e-3) for row in rows[0]]


@pytest.mark.slow
def test_compiled_networks_train_as_eager_ones_and_are_compiled_once(tmp_path, small_scores, monkeypatch):
    small = {"data": "squares", "width": 4, "hidden": 8, "batch_size": 4, "threads": 1, "cr_start": 1}
    monkeypatch.setattr("crgan.train.LOG_EVERY", 1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rows = []
    for compiled in (False, True):
        fit("dsprites", tmp_path / str(compiled), "cpu", compile=compiled, steps=3, **small)
        lines = map(json.loads, (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines())
        rows.append([row for row in lines if "factor_vae" not in row])
    assert rows[1] == [pytest.approx(row, rel=1e-2) for row in rows[0]]
    assert 3 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8
    fit("dsprites", tmp_path / "True", "cpu", compile=True, steps=4, **small)  # a checkpoint has the same names


def test_a_run_leaves_all_that_it_promises(tmp_path, train):
    mask = os.umask(0o022)
    model, out = train("run"), tmp_path / "run"
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in checkpoint.latest(out).iterdir()} == {0o644}
    names = {path.name for path in out.iterdir() if "tfevents" not in path.name and path.name[0] != "."}
    assert names == {"config.json", "metrics.jsonl", "traversal.png", "traversal.gif", "samples.png", "checkpoint"}
    assert any("tfevents" in path.name for path in out.iterdir())
    assert not [path for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".pkl")]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "factor_vae" in row] == [12, 24]
    again = load(out)
    codes = torch.linspace(-1, 1, 8).view(2, 4)
    assert torch.equal(model.generate(codes), again.generate(codes))
    assert torch.equal(model.encode(again.sample(3, seed=1)), again.encode(again.sample(3, seed=1)))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rate_that_collapses_is_said(threads, train, monkeypatch, capsys):
    speed = PropertyMock(side_effect=chain([30.0] * 20, repeat(5.0)))
    monkeypatch.setattr("rich.progress.Task.speed", speed)
    monkeypatch.setattr("crgan.train.LOG_EVERY", 1)
    train("run", threads=threads)
    assert ("--threads 1" in capsys.readouterr().out) == (threads == 2)


def test_longer_runs_go_on_and_other_configurations_are_refused_by_field(tmp_path, train, device):
    train("straight", device, steps=36)
    train("run", device)
    with pytest.raises(InputError, match=r"lr_d = 0\.003, now it is 0\.5; give --lr-d 0\.003"):
        train("run", device, lr_d=0.5)
    train("run", device, steps=36)
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "straight")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, kills):
    draw, straight, out = random.Random(kills), tmp_path / "straight", tmp_path / "killed"

    def run_until_killed():
        before, process = checkpoint.latest(out), start("train", *FLAGS, "--out", out)
        wait_for(lambda: checkpoint.latest(out) != before or process.poll() is not None)
        time.sleep(draw.random() * 0.3)  # then at a random moment, writing or not
        process.kill()
        process.communicate()

    finish(start("train", *FLAGS, "--out", straight))
    for _ in range(kills):
        run_until_killed()
    finish(start("train", *FLAGS, "--out", out))
    assert tensors_of(out) == tensors_of(straight)
    before = "checkpoint/before-cr/model.safetensors"
    for name in ("metrics.jsonl", "traversal.png", "traversal.gif", "samples.png", before):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    out = tmp_path / os.fsdecode(b"run \xff")  # names need not be UTF-8
    process = start("train", *FLAGS, "--steps", 100_000, "--out", out)  # the last counts
    wait_for(lambda: checkpoint.latest(out))
    process.send_signal(number)
    output = finish(process, 128 + number)
    state = json.loads((checkpoint.latest(out) / "state.json").read_text())
    assert f"stopped after step {state['step']}" in output
    assert "the same command continues" in output


def test_signals_wait_for_the_end_of_the_body_but_a_second_interrupt_does_not():
    noted = []

    def receive(*numbers):
        with cli.delayed_stop() as stop:
            for number in numbers:
                signal.raise_signal(number)
            noted.extend(stop)

    before, interrupt, end = signal.getsignal(signal.SIGINT), signal.SIGINT, signal.SIGTERM
    for numbers, error in (
        ((interrupt,), KeyboardInterrupt),
        ((interrupt, end), SystemExit),  # a sweep tells its processes, whom Ctrl-C has reached already
        ((interrupt, interrupt), KeyboardInterrupt),
    ):
        with pytest.raises(error):
            receive(*numbers)
    assert noted == [interrupt, interrupt, end]
    with ThreadPoolExecutor() as pool:  # fit may run in any thread
        pool.submit(receive).result()
    assert signal.getsignal(signal.SIGINT) == before
    own = Mock()  # a handler of the caller's is called in the end; signals that are ignored stay so
    try:
        signal.signal(end, own)
        signal.signal(interrupt, signal.SIG_IGN)
        with pytest.raises(SystemExit):
            receive(interrupt, end)
        assert noted[3:] == [end]
        own.assert_called_once()
    finally:
        signal.signal(end, signal.SIG_DFL)
        signal.signal(interrupt, before)


def test_a_checkpoint_that_may_not_be_read_or_has_just_been_replaced_is_no_damage(run, monkeypatch):
    folder, whole = checkpoint.latest(run), Path.read_bytes

    def read(path):
        if folder.exists():  # training is faster than this reader
            folder.rename(folder.with_name("step-000000025"))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert load(run).sample(1).isfinite().all()
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        load(run)


def test_mistakes_end_in_one_sentence(tmp_path, refused):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("precious")
    for flags, named in (
        (["dsprite"], "no preset 'dsprite'; did you mean dsprites?"),
        (["quick", "--batch-size", -3], "batch_size is -3"),
        (["--device", "cuda:7", "--out", tmp_path / "a"], "no device 'cuda:7'"),
        (["--out", tmp_path], "exists and is no run folder"),
        (["--out", thesis], "exists and is no run folder"),
        (["--out", thesis / "run"], "Not a directory"),
    ):
        assert named in refused(main, *flags)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_broken_checkpoints_are_refused_and_left_alone(run, train):
    folder, config = checkpoint.latest(run), (run / "config.json").read_bytes()
    weights, moments = folder / "model.safetensors", folder / "optimisers.safetensors"
    whole = weights.read_bytes()
    other = build_model(replace(TINY, hidden=9), (3, 16, 16)).state_dict()
    partial = {name: value for name, value in load_file(moments).items() if name != "generator.1.exp_avg"}
    for path, content, message in [
        (weights, whole[: len(whole) // 2], "cannot be read"),
        (weights, b"\x80\x04K\x01.", "cannot be read"),
        (weights, save({name: value.contiguous() for name, value in other.items()}), "is of another model"),
        (moments, save(partial), "is of another model"),
        (folder / "state.json", b"{}", "damaged"),
        (folder / "state.json", b"[]", "no object"),
    ]:
        good = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}.*{message}"):
            train("run", steps=30)
        if path == weights:
            with pytest.raises(InputError, match=message):
                load(run)
        assert path.read_bytes() == content
        path.write_bytes(good)
    assert (run / "config.json").read_bytes() == config
    with pytest.raises(InputError, match="is no run folder"):
        load(run.parent)
    copy = folder.with_name("step-000009999.bak")  # a user's, so no checkpoint
    shutil.copytree(folder, copy)
    train("run", steps=30)
    assert copy.is_dir()


def test_a_loss_that_is_not_finite_stops_the_run(run, train):
    good = tensors_of(run)
    checkpoint.write_config(run, replace(TINY, lr_g=1e30, threads=1), (3, 32, 32))
    with pytest.raises(InputError, match=r"the loss \w+ is \S+ at step 2\d; the last good checkpoint is .*step-0+24"):
        train("run", steps=40, lr_g=1e30)
    assert tensors_of(run) == good
    with pytest.raises(InputError, match="the last good checkpoint is none: start anew"):
        train("failed", lr_g=1e30)
    train("failed")  # which takes other settings, as it has no checkpoint
    assert tensors_of(run.with_name("failed")) == good
    assert load(run.with_name("failed")).cfg == replace(TINY, threads=1)


def test_a_run_folder_has_one_process_at_a_time(run, train):
    good = tensors_of(run)
    with lock(run):
        with pytest.raises(InputError, match="another process trains in"):
            train("run", steps=30)
        assert tensors_of(run) == good
        assert checkpoint.read_config(run)[0].steps == TINY.steps
    train("run", steps=30)


def test_a_full_disk_keeps_the_checkpoint_before(run):
    good = tensors_of(run)
    command = f"{sys.executable} -m crgan.train --config {run}/config.json --steps 30 --out {run}"
    limited = f"ulimit -f 20; {command}"  # KiB of a file, fewer than a checkpoint has
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert tensors_of(run) == good


def test_configurations_that_make_no_sense_are_refused_by_field():
    for preset, changes, message in (
        ("quick", {"num_codes": 5, "code_warmup_steps": 100, "cr_start": 300}, r"cr_start is 300.*cr_start 400"),
        ("quick", {"steps": 5.5}, r"steps is 5\.5; expected int"),
        ("quick", {"lr_g": "1"}, "lr_g is '1'; expected float"),
        ("quick", {"gap_switch": "x"}, "gap_switch is 'x'; expected int or NoneType"),
        ("quick", {"gap_switch": -5}, "gap_switch is -5; expected"),
        ("quick", {"gap": 2.0}, r"gap is 2\.0; expected a number in \[0, 2\)"),
        ("quick", {"num_codes": 300}, "num_codes is 300; expected at most 256"),
        ("quick", {"cr_weight": math.inf}, r"cr_weight is inf; expected a number in \[0, inf\)"),
        ("dsprites", {"blur": 3.0}, r"blur is 3\.0 but blur_steps is 0"),
        ("factorvae-dsprites", {"num_noise": 5}, "num_noise is 5; expected 0: a factor-vae does not use it"),
        ("factorvae-dsprites", {"gamma": math.nan}, "gamma is nan"),
        ("factorvae-dsprites", {"model": "factorvae"}, "model is 'factorvae'; expected one of infogan-cr, factor-vae"),
        ("quick", {"compile": True}, r"r1_weight is 0\.005; expected 0 with compile"),
        ("dsprites", {"lr": 1}, "no field of the configuration.*did you mean lr_"),
    ):
        with pytest.raises(InputError, match=message):
            Config.from_json({**vars(PRESETS[preset]), **changes})
    assert replace(PRESETS["quick"], lr_g=1).lr_g == 1


def test_runs_with_and_without_the_regularizer_share_a_trunk(tmp_path, train):
    on, folder = train("on"), tmp_path / "on"
    trunk = load(folder / "checkpoint" / "before-cr")
    images = on.sample(4, 1)
    assert not torch.equal(trunk.encode(images), on.encode(images))
    train("straight", cr_weight=0.0)
    train("off", cr_weight=0.0, start_from=folder)
    a, b = (load_file(checkpoint.latest(tmp_path / name) / "model.safetensors") for name in ("straight", "off"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "off" / "config.json").read_text())["from"] == str(folder)
    assert torch.equal(train("again", start_from=folder).encode(images), on.encode(images))
    assert checkpoint.read_log(tmp_path / "off")[0] == checkpoint.read_log(folder)[0]
    with pytest.raises(InputError, match="lr_g"):
        train("other", lr_g=0.1, start_from=folder)
    (folder / "metrics.jsonl").unlink()
    train("more", start_from=folder)


def test_what_the_machine_decided_stays_when_a_run_continues(tmp_path, train, monkeypatch):
    cfg = train("run", precision="auto").cfg
    assert cfg.threads == 1
    monkeypatch.setattr("crgan.checkpoint.has_bfloat16", lambda device: cfg.precision == "float32")
    assert train("run", precision="auto", steps=30).cfg == replace(cfg, steps=30)


def test_images_may_move_but_not_change(tmp_path, train):
    image = np.zeros((32, 32, 3), np.uint8)
    for folder, names in (("here", "abcd"), ("there", "abcd"), ("more", "abcde")):
        (tmp_path / folder).mkdir()
        for name in names:
            pictures.save(tmp_path / folder / f"{name}.png", Image.fromarray(image + ord(name)))
    cfg = replace(TINY, data="folder")
    train("run", cfg=cfg, root=str(tmp_path / "here"))
    train("run", cfg=cfg, root=str(tmp_path / "there"), steps=30)
    with pytest.raises(InputError, match="the images of folder have changed"):
        train("run", cfg=cfg, root=str(tmp_path / "more"), steps=40)


UNUSUAL = [("set_default_dtype", torch.float64), ("set_default_device", "meta"), ("use_deterministic_algorithms", True)]


@pytest.mark.parametrize(("setter", "value"), UNUSUAL)
def test_the_callers_defaults_do_not_matter(run, train, setter, value):
    getattr(torch, setter)(value)
    model = train("odd")
    again = load(run)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(model.sample(2, 0), again.sample(2, 0))
    assert tensors_of(run) == tensors_of(run.with_name("odd"))
    sizes = {"groups": 10, "group_size": 10, "scale_samples": 100, "points": 100}
    scores = metrics.evaluate(again, data.load("squares"), ("factor_vae", "mig"), **sizes)
    assert 0 <= scores["mig"]["score"] <= scores["factor_vae"]["score"] <= 1


def test_fit_trains_own_networks(tmp_path, train):
    class Mine(torch.nn.Linear):
        def forward(self, c, z):
            return super().forward(torch.cat([c, z], 1)).sigmoid().unflatten(1, (3, 16, 16))

    def build(cfg, image_shape):
        torch.manual_seed(cfg.seed)
        return InfoGAN(cfg, image_shape, generator=Mine(cfg.num_codes + cfg.num_noise, 768))

    model = train("mine", data="squares", build=build, seed=3)
    assert isinstance(model.generator, Mine)
    again = load(tmp_path / "mine", build=build)
    assert torch.equal(model.sample(2), again.sample(2))
    with pytest.raises(InputError, match="another model"):
        load(tmp_path / "mine")


def test_an_interrupt_saves_a_whole_step_and_passes_through(run, train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(data.RealImages, "fetch", lambda self, step: step == 9 and signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    stopped = run.with_name("stopped")
    assert checkpoint.latest(stopped).name == "step-000000010"
    train("stopped")
    assert tensors_of(stopped) == tensors_of(run)


@pytest.mark.parametrize("step", ["write_config", "Log"])
def test_a_stop_before_the_first_step_leaves_a_folder_that_the_same_call_takes(train, monkeypatch, step):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, step, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train("run", steps=1)
    train("run", steps=1)


def test_models_check_what_they_are_given():
    model = build_model(TINY, (3, 16, 16)).train()
    for wrong in (torch.zeros(2, 5), torch.zeros(2, 4, dtype=torch.int64), [[0.0] * 4]):
        with pytest.raises(InputError, match="codes are"):
            model.generate(wrong)
    image = torch.ones(2, 3, 16, 16)
    for wrong, message in ((image[:, :1], "are"), (image.to(torch.uint8), "are"), (image * 255, "divide 8-bit")):
        with pytest.raises(InputError, match=f"images {message}|{message}"):
            model.encode(wrong)
    model.encode(model.sample(2))
    assert all(module.training for module in model.modules() if not isinstance(module, torch.nn.ModuleDict))
