"""What crgan.train and crgan.select leave in their folders, of small or made-up models, for tests of what reads it."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import torch
from linear_models import Linear
from PIL import Image

import crgan
from crgan import PRESETS, checkpoint, data
from crgan.models import ALGORITHMS
from crgan.pictures import save

CFG = replace(PRESETS["quick"], width=4, hidden=8, steps=300, cr_start=200, blur_steps=100)


def model_and_batch(cfg):
    """Return an untrained model, its optimisers, and the images of a step."""
    dataset = data.load(cfg.data)
    model, index = checkpoint.build_model(cfg, dataset.image_shape).train(), torch.arange(cfg.images_per_step) * 997
    return model, ALGORITHMS[cfg.model].make_optimisers(model, cfg), dataset.images(index)


def write_run(folder: Path, cfg=CFG, shape=(3, 16, 16), seed: int = 0, step: int | None = None) -> Path:
    """Write the folder of an untrained model, with losses as if it had trained to `step`, by default the last."""
    cfg = replace(cfg, seed=seed)
    made = {"crgan": "0.1.0", "torch": "2.13", "device": "a CPU", "threads": 1, "date": "2026-01-31", "command": "c"}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_config(folder, cfg, shape, {"source": "rendered", "made_with": made})
    state = {"step": cfg.steps if step is None else step, "seconds": 125.0}
    checkpoint.save(folder, checkpoint.build_model(cfg, shape), {}, state)
    rows = [{"step": 100, "discriminator": 1.25, "generator": 0.5, "info": -3.5}, {"step": 100, "factor_vae": 0.75}]
    rows += [{"step": 300, "discriminator": 1.5, "generator": 0.25, "info": -7.5, "contrastive": 0.125}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("traversal.png", "samples.png"):
        save(folder / name, Image.new("RGB", (32, 16)))
    return folder


def tensors_of(run: Path) -> bytes:
    """Return all weights and moments of a run's latest checkpoint."""
    return b"".join(path.read_bytes() for path in sorted(checkpoint.latest(run).glob("*.safetensors")))


def pairs_in(scores: Path) -> int:
    """Return how many pairs a scores.h5 holds, which another process may be replacing."""
    if not scores.exists():
        return 0
    with h5py.File(scores, locking=False) as file:
        return sum(len(column["encoders"]) for column in file.get("pairs", {}).values())


def write_selection(folder: Path, names: list[str], groups: int = 40) -> Path:
    """Rank linear models of 4 codes, the first the most central; add two clusters, and what labels would say."""
    skew = torch.randn(len(names), 4, 4, generator=torch.Generator().manual_seed(0))
    mixes = [torch.matrix_exp(0.1 * i * (x - x.T)) for i, x in enumerate(skew)]
    crgan.rank(dict(zip(names, map(Linear, mixes))), out=folder, groups=groups, group_size=20, scale_samples=100)
    ranking = json.loads((folder / "ranking.json").read_text())
    ranking |= {"clusters": [names[:1], names[1:]], "rank_correlation": 0.93}
    for model in ranking["models"]:
        model["factor_vae"] = model["own_score"]
    (folder / "ranking.json").write_text(json.dumps(ranking))
    return folder
