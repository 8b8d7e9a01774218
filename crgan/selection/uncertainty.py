"""How sure a choice is: the bootstrap over groups, the gap between two models, and pools that split."""

from collections.abc import Mapping, Sequence
from math import erf

import numpy as np

from ..metrics import vote_score
from ..metrics.arrays import Array

Votes = Mapping[tuple[int, int], Array]  # (encoder, generator) -> [m] int, the code voted for; -1: none


def bootstrap(votes: Votes, num_codes: Sequence[int], mask: Array, seed: int = 0, replicates: int = 200) -> Array:
    """Resample the centrality [replicates, N], taking each group of a generator Poisson(1) times for all encoders.

    Model i's mean runs over the models j with mask[i, j] (symmetric).
    """
    total, size = np.zeros((replicates, len(num_codes))), max(map(len, votes.values()), default=0)
    for j in np.flatnonzero(mask.any(0)).tolist():
        factors, rng = num_codes[j], np.random.default_rng([seed, j])
        weights = rng.poisson(1, (replicates, size)).astype(np.float32)
        for i in np.flatnonzero(mask[:, j]).tolist():
            found, rows = votes[i, j].astype(np.int64), num_codes[i] + 1
            cell = found % rows * factors + np.arange(len(found)) % factors
            drawn = weights[:, : len(found)]
            drawn = np.where(drawn.any(1, keepdims=True), drawn, 1)  # where no group was drawn, of few: all of them
            tables = drawn @ (cell[:, None] == np.arange(rows * factors)).astype(np.float32)  # [replicates, cells]
            score = vote_score(tables.reshape(-1, rows, factors))
            total[:, i] += score / 2
            total[:, j] += score / 2
    return total / np.maximum(mask.sum(1), 1)


def confidence_gap(
    A: Array, votes: Votes, num_codes: Sequence[int], winner: int, runner_up: int, seed: int = 0
) -> dict[str, float]:
    """Return how far the winner's centrality is above the runner-up's over the models that both met: `gap`, its
    `standard_error`, and `confidence`, the probability that it is above zero, by the normal approximation.

    A [N, N] is the similarity (NaN: not measured). What the two score on each other is the same for both. The error
    combines the draw of the groups (bootstrap) and, if not all models were met, that of the references.
    """
    both = np.array([winner, runner_up])
    others = np.setdiff1d(np.arange(len(A)), both)
    met = others[np.isfinite(A[np.ix_(both, others)]).all(0)]
    if not len(met):
        return {"gap": 0.0, "standard_error": 0.0, "confidence": 0.5}
    difference = A[winner, met] - A[runner_up, met]
    mask = np.zeros(A.shape, bool)
    mask[np.ix_(both, met)] = True
    resampled = bootstrap(votes, num_codes, mask | mask.T, seed)
    variance = (resampled[:, winner] - resampled[:, runner_up]).var()
    if 1 < len(met) < len(others):
        variance += (1 - len(met) / len(others)) * difference.var(ddof=1) / len(met)
    shared = len(met) / (len(met) + 1)
    gap, error = float(difference.mean()) * shared, float(variance**0.5) * shared
    return {"gap": gap, "standard_error": error, "confidence": 0.5 * (1 + erf(gap / (error or 1e-12) / 2**0.5))}


def split(A: Array, references: Array, margin: float = 0.2) -> tuple[Array, float] | None:
    """Return two clusters that agree only within themselves, or None; the medoid of such a pool says little.

    `A` [N, N] is the similarity (NaN: not known), known for all models in the columns `references` [n]. The leading
    singular vector of these columns, doubly centred, splits the pool. Returns the membership [N] and the excess of
    the mean similarity inside the looser cluster over the one across, if that is at least `margin` and each cluster has
    2 models and a tenth of the pool. Models that agree with none form no cluster; 3 references or fewer give None.
    """
    N, n = len(A), len(references)
    if n < 4:
        return None
    A = A[:, references].copy()
    A[references, np.arange(n)] = np.nan
    X = A - np.nanmean(A, 0) - np.nanmean(A, 1, keepdims=True) + np.nanmean(A)
    side = np.linalg.svd(np.nan_to_num(X), full_matrices=False)[0][:, 0] > 0
    ours = side[references]
    if min(side.sum(), N - side.sum()) < max(2, N / 10) or not 0 < ours.sum() < n:
        return None
    inside = min(np.nanmean(A[side][:, ours]), np.nanmean(A[~side][:, ~ours]))
    excess = float(inside - np.nanmean(A[side[:, None] != ours]))
    return (side, excess) if excess >= margin else None
