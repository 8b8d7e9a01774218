"""Data-parallel training: two processes under torchrun do what one does with the same batch."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crgan import PRESETS, checkpoint, parallel

GAN = replace(
    PRESETS["quick"], width=4, hidden=8, batch_size=8, steps=7, cr_start=3, g_steps=2, r1_every=3, r1_weight=0.1,
    spectral_norm="all", h_norm="batch", eval_every=1000, ema=0.9, precision="float32",
)  # fmt: skip
VAE = replace(PRESETS["betavae-dsprites"], num_codes=3, width=4, hidden=8, batch_size=8, steps=7, precision="float32")
SCRIPT = """
import json, sys
from pathlib import Path
import torch
import crgan.train as module
from crgan.config import Config
torch.set_num_threads(1)
module.LOG_EVERY = 1
module.evaluate = lambda *args, **rest: ({}, __import__("numpy").zeros((2, 2, 3), "uint8"))
module.train(Config.from_json(json.loads(sys.argv[1])), Path(sys.argv[2]), "cpu", checkpoint_every=int(sys.argv[3]))
"""


def run(cfg, out, processes, checkpoint_every=100):
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"] * (processes > 1)
    command = [sys.executable, *launch, script, json.dumps(cfg.to_json()), out, checkpoint_every]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1]
    )


def losses(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cfg", [GAN, VAE], ids=["infogan-cr", "beta-vae"])
def test_two_processes_have_the_losses_of_one(cfg, tmp_path):
    """Taken up again from a checkpoint too."""
    one, two = tmp_path / "one", tmp_path / "two"
    for part, out, processes in ((cfg, one, 1), (replace(cfg, steps=4), two, 2), (cfg, two, 2)):
        done = run(part, out, processes)
        assert done.returncode == 0, done.stderr
    a, b = losses(one), losses(two)
    assert len(a) == len(b) == 7
    for alone, together in zip(a, b):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-4)
    weights, others = (load_file(checkpoint.latest(out) / "model.safetensors") for out in (one, two))
    # A bias ahead of batch norm has the gradient 0: Adam moves it by the sign of its rounding, to no effect.
    for name, value in ((name, value) for name, value in weights.items() if value.dim() > 1):
        assert (value - others[name]).double().norm() <= 0.02 * value.double().norm() + 1e-4, name


def test_what_processes_cannot_share_is_refused(tmp_path):
    done = run(replace(VAE, model="factor-vae"), tmp_path / "run", 2)
    assert done.returncode != 0
    assert "2 processes cannot share batches of 8 of a factor-vae" in done.stderr
    assert not (tmp_path / "run").exists()


def test_alone_nothing_changes():
    x = torch.arange(12.0).view(4, 3)
    assert parallel.world() == 1
    assert parallel.leads()
    assert parallel.shard(x) is x
    parallel.average([x])
    assert torch.equal(x, torch.arange(12.0).view(4, 3))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(6, 5, 4, 4, generator=draw)
    ours, theirs = parallel.BatchNorm2d(5), torch.nn.BatchNorm2d(5)
    assert torch.equal(ours(images), theirs(images))


def test_a_rank_without_a_world_still_writes_its_run(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.leads()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not parallel.leads()
