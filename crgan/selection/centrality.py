"""ModelCentrality (Lin et al. 2020, InfoGAN-CR, section 4): the best model of a pool without labels.

Models that disentangle well agree with each other. B[i, j] is the FactorVAE score of encoder i on images of
generator j, whose codes serve as the factors; the medoid of the pool under that similarity is chosen:

    A = (B + B^T) / 2        s_i = mean_{j != i} A[i, j]        choose argmax_i s_i
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..loading import LoadedModel
from ..metrics import vote_score
from .votes import Array, Partial, Progress, Sizes, exact_votes, race_votes


def similarity(B: Array) -> Array:
    """Return A = (B + B^T) / 2 [N, N], symmetric, of the scores B [N, N] in [0, 1] that `cross_scores` gives."""
    B = np.asarray(B)
    return (B + B.T) / 2


def model_centrality(A: Array) -> Array:
    """Return s [N] in [0, 1], each model's mean similarity A [N, N] to the others: the largest marks the medoid.

    Raises InputError where A is not [N, N] of two models or more, and where a pair was not measured (NaN).
    """
    A = np.asarray(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) < 2:
        raise InputError(f"the similarity has shape {list(A.shape)}; expected [N, N] of 2 models or more")
    others = ~np.eye(len(A), dtype=bool)
    if np.isnan(A[others]).any():
        raise InputError("the similarity holds NaN, pairs not measured; ranking.json has the scores of such a pool")
    return A.sum(1, where=others) / (len(A) - 1)  # subtracting the diagonal would part equals by rounding


def cross_scores(
    models: Sequence[Any] | Mapping[str, Any],
    *,
    groups: int = 500,
    group_size: int = 100,
    scale_samples: int = 73_728,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = lambda encodes: None,
) -> Array:
    """Compute B [N, N] float64: B[i, j] in [0, 1] is the FactorVAE score of encoder i on generator j.

    `models`, a sequence or a mapping of names to models, are any objects with `sample(n, seed)`, `generate(codes)` and
    `encode(images)` (docs/models.md); their code sizes may differ. Group m of generator j holds code m mod K_j at
    one random value and draws all else anew for each image; its label is that code. Encoder i's codes are divided by
    their standard deviation (ddof 0) on `scale_samples` unconditional images of j, the dimension with the least
    variance in a group votes, and B[i, j] = sum_d max_f votes[d, f] / groups. Groups where no dimension can vote
    (collapsed codes, NaN) count as the votes of one further dimension, so that a broken encoder scores chance, never
    NaN.

    Each image is made once for up to 64 encoders and stays on its device; codes are kept for one generator at a time.
    The draws for generator j depend on the seed and j's cache key alone: a larger pool repeats every value of a smaller
    one. Torch modules are in eval mode meanwhile. `batch_size` is the number of images encoded at once.
    Raises InputError for fewer than 2 models, images of unlike shape, and models that break the contract.
    """
    named = models if isinstance(models, Mapping) else {f"models[{i}]": model for i, model in enumerate(models)}
    loaded = [LoadedModel(str(name), model) for name, model in named.items()]
    pool = Pool(loaded, Sizes(groups, group_size, scale_samples, seed), batch_size, progress)
    pool.measure_all()
    return pool.B


# ---------------------------------------------------------------- all pairs


def vote_tables(votes: Array, num_codes: int, num_factors: int) -> Array:
    """Count votes [n, M] (-1: none), where group m held code m mod num_factors: [n, num_codes + 1, num_factors].

    The last row counts the groups in which no dimension could vote.
    """
    n, rows = len(votes), num_codes + 1
    factor = np.arange(votes.shape[1]) % num_factors
    index = (np.arange(n)[:, None] * rows + votes % rows) * num_factors + factor
    return np.bincount(index.ravel(), minlength=n * rows * num_factors).reshape(n, rows, num_factors)


def pool_votes(
    keys: Sequence[str], exact: Mapping[tuple[str, str], Array], race: Mapping[tuple[str, str], Partial]
) -> dict[tuple[int, int], Array]:
    """Return the votes [m] behind each measured pair of a pool: the exact ones if all are known, else the race's."""
    pairs = {(i, j): (encoder, generator) for i, encoder in enumerate(keys) for j, generator in enumerate(keys)}
    if all(pair in exact for pair in pairs.values()):
        return {rows: exact[pair] for rows, pair in pairs.items()}
    return {rows: race[pair].votes for rows, pair in pairs.items() if pair in race}


class Pool:
    """The models of a pool and the votes known of each ordered pair.

    Votes are found by the cache keys (encoder, generator), so that they serve other pools too. Those by the scale
    sample (`exact`) and those of a race, which are fewer and by another scale (`race`), are kept apart.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        sizes: Sizes,
        batch_size: int | None = None,
        progress: Progress = lambda encodes: None,
    ):
        if len(models) < 2:
            raise InputError(f"a selection needs at least 2 models, got {len(models)}")
        for model in models[1:]:
            if model.image_shape != models[0].image_shape:
                raise InputError(
                    f"{models[0].name} makes images {list(models[0].image_shape)} and {model.name} "
                    f"{list(model.image_shape)}; expected one shape, as each encodes the other's"
                )
        self.models, self.sizes, self.batch_size, self.progress = list(models), sizes, batch_size, progress
        self.keys, self.device = [model.cache_key for model in models], str(models[0].device)
        self.exact: dict[tuple[str, str], Array] = {}
        self.race: dict[tuple[str, str], Partial] = {}
        self.B = np.full((len(models), len(models)), np.nan)
        self.on_votes: Callable[[], None] = lambda: None  # called when votes were added

    def due(self) -> dict[int, list[int]]:
        """Return the generators, each with the encoders, whose exact votes are not known."""
        missing = {
            j: [i for i, encoder in enumerate(self.keys) if (encoder, generator) not in self.exact]
            for j, generator in enumerate(self.keys)
        }
        return {j: encoders for j, encoders in missing.items() if encoders}

    def measure_all(self) -> None:
        """Fill in the exact matrix, generator by generator."""
        for i, j, votes in self._exact(self.due()):
            self.exact[self.keys[i], self.keys[j]] = votes
        for (i, j), votes in self.votes().items():
            self.B[i, j] = self._score(i, j, votes)

    def measure(self, j: int, encoders: Sequence[int], groups: int) -> Array:
        """Measure `encoders` on the first `groups` groups of generator j, as a race does; return their B[:, j]."""
        held = {i: self.race.get((self.keys[i], self.keys[j])) for i in encoders}
        done = {i: len(partial.votes) if partial else 0 for i, partial in held.items()}
        for start in sorted({count for count in done.values() if count < groups}):
            due = [i for i in encoders if done[i] == start]
            for i, partial in zip(due, self._race(j, due, [held[i] for i in due], groups)):
                self.race[self.keys[i], self.keys[j]] = partial
            self.on_votes()
        for i in encoders:
            self.B[i, j] = self._score(i, j, self.race[self.keys[i], self.keys[j]].votes[:groups])
        return self.B[list(encoders), j]

    def votes(self) -> dict[tuple[int, int], Array]:
        return pool_votes(self.keys, self.exact, self.race)

    def _score(self, i: int, j: int, votes: Array) -> float:
        return float(vote_score(vote_tables(votes[None], self.models[i].num_codes, self.models[j].num_codes))[0])

    def _exact(self, due: dict[int, list[int]]) -> Iterator[tuple[int, int, Array]]:
        """Yield (encoder, generator, votes)."""
        for j, encoders in due.items():
            models = [self.models[i] for i in encoders]
            votes = exact_votes(self.models[j], models, self.sizes, self.batch_size, self.progress)
            yield from ((i, j, found) for i, found in zip(encoders, votes))
            self.on_votes()

    def _race(self, j: int, encoders: list[int], before: list[Partial | None], groups: int) -> list[Partial]:
        models = [self.models[i] for i in encoders]
        return race_votes(self.models[j], models, before, groups, self.sizes, self.batch_size, self.progress)
