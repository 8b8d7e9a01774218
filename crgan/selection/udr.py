"""Unsupervised Disentanglement Ranking (Duan et al. 2020), the baseline that needs no generator.

Encoders that disentangle well give the same codes up to order and sign: each code of one model follows one code of the
other. All models encode one sample of images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import InputError

Array = NDArray[Any]
METHODS = ("udr-lasso", "udr-spearman")


def udr(
    codes: Sequence[Any],  # N arrays [n, K_i]: each model's codes of the same n images
    *,
    method: str = "udr-lasso",
    alpha: float = 0.1,
    min_variance: float = 1e-4,
) -> dict[str, Array]:
    """UDR of each model: `score` [N], the median over the others of `pairs` [N, N] (Duan et al. 2020, eq. 2, 3).

    For a pair, R[a, b] >= 0 tells how much code a of model i says about code b of model j: the absolute Lasso
    coefficients that predict b from all a (penalty `alpha`, both standardised), or the absolute Spearman
    correlations. UDR_ij = (mean_b max_a R^2 / sum_a R + mean_a max_b R^2 / sum_b R) / 2, where 0/0 is 0. A code takes
    part if its variance is at least `min_variance`; such an encoder gives no posterior from which to tell. A model
    without any such code, or with codes that are not finite, scores 0 with every other.

    Raises InputError for fewer than 2 models, arrays that are not [n, K] of one n, and an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")
    arrays = [np.asarray(c, np.float64) for c in codes]
    if len(arrays) < 2 or any(c.ndim != 2 or len(c) != len(arrays[0]) or len(c) < 2 for c in arrays):
        shapes = ", ".join(str(list(c.shape)) for c in arrays)
        raise InputError(
            f"udr needs the codes [n, K] of at least 2 models on the same n images, got {shapes or 'none'}"
        )
    x = []
    for c in arrays:
        active = np.isfinite(c).all() & (np.nan_to_num(c).var(0) >= min_variance)
        c = rankdata(c[:, active], axis=0) if method == "udr-spearman" else c[:, active]
        x.append((c - c.mean(0)) / c.std(0))
    N, n = len(x), len(arrays[0])
    pairs = np.zeros((N, N))
    for i in range(N):
        gram = x[i].T @ x[i] / n
        for j in range(N):
            if i != j and x[i].shape[1] and x[j].shape[1]:
                R = x[i].T @ x[j] / n  # [K_i, K_j] correlations
                if method == "udr-lasso":
                    R = lasso(gram, R, alpha)
                pairs[i, j] = relative_strength(np.abs(R))
    return {"score": np.array([np.median(np.delete(row, i)) for i, row in enumerate(pairs)]), "pairs": pairs}


def relative_strength(R: Array) -> float:  # [K_i, K_j] >= 0
    best, total = R.max(0) ** 2, R.sum(0)
    columns = np.divide(best, total, out=np.zeros_like(total), where=total > 0).mean()
    best, total = R.max(1) ** 2, R.sum(1)
    return float(columns + np.divide(best, total, out=np.zeros_like(total), where=total > 0).mean()) / 2


def lasso(gram: Array, target: Array, alpha: float, tolerance: float = 1e-9) -> Array:
    """argmin_w |y - x w|^2 / (2 n) + alpha |w|_1 for every column of y; gram = x^T x / n [K, K], target = x^T y / n.

    Coordinate descent on the moments, so the n images are read once for each pair of models.
    """
    w = np.zeros_like(target)
    for _ in range(10_000):
        change = 0.0
        for a in range(len(gram)):
            rest = target[a] - gram[a] @ w + gram[a, a] * w[a]
            new = np.sign(rest) * np.maximum(np.abs(rest) - alpha, 0) / gram[a, a]
            change = max(change, float(np.abs(new - w[a]).max()))
            w[a] = new
        if change < tolerance:
            break
    return w
