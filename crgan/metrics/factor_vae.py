"""The FactorVAE score: which code stands still when one factor does."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..ops import vote_table
from .arrays import Array, Pair, Scores, active_dimensions, group_factors, tensor


def vote_score(table: Any) -> Any:  # [..., D, F] counts -> [...]
    """Return the FactorVAE score in [0, 1] of votes: the share that agree with the majority of their dimension."""
    table = np.asarray(table)
    return table.max(-1).sum(-1) / table.sum((-2, -1))


def factor_vae(
    groups: Any, factor: Any, points: Any, *, heldout: Pair | None = None, min_std: float = 0.0, ddof: int = 0
) -> Scores:
    """Compute the FactorVAE score in [0, 1] (Kim and Mnih 2018, Disentangling by Factorising, section 4).

    `groups` are codes [G, L, K]: in group g factor `factor[g]` has one value, all others vary; `points` [N, K] codes of
    random images, s_k their standard deviations. In each group the code k with the least Var_g[c_k] / s_k^2 votes;
    votes[k, f] counts them. The score is sum_k max_f votes[k, f] / G (InfoGAN-CR's original code). With `heldout`,
    further groups and factors, the majority vote of each code, f(k) = argmax_f votes[k, f], classifies these, and the
    score is its accuracy (disentanglement_lib, with ddof 1 and codes of s_k < `min_std` pruned first).

    Codes that do not vary never vote. Groups where none can vote count as the votes of one further dimension. If all
    codes are pruned the score is 0, as in disentanglement_lib, and a warning names them. Returns score, train_score,
    votes int64 [K, F], num_active, scale [K]. Raises InputError for shapes that do not agree.
    """
    groups, points = tensor(groups, "groups", "G L K"), tensor(points, "points", "N K")
    factor = group_factors(factor, groups)
    if points.shape[1] != groups.shape[2]:
        raise InputError(f"points have {points.shape[1]} codes, groups have {groups.shape[2]}; expected the same")
    scale, active = active_dimensions(points, min_std, ddof)
    voting_scale, num_factors = scale.where(active, 0.0), int(factor.max()) + 1  # one of scale 0 does not vote

    def count(groups: Tensor, factor: Tensor) -> Array:  # -> [K, F]
        return vote_table(groups, voting_scale.to(groups), factor, num_factors).long().numpy(force=True)

    votes = count(groups, factor)
    unvoted = factor.bincount().numpy(force=True) - votes.sum(0)
    train_score = score = float(vote_score(np.vstack([votes, unvoted])))
    if min_std and not active.any():
        train_score = score = 0.0
        found = ", ".join(f"{s:.3g}" for s in scale.tolist())
        warnings.warn(f"all codes have standard deviations ({found}) below {min_std}: the score is 0", stacklevel=2)
    elif heldout is not None:
        held_groups = tensor(heldout[0], "heldout groups", "G L K")
        held_votes = count(held_groups, group_factors(heldout[1], held_groups))
        majority = votes.argmax(1)  # f(k)
        score = float(held_votes[np.arange(len(votes)), majority].sum() / len(held_groups))
    scores = {"score": score, "train_score": train_score, "votes": votes, "num_active": int(active.sum())}
    return scores | {"scale": scale.numpy(force=True)}
