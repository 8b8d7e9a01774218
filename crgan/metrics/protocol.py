"""The sizes of the two evaluation protocols, and `evaluate`, which samples, encodes once and scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .factor_vae import factor_vae


@dataclass(frozen=True)
class Protocol:
    """Sizes and variants of one way to score. Scores under different protocols are not comparable."""

    groups: int  # groups that vote in FactorVAE
    heldout_groups: int  # groups it is scored on; 0: the voting ones
    group_size: int  # images in a group
    scale_samples: int  # images for each code's deviation
    ddof: int  # of that deviation
    min_std: float  # codes that deviate less do not vote


PROTOCOLS = {
    "paper": Protocol(  # the original code of InfoGAN-CR
        groups=500, heldout_groups=0, group_size=100, scale_samples=73_728, ddof=0, min_std=0.0
    ),
    "dlib": Protocol(  # disentanglement_lib
        groups=10_000, heldout_groups=5_000, group_size=64, scale_samples=10_000, ddof=1, min_std=0.05
    ),
}


class Samples:
    """The samples that the metrics of one evaluation share. Each image is made and encoded at most once."""

    def __init__(
        self, model: Any, dataset: Any, protocol: Protocol, seed: int, batch_size: int, progress: Callable
    ):
        self.model, self.dataset, self.protocol, self.seed = model, dataset, protocol, seed
        self.batch_size, self.progress = batch_size, progress
        self.device = torch.device(getattr(model, "device", "cpu"))
        self.varying = [f for f, size in enumerate(dataset.factor_sizes) if size > 1]
        self.known = torch.zeros(dataset.num_images, dtype=torch.bool, device=self.device)
        self.codes = torch.empty(dataset.num_images, model.num_codes, device=self.device)

    def encode(self, index: Tensor) -> Tensor:  # [...] int64 -> [..., K]
        index = index.to(self.device)
        wanted = torch.zeros_like(self.known)
        wanted[index.reshape(-1)] = True
        todo = (wanted & ~self.known).nonzero()[:, 0]
        for start in range(0, len(todo), self.batch_size):
            batch = todo[start : start + self.batch_size]
            self.codes[batch] = self.model.encode(self.dataset.images(batch)).to(self.codes)
            self.progress("encode", min(start + self.batch_size, len(todo)), len(todo))
        self.known |= wanted
        return self.codes[index]

    def draw(self, n: int, stream: int) -> Tensor:
        """[n] random images; each need has its own stream, so that no metric depends on which others run."""
        generator = torch.Generator().manual_seed(self.seed * 16 + stream)
        return torch.randint(self.dataset.num_images, (n,), generator=generator)

    def factors(self, index: Tensor) -> Tensor:  # [n] -> [n, F] of all factors, on the CPU
        if not self.varying:
            raise InputError(
                f"data set {self.dataset.name!r} has no factors of variation; this metric needs them"
            )
        return self.dataset.factors(index).cpu()

    def points(self, n: int, stream: int) -> tuple[Tensor, Tensor]:
        """Codes [n, K] and the classes [n, F] of the factors that vary, of random images."""
        index = self.draw(n, stream)
        return self.encode(index), self.factors(index)[:, self.varying].to(self.device)

    def groups(self, n: int, stream: int) -> tuple[Tensor, Tensor]:
        """Codes [n, L, K] and factor [n]: group g shares one value of factor g mod F (of those that vary)."""
        size = self.protocol.group_size
        drawn = self.factors(self.draw(n * size, stream)).view(n, size, -1)
        factor = torch.arange(n) % len(self.varying)
        for f, column in enumerate(self.varying):
            drawn[factor == f, :, column] = drawn[factor == f, :1, column]
        return self.encode(self.dataset.index(drawn.flatten(0, 1)).view(n, size)), factor.to(self.device)

    @cached_property
    def voting_groups(self) -> tuple[Tensor, Tensor]:
        return self.groups(self.protocol.groups, 0)


def _factor_vae(s: Samples) -> dict[str, Any]:
    p = s.protocol
    return factor_vae(
        *s.voting_groups,
        s.points(p.scale_samples, 2)[0],
        num_factors=len(s.varying),
        heldout=s.groups(p.heldout_groups, 1) if p.heldout_groups else None,
        min_std=p.min_std,
        ddof=p.ddof,
    )


METRICS: dict[str, Callable[[Samples], dict[str, Any]]] = {"factor_vae": _factor_vae}


@torch.no_grad()
def evaluate(
    model: Any,
    dataset: Any,
    metrics: Sequence[str] = ("factor_vae",),
    protocol: str = "paper",
    seed: int = 0,
    *,
    batch_size: int = 500,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **sizes: Any,  # fields of Protocol, in place of the protocol's own
) -> dict[str, dict[str, Any]]:
    """Scores `model` (an object with num_codes and encode) on `dataset`: {metric: its dict}.

    Factors of size 1 are left out; index f of every result counts the others, in the order of the data set.
    Same seed, same images, whichever metrics are asked for. Raises InputError for an unknown metric, protocol
    or size, and for a metric that needs factors on data that has none.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}; expected some of {', '.join(METRICS)}")
    if unknown := set(sizes) - {field.name for field in fields(Protocol)}:
        raise InputError(
            f"unknown size {sorted(unknown)[0]!r}; expected some of {', '.join(PROTOCOLS['paper'].__dict__)}"
        )
    samples = Samples(model, dataset, replace(PROTOCOLS[protocol], **sizes), seed, batch_size, progress)
    return {name: METRICS[name](samples) for name in metrics}
