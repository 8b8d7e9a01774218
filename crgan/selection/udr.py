"""Unsupervised Disentanglement Ranking (Duan et al. 2020), the baseline that needs no generator.

Encoders that disentangle well give the same codes up to order and sign: each code of one model follows one code of the
other. All models encode one sample of images.
"""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch

from ..device import exact_arithmetic
from ..errors import InputError, check_name
from ..loading import LoadedModel, eval_mode
from ..metrics.arrays import Array


def udr(
    codes: Sequence[Any],  # N arrays [n, K_i]: each model's codes of the same n images
    *,
    method: str = "udr-lasso",
    alpha: float = 0.1,
    min_variance: float = 1e-4,
) -> dict[str, Array]:
    """Compute the UDR of each model: `score` [N], the median of its column of `pairs` [N, N], itself left out.

    (Duan et al. 2020, eq. 2, 3, with the axis of the authors' code, `evaluation/udr` of disentanglement_lib.) For a
    pair, R[a, b] >= 0 measures how much code a of model i says about code b of model j: the absolute Lasso coefficients
    that predict b from all a (penalty `alpha`, both standardised), or the absolute Spearman correlations.
    pairs[i, j] = (mean_b max_a R^2 / sum_a R + mean_a max_b R^2 / sum_b R) / 2, where 0/0 is 0. Codes whose variance is
    below `min_variance` are left out: a GAN's encoder has no posterior that would show which are used. A model with no
    code left, or with codes that are not finite, scores 0 with every other.

    Raises InputError for fewer than 2 models, arrays that are not [n, K] of one n, and an unknown method.
    """
    check_name("method", method, ["udr-lasso", "udr-spearman"])
    arrays = [np.asarray(c, np.float64) for c in codes]
    if len(arrays) < 2 or any(c.ndim != 2 or len(c) != len(arrays[0]) or len(c) < 2 for c in arrays):
        shapes = ", ".join(str(list(c.shape)) for c in arrays) or "none"
        raise InputError(f"udr needs the codes [n, K] of at least 2 models on the same n images, got {shapes}")
    from scipy.stats import rankdata
    from sklearn.linear_model import Lasso

    x = []
    for c in arrays:
        active = np.isfinite(c).all() & (np.nan_to_num(c).var(0) >= min_variance)
        c = rankdata(c[:, active], axis=0) if method == "udr-spearman" else c[:, active]
        x.append((c - c.mean(0)) / c.std(0))
    N, n = len(x), len(arrays[0])
    pairs = np.zeros((N, N))
    for i, j in permutations(range(N), 2):
        if x[i].shape[1] and x[j].shape[1]:
            if method == "udr-lasso":
                R = Lasso(alpha, fit_intercept=False, tol=1e-8).fit(x[i], x[j]).coef_.reshape(-1, x[i].shape[1]).T
            else:
                R = x[i].T @ x[j] / n
            R = np.abs(R)
            of_b, of_a = (R.max(axis) ** 2 / np.where(R.any(axis), R.sum(axis), 1) for axis in (0, 1))
            pairs[i, j] = (of_b.mean() + of_a.mean()) / 2
    return {"score": np.array([np.median(np.delete(pairs[:, i], i)) for i in range(N)]), "pairs": pairs}


@exact_arithmetic()
def common_codes(
    models: Sequence[LoadedModel], dataset: Any, samples: int, seed: int, progress: Callable[[int], None]
) -> list[Array]:
    """Encode the same images with all models: from the data set, or, without one, from every generator in turn."""
    draw, generators = torch.Generator().manual_seed(seed), sorted(models, key=lambda model: model.cache_key)
    size = min(256, math.ceil(samples / len(models)))
    high = dataset.num_images if dataset else 2**31  # images of the data set, or seeds
    parts: list[list[Array]] = [[] for _ in models]
    with eval_mode(models), torch.inference_mode():
        for n, start in enumerate(range(0, samples, size)):
            drawn = torch.randint(high, (min(size, samples - start),), generator=draw)
            generator = generators[n % len(models)]
            images = dataset.images(drawn) if dataset else generator.sample(len(drawn), int(drawn[0]))
            for model, part in zip(models, parts):
                part.append(model.encode(images).double().cpu().numpy())
            progress(len(drawn) * len(models))
    return [np.concatenate(part) for part in parts]
