"""What crgan.train and crgan.select leave in their folders, of small or made-up models, for tests of what reads it."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from crgan import PRESETS, checkpoint
from crgan.pictures import save

CFG = replace(PRESETS["quick"], width=4, hidden=8, steps=300, cr_start=200, blur_steps=100)


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


def write_selection(folder: Path, names: list[str], K: int = 5, groups: int = 500) -> Path:
    """Write ranking.json and scores.h5 of a pool whose codes differ in order; the later models err more often."""
    N, skill, keys = len(names), np.linspace(0.99, 0.4, len(names)), [f"key{i}" for i in range(len(names))]
    models = [
        {"rank": i + 1, "name": name, "score": 0.8 * skill[i], "standard_error": 0.01, "own_score": skill[i]}
        | {"factor_vae": skill[i] * (0.9 + 0.1 * np.sin(9 * i)), "cache_key": keys[i]}
        for i, name in enumerate(names)
    ]
    sentences = [f"{names[0]} is ahead of {names[1]}", "warning: the pool splits"]
    ranking = {"method": "centrality", "sentences": sentences, "groups": groups, "group_size": 100, "budget": 1.0}
    ranking |= {"clusters": [names[: N // 2], names[N // 2 :]], "rank_correlation": 0.93, "models": models}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ranking.json").write_text(json.dumps(ranking))
    draw, held = np.random.default_rng(0), np.arange(groups) % K
    order = [draw.permutation(K) for _ in names]
    with h5py.File(folder / "scores.h5", "w") as file:
        file.attrs.update({"format": 3, "groups": groups, "group_size": 100, "scale_samples": 5_000, "seed": 0})
        file["models/name"], file["models/num_codes"], file["models/cache_key"] = names, [K] * N, keys
        for j, key in enumerate(keys):
            right = np.stack([np.argsort(order[i])[order[j][held]] for i in range(N)])
            hit = draw.random((N, groups)) < skill[:, None] * skill[j]
            file[f"pairs/{key}/encoders"], file[f"pairs/{key}/exact"] = keys, [True] * N
            file[f"pairs/{key}/votes"] = np.where(hit, right, draw.integers(-1, K, (N, groups))).astype(np.int16)
            file[f"pairs/{key}/variance"] = np.ones((N, K))
    return folder
