"""The FactorVAE score: which code stands still when one factor does."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..ops import vote_table
from .arrays import active_dimensions, codes_array, labels_array


def factor_vae(
    groups: Any,  # [G, L, K] codes; in group g factor `factor[g]` has one value, all others vary
    factor: Any,  # [G] int, index of the fixed factor
    points: Any,  # [N, K] codes of random images, for the scale of each code
    *,
    num_factors: int | None = None,
    heldout: tuple[Any, Any] | None = None,  # (groups, factor) to score on; None: the voting groups
    min_std: float = 0.0,  # codes with a smaller deviation over `points` do not vote
    ddof: int = 0,
    impl: str = "auto",
) -> dict[str, Any]:
    """FactorVAE score in [0, 1] (Kim and Mnih 2018, Disentangling by Factorising, section 4).

    In each group the code k with the least Var_g[c_k] / s_k^2 votes, s_k its deviation over `points`;
    votes[k, f] counts them. Without `heldout` the score is sum_k max_f votes[k, f] / sum votes (the original
    of InfoGAN-CR). With it, the majority vote of each code, f(k) = argmax_f votes[k, f], classifies the
    held-out groups, and the score is its accuracy there (disentanglement_lib with ddof 1, which prunes codes
    by `min_std` first).

    Codes that do not vary never vote. If none varies the score is that of always naming one factor, and 0 if
    codes are pruned by `min_std`, as in disentanglement_lib. Returns score, train_score, votes int64 [K, F]
    (as numpy), num_active, scale [K]. Raises InputError for shapes that do not agree and values that are not
    finite.
    """
    groups = codes_array(groups, "groups", "G L K")
    factor = labels_array(factor, groups)
    points = codes_array(points, "points", "N K")
    if points.shape[1] != groups.shape[2]:
        raise InputError(f"points have {points.shape[1]} codes, groups have {groups.shape[2]}; expected the same")
    num_factors = num_factors or int(factor.max()) + 1
    scale, active = active_dimensions(points, min_std, ddof)
    voting = scale.where(active, 0.0)  # a dimension of scale 0 does not vote

    def count(groups: Tensor, factor: Tensor) -> Tensor:  # -> [K, F]
        return vote_table(groups, voting.to(groups), factor, num_factors, impl=impl).long().cpu()

    votes = count(groups, factor)
    if active.any():
        train_score = score = int(votes.amax(1).sum()) / len(factor)
    else:
        train_score = score = 0.0 if min_std else int(factor.bincount().max()) / len(factor)
    if heldout is not None and active.any():
        held_groups = codes_array(heldout[0], "heldout groups", "G L K")
        held_factor = labels_array(heldout[1], held_groups, "heldout factor")
        named = votes.argmax(1, keepdim=True)
        score = int(count(held_groups, held_factor).gather(1, named).sum()) / len(held_factor)
    return {
        "score": score,
        "train_score": train_score,
        "votes": votes.numpy(),
        "num_active": int(active.sum()),
        "scale": scale.cpu().numpy(),
    }


def vote_score(table: Any) -> NDArray[Any]:  # [..., D, F] votes -> [...]
    """Return the FactorVAE score of vote tables, scored on the votes themselves: sum_d max_f votes / sum votes."""
    table = np.asarray(table)
    return table.max(-1).sum(-1) / table.sum((-2, -1))
