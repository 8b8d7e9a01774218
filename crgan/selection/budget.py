"""Find the medoid from fewer pairs than an exact selection, by a race against shared references."""

from collections.abc import Callable
from math import ceil, log2
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..metrics.arrays import Array
from .centrality import Sizes


class Halving(NamedTuple):
    ranking: Array  # [N] models, best first
    references: Array  # [N] models in the order in which they serve as references
    rounds: list[dict[str, int]]  # models, references and groups of each
    encodes: int  # spent


def sequential_halving(
    measure: Callable[[Array, int], Array], num_models: int, budget: float, *, sizes: Sizes, first_groups: int = 15
) -> Halving:
    """Find the medoid under A = (B + B^T) / 2 by Correlated Sequential Halving (Baharav and Tse 2019).

    In each of ceil(log2 N) rounds all models still in the race are scored on the same reference models, drawn at
    random, and the worse half leaves. References are nested, so that nothing measured is thrown away: a round first
    adds references, on `first_groups` groups each, and once all models serve as references, groups.
    `measure(pairs, groups)` returns B [N, N] with the scores of the pairs (bool [N, N]) on their first `groups` groups
    filled in. `budget` is the share in (0, 1] of the N^2 * sizes.encodes encodes of an exact selection. All groups of
    all pairs cost less, as a race needs no scale sample: a budget that pays for them takes them in one round.

    Raises InputError where the budget does not pay for 2 references in the first round.
    """
    N, first = num_models, min(first_groups, sizes.groups)
    exact = N * N * sizes.encodes
    funds, spent = budget * exact, 0
    references = np.random.default_rng(sizes.seed).permutation(N)
    done = np.zeros((N, N), np.int32)  # groups on which each pair was measured
    alive, losers, rounds = np.arange(N), np.empty(0, np.int64), []

    def plan(step: int) -> tuple[Array, int, Array, int]:
        """Return references, groups, pairs [N, N] due and cost: steps 2..N add references, later ones groups."""
        met, groups = references[:step], first + max(0, step - N)
        due = np.zeros((N, N), bool)
        due[np.ix_(alive, met)] = due[np.ix_(met, alive)] = True
        due &= (done < groups) & ~np.eye(N, dtype=bool)
        return met, groups, due, int((groups - done[due]).sum()) * sizes.group_size

    everything = N * (N - 1) * sizes.groups * sizes.group_size
    count = 1 if funds >= everything else ceil(log2(N))
    if (least := plan(2)[-1] * count) > funds:
        share = f"{min(least / exact, 1):.4f}"
        raise InputError(f"a budget of {budget:g} is too small for {N} models; expected at least {share}")
    for rounds_left in range(count, 0, -1):
        low, high = 2, N + sizes.groups - first
        while low < high:  # the furthest step that this round's share of the budget pays for
            middle = (low + high + 1) // 2
            cost = plan(middle)[-1]
            low, high = (middle, high) if cost <= (funds - spent) / rounds_left else (low, middle - 1)
        met, groups, due, cost = plan(low)
        B = measure(due, groups)
        done[due] = groups
        spent += cost
        A = (B[np.ix_(alive, met)] + B[np.ix_(met, alive)].T) / 2
        A[alive[:, None] == met] = np.nan
        # A model is not its own reference, so means miss different ones: compare relative to each reference's mean.
        order = alive[np.argsort(-np.nanmean(A - np.nanmean(A, 0), 1), kind="stable")]
        rounds.append({"models": len(alive), "references": len(met), "groups": groups})
        alive, dropped = np.split(order, [(len(order) + 1) // 2])
        losers = np.concatenate([dropped, losers])
    return Halving(np.concatenate([alive, losers]), references, rounds, spent)
