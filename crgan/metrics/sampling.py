"""The images that one evaluation draws, and their codes."""

from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..loading import LoadedModel
from .protocol import Protocol

CHUNK = 500  # images generated with one seed, whatever the batch size

Labelled = tuple[Tensor, Tensor]


class Samples:
    """The samples that the metrics of one evaluation share. Each image is made and encoded at most once."""

    def __init__(
        self, model: LoadedModel, dataset: Any, protocol: Protocol, seed: int, batch_size: int, progress: Callable
    ):
        self.model, self.dataset, self.protocol, self.seed = model, dataset, protocol, seed
        self.batch_size, self.progress = batch_size, progress
        self.dataset_name = getattr(dataset, "name", "the data set")
        self.varying = [f for f, size in enumerate(dataset.factor_sizes) if size > 1]
        self.known = torch.zeros(dataset.num_images, dtype=torch.bool, device=model.device)
        self.codes = torch.empty(dataset.num_images, model.num_codes, dtype=torch.float32, device=model.device)

    def generator(self, stream: int) -> torch.Generator:
        """Return a generator. Each need has its own stream, so no metric depends on which others run."""
        return torch.Generator().manual_seed(self.seed * 16 + stream)

    def draw(self, n: int, stream: int) -> Tensor:
        """Return the indices [n] of random images."""
        return torch.randint(self.dataset.num_images, (n,), generator=self.generator(stream))

    def distinct(self, n: int, stream: int) -> Tensor:
        """Return the indices [n] of different random images, or of all there are."""
        return torch.randperm(self.dataset.num_images, generator=self.generator(stream))[:n]

    def factors(self, index: Tensor) -> Tensor:  # [n] -> [n, F] of all factors, on the CPU
        return torch.as_tensor(self.dataset.factors(index)).cpu()

    def sharing(self, index: Tensor, factor: Tensor, stream: int) -> Tensor:
        """Return for each image of `index` [n] a random one with the same value of factor `factor` [n]."""
        values = self.factors(index).gather(1, factor[:, None])
        if values.is_floating_point() and not torch.equal(values, values.round()):
            raise InputError(
                f"the factors of {self.dataset_name} hold fractions, but groups of images that share one need classes; "
                "expected integer factors"
            )
        other, dataset = self.draw(len(index), stream), self.dataset
        grid = hasattr(dataset, "index") and getattr(dataset, "table", None) is None
        if grid and prod(dataset.factor_sizes) == dataset.num_images:
            return dataset.index(self.factors(other).scatter(1, factor[:, None], values))
        table = self.factors(torch.arange(dataset.num_images)).long()
        for f in factor.unique().tolist():
            order = table[:, f].argsort(stable=True)
            sizes = table[:, f].bincount()
            rows, value = factor == f, values[factor == f, 0].long()
            other[rows] = order[(sizes.cumsum(0) - sizes)[value] + other[rows] % sizes[value]]
        return other

    def encode(self, index: Tensor) -> Tensor:  # [...] int64 -> [..., K]
        index = index.to(self.model.device)
        needed = torch.zeros_like(self.known)
        needed[index.reshape(-1)] = True
        new = (needed & ~self.known).nonzero()[:, 0]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self.codes[batch] = self.model.encode(self.dataset.images(batch)).to(self.codes)
            self.progress("encoding", min(start + self.batch_size, len(new)), len(new))
        self.known |= needed
        return self.codes[index]

    def labelled(self, n: int, stream: int) -> Labelled:
        """Return the codes [n, K] and the factors [n, F] that vary, of random images."""
        index = self.draw(n, stream)
        return self.encode(index), self.factors(index)[:, self.varying]

    def groups(self, n: int, stream: int, pairs: bool = False) -> Labelled:
        """Return codes [n, L, K] and the factor [n] (of those that vary) of which each group shares one value.

        With `pairs` codes [n, L, 2, K]: the two of each pair share a value, which differs from pair to pair.
        """
        size, generator = self.protocol.group_size, self.generator(stream)
        if self.protocol.random_factor:
            factor = torch.randint(len(self.varying), (n,), generator=generator)
        else:
            factor = torch.arange(n) % len(self.varying)
        column = torch.tensor(self.varying)[factor].repeat_interleave(size)
        first = torch.randint(self.dataset.num_images, (n, size), generator=generator)
        if not pairs:
            first = first[:, :1].expand(n, size)
        index = self.sharing(first.flatten(), column, stream + 1).view(n, size)
        return self.encode(torch.stack([first, index], 2) if pairs else index), factor.to(self.model.device)

    @cached_property
    def voting_groups(self) -> Labelled:
        return self.groups(self.protocol.groups, 0)

    @cached_property
    def fit(self) -> Labelled:
        return self.labelled(self.protocol.points, 4)

    @cached_property
    def test(self) -> Labelled | None:
        return self.labelled(self.protocol.test_points, 5) if self.protocol.test_points else None

    def chunks(self, n: int) -> list[tuple[int, int, int]]:
        """Return (start, stop, seed below 2^32) of the chunks in which a model generates n images."""
        return [
            (start, min(start + CHUNK, n), int(np.random.SeedSequence([self.seed, start]).generate_state(1)[0]))
            for start in range(0, n, CHUNK)
        ]
