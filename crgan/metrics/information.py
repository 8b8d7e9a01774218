"""Metrics of dependence: MIG, Modularity and IRS between codes and factors, dHSIC among codes."""

from typing import Any

import numpy as np

from .arrays import Array, Scores, active_dimensions, fit_and_test, tensor

BINS = 20  # of codes, and of factors with fractions, as in disentanglement_lib


def mig(codes: Any, factors: Any) -> Scores:  # [N, K], [N, F] classes or numbers
    """Compute the Mutual Information Gap in [0, 1] (Chen et al. 2018, Isolating Sources of Disentanglement, eq. 6).

    (1/F) sum_f (I(c_k1; f) - I(c_k2; f)) / H(f), k1 and k2 the two codes with the most information about f. Codes,
    and factors with fractions, are discretised into 20 bins of equal width. Returns score, gaps [F],
    mutual_information [K, F] and entropies [F], in nats.
    """
    info, entropies = _mutual_information(codes, factors)
    gaps = top_gap(info) / entropies
    return {"score": float(gaps.mean()), "gaps": gaps, "mutual_information": info, "entropies": entropies}


def modularity(codes: Any, factors: Any) -> Scores:  # [N, K], [N, F] classes or numbers
    """Compute Modularity in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, eq. 2).

    Mean over codes of 1 - sum_{f != f*} I(c_k; f)^2 / (I(c_k; f*)^2 (F - 1)), f* the factor about which c_k has the
    most information; 0 for a code with none. Bins as in `mig`. A single factor gives 1 or 0. Returns score,
    per_code [K] and mutual_information [K, F].
    """
    info, _ = _mutual_information(codes, factors)
    informative = info.max(1) > 1e-12  # independent columns leave rounding of about 1e-16
    squared = np.square(info)
    top = np.where(informative, squared.max(1), 1.0)
    per_code = np.where(informative, 1 - (squared.sum(1) - top) / (top * max(squared.shape[1] - 1, 1)), 0.0)
    return {"score": float(per_code.mean()), "per_code": per_code, "mutual_information": info}


def irs(codes: Any, factors: Any) -> Scores:  # [N, K], [N, F] classes or numbers
    """Compute the Interventional Robustness Score in [0, 1] (IRS; Suter et al. 2019, eq. 8).

    For code k and factor f: 1 - (mean over the bins of f of the 0.99 quantile of |c_k - its mean in the bin|) /
    max |c_k - mean c_k|. The score averages the best factor's value over codes, weighted by that maximum. Quantile and
    bins follow disentanglement_lib. Returns score, per_code [K] (0 where constant), matrix [K, F].
    """
    x, y, *_ = fit_and_test(codes, factors)
    x = x.astype(np.float64)
    largest = np.abs(x - x.mean(0)).max(0)
    matrix = np.zeros((x.shape[1], y.shape[1]))
    for f, column in enumerate(y.T):
        binned = discretise(column)
        groups = [x[binned == value] for value in np.unique(binned)]
        spread = np.mean([np.quantile(np.abs(g - g.mean(0)), 0.99, 0) for g in groups], 0)
        matrix[:, f] = 1 - np.divide(spread, largest, out=np.ones_like(spread), where=largest > 0)
    per_code = matrix.max(1)
    return {"score": float(per_code @ largest / (largest.sum() or 1)), "per_code": per_code, "matrix": matrix}


def dhsic(codes: Any) -> Scores:  # [n, K]
    """Compute the d-variable Hilbert-Schmidt independence criterion (Pfister et al. 2018, eq. 3).

    Independent codes have 0. With k_j(a, b) = exp(-|a - b| / h_j^2), h_j the median of |a - b| over all pairs of the n
    rows of code j (k = 1 if constant): mean_ab prod_j k_j + prod_j mean_ab k_j - 2 mean_a prod_j mean_b k_j, as the
    original code of InfoGAN-CR has it. Needs memory for three matrices [n, n]. Returns score and terms [3].
    """
    points = tensor(codes, "codes", "n K").cpu().double()
    joint, rows = points.new_ones(len(points), len(points)), [points.new_ones(len(points))]
    for x in points.T[active_dimensions(points)[1]]:
        distance = (x[:, None] - x).abs_()
        width = float(np.median(distance)) ** 2
        # The limit of width 0, where most pairs are ties, is the indicator of a tie.
        kernel = distance.div_(-width).exp_() if width > 0 else (distance == 0).double()
        joint *= kernel
        rows.append(kernel.mean(1))
    means = np.stack(rows)  # [1 + K, n]
    terms = np.array([float(joint.mean()), means.mean(1).prod(), -2 * means.prod(0).mean()])
    return {"score": float(terms.sum()), "terms": terms}


def _mutual_information(codes: Any, factors: Any) -> tuple[Array, Array]:
    """Return I(code k; factor f) [K, F] and the entropies H(factor f) [F]; a constant code has no information."""
    x, y, *_ = fit_and_test(codes, factors)
    binned = [discretise(column) for column in x.T]
    information, entropies = np.zeros((x.shape[1], y.shape[1])), np.zeros(y.shape[1])
    for f, column in enumerate(y.T):
        classes = discretise(column) if (column != column.round()).any() else column
        present, index = np.unique(classes, return_inverse=True)
        entropies[f] = entropy(np.bincount(index) / len(x))
        for k, bins in enumerate(binned):
            counts = np.bincount(bins * len(present) + index, minlength=BINS * len(present))
            joint = counts.reshape(BINS, len(present)) / len(x)
            information[k, f] = entropy(joint.sum(1)) + entropies[f] - entropy(joint.ravel())
    return information.clip(min=0), entropies


def discretise(values: Array) -> Array:  # [N] -> [N] int in [0, BINS)
    """Return the bin of each value among those of equal width, with the edges of `np.histogram`."""
    edges = np.linspace(values.min(), values.max(), BINS + 1, dtype=values.dtype)
    return np.digitize(values, edges[1:-1])


def entropy(probability: Array) -> Array:  # [..., n] -> [...], in nats
    return -(probability * np.log(np.where(probability > 0, probability, 1))).sum(-1)


def top_gap(matrix: Array) -> Array:  # [K, F], none negative -> [F]
    """Return how far the best code of each factor is ahead of the second best, or of 0 where there is only one."""
    ranked = np.sort(np.vstack([matrix, np.zeros(matrix.shape[1])]), 0)
    return ranked[-1] - ranked[-2]
