"""IRS: does a code stay put when the factors that it should ignore are changed?"""

from typing import Any

import numpy as np

from .arrays import active_dimensions, codes_array, factors_array
from .information import bin_equal_width


def irs(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    quantile: float = 0.99,
    bins: int = 20,
) -> dict[str, Any]:
    """Interventional Robustness Score in [0, 1] (Suter et al. 2019, Robustly Disentangled Causal Mechanisms,
    eq. 8).

    For code k and factor f: 1 - (mean over the values of f of the `quantile` of |c_k - its mean at that
    value|) / max |c_k - mean c_k|. The score is the mean over codes of the best factor's, weighted by that
    maximum. Factors are binned into `bins` of equal width first and codes that do not vary left out, as in
    disentanglement_lib (Suter et al.: quantile 1, no bins). Returns score, per_code [K] (0 where constant),
    matrix [K, F].
    """
    codes = codes_array(codes, "codes", "N K")
    factors = bin_equal_width(factors_array(factors, codes).double(), bins)
    active = active_dimensions(codes)[1].cpu().numpy()
    x, classes = codes.double().cpu().numpy()[:, active], factors.cpu().numpy()
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    largest = np.zeros(codes.shape[1])
    if active.any():
        largest[active] = np.abs(x - x.mean(0)).max(0)
        for f, column in enumerate(classes.T):
            values = np.unique(column)
            groups = [x[column == value] for value in values]
            spread = sum(np.quantile(np.abs(g - g.mean(0)), quantile, 0) for g in groups) / len(values)
            matrix[active, f] = 1 - spread / largest[active]
    per_code = matrix.max(1)
    score = float((per_code * largest).sum() / largest.sum()) if active.any() else 0.0
    return {"score": score, "per_code": per_code, "matrix": matrix}
