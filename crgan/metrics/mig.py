"""MIG: how far the best code of a factor is ahead of the second best."""

from typing import Any

from .arrays import codes_array, factors_array
from .information import mutual_information


def mig(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    bins: int = 20,
) -> dict[str, Any]:
    """Mutual Information Gap in [0, 1] (Chen et al. 2018, Isolating Sources of Disentanglement in VAEs, eq.
    6).

    (1/F) sum_f (I(c_k1; f) - I(c_k2; f)) / H(f), k1 and k2 the two codes that tell most about f; a code
    counts by its bin among `bins` of equal width. A single code is ahead of nothing: the second is 0. Returns
    score, gaps [F], mutual_information [K, F] and entropies [F] in nats.
    """
    codes = codes_array(codes, "codes", "N K")
    factors = factors_array(factors, codes)
    info, entropies = mutual_information(codes, factors, bins)
    ordered = info.sort(0, descending=True).values
    gaps = (ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)) / entropies
    return {
        "score": float(gaps.mean()),
        "gaps": gaps.cpu().numpy(),
        "mutual_information": info.cpu().numpy(),
        "entropies": entropies.cpu().numpy(),
    }
