"""MIG and Modularity: how much each code says about each factor, in nats."""

from typing import Any

import numpy as np

from .arrays import Array, active_dimensions, codes_array, factors_array, is_continuous


def mig(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] classes or numbers
    *,
    bins: int = 20,
) -> dict[str, Any]:
    """Compute the Mutual Information Gap in [0, 1] (Chen et al. 2018, Isolating Sources of Disentanglement, eq. 6).

    (1/F) sum_f (I(c_k1; f) - I(c_k2; f)) / H(f), k1 and k2 the two codes with the most information about f. A code
    counts by its bin among `bins` of equal width, a factor with fractions too. For a single code the second is 0.
    Returns score, gaps [F], mutual_information [K, F] and entropies [F].
    """
    info, entropies = mutual_information(codes, factors, bins)
    ordered = np.sort(info, 0)[::-1]
    gaps = (ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)) / entropies
    return {"score": float(gaps.mean()), "gaps": gaps, "mutual_information": info, "entropies": entropies}


def modularity(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] classes or numbers
    *,
    bins: int = 20,
) -> dict[str, Any]:
    """Compute Modularity in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, eq. 2).

    Mean over codes of 1 - sum_{f != f*} I(c_k; f)^2 / (I(c_k; f*)^2 (F - 1)), f* the factor about which c_k has the
    most information; 0 for a code with none. Bins as in `mig`. A single factor gives 1 or 0. Returns score,
    per_code [K] and mutual_information [K, F].
    """
    info, _ = mutual_information(codes, factors, bins)
    informative = info.max(1) > 1e-12  # independent columns leave rounding of about 1e-16
    squared = np.square(info)
    top = np.where(informative, squared.max(1), 1.0)
    per_code = np.where(informative, 1 - (squared.sum(1) - top) / (top * max(squared.shape[1] - 1, 1)), 0.0)
    return {"score": float(per_code.mean()), "per_code": per_code, "mutual_information": info}


def mutual_information(codes: Any, factors: Any, bins: int) -> tuple[Array, Array]:
    """Return I(code k; factor f) [K, F] and the entropies H(factor f) [F]; a constant code has no information."""
    points = codes_array(codes, "codes", "N K")
    active = active_dimensions(points)[1].numpy(force=True)
    columns, classes = points.numpy(force=True).T, factors_array(factors, len(points), continuous=True)
    binned = np.stack([discretise(x, bins) if a else np.zeros(len(x), int) for x, a in zip(columns, active)])
    information, entropies = [], []
    for column, continuous in zip(classes.T, is_continuous(classes)):
        present, column = np.unique(discretise(column, bins) if continuous else column, return_inverse=True)
        cells = (np.arange(len(binned))[:, None] * bins + binned) * len(present) + column  # [K, N]
        counts = np.bincount(cells.ravel(), minlength=len(binned) * bins * len(present))
        joint = counts.reshape(len(binned), bins, len(present)) / len(points)
        entropies.append(_entropy(joint[0].sum(0)))
        information.append(_entropy(joint.sum(2)) + entropies[-1] - _entropy(joint.reshape(len(binned), -1)))
    return np.stack(information, 1).clip(min=0), np.stack(entropies)


def discretise(values: Array, bins: int) -> Array:  # [N] -> [N] int in [0, bins)
    """Return the bin of each value among `bins` of equal width, with the edges of `np.histogram`."""
    edges = np.linspace(values.min(), values.max(), bins + 1, dtype=np.result_type(values, np.float32))
    return np.digitize(values, edges[1:-1])


def _entropy(probability: Array) -> Array:  # [..., n] -> [...]
    return -(probability * np.log(np.where(probability > 0, probability, 1))).sum(-1)
