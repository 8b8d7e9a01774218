"""ModelCentrality (Lin et al. 2020, InfoGAN-CR, section 4): the best model of a pool without labels.

Models that disentangle well agree with each other. B[i, j] is the FactorVAE score of encoder i on images of
generator j, whose codes serve as the factors; the medoid of the pool under that similarity is chosen:

    A = (B + B^T) / 2        s_i = mean_{j != i} A[i, j]        choose argmax_i s_i
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import erf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import exact_arithmetic
from ..errors import InputError
from ..loading import Member
from ..metrics.arrays import varies
from ..ops import vote_table
from ..threads import core_each

Array = NDArray[Any]
POINTS_BLOCK = 256  # images of the scale sample drawn with one seed


@dataclass(frozen=True)
class Sizes:
    """How much is drawn for each generator. The defaults are the paper's: 123,728 images."""

    groups: int = 500  # M; group m holds code m mod K at one value
    group_size: int = 100  # L images in each
    scale_samples: int = 73_728  # R images without a held code, for the standard deviation of each dimension
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("group_size", 2), ("scale_samples", 2), ("seed", 0)):
            if (value := getattr(self, name)) < least or value != int(value):
                raise InputError(f"{name} is {value}, expected a whole number of at least {least}")
        if self.seed >= 2**31:
            raise InputError(f"seed is {self.seed}, expected a number below 2^31")

    def scale_for(self, groups: Any) -> Any:
        """Images of the scale sample that go with the first `groups` groups; elementwise on arrays.

        All with all groups. With fewer, half of the groups' images: a deviation from 1,000 images is right to 1.5 %,
        where the deviation inside a group of 100 is right to 7 %.
        """
        fewer = np.minimum(groups * self.group_size // 2 + 1, self.scale_samples)
        return np.where(np.asarray(groups) >= self.groups, self.scale_samples, fewer)

    def encodes(self, groups: Any) -> Any:
        """Images that one ordered pair encodes for its first `groups` groups; elementwise on arrays."""
        return groups * self.group_size + np.where(np.asarray(groups) > 0, self.scale_for(groups), 0)


def similarity(B: Array) -> Array:
    """A = (B + B^T) / 2 [N, N], symmetric, of the scores B [N, N] in [0, 1] that `cross_scores` gives."""
    B = np.asarray(B)
    return (B + B.T) / 2


def model_centrality(A: Array) -> Array:
    """s [N] in [0, 1], each model's mean similarity A [N, N] to the others: the largest marks the medoid.

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
    progress: Callable[[int], None] = lambda encodes: None,
) -> Array:
    """B [N, N] float64: B[i, j] in [0, 1] is the FactorVAE score of encoder i on generator j.

    `models`, a sequence or a mapping of names to models, are any objects with `sample(n, seed)`, `generate(codes)` and
    `encode(images)` (docs/selection.md); their code sizes may differ. Group m of generator j holds code m mod K_j at
    one random value and draws all else anew for each image; its label is that code. Encoder i's codes are divided by
    their standard deviation (ddof 0) on `scale_samples` unconditional images of j, the dimension with the least
    variance in a group votes, and B[i, j] = sum_d max_f votes[d, f] / groups. Groups where no dimension can vote
    (collapsed codes, NaN) count as the votes of one further dimension, so that a broken encoder scores chance, never
    NaN.

    Each image is made once and stays on its device; memory does not grow with the sizes. The draws for generator
    j depend on the seed and j's weights alone: a larger pool repeats every value of a smaller one. Torch modules are
    left in eval mode.
    `batch_size` is the number of images encoded at once; `progress` is told the encodes after each batch.
    Raises InputError for fewer than 2 models, images of unlike shape, and models that break the contract.
    """
    sizes = Sizes(groups, group_size, scale_samples, seed)
    named = models if isinstance(models, Mapping) else {f"models[{i}]": model for i, model in enumerate(models)}
    members = [Member(name, model) for name, model in named.items()]
    pool = Pool(members, sizes, batch_size=batch_size, progress=progress)
    pool.measure_all()
    return pool.B


class Pair:
    """Encoder i on generator j, so far: the moments of its codes on the scale sample, and its vote in each group."""

    def __init__(self) -> None:
        self.count = 0
        # [K] float64, m2 the sum of squared deviations: tensors while codes come in, arrays before and after.
        self.mean: Any = None
        self.m2: Any = None
        self.least_count = 0  # images in the scale sample behind the first votes
        self.done = 0  # groups that have voted
        self._votes: list[Any] = []

    def add_points(self, codes: Tensor) -> None:  # [n, K]
        """Merges a batch into the moments (Chan et al. 1979); a constant code keeps a deviation of exactly 0."""
        x = codes.double()
        first, n = x[0], len(x)
        mean = first + (x - first).mean(0)
        m2 = (x - mean).square().sum(0)
        if self.mean is None:
            self.count, self.mean, self.m2 = n, mean, m2
            return
        total, delta = self.count + n, mean - self.mean
        m2 = self.m2 + m2 + delta.square() * (self.count * n / total)
        mean = self.mean + delta * (n / total)
        self.count, self.mean, self.m2 = total, mean, m2  # at once: what Ctrl-C leaves is saved

    def add_groups(self, codes: Tensor) -> None:  # [G, L, K]
        scale = (self.m2 / self.count).sqrt()
        scale = scale.where(varies(scale, self.mean), 0.0)
        scale = scale.to(codes.device, torch.promote_types(codes.dtype, torch.float32))
        zero = torch.zeros(1, dtype=torch.int64, device=codes.device)
        table = vote_table(codes[:, None], scale, zero, 1)[..., 0]  # [G, K], one 1 in each row, or none
        self.least_count = self.least_count or self.count
        self._votes.append(torch.where(table.any(1), table.argmax(1), -1).to(torch.int16))
        self.done += len(codes)

    @property
    def votes(self) -> Array:  # [done] int16, -1: none
        if len(self._votes) != 1 or isinstance(self._votes[0], Tensor):
            parts = [torch.as_tensor(part).cpu().numpy() for part in self._votes]
            self._votes = [np.concatenate([np.empty(0, np.int16), *parts])]
        return self._votes[0]

    @classmethod
    def restore(cls, count: int, least_count: int, mean: Array, m2: Array, votes: Array) -> "Pair":
        pair = cls()
        pair.count, pair.least_count, pair.mean, pair.m2 = count, least_count, mean, m2
        pair.done, pair._votes = len(votes), [votes.astype(np.int16)]
        return pair

    def wake(self, device: torch.device | str) -> None:
        if self.mean is not None:
            self.mean, self.m2 = (torch.as_tensor(x, device=device) for x in (self.mean, self.m2))

    def settle(self) -> None:
        """Into arrays: a small tensor that stays among those of the batches would keep their memory from reuse."""
        self.mean, self.m2 = (torch.as_tensor(x).cpu().numpy().copy() for x in (self.mean, self.m2))
        self._votes = [self.votes.copy()]


def vote_tables(votes: Array, factor: Array, num_codes: int, num_factors: int) -> Array:
    """votes [n, M] (-1: none) in groups of `factor` [M] -> counts [n, num_codes + 1, num_factors].

    The last row counts the groups in which no dimension could vote.
    """
    n, rows = len(votes), num_codes + 1
    index = (np.arange(n)[:, None] * rows + votes % rows) * num_factors + factor
    return np.bincount(index.ravel(), minlength=n * rows * num_factors).reshape(n, rows, num_factors)


def factor_score(tables: Array) -> Array:  # [..., K + 1, F] counts -> [...] in [0, 1]
    return tables.max(-1).sum(-1) / tables.sum((-2, -1))


class Pool:
    """The models of a pool, what is known of each ordered pair, and `measure`, which makes more of it known."""

    def __init__(
        self,
        members: Sequence[Member],
        sizes: Sizes,
        *,
        batch_size: int | None = None,
        progress: Callable[[int], None] = lambda encodes: None,
    ):
        if len(members) < 2:
            raise InputError(f"a selection needs at least 2 models, got {len(members)}")
        for member in members[1:]:
            if member.image_shape != members[0].image_shape:
                raise InputError(
                    f"{members[0].name} makes images {list(members[0].image_shape)} and {member.name} "
                    f"{list(member.image_shape)}; expected one shape, as each encodes the other's"
                )
        self.members, self.sizes, self.batch_size, self.progress = list(members), sizes, batch_size, progress
        self.device = str(members[0].device)  # that encodes
        self.pairs: dict[tuple[int, int], Pair] = {}
        gpus = [member.device for member in members if member.device.type == "cuda"]
        if gpus:  # a thread on the caller's stream, which reads what it makes
            self.threads = core_each(1, partial(torch.cuda.set_stream, torch.cuda.current_stream(gpus[0])))
        else:
            self.threads = core_each(torch.get_num_threads())
        self.B = np.full((len(members), len(members)), np.nan)

    def __len__(self) -> int:
        return len(self.members)

    def factor(self, j: int) -> Array:  # [M]
        return np.arange(self.sizes.groups) % self.members[j].num_codes

    def drop_coarse(self) -> None:
        """Forgets pairs that voted by a part of the scale sample: the exact matrix has no use for them."""
        exact = self.sizes.scale_samples
        self.pairs = {key: pair for key, pair in self.pairs.items() if not pair.done or pair.least_count == exact}

    def complete(self) -> bool:
        """Whether all is known that the exact matrix takes."""
        exact = self.sizes.groups, self.sizes.scale_samples
        known = [(pair.done, pair.least_count) == exact for pair in self.pairs.values()]
        return len(known) == len(self) ** 2 and all(known)

    def measure_all(self) -> None:
        """The exact matrix."""
        self.drop_coarse()
        for j in range(len(self)):
            self.measure(j, range(len(self)), self.sizes.groups)

    @exact_arithmetic()  # scores do not hang on the caller's settings
    def measure(self, j: int, encoders: Iterable[int], groups: int) -> Array:
        """Brings each of `encoders` up to the first `groups` groups of generator j; returns their B[:, j]."""
        encoders = list(encoders)
        pairs = {i: self.pairs.setdefault((i, j), Pair()) for i in encoders}
        due = {i: pair for i, pair in pairs.items() if pair.done < groups}
        for i, pair in due.items():
            pair.wake(self.members[i].device)
        self._encode(j, due, groups)
        for i in due:
            self.pairs[i, j].settle()
        for i in encoders:
            self.B[i, j] = factor_score(self.table(i, j, groups))
        return self.B[encoders, j]

    def table(self, i: int, j: int, groups: int | None = None) -> Array:
        """Vote table [K_i + 1, K_j] of the first `groups` groups, or of all so far."""
        votes = self.pairs[i, j].votes[None, :groups]
        factor = self.factor(j)[: votes.shape[1]]
        return vote_tables(votes, factor, self.members[i].num_codes, self.members[j].num_codes)[0]

    def _encode(self, j: int, pairs: dict[int, Pair], groups: int) -> None:
        """Images outside, encoders inside; a pair that has seen the first part of a chunk encodes the rest."""
        batch = self.batch_size or (4096 if self.members[j].device.type == "cuda" else 2 * POINTS_BLOCK)
        points, span = int(self.sizes.scale_for(groups)), POINTS_BLOCK * max(1, batch // POINTS_BLOCK)
        seen = {i: pair.count for i, pair in pairs.items()}
        for i, codes in self._codes(j, self._points, seen, points, span):
            pairs[i].add_points(codes)
        size = self.sizes.group_size
        seen = {i: pair.done * size for i, pair in pairs.items()}
        for i, codes in self._codes(j, self._groups, seen, groups * size, max(1, batch // size) * size):
            pairs[i].add_groups(codes.unflatten(0, (-1, size)))

    def _codes(
        self,
        j: int,
        make: Callable[[int, int, int], Tensor],  # (j, start, stop) -> images [stop - start, C, H, W]
        seen: dict[int, int],  # images that each encoder has had
        total: int,
        span: int,  # images in a chunk
    ) -> Iterator[tuple[int, Tensor]]:
        """(i, codes that encoder i gives to what it has not seen of generator j's images), chunk by chunk.

        The next chunk is made while one is encoded, and on a CPU the encoders run side by side, a core to each:
        that keeps cores busy which the layers of one small network would not.
        """
        least = min(seen.values(), default=total)
        chunks = [(n, min(n + span, total)) for n in range(least // span * span, total, span) if least < total]
        make_ahead = (self.threads.submit(make, j, *chunk) for chunk in chunks)
        made = next(make_ahead, None)
        for start, stop in chunks:
            assert made is not None
            images, made = made.result(), next(make_ahead, None)

            @torch.inference_mode()
            def encode(i: int, images: Tensor = images, start: int = start) -> Tensor:
                return self.members[i].encode(images[max(0, seen[i] - start) :])

            due = [i for i, count in seen.items() if count < stop]
            for i, codes in zip(due, self.threads.map(encode, due)):
                self.progress(len(codes))
                yield i, codes

    @torch.inference_mode()
    def _points(self, j: int, start: int, stop: int) -> Tensor:
        """Images [stop - start, C, H, W] of the scale sample of generator j."""
        size = self.sizes.scale_samples
        blocks = range(start, stop, POINTS_BLOCK)
        draws = [self.members[j].sample(min(POINTS_BLOCK, size - b), self._seed(j, "points", b)) for b in blocks]
        if start == 0:
            self.members[j].check_range(draws[0])
        return torch.cat(draws)[: stop - start]

    @torch.inference_mode()
    def _groups(self, j: int, start: int, stop: int) -> Tensor:
        """Images [stop - start, C, H, W] of some groups of generator j."""
        size = self.sizes.group_size
        return torch.cat([self._group(j, m) for m in range(start // size, stop // size)])

    def _group(self, j: int, m: int) -> Tensor:
        """Images [L, C, H, W] of group m of generator j."""
        generator = self.members[j]
        draw = torch.Generator().manual_seed(self._seed(j, "group", m))
        shape = (self.sizes.group_size, generator.num_codes)
        codes = torch.randn(shape, generator=draw) if generator.normal else torch.rand(shape, generator=draw) * 2 - 1
        held = m % generator.num_codes
        codes[:, held] = codes[0, held].clone()
        return generator.generate(codes, self._seed(j, "noise", m))

    def _seed(self, j: int, stream: str, block: int) -> int:
        """A 32-bit seed: every library's generator takes one."""
        text = f"{self.sizes.seed} {self.members[j].fingerprint} {stream} {block}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


# ---------------------------------------------------------------- how sure the choice is


def bootstrap(pool: Pool, mask: Array, replicates: int = 200) -> Array:
    """Centrality [replicates, N] with each group of a generator taken Poisson(1) times, for all its encoders alike.

    Model i's mean goes over the models j with mask[i, j] (symmetric).
    """
    total = np.zeros((replicates, len(pool)))
    for j in map(int, np.flatnonzero(mask.any(0))):
        rng, factor, F = np.random.default_rng([pool.sizes.seed, j]), pool.factor(j), pool.members[j].num_codes
        weights = rng.poisson(1, (replicates, len(factor))).astype(np.float32)
        for i in map(int, np.flatnonzero(mask[:, j])):
            m, rows = pool.pairs[i, j].done, pool.members[i].num_codes + 1
            cell = pool.pairs[i, j].votes.astype(np.int64) % rows * F + factor[:m]
            cells, place = np.unique(cell, return_inverse=True)  # those of the vote table that are not 0
            drawn = weights[:, :m]
            drawn = np.where(drawn.any(1, keepdims=True), drawn, 1)  # where none of a few groups was: all of them
            counts = drawn @ np.eye(len(cells), dtype=np.float32)[place]  # [replicates, cells]
            first = np.flatnonzero(np.diff(cells // F, prepend=-1))  # of each row of the table
            score = np.maximum.reduceat(counts, first, axis=1).sum(1) / counts.sum(1)
            total[:, i] += score / 2
            total[:, j] += score / 2
    return total / np.maximum(mask.sum(1), 1)


def confidence_gap(pool: Pool, winner: int, runner_up: int) -> dict[str, float]:
    """How far the winner's centrality is ahead of the runner-up's by the models that both have met: `gap`, its
    `standard_error`, and `confidence`, the probability that the winner is the better, by the normal approximation.

    What the two score on each other is the same for both and counts as such. The error joins the draw of the groups
    (bootstrap) and, if not all models were met, that of the references.
    """
    A, both = similarity(pool.B), np.array([winner, runner_up])
    others = np.setdiff1d(np.arange(len(pool)), both)
    met = others[np.isfinite(A[np.ix_(both, others)]).all(0)]
    if not len(met):
        return {"gap": 0.0, "standard_error": 0.0, "confidence": 0.5}
    difference = A[winner, met] - A[runner_up, met]
    mask = np.zeros(A.shape, bool)
    mask[np.ix_(both, met)] = True
    resampled = bootstrap(pool, mask | mask.T)
    variance = (resampled[:, winner] - resampled[:, runner_up]).var()
    if 1 < len(met) < len(others):
        variance += (1 - len(met) / len(others)) * difference.var(ddof=1) / len(met)
    shared = len(met) / (len(met) + 1)
    gap, error = float(difference.mean()) * shared, float(variance**0.5) * shared
    return {"gap": gap, "standard_error": error, "confidence": 0.5 * (1 + erf(gap / (error or 1e-12) / 2**0.5))}


def split(A: Array, margin: float = 0.2) -> tuple[Array, float] | None:
    """Two clusters that agree only within themselves, or None; the medoid of such a pool says little.

    `A` [N, n] holds the similarity to n reference models, the first columns of the pool's matrix in the order of
    its rows (NaN: not known). The leading singular vector of the doubly centred matrix parts the pool. Returns the
    membership [N] and the lead of the mean similarity inside the looser cluster over that across, if each cluster
    has 2 models and a tenth of the pool, and the lead is at least `margin`. Models that agree with nobody form none.
    """
    N, n = A.shape
    A = A.copy()
    A[np.arange(n), np.arange(n)] = np.nan
    X = A - np.nanmean(A, 0) - np.nanmean(A, 1, keepdims=True) + np.nanmean(A)
    U, _, _ = np.linalg.svd(np.nan_to_num(X), full_matrices=False)
    side = U[:, 0] > 0
    if min(side.sum(), N - side.sum()) < max(2, N / 10) or not 0 < side[:n].sum() < n:
        return None
    inside = min(np.nanmean(A[side][:, side[:n]]), np.nanmean(A[~side][:, ~side[:n]]))
    across = (np.nansum(A[side][:, ~side[:n]]) + np.nansum(A[~side][:, side[:n]])) / (side[:, None] != side[:n]).sum()
    lead = float(inside - across)
    return (side, lead) if lead >= margin else None
