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
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from dispatch import READ_BACK, operations
from PIL import Image
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
ROOT = Path(__file__).parents[1]
SMALLER_THAN_A_CHECKPOINT = 20_000
FLAGS = [
    *("quick", "--num-noise", "2", "--width", "4", "--hidden", "8", "--batch-size", "4", "--steps", "60"),
    *("--cr-start", "20", "--eval-every", "1000", "--ema", "0.9", "--checkpoint-every", "7", "--device", "cpu"),
]


def command(*flags):
    """Runs the command in a process of its own; single-threaded, as the images are small."""
    code = "from crgan.train import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def tensors_of(run):
    return b"".join(path.read_bytes() for path in sorted(checkpoint.latest(run).glob("*.safetensors")))


@pytest.fixture
def run(tmp_path, small_scores):
    """A finished run of TINY."""
    fit(TINY, tmp_path / "run", "cpu")
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


def model_and_batch(cfg):
    dataset = data.load(cfg.data)
    model = build_model(cfg, dataset.image_shape).train()
    return model, make_optimisers(model, cfg), dataset.images(torch.arange(cfg.batch_size) * 997)


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
    matmul.fp32_precision = "none"


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
    reports, x = [], torch.rand(4, 1, 32, 32)
    called = operations(lambda: reports.append(train_step(model, optimisers, x, cfg, phase, step)))
    assert {"convolution_backward", "_fused_adam_"} <= called.keys()
    assert not READ_BACK & called.keys()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in reports[0].values())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("channels", "factor"), [(3, 2.5), (1, 2.2)])  # blocks of pixels take some more
def test_a_step_with_the_kernels_has_the_same_losses_and_fewer_operations(channels, factor, monkeypatch):
    """The paper's step, with Triton's interpreter in place of a GPU: nearly every operation is a launch there."""
    cfg, phase = replace(PRESETS["dsprites"], width=4, hidden=8, batch_size=4), Phase(2.0, 0.0, False, False)
    x, reports, counts, between = torch.rand(4, channels, 16, 16), [], [], {}
    for impl in ("ref", "triton"):
        monkeypatch.setattr(ops, "_compiled", lambda *given, impl=impl: impl == "triton")
        model = build_model(cfg, (channels, 16, 16))
        optimisers = make_optimisers(model, cfg)
        for step in range(2):
            # The same weights again: Adam's first step divides each gradient by its own size, so that what rounding
            # left of one near 0 counts in full.
            if step == 1:
                between = between or copy.deepcopy(model.state_dict())
                model.load_state_dict(between)
            called = operations(
                lambda s=step, n=model, o=optimisers: reports.append(train_step(n, o, x, cfg, phase, s))
            )
        counts.append(called.total())
    print(f"operations of a step: {counts[0]} with the references, {counts[1]} with the kernels")
    assert called["spectral_norm"] == 4  # D and H, before and after their updates
    assert called["spectral_norm_backward"] == 2
    assert factor * counts[1] < counts[0]
    values = [{name: value.item() for name, value in report.items()} for report in reports]
    assert values[2:] == [pytest.approx(reference, 1e-5) for reference in values[:2]]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_steps_equal_eager_ones(precision, tmp_path, small_scores, monkeypatch):
    """Across a switch of the regularizer, a restart of H, steps with R1 and codes that come in."""
    cfg = replace(TINY, precision=precision, steps=40, cr_start=27, code_warmup_steps=9)
    monkeypatch.setattr("crgan.train.LOG_EVERY", 1)
    rows = []
    for name in ("eager", "captured"):
        fit(cfg, tmp_path / name, "cuda", cuda_graph=name == "captured")
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


def test_a_run_leaves_all_that_it_promises(tmp_path, small_scores):
    out, mask = tmp_path / "run", os.umask(0o022)
    model = fit(TINY, out, "cpu")
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


def test_a_rate_that_collapses_is_said(tmp_path, small_scores, monkeypatch, capsys):
    reads = iter(range(10**6))
    speed = property(lambda task: 30.0 if next(reads) < 20 else 5.0)
    monkeypatch.setattr("rich.progress.Task.speed", speed)
    monkeypatch.setattr("crgan.train.LOG_EVERY", 1)
    for threads in (1, 2):
        fit(replace(TINY, threads=threads), tmp_path / str(threads), "cpu")
        assert ("--threads 1" in capsys.readouterr().out) == (threads == 2)
        reads = iter(range(10**6))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_longer_runs_go_on_and_other_configurations_are_refused_by_field(tmp_path, small_scores, device):
    straight, out = tmp_path / "straight", tmp_path / "run"
    fit(replace(TINY, steps=36), straight, device)
    fit(TINY, out, device)
    with pytest.raises(InputError, match=r"lr_d = 0\.003, now it is 0\.5; give --lr-d 0\.003"):
        fit(replace(TINY, lr_d=0.5), out, device)
    fit(replace(TINY, steps=36), out, device)
    assert tensors_of(out) == tensors_of(straight)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, kills):
    draw = random.Random(kills)
    straight, out = tmp_path / "straight", tmp_path / "killed"
    process = command(*FLAGS, "--out", straight)
    assert process.wait() == 0, process.stderr.read()
    for _ in range(kills):
        before = checkpoint.latest(out) if out.exists() else None
        process = command(*FLAGS, "--out", out)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if out.exists() and checkpoint.latest(out) != before:  # then at a random moment, writing or not
                time.sleep(draw.random() * 0.3)
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = command(*FLAGS, "--out", out)
    assert process.wait() == 0, process.stderr.read()
    assert tensors_of(out) == tensors_of(straight)
    before = "checkpoint/before-cr/model.safetensors"
    for name in ("metrics.jsonl", "traversal.png", "traversal.gif", "samples.png", before):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    out = tmp_path / "run"
    process = command(*FLAGS, "--steps", 100_000, "--out", out)  # the last counts
    while checkpoint.latest(out) is None and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    state = json.loads((checkpoint.latest(out) / "state.json").read_text())
    assert f"stopped after step {state['step']}" in output
    assert "the same command continues" in output


def test_a_signal_is_kept_for_who_looks_and_else_ends_the_process():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with cli.stop_signal(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # data are still read: nobody looks
    with cli.stop_signal() as stopped:
        assert stopped() == 0
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a sweep tells its processes, whom Ctrl-C has reached already
        assert stopped() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exit:
        main([str(arg) for arg in args])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_schedulers_profilers_and_odd_names_do_not_matter(tmp_path):
    """WORLD_SIZE is set by some schedulers, cProfile runs the module as __main__, the folder's name is not UTF-8."""
    out = os.fsencode(tmp_path / "run-") + b"\xff"
    command = [sys.executable, "-m", "cProfile", "-o", tmp_path / "profile", "-m", "crgan.train", *FLAGS]
    command += ["--steps", "2", "--out", out]
    done = subprocess.run(command, env=os.environ | {"WORLD_SIZE": "2", "RANK": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (Path(os.fsdecode(out)) / "traversal.png").exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_checkpoint_that_may_not_be_read_or_has_just_been_replaced_is_no_damage(run, monkeypatch, error):
    folder, whole = checkpoint.latest(run), Path.read_bytes

    def read(path):
        if path.parent == folder:
            if isinstance(error, FileNotFoundError):  # training is faster than this reader
                folder.rename(folder.with_name("step-000000025"))
            raise error
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    if isinstance(error, PermissionError):
        with pytest.raises(PermissionError):
            load(run)
    else:
        assert load(run).sample(1).isfinite().all()


def test_mistakes_end_in_one_sentence(tmp_path, capsys):
    assert "no preset 'dsprite'; did you mean dsprites?" in refused(capsys, "dsprite")
    assert "batch_size is -3" in refused(capsys, "quick", "--batch-size", -3)
    assert "no device 'cuda:7'" in refused(capsys, "--device", "cuda:7", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("precious")
    for out in (tmp_path, thesis):
        assert "exists and is no run folder" in refused(capsys, "--out", out)
    assert "Not a directory" in refused(capsys, "--out", thesis / "run")
    assert thesis.read_text() == "precious"


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, capsys):
    main(["dsprites", "--dry-run", "--cr-weight", "3", "--out", str(tmp_path / "run")])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == {**PRESETS["dsprites"].to_json(), "cr_weight": 3.0}
    assert not (tmp_path / "run").exists()


def test_broken_checkpoints_are_refused_and_left_alone(run):
    out, folder, config = run, checkpoint.latest(run), (run / "config.json").read_bytes()
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
        (out / "metrics.jsonl", b"", "is shorter than at the checkpoint"),
    ]:
        good = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}.*{message}"):
            fit(replace(TINY, steps=30), out, "cpu")
        if path == weights:
            with pytest.raises(InputError, match=message):
                load(out)
        assert path.read_bytes() == content
        path.write_bytes(good)
    assert (out / "config.json").read_bytes() == config
    with pytest.raises(InputError, match="is no run folder"):
        load(out.parent)
    copy = folder.with_name("step-000009999.bak")  # a user's, so no checkpoint
    shutil.copytree(folder, copy)
    fit(replace(TINY, steps=30), out, "cpu")
    assert copy.is_dir()


def test_a_loss_that_is_not_finite_stops_the_run(run):
    out, good = run, tensors_of(run)
    checkpoint.write_config(out, replace(TINY, lr_g=1e30, threads=1), (3, 32, 32))
    with pytest.raises(InputError, match=r"the loss \w+ is \S+ at step 2\d; the last good checkpoint is .*step-0+24"):
        fit(replace(TINY, steps=40, lr_g=1e30), out, "cpu")
    assert tensors_of(out) == good


def test_a_run_that_failed_before_its_first_checkpoint_takes_other_settings(tmp_path, small_scores):
    with pytest.raises(InputError, match="the last good checkpoint is none: start anew"):
        fit(replace(TINY, lr_g=1e30), tmp_path / "run", "cpu")
    fit(TINY, tmp_path / "run", "cpu")
    fit(TINY, tmp_path / "straight", "cpu")
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "straight")
    assert load(tmp_path / "run").cfg == replace(TINY, threads=1)


def test_a_run_folder_has_one_process_at_a_time(run):
    good = tensors_of(run)
    with lock(run):
        with pytest.raises(InputError, match="another process trains in"):
            fit(replace(TINY, steps=30), run, "cpu")
        assert tensors_of(run) == good
        assert checkpoint.read_config(run)[0].steps == TINY.steps
    fit(replace(TINY, steps=30), run, "cpu")


def test_a_full_disk_keeps_the_checkpoint_before(run):
    good = tensors_of(run)
    code = (
        "import resource, sys; from pathlib import Path; from dataclasses import replace; import torch\n"
        "from crgan.train import fit; from crgan.cli import command_process; from test_train import TINY\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALLER_THAN_A_CHECKPOINT},) * 2)\n"
        "with command_process(): fit(replace(TINY, steps=30), Path(sys.argv[1]), 'cpu')"
    )
    process = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, cwd=ROOT / "tests")
    assert process.returncode == 2, process.stderr
    assert "File too large" in process.stderr
    assert "Traceback" not in process.stderr
    assert tensors_of(run) == good


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
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
        ("dsprites", {"lambda": 1}, "no field of the configuration"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_field(preset, changes, message):
    with pytest.raises(InputError, match=message):
        Config.from_json({**PRESETS[preset].to_json(), **changes})
    assert replace(PRESETS["quick"], lr_g=1).lr_g == 1


def test_runs_with_and_without_the_regularizer_share_a_trunk(tmp_path, small_scores):
    on = fit(TINY, tmp_path / "on", "cpu")
    trunk = load(tmp_path / "on" / "checkpoint" / "before-cr")
    images = on.sample(4, 1)
    assert not torch.equal(trunk.encode(images), on.encode(images))
    fit(replace(TINY, cr_weight=0.0), tmp_path / "straight", "cpu")
    fit(replace(TINY, cr_weight=0.0), tmp_path / "off", "cpu", start_from=tmp_path / "on")
    a, b = (load_file(checkpoint.latest(tmp_path / name) / "model.safetensors") for name in ("straight", "off"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "off" / "config.json").read_text())["from"] == str(tmp_path / "on")
    again = fit(TINY, tmp_path / "again", "cpu", start_from=tmp_path / "on")
    assert torch.equal(again.encode(images), on.encode(images))
    with pytest.raises(InputError, match="lr_g"):
        fit(replace(TINY, lr_g=0.1), tmp_path / "other", "cpu", start_from=tmp_path / "on")


def test_what_the_machine_decided_stays_when_a_run_continues(tmp_path, small_scores, monkeypatch):
    fit(replace(TINY, precision="auto"), tmp_path, "cpu")
    recorded = checkpoint.read_config(tmp_path)[0]
    assert recorded.threads == 1
    monkeypatch.setattr("crgan.checkpoint.has_bfloat16", lambda device: recorded.precision == "float32")
    fit(replace(TINY, precision="auto", steps=30), tmp_path, "cpu")
    assert checkpoint.read_config(tmp_path)[0].precision == recorded.precision


def test_images_may_move_but_not_change(tmp_path, small_scores):
    image = np.zeros((32, 32, 3), np.uint8)
    for folder, names in (("here", "abcd"), ("there", "abcd"), ("more", "abcde")):
        (tmp_path / folder).mkdir()
        for name in names:
            pictures.save(tmp_path / folder / f"{name}.png", Image.fromarray(image + ord(name)))
    cfg = replace(TINY, data="folder", root=str(tmp_path / "here"))
    fit(cfg, tmp_path / "run", "cpu")
    fit(replace(cfg, root=str(tmp_path / "there"), steps=30), tmp_path / "run", "cpu")
    with pytest.raises(InputError, match="the images of folder have changed"):
        fit(replace(cfg, root=str(tmp_path / "more"), steps=40), tmp_path / "run", "cpu")


@pytest.fixture(params=["float64", "meta", "deterministic"])
def odd_defaults(request):
    """Defaults of torch that a caller may have set."""
    torch.set_default_dtype(torch.float64 if request.param == "float64" else torch.float32)
    torch.set_default_device("meta" if request.param == "meta" else None)
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)


def test_the_callers_defaults_do_not_matter(run, odd_defaults):
    model = fit(TINY, run.with_name("odd"), "cpu")
    again = load(run)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(model.sample(2, 0), again.sample(2, 0))
    assert tensors_of(run) == tensors_of(run.with_name("odd"))
    sizes = {"groups": 10, "group_size": 10, "scale_samples": 100, "points": 100}
    scores = metrics.evaluate(again, data.load("squares"), ("factor_vae", "mig"), **sizes)
    assert 0 <= scores["mig"]["score"] <= scores["factor_vae"]["score"] <= 1


def test_fit_trains_own_networks_on_a_preset_or_a_configuration(tmp_path, small_scores):
    class Mine(torch.nn.Linear):
        def forward(self, c, z):
            return super().forward(torch.cat([c, z], 1)).sigmoid().unflatten(1, (3, 16, 16))

    def build(cfg, image_shape):
        torch.manual_seed(cfg.seed)
        return InfoGAN(cfg, image_shape, generator=Mine(cfg.num_codes + cfg.num_noise, 768))

    model = fit(TINY, out=tmp_path / "mine", device="cpu", data="squares", build=build, seed=3)
    assert isinstance(model.generator, Mine)
    again = load(tmp_path / "mine", build=build)
    assert torch.equal(model.sample(2), again.sample(2))
    with pytest.raises(InputError, match="another model"):
        load(tmp_path / "mine")
    with pytest.raises(InputError, match="did you mean quick"):
        fit("quik")
    with pytest.raises(InputError, match="did you mean squares"):
        fit("quick", data="squres")
    with pytest.raises(InputError, match="did you mean lr_"):
        fit("quick", lr=1)


def test_an_interrupt_saves_and_passes_through(tmp_path, small_scores):
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, tmp_path / "run", "cpu", stopped=Mock(side_effect=[*[0] * 9, KeyboardInterrupt]))
    with pytest.MonkeyPatch.context() as patch:  # again, before another step is done
        patch.setattr(data.RealImages, "fetch", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(TINY, tmp_path / "run", "cpu")
    assert checkpoint.latest(tmp_path / "run").name == "step-000000010"
    fit(TINY, tmp_path / "run", "cpu")
    fit(TINY, tmp_path / "straight", "cpu")
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "straight")


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
