"""dHSIC: are the codes jointly independent?"""

from typing import Any

import numpy as np

from .arrays import Array, active_dimensions, codes_array


def dhsic(
    codes: Any,  # [n, K]
) -> dict[str, Any]:
    """Compute the d-variable Hilbert-Schmidt independence criterion (Pfister et al. 2018, eq. 3).

    Independent codes have 0. With k_j(a, b) = exp(-|a - b| / h_j^2), h_j the median of |a - b| over all pairs of the n
    rows of code j: mean_ab prod_j k_j + prod_j mean_ab k_j - 2 mean_a prod_j mean_b k_j, as the original code of
    InfoGAN-CR has it. A constant code has k = 1. Needs memory for three matrices [n, n]. Returns score
    and terms [3].
    """
    points = codes_array(codes, "codes", "n K")
    joint = np.ones((len(points), len(points)))
    rows = []
    for x in points.double().numpy(force=True).T[active_dimensions(points)[1].numpy(force=True)]:
        distance = np.abs(x[:, None] - x)
        width = _median(distance) ** 2
        kernel = np.exp(distance / -width) if width > 0 else (distance == 0).astype(float)  # the limit, for many ties
        joint *= kernel
        rows.append(kernel.mean(1))
    means = np.stack(rows) if rows else np.ones((1, len(points)))  # [K, n]
    terms = np.array([joint.mean(), means.mean(1).prod(), -2 * means.prod(0).mean()])
    return {"score": float(terms.sum()), "terms": terms}


def _median(distance: Array) -> float:
    """Return the median of a distance matrix [n, n] from one half of it, in a quarter of the time of `np.median`."""
    n = len(distance)
    ranks = np.array([(n * n - 1) // 2, n * n // 2])  # sorted, n zeros come first and then each pair twice
    pairs = distance[np.tri(n, k=-1, dtype=bool)]
    places = np.maximum(ranks - n, 0) // 2
    return float(np.where(ranks < n, 0, np.partition(pairs, places)[places]).mean()) if n > 1 else 0.0
