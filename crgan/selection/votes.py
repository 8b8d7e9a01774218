"""The votes of many encoders on the images of one generator: one column of the matrix B of `centrality`."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import exact_arithmetic
from ..errors import InputError
from ..loading import LoadedModel, draw_codes, eval_mode
from ..metrics.arrays import varies
from ..ops import group_votes

Array = NDArray[Any]
Progress = Callable[[int], None]  # called with the number of images encoded since the last call
POINTS_BLOCK = 256  # images of the scale sample drawn with one seed
ENCODERS_BLOCK = 64  # encoders whose codes are in memory at a time


@dataclass(frozen=True)
class Sizes:
    """How much is drawn for each generator. The defaults are the paper's: 123,728 images."""

    groups: int = 500  # M; group m holds code m mod K at one value
    group_size: int = 100  # L images in each
    scale_samples: int = 73_728  # R images without a held code, for the standard deviation of each dimension
    seed: int = 0

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


class Partial(NamedTuple):
    """Encoder i on the first groups of generator j, in a race."""

    votes: Array  # [m] int16, -1: none
    variance: Array  # [K] float64, the mean over these groups of the variance inside a group


class Images:
    """The images of one generator. Each block of them has a seed of its own, so that any part can be made again."""

    def __init__(self, generator: LoadedModel, sizes: Sizes, batch_size: int | None):
        self.generator, self.sizes = generator, sizes
        self.batch = batch_size or (4096 if generator.device.type == "cuda" else 2 * POINTS_BLOCK)

    @torch.inference_mode()
    def points(self, start: int, stop: int) -> Tensor:
        """Make images [stop - start, C, H, W] of the scale sample."""
        size = self.sizes.scale_samples
        blocks = range(start, stop, POINTS_BLOCK)
        draws = [self.generator.sample(min(POINTS_BLOCK, size - b), self._seed("points", b)) for b in blocks]
        if start == 0:
            self.generator.check_range(draws[0])
        return torch.cat(draws)

    @torch.inference_mode()
    def groups(self, start: int, stop: int) -> Tensor:
        """Make images [stop - start, C, H, W] of whole groups; group m holds code m mod K."""
        images, size, num_codes = [], self.sizes.group_size, self.generator.num_codes
        for m in range(start // size, stop // size):
            codes = draw_codes(self.generator.prior, (size, num_codes), self._seed("group", m))
            codes[:, m % num_codes] = codes[0, m % num_codes].clone()
            images.append(self.generator.generate(codes, self._seed("noise", m)))
        return torch.cat(images)

    def _seed(self, stream: str, block: int) -> int:
        """Return a 32-bit seed: every library's generator takes one."""
        text = f"{self.sizes.seed} {self.generator.cache_key} {stream} {block}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def encoded(
        self,
        make: Callable[[int, int], Tensor],  # `points` or `groups`
        start: int,
        stop: int,
        encoders: Sequence[LoadedModel],
        progress: Progress,
    ) -> list[Tensor]:
        """Return the codes [stop - start, K_i] that each encoder gives to images start to stop.

        The next chunk of images is made while one is encoded. On a CPU the encoders run side by side, a thread each:
        that keeps cores busy which the layers of one small network would not.
        """

        encode = torch.inference_mode()(LoadedModel.encode)
        unit = POINTS_BLOCK if make == self.points else self.sizes.group_size  # a chunk holds a multiple of it
        span = max(1, self.batch // unit) * unit
        codes: list[list[Tensor]] = [[] for _ in encoders]
        with eval_mode([self.generator, *encoders]), _thread_pool(self.generator.device) as threads:
            spans = [(n, min(n + span, stop)) for n in range(start, stop, span)]
            chunk = threads.submit(make, *spans[0])
            for following in [*spans[1:], None]:
                images = chunk.result()
                if following:
                    chunk = threads.submit(make, *following)
                for part, found in zip(codes, threads.map(encode, encoders, repeat(images))):
                    part.append(found)
                    progress(len(found))
        return [torch.cat(part) for part in codes]


@contextmanager
def _thread_pool(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes with one core each; on a GPU one thread, on the caller's stream."""
    count = torch.get_num_threads()
    workers: tuple[int, Any, Any] = (count, torch.set_num_threads, (1,))
    if device.type == "cuda":
        workers = (1, torch.cuda.set_stream, (torch.cuda.current_stream(device),))
    try:
        with ThreadPoolExecutor(workers[0], initializer=workers[1], initargs=workers[2]) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)  # threads that begin later take the number that was set last, in any thread


@exact_arithmetic()  # scores do not depend on the caller's settings
def exact_votes(
    generator: LoadedModel,
    encoders: Sequence[LoadedModel],
    sizes: Sizes,
    batch_size: int | None = None,
    progress: Progress = lambda encodes: None,
) -> list[Array]:
    """Return each encoder's votes [M] int16 in all groups of one generator, by its scale sample; -1: none."""
    images, votes, stop = Images(generator, sizes, batch_size), list[Array](), sizes.groups * sizes.group_size
    widest = max(encoder.num_codes for encoder in encoders)
    block = max(1, min(ENCODERS_BLOCK, 2**30 // (4 * widest * sizes.encodes)))  # at most 1 GiB of codes
    for first in range(0, len(encoders), block):
        part = encoders[first : first + block]
        points = images.encoded(images.points, 0, sizes.scale_samples, part, progress)
        moments = [torch.var_mean(codes.double(), 0, correction=0) for codes in points]
        groups = images.encoded(images.groups, 0, stop, part, progress)
        votes += [_votes(codes, *moment, sizes.group_size) for codes, moment in zip(groups, moments)]
    return votes


@exact_arithmetic()
def race_votes(
    generator: LoadedModel,
    encoders: Sequence[LoadedModel],
    before: Sequence[Partial | None],  # of each encoder, all on as many groups
    groups: int,
    sizes: Sizes,
    batch_size: int | None = None,
    progress: Progress = lambda encodes: None,
) -> list[Partial]:
    """Extend each encoder's votes to the first `groups` groups of one generator, by a scale that the groups give.

    The variance inside a group, averaged over groups that hold each code equally often, is proportional to that of a
    scale sample where a dimension follows one code; it costs no images of its own.
    """
    images, found = Images(generator, sizes, batch_size), list[Partial]()
    done = len(before[0].votes) if before[0] else 0
    for first in range(0, len(encoders), ENCODERS_BLOCK):
        part = slice(first, first + ENCODERS_BLOCK)
        start, stop = done * sizes.group_size, groups * sizes.group_size
        codes = images.encoded(images.groups, start, stop, encoders[part], progress)
        for new, old in zip(codes, before[part]):
            inside = new.double().unflatten(0, (-1, sizes.group_size)).var(1, correction=0).sum(0)
            earlier = torch.as_tensor(old.variance * done).to(inside) if old else 0
            variance = (inside + earlier) / groups
            votes = _votes(new, variance, new.double().mean(0), sizes.group_size)
            found.append(Partial(np.concatenate([old.votes, votes]) if old else votes, variance.cpu().numpy()))
    return found


def _votes(codes: Tensor, variance: Tensor, mean: Tensor, size: int) -> Array:  # [G * L, K], [K], [K] -> [G] int16
    """Vote by the standard deviation; codes that are constants but for rounding have none and never vote."""
    std = variance.sqrt()
    scale = std.where(varies(std, mean), 0.0).float()
    return group_votes(codes.unflatten(0, (-1, size)), scale).to(torch.int16).cpu().numpy()
