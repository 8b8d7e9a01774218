"""IRS: does a code stay put when the factors that it should ignore are changed?"""

from typing import Any

import numpy as np

from .arrays import active_dimensions, codes_array, factors_array
from .mutual_information import discretise


def irs(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] classes or numbers
    *,
    quantile: float = 0.99,
    bins: int = 20,
) -> dict[str, Any]:
    """Compute the Interventional Robustness Score in [0, 1] (Suter et al. 2019, Robustly Disentangled Causal
    Mechanisms, eq. 8).

    For code k and factor f: 1 - (mean over the values of f of the `quantile` of |c_k - its mean at that value|) /
    max |c_k - mean c_k|. The score is the mean over codes of the best factor's, weighted by that maximum. As in
    disentanglement_lib, factors are binned into `bins` of equal width first and constant codes left out (Suter et al.:
    quantile 1, no bins). Returns score, per_code [K] (0 where constant), matrix [K, F].
    """
    points = codes_array(codes, "codes", "N K")
    y = factors_array(factors, len(points), continuous=True)
    active = active_dimensions(points)[1].numpy(force=True)
    x = points.double().numpy(force=True)[:, active]
    matrix = np.zeros((len(active), y.shape[1]))
    largest = np.zeros(len(active))
    if active.any():
        largest[active] = np.abs(x - x.mean(0)).max(0)
        for f, column in enumerate(y.T):
            binned = discretise(column, bins)
            groups = [x[binned == value] for value in np.unique(binned)]
            spread = np.mean([np.quantile(np.abs(g - g.mean(0)), quantile, 0) for g in groups], 0)
            matrix[active, f] = 1 - spread / largest[active]
    per_code = matrix.max(1)
    score = float((per_code * largest).sum() / largest.sum()) if active.any() else 0.0
    return {"score": score, "per_code": per_code, "matrix": matrix}
