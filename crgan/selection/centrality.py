"""ModelCentrality (Lin et al. 2020, InfoGAN-CR, section 4): the best model of a pool without labels.

Models that disentangle well agree with each other. B[i, j] is the FactorVAE score of encoder i on images of
generator j, whose codes serve as the factors; the medoid of the pool under that similarity is chosen:

    A = (B + B^T) / 2        s_i = mean_{j != i} A[i, j]        choose argmax_i s_i
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..device import exact_arithmetic
from ..errors import InputError
from ..loading import LoadedModel, draw_codes, eval_mode, open_models
from ..metrics import vote_score
from ..metrics.arrays import Array, varies
from ..ops import group_votes

Progress = Callable[[int], None]  # called with the number of images encoded since the last call
POINTS_BLOCK = 256  # images of the scale sample that are drawn with one seed
ENCODERS_BLOCK = 64  # encoders whose codes are in memory at a time


def similarity(B: Array) -> Array:
    """Return A = (B + B^T) / 2 [N, N], symmetric, from the scores B [N, N] in [0, 1] that `cross_scores` returns."""
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
    return A.sum(1, where=others) / (len(A) - 1)  # subtracting the diagonal could break ties by rounding


def cross_scores(
    models: Sequence[Any] | Mapping[str, Any],
    *,
    groups: int = 500,
    group_size: int = 100,
    scale_samples: int = 73_728,
    seed: int = 0,
    batch_size: int | None = None,
) -> Array:
    """Compute B [N, N] float64: B[i, j] in [0, 1] is the FactorVAE score of encoder i on generator j.

    `models`, a sequence or a mapping of names to models, are any objects with `sample(n, seed)`, `generate(codes)` and
    `encode(images)` (docs/models.md), or RUN arguments; their num_codes may differ. Group m of generator j holds code
    m mod K_j at one random value and draws all else anew for each image; its label is that code. Encoder i's codes are
    divided by their standard deviation (ddof 0) on `scale_samples` unconditional images of j, the dimension with the
    least variance in a group votes, and B[i, j] = sum_d max_f votes[d, f] / groups. Groups where no dimension can vote
    (collapsed codes, NaN) count as the votes of one further dimension, so that a broken encoder scores chance, never
    NaN.

    The draws for generator j depend on the seed and j's cache key alone: a larger pool repeats every value of a smaller
    one. Torch modules are in eval mode meanwhile. `batch_size` is the number of images encoded at once.
    Raises InputError for fewer than 2 models, one model twice, images of unequal shape, and models that break the
    contract.
    """
    sizes = Sizes(groups, group_size, scale_samples, seed)
    pool = Pool(open_models(models), sizes, batch_size)
    return pool.measure(np.ones_like(pool.B, bool))


@dataclass(frozen=True)
class Sizes:
    """How much is drawn for each generator. The defaults are the paper's: 123,728 images."""

    groups: int = 500  # Groups of images, M; group m holds code m mod K at one value.
    group_size: int = 100  # Images in a group, L.
    scale_samples: int = 73_728  # Images without a held code, R, for the standard deviation of each dimension.
    seed: int = 0  # Keys every random draw.

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("group_size", 2), ("scale_samples", 2), ("seed", 0)):
            value = getattr(self, name)
            if value != int(value) or not least <= value < 2**31:
                raise InputError(f"{name} is {value}, expected a whole number from {least} to below 2^31")
            object.__setattr__(self, name, int(value))

    @property
    def encodes(self) -> int:
        """Images that one encoder encodes of one generator."""
        return self.groups * self.group_size + self.scale_samples


class PairVotes(NamedTuple):
    """The votes of one encoder in the groups of one generator."""

    votes: Array  # [m] int16, the dimension that each group elects; -1: none
    variance: Array  # [K] float64, by which the latest votes were scaled
    exact: bool  # all groups, scaled by the scale sample; False: a race's (see `Images.votes`)


Work = dict[tuple[int, int], dict[int, PairVotes | None]]  # {(generator, groups known): {encoder: its votes in them}}


class Pool:
    """The models of a pool, and known votes by the cache keys (encoder, generator), which other pools may reuse."""

    def __init__(self, models: Sequence[LoadedModel], sizes: Sizes, batch_size: int | None = None):
        if len(models) < 2:
            raise InputError(f"a selection needs at least 2 models, got {len(models)}")
        for model in models[1:]:
            if model.image_shape != models[0].image_shape:
                shapes = [f"{m.name} makes images {list(m.image_shape)}" for m in (models[0], model)]
                raise InputError(f"{' and '.join(shapes)}; expected one shape, as each encodes the other's")
        self.models, self.sizes, self.batch_size = list(models), sizes, batch_size
        self.names, self.keys = [model.name for model in models], [model.cache_key for model in models]
        self.device = str(models[0].device)
        self.known: dict[tuple[str, str], PairVotes] = {}
        self.B = np.full((len(models), len(models)), np.nan)
        self.scored: dict[tuple[int, int], Array] = {}  # the votes [m] of (encoder, generator) behind each value of B
        self.progress: Progress = lambda encodes: None
        self.on_votes: Callable[[], None] = lambda: None  # called when votes were added

    def missing(self, groups: int | None = None) -> Array:
        """Return [N, N] bool: pairs whose votes in the first `groups` groups (None: exact votes) are not known."""
        needed = np.inf if groups is None else groups
        enough = {pair: found.exact or len(found.votes) >= needed for pair, found in self.known.items()}
        return np.array([[not enough.get((encoder, generator)) for generator in self.keys] for encoder in self.keys])

    def measure(self, pairs: Array, groups: int | None = None) -> Array:
        """Fill in and return B, where `pairs` [N, N] is True: on the first `groups` groups, or exactly (None)."""
        work: Work = {}
        for j, i in np.argwhere((pairs & self.missing(groups)).T).tolist():
            before = self.known.get((self.keys[i], self.keys[j])) if groups else None
            work.setdefault((j, len(before.votes) if before else 0), {})[i] = before
        for j, encoders, taken in self._take(work, groups):
            self.known |= {(self.keys[i], self.keys[j]): votes for i, votes in zip(encoders, taken)}
            self.on_votes()
        for i, j in np.argwhere(pairs).tolist():
            votes = self.scored[i, j] = self.known[self.keys[i], self.keys[j]].votes[:groups]
            table = vote_tables(votes[None], self.models[i].num_codes, self.models[j].num_codes)
            self.B[i, j] = vote_score(table)[0]
        return self.B

    def _take(self, work: Work, groups: int | None) -> Iterator[tuple[int, Iterable[int], list[PairVotes]]]:
        """Yield (generator, encoders, their votes)."""
        for (j, _), before in work.items():
            images = Images(self.models[j], self.sizes, self.batch_size, self.progress)
            yield j, before, images.votes([self.models[i] for i in before], list(before.values()), groups)


def vote_tables(votes: Array, num_codes: int, num_factors: int) -> Array:
    """Count votes [n, M] (-1: none), where group m held code m mod num_factors: [n, num_codes + 1, num_factors].

    The last row counts the groups in which no dimension could vote.
    """
    n, rows = len(votes), num_codes + 1
    factor = np.arange(votes.shape[1]) % num_factors
    row = np.where(votes < 0, num_codes, votes)
    index = (np.arange(n)[:, None] * rows + row) * num_factors + factor
    return np.bincount(index.ravel(), minlength=n * rows * num_factors).reshape(n, rows, num_factors)


class Images:
    """The images of one generator in blocks, each with its own seed, so that any block can be drawn again."""

    def __init__(self, generator: LoadedModel, sizes: Sizes, batch_size: int | None, progress: Progress):
        self.generator, self.sizes, self.progress = generator, sizes, progress
        self.batch = batch_size or (4096 if generator.device.type == "cuda" else 2 * POINTS_BLOCK)

    @exact_arithmetic()  # scores do not depend on the caller's settings
    def votes(
        self, encoders: Sequence[LoadedModel], before: Sequence[PairVotes | None], groups: int | None
    ) -> list[PairVotes]:
        """Compute each encoder's votes: in all groups, scaled by the scale sample, if `groups` is None.

        Else, for a race, extend the votes `before`, all in equally many groups, to the first `groups` groups. The scale
        is then the variance inside a group, averaged over groups, which hold each code about equally often: where a
        dimension follows one code, it is proportional to the variance of a scale sample, and needs no extra images.
        """
        found, size = list[PairVotes](), self.sizes.group_size
        known, stop = len(before[0].votes) if before[0] else 0, groups or self.sizes.groups
        widest = max(encoder.num_codes for encoder in encoders)
        at_once = max(1, min(ENCODERS_BLOCK, 2**30 // (4 * widest * self.sizes.encodes)))  # at most 1 GiB of codes
        for first in range(0, len(encoders), at_once):
            part = slice(first, first + at_once)
            points: Any = repeat(None)
            if groups is None:
                blocks = range(ceil(self.sizes.scale_samples / POINTS_BLOCK))
                points = self.encoded(self.points, POINTS_BLOCK, blocks, encoders[part])
            codes = self.encoded(self.group, size, range(known, stop), encoders[part])
            for held, free, old in zip(codes, points, before[part]):
                if free is not None:
                    variance, mean = torch.var_mean(free.double(), 0, correction=0)
                else:
                    inside = held.double().unflatten(0, (-1, size)).var(1, correction=0).sum(0)
                    earlier = torch.as_tensor(old.variance * known).to(inside) if old else 0
                    variance, mean = (inside + earlier) / stop, held.double().mean(0)
                std = variance.sqrt()
                scale = std.where(varies(std, mean), 0.0).float()  # codes that are constant up to rounding never vote
                votes = group_votes(held.unflatten(0, (-1, size)), scale).to(torch.int16).cpu().numpy()
                votes = np.concatenate([old.votes, votes]) if old else votes
                found.append(PairVotes(votes, variance.cpu().numpy(), groups is None))
        return found

    def points(self, block: int) -> Tensor:
        """Draw up to 256 images [n, C, H, W] of the scale sample."""
        start = block * POINTS_BLOCK
        size = min(POINTS_BLOCK, self.sizes.scale_samples - start)
        images = self.generator.sample(size, self._seed("points", start))
        if block == 0:
            low, high = images.aminmax()
            if low < -0.01 or high > 1.01:  # encoders were not made for such images
                makes = f"makes images from {low:.3g} to {high:.3g}"
                warnings.warn(f"{self.generator.name} {makes}; expected 0 to 1", stacklevel=2)
        return images

    def group(self, m: int) -> Tensor:
        """Draw images [L, C, H, W] that share code m mod K."""
        size, num_codes = self.sizes.group_size, self.generator.num_codes
        codes = draw_codes(self.generator.prior, (size, num_codes), self._seed("group", m))
        codes[:, m % num_codes] = codes[0, m % num_codes].clone()
        return self.generator.generate(codes, self._seed("noise", m))

    def _seed(self, stream: str, number: int) -> int:
        """Return a 32-bit seed: every library's generator takes one."""
        text = f"{self.sizes.seed} {self.generator.cache_key} {stream} {number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def encoded(self, make: Callable, images: int, blocks: range, encoders: Sequence[LoadedModel]) -> list[Tensor]:
        """Return each encoder's codes [n, K_i] of the given blocks, for which `make` draws `images` images each.

        The next chunk of images is drawn while one is encoded. On a CPU the encoders run side by side, one thread each,
        which keeps all cores busy: the layers of one small network would not.
        """
        encode = torch.inference_mode()(LoadedModel.encode)
        size = max(1, self.batch // images)  # blocks in a chunk

        @torch.inference_mode()
        def make_chunk(start: int) -> Tensor:
            return torch.cat([make(block) for block in blocks[start : start + size]])

        codes: list[list[Tensor]] = [[] for _ in encoders]
        with eval_mode([self.generator, *encoders]), _thread_pool(self.generator.device) as threads:
            chunk = threads.submit(make_chunk, 0)
            for start in range(0, len(blocks), size):
                made = chunk.result()
                if start + size < len(blocks):
                    chunk = threads.submit(make_chunk, start + size)
                for part, found in zip(codes, threads.map(encode, encoders, repeat(made))):
                    part.append(found)
                    self.progress(len(found))
        return [torch.cat(part) for part in codes]


@contextmanager
def _thread_pool(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Context manager: thread pool whose workers run torch single-threaded; on a GPU one, on the caller's stream."""
    cores = torch.get_num_threads()
    threads, prepare = cores, partial(torch.set_num_threads, 1)
    if device.type == "cuda":
        threads, prepare = 1, partial(torch.cuda.set_stream, torch.cuda.current_stream(device))
    try:
        with ThreadPoolExecutor(threads, initializer=prepare) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # threads that start later take the number set last, in any thread
