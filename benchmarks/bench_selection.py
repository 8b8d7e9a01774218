"""Exact selection of a pool at real image and network sizes, against a plain script that does what the original does.

The plain script stores each model's images on disk, reads them again for every encoder, and counts the votes in a numpy
loop. Both use the same networks on the same images, and their matrices are compared before a time counts.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from crgan import checkpoint, cross_scores
from crgan.centrality import POINTS_BLOCK, Pool, Sizes
from crgan.config import PRESETS
from crgan.models import Member

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODELS = 6
SIZES = Sizes(groups=500, group_size=100, scale_samples=73_728) if DEVICE == "cuda" else Sizes(30, 100, 1_024)
BATCH = 64  # that the original encodes at once
seconds: dict[str, float] = {}
found: dict[str, np.ndarray] = {}


def untrained(seed: int):
    cfg = PRESETS["dsprites"]
    cfg = cfg.__class__(**{**vars(cfg), "seed": seed})
    return checkpoint.build_model(cfg, (1, 64, 64)).to(DEVICE).eval()


@torch.inference_mode()
def plain(models, folder) -> np.ndarray:
    pool = Pool([Member(str(i), model) for i, model in enumerate(models)], SIZES)  # for the draws
    for j, generator in enumerate(pool.members):
        groups = [pool._group(j, m).cpu().numpy() for m in range(SIZES.groups)]
        blocks = range(0, SIZES.scale_samples, POINTS_BLOCK)
        points = [generator.sample(POINTS_BLOCK, pool._seed(j, "points", b)).cpu().numpy() for b in blocks]
        np.savez(
            folder / f"{j}.npz", groups=np.concatenate(groups), points=np.concatenate(points)[: SIZES.scale_samples]
        )

    def encode(model, images):
        batches = (images[n : n + BATCH] for n in range(0, len(images), BATCH))
        return np.concatenate([model.encode(torch.from_numpy(x).to(DEVICE)).cpu().numpy() for x in batches])

    B = np.zeros((len(models), len(models)))
    for i, encoder in enumerate(models):
        for j, generator in enumerate(models):
            images = np.load(folder / f"{j}.npz")
            scale = encode(encoder, images["points"]).std(0)
            codes = encode(encoder, images["groups"]).reshape(SIZES.groups, SIZES.group_size, -1)
            votes = np.zeros((encoder.num_codes, generator.num_codes))
            for m in range(SIZES.groups):
                votes[(codes[m] / scale).std(0).argmin(), m % generator.num_codes] += 1
            B[i, j] = votes.max(1).sum() / votes.sum()
    return B


@pytest.mark.parametrize("provider", ["plain", "crgan"])
def test_exact_selection(benchmark, provider, tmp_path):
    models = [untrained(seed) for seed in range(MODELS)]
    sizes = {name: getattr(SIZES, name) for name in ("groups", "group_size", "scale_samples")}

    def call():
        start = time.perf_counter()
        found[provider] = plain(models, tmp_path) if provider == "plain" else cross_scores(models, **sizes)
        seconds[provider] = time.perf_counter() - start

    benchmark.group = f"exact selection of {MODELS} models, {DEVICE}"
    cross_scores(models[:2], groups=5, group_size=20, scale_samples=256)  # warm up
    benchmark.pedantic(call, rounds=1, iterations=1)
    rate = MODELS**2 * int(SIZES.encodes(SIZES.groups)) / seconds[provider]
    benchmark.extra_info["encodes_per_s"] = round(rate)
    print(f"\n{provider}: {seconds[provider]:.1f} s, {rate:,.0f} encodes/s")
    if provider == "crgan" and "plain" in found:
        # rounding differs with the batch, and may turn a vote where two dimensions are as good as equal
        np.testing.assert_allclose(found["crgan"], found["plain"], atol=2.01 / SIZES.groups)
        benchmark.extra_info["speedup_over_plain"] = round(seconds["plain"] / seconds["crgan"], 2)
        print(f"{seconds['plain'] / seconds['crgan']:.2f} x plain")


MEMORY = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from bench_selection import untrained
from crgan import cross_scores
N, groups, samples = map(int, sys.argv[2:])
models = [untrained(seed) for seed in range(N)]
cross_scores(models[:2], groups=5, group_size=100, scale_samples=512)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
cross_scores(models, groups=groups, group_size=100, scale_samples=samples)
print(json.dumps([before, peak()]))
"""


@pytest.mark.parametrize(("models", "groups", "samples"), [(2, 10, 1_000), (2, 40, 16_000), (8, 10, 1_000)])
def test_peak_memory(benchmark, models, groups, samples):
    """MiB at rest, models loaded and warm, and at the peak of a selection: growth must not follow N, M or R."""
    benchmark.group = "peak memory of a selection"
    folder = str(benchmark.__class__ and __file__.rpartition("/")[0])
    command = [sys.executable, "-c", MEMORY, folder, str(models), str(groups), str(samples)]
    result = benchmark.pedantic(
        lambda: subprocess.run(command, check=True, capture_output=True), rounds=1, iterations=1
    )
    before, peak = json.loads(result.stdout.splitlines()[-1])
    benchmark.extra_info |= {"mib_before": round(before), "mib_peak": round(peak)}
    print(f"\nN {models}, M {groups}, R {samples}: {before:.0f} MiB with the models loaded, {peak:.0f} MiB at the peak")
    assert peak - before < 40
