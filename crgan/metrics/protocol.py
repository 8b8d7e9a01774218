"""The sizes of the two evaluation protocols, and `evaluate`, which samples, encodes once and scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..device import arithmetic
from ..errors import InputError
from ..loading import LoadedModel, eval_mode
from .arrays import codes_array
from .beta_vae import beta_vae
from .dci import dci
from .dhsic import dhsic
from .explicitness import explicitness
from .factor_vae import factor_vae
from .inception import inception, shape_classifier
from .irs import irs
from .mig import mig
from .modularity import modularity
from .reconstruction import reconstruction
from .sap import sap


@dataclass(frozen=True)
class Protocol:
    """Sizes and variants of one way to score. Scores under different protocols are not comparable."""

    groups: int = 500  # FactorVAE: groups that vote
    heldout_groups: int = 0  # groups to score on; 0: the voting ones
    group_size: int = 100  # images in a group; pairs in a group of pairs
    scale_samples: int = 73_728  # images for each code's deviation
    ddof: int = 0  # of that deviation
    min_std: float = 0.0  # codes that deviate less do not vote
    pair_groups: int = 0  # BetaVAE: groups to train on; 0: the images of FactorVAE's groups two by two
    heldout_pair_groups: int = 0  # groups to score on
    points: int = 73_728  # MIG, DCI, SAP, Modularity, Explicitness, IRS: images to fit on
    test_points: int = 0  # images to score on; 0: the same
    dci: tuple[str, ...] = ("lasso", "lasso_cv", "forest", "forest_ibgan")  # the first gives the score
    continuous: bool = True  # SAP: factors that are no categories count as numbers
    standardise: bool = False  # Explicitness
    dhsic_points: int = 5_000
    generated: int = 50_000  # images for the inception score
    reconstructed: int = 5_000  # images for PSNR and SSIM


PROTOCOLS = {
    "paper": Protocol(),  # the original code of InfoGAN-CR
    "dlib": Protocol(  # disentanglement_lib
        groups=10_000,
        heldout_groups=5_000,
        group_size=64,
        scale_samples=10_000,
        ddof=1,
        min_std=0.05,
        pair_groups=10_000,
        heldout_pair_groups=5_000,
        points=10_000,
        test_points=5_000,
        dci=("boosting",),
        continuous=False,
        standardise=True,
    ),
}

# Factors whose classes have no order, by the names that the data sets give them.
CATEGORIES = {"background", "block", "camera", "category", "color", "digit", "label", "lighting", "object", "shape"}

DRAW = 500  # images generated with one seed, whatever the batches

Pair = tuple[Tensor, Tensor]


class Samples:
    """The samples that the metrics of one evaluation share. Each image is made and encoded at most once."""

    def __init__(
        self, model: LoadedModel, dataset: Any, protocol: Protocol, seed: int, batch_size: int, progress: Callable
    ):
        self.model, self.dataset, self.protocol, self.seed = model, dataset, protocol, seed
        self.batch_size, self.progress = batch_size, progress
        self.varying = [f for f, size in enumerate(dataset.factor_sizes) if size > 1]
        self.known = torch.zeros(dataset.num_images, dtype=torch.bool, device=model.device)
        self.codes = torch.empty(dataset.num_images, model.num_codes, device=model.device)

    def draw(self, n: int, stream: int) -> Tensor:
        """[n] random images; each need has its own stream, so that no metric depends on which others run."""
        generator = torch.Generator().manual_seed(self.seed * 16 + stream)
        return torch.randint(self.dataset.num_images, (n,), generator=generator)

    def distinct(self, n: int, stream: int) -> Tensor:
        """[n] different random images, or all of them."""
        generator = torch.Generator().manual_seed(self.seed * 16 + stream)
        return torch.randperm(self.dataset.num_images, generator=generator)[:n]

    def factors(self, index: Tensor) -> Tensor:  # [n] -> [n, F] of all factors, on the CPU
        return self.dataset.factors(index).cpu()

    def sharing(self, index: Tensor, factor: Tensor, stream: int) -> Tensor:
        """For each image of `index` [n] a random one with the same value of factor `factor` [n] (of all factors)."""
        values = self.factors(index).gather(1, factor[:, None])
        other = self.draw(len(index), stream)
        if getattr(self.dataset, "table", None) is None and prod(self.dataset.factor_sizes) == self.dataset.num_images:
            # a grid
            return self.dataset.index(self.factors(other).scatter(1, factor[:, None], values))
        table = self.factors(torch.arange(self.dataset.num_images))
        for f in factor.unique().tolist():
            order = table[:, f].argsort(stable=True)
            sizes = table[:, f].bincount()
            rows, value = factor == f, values[factor == f, 0]
            other[rows] = order[(sizes.cumsum(0) - sizes)[value] + other[rows] % sizes[value]]
        return other

    def encode(self, index: Tensor) -> Tensor:  # [...] int64 -> [..., K]
        index = index.to(self.model.device)
        wanted = torch.zeros_like(self.known)
        wanted[index.reshape(-1)] = True
        todo = (wanted & ~self.known).nonzero()[:, 0]
        for start in range(0, len(todo), self.batch_size):
            batch = todo[start : start + self.batch_size]
            self.codes[batch] = self.model.encode(self.dataset.images(batch)).to(self.codes)
            self.progress("encoding", min(start + self.batch_size, len(todo)), len(todo))
        self.known |= wanted
        return self.codes[index]

    def labelled(self, n: int, stream: int) -> Pair:
        """Codes [n, K] and the classes [n, F] of the factors that vary, of random images."""
        index = self.draw(n, stream)
        return self.encode(index), self.factors(index)[:, self.varying].to(self.model.device)

    def groups(self, n: int, stream: int, pairs: bool = False) -> Pair:
        """Codes [n, L, K] and factor [n]: group g shares one value of factor g mod F (of those that vary).

        With `pairs` codes [n, L, 2, K]: the two of each pair share a value, which differs from pair to pair.
        """
        size, factor = self.protocol.group_size, torch.arange(n) % max(len(self.varying), 1)
        column = torch.tensor(self.varying or [0])[factor].repeat_interleave(size)
        first = self.draw(n * size, stream).view(n, size)
        if not pairs:
            first = first[:, :1].expand(n, size)
        index = self.sharing(first.flatten(), column, stream + 1).view(n, size)
        return self.encode(torch.stack([first, index], 2) if pairs else index), factor.to(self.model.device)

    @cached_property
    def voting_groups(self) -> Pair:
        ready = getattr(self.dataset, "groups", None)
        if ready is None or self.protocol.heldout_groups:  # those are drawn, so these are too
            return self.groups(self.protocol.groups, 0)
        # Data without a grid may ship groups of 100 images with the factor that each shares.
        batches = torch.arange(ready.num_images, device=self.model.device).split(self.batch_size)
        codes = torch.cat([self.model.encode(ready.images(batch)) for batch in batches])
        factor = ready.factors(torch.arange(0, ready.num_images, 100, device=self.model.device))[:, 0]
        return codes.view(len(factor), 100, -1), factor

    @cached_property
    def fit(self) -> Pair:
        return self.labelled(self.protocol.points, 4)

    @cached_property
    def test(self) -> Pair | None:
        return self.labelled(self.protocol.test_points, 5) if self.protocol.test_points else None


def _factor_vae(s: Samples) -> dict[str, Any]:
    p = s.protocol
    points = s.encode(s.draw(p.scale_samples, 4))  # of the stream of `fit`: its images serve both
    heldout = s.groups(p.heldout_groups, 2) if p.heldout_groups else None
    return factor_vae(*s.voting_groups, points, heldout=heldout, min_std=p.min_std, ddof=p.ddof)


def _beta_vae(s: Samples) -> dict[str, Any]:
    p = s.protocol
    if p.pair_groups:
        return beta_vae(*s.groups(p.pair_groups, 6, pairs=True), heldout=s.groups(p.heldout_pair_groups, 8, pairs=True))
    groups, factor = s.voting_groups
    return beta_vae(groups[:, : groups.shape[1] // 2 * 2].unflatten(1, (-1, 2)), factor)


def _dci(s: Samples) -> dict[str, Any]:
    results = {}
    for step, name in enumerate(s.protocol.dci):
        s.progress(f"DCI {name}", step, len(s.protocol.dci))
        results[name] = dci(*s.fit, test=s.test, predictor=name)
    return {**results[s.protocol.dci[0]], "predictors": results}


def _sap(s: Samples) -> dict[str, Any]:
    names, sizes = s.dataset.factor_names, s.dataset.factor_sizes
    ordered = [i for i, f in enumerate(s.varying) if names[f] not in CATEGORIES and sizes[f] > 2]
    return sap(*s.fit, test=s.test, continuous=ordered if s.protocol.continuous else ())


def _explicitness(s: Samples) -> dict[str, Any]:
    return explicitness(*s.fit, test=s.test, standardise=s.protocol.standardise)


def _inception(s: Samples) -> dict[str, Any]:
    if tuple(s.model.image_shape) != (1, 64, 64):
        raise InputError(f"the inception score is of dSprites' 1x64x64 images; the model makes {s.model.image_shape}")
    s.progress("training the shape classifier", 0, 1)
    classifier, accuracy = shape_classifier(str(s.model.device))
    probabilities = []
    for start in range(0, s.protocol.generated, DRAW):
        n = min(DRAW, s.protocol.generated - start)
        images = codes_array(s.model.sample(n, (s.seed << 20) + start), "a sample", "N C H W").float()
        probabilities.append(classifier(images.clamp(0, 1)))
        s.progress("classifying", start + n, s.protocol.generated)
    return {**inception(torch.cat(probabilities)), "classifier_accuracy": accuracy}


def _reconstruction(s: Samples) -> dict[str, Any]:
    index = s.draw(s.protocol.reconstructed, 10).to(s.model.device)
    codes = s.encode(index)
    total: dict[str, float] = {}
    for start in range(0, len(index), DRAW):
        part = slice(start, start + DRAW)
        rebuilt = s.model.generate(codes[part], (s.seed << 20) + start)
        for name, value in reconstruction(s.dataset.images(index[part]), rebuilt).items():
            total[name] = total.get(name, 0.0) + value * len(rebuilt) / len(index)
        s.progress("rebuilding", min(part.stop, len(index)), len(index))
    return total


METRICS: dict[str, Callable[[Samples], dict[str, Any]]] = {
    "factor_vae": _factor_vae,
    "beta_vae": _beta_vae,
    "mig": lambda s: mig(*s.fit),
    "dci": _dci,
    "sap": _sap,
    "modularity": lambda s: modularity(*s.fit),
    "explicitness": _explicitness,
    "irs": lambda s: irs(*s.fit),
    "dhsic": lambda s: dhsic(s.encode(s.distinct(s.protocol.dhsic_points, 11))),
    "inception": _inception,
    "reconstruction": _reconstruction,
}


def applicable(dataset: Any) -> list[str]:
    """The metrics that mean something on this data set."""
    varying = sum(size > 1 for size in dataset.factor_sizes)
    several = varying > 1  # with one factor every vote and guess is right, whatever the codes
    ready = getattr(dataset, "groups", None) is not None
    fits = {
        "dhsic": True,
        "reconstruction": min(dataset.image_shape[1:]) >= 11,
        "inception": dataset.name == "dsprites",
        "factor_vae": several or ready,
        "beta_vae": several or ready,
        "modularity": several,
    }
    return [name for name in METRICS if fits.get(name, varying > 0)]


def check_names(metrics: Sequence[str]) -> None:
    for name in metrics:
        if name != "all" and name not in METRICS:
            raise InputError(f"unknown metric {name!r}; expected all, or some of {', '.join(METRICS)}")


@arithmetic("float32")  # scores do not hang on the caller's settings
@torch.no_grad()
def evaluate(
    model: Any,
    dataset: Any,
    metrics: str | Sequence[str] = ("factor_vae",),  # or "all"
    protocol: str = "paper",
    seed: int = 0,
    *,
    batch_size: int = 500,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **sizes: Any,  # fields of Protocol, in place of the protocol's own
) -> dict[str, dict[str, Any]]:
    """Scores `model` (any object with sample, generate and encode) on `dataset`: {metric: its dict}.

    "all" stands for every metric that applies to the data. Factors of size 1 are left out; index f of every
    result counts the others, in the order of the data set. Same seed, same images, whichever metrics are
    asked for. `progress(what, done, total)` is called as work proceeds. A torch module is left in eval mode.
    Raises InputError for an unknown metric, protocol or size, and for a metric that the data or the model
    cannot have.
    """
    if isinstance(dataset, str):
        raise InputError(f"the data set is a name, {dataset!r}; expected crgan.data.load({dataset!r})")
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    check_names(metrics)
    names = [name for m in metrics for name in (applicable(dataset) if m == "all" else [m])]
    for name in names:
        if name not in (fitting := applicable(dataset)):
            fit = ", ".join(fitting)
            raise InputError(f"metric {name!r} does not apply to the data set {dataset.name!r}; those that do: {fit}")
    known = [field.name for field in fields(Protocol)]
    for size in sizes:
        if size not in known:
            raise InputError(f"unknown size {size!r}; expected some of {', '.join(known)}")
    wanted = replace(PROTOCOLS[protocol], **sizes)
    for name, value in {**vars(wanted), "seed": seed, "batch_size": batch_size}.items():
        least = int(name in ("groups", "group_size", "scale_samples", "points", "batch_size"))
        if isinstance(value, float | int) and name != "min_std" and (value != int(value) or value < least):
            raise InputError(f"{name} is {value}; expected a whole number of at least {least}")
    member = model if isinstance(model, LoadedModel) else LoadedModel("the model", model, "unhashed")
    member.check_data(dataset)
    samples = Samples(member, dataset, wanted, seed, batch_size, progress)
    with eval_mode([member]):
        return {name: METRICS[name](samples) for name in names}
