"""Modularity: does each code tell about one factor only?"""

from typing import Any

import torch

from .arrays import codes_array, factors_array
from .information import mutual_information


def modularity(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    bins: int = 20,
) -> dict[str, Any]:
    """Modularity in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, section 3, eq.
    2).

    Mean over codes of 1 - sum_{f != f*} I(c_k; f)^2 / (I(c_k; f*)^2 (F - 1)), f* the factor that c_k tells
    most about; 0 for a code that tells nothing. I by `bins` bins of equal width. One factor alone scores 1 or
    0. Returns score, per_code [K] and mutual_information [K, F] in nats.
    """
    codes = codes_array(codes, "codes", "N K")
    factors = factors_array(factors, codes)
    info, _ = mutual_information(codes, factors, bins)
    squared = info.square()
    top = squared.amax(1)
    rest = (squared.sum(1) - top) / (top * max(squared.shape[1] - 1, 1))
    # Independent arrays leave rounding of about 1e-16 nats, a constant code exactly nothing to tell.
    per_code = torch.where(info.amax(1) > 1e-12, 1 - rest, 0.0)
    return {
        "score": float(per_code.mean()),
        "per_code": per_code.cpu().numpy(),
        "mutual_information": info.cpu().numpy(),
    }
