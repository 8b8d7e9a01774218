"""`evaluate`: draw the samples of a protocol, encode each image once, and score the codes."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..device import exact_arithmetic, plain_defaults
from ..errors import InputError, check_name
from ..loading import LoadedModel, eval_mode
from . import images, information, prediction
from .arrays import Scores
from .factor_vae import factor_vae

# Factors whose classes have no order, by the names that the data sets give them.
CATEGORIES = {"background", "block", "camera", "category", "color", "digit", "label", "lighting", "object", "shape"}
CHUNK = 500  # images generated with one seed, whatever the batch size


@dataclass(frozen=True)
class Protocol:
    """Sizes of one way to score: "paper", the original code of InfoGAN-CR, or "dlib", disentanglement_lib.

    Scores under different protocols are not comparable. `dlib` differs in more than sizes: groups draw their factor
    instead of taking turns, BetaVAE has pairs of its own, standard deviations of FactorVAE have ddof 1 and codes below
    0.05 are pruned, DCI boosts, SAP takes every factor for classes, and Explicitness standardises the codes.
    """

    name: str
    groups: int = 500  # FactorVAE and BetaVAE: groups to vote or to train on
    heldout_groups: int = 0  # groups to score on; 0: the same
    group_size: int = 100  # images in a group; pairs in a group of pairs
    scale_samples: int = 73_728  # FactorVAE: images for each code's standard deviation
    points: int = 73_728  # MIG, DCI, SAP, Modularity, Explicitness, IRS: images to fit on
    test_points: int = 0  # images to score on; 0: the same
    dhsic_points: int = 5_000
    reconstructed: int = 5_000  # images for PSNR and SSIM


PROTOCOLS = {"paper": Protocol("paper"), "dlib": Protocol("dlib", 10_000, 5_000, 64, 10_000, 10_000, 5_000)}


class Samples:
    """Draws the samples of one evaluation, each kind from a random stream of its own, and encodes no image twice."""

    def __init__(
        self, model: LoadedModel, dataset: Any, protocol: Protocol, seed: int, batch_size: int, progress: Callable
    ):
        self.model, self.dataset, self.protocol, self.seed = model, dataset, protocol, seed
        self.batch_size, self.progress, self.dlib = batch_size, progress, protocol.name == "dlib"
        self.varying = varying_factors(dataset)
        self.fit = partial(self.labelled, protocol.points, 4)
        self.test = partial(self.labelled, protocol.test_points, 5)
        self.known = torch.zeros(dataset.num_images, dtype=torch.bool, device=model.device)
        self.codes = torch.empty(dataset.num_images, model.num_codes, dtype=torch.float32, device=model.device)

    def generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 16 + stream)

    def draw(self, n: int, stream: int) -> Tensor:
        """Return the indices [n] of random images."""
        return torch.randint(self.dataset.num_images, (n,), generator=self.generator(stream), device="cpu")

    def encode(self, index: Tensor) -> Tensor:  # [...] int64 -> [..., K]
        index = index.to(self.model.device)
        new = index.unique()
        new = new[~self.known[new]]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self.codes[batch] = self.model.encode(self.dataset.images(batch)).to(self.codes)
            self.progress("encoding", start + len(batch), len(new))
        self.known[new] = True
        return self.codes[index]

    def factors(self, index: Tensor) -> Tensor:  # [n] -> [n, F] of all factors, on the CPU
        return torch.as_tensor(self.dataset.factors(index), device="cpu")

    def labelled(self, n: int, stream: int) -> Any:
        """Return the codes [n, K] and the factors [n, F] that vary, of random images; None for n = 0."""
        index = self.draw(n, stream)
        return (self.encode(index), self.factors(index)[:, self.varying]) if n else None

    def groups(self, n: int, stream: int, pairs: bool = False) -> Any:
        """Return codes [n, L, K], of `pairs` [n, L, 2, K], and the factor [n] that each group or pair shares."""
        if n == 0:
            return None
        size, generator = self.protocol.group_size, self.generator(stream)
        factor = torch.arange(n, device="cpu") % len(self.varying)
        if self.dlib:
            factor = torch.randint(len(self.varying), (n,), generator=generator, device="cpu")
        first = torch.randint(self.dataset.num_images, (n, size), generator=generator, device="cpu")
        if not pairs:
            first = first[:, :1].expand(n, size)
        column = torch.tensor(self.varying, device="cpu")[factor].repeat_interleave(size)
        index = self.sharing(first.flatten(), column, stream + 1).view(n, size)
        return self.encode(torch.stack([first, index], 2) if pairs else index), factor.to(self.model.device)

    def sharing(self, index: Tensor, factor: Tensor, stream: int) -> Tensor:
        """Return for each image of `index` [n] a random one with the same value of factor `factor` [n]."""
        dataset, other = self.dataset, self.draw(len(index), stream)
        values = self.factors(index).gather(1, factor[:, None])
        if values.is_floating_point() and (values != values.round()).any():
            raise InputError("groups of images that share a factor need its classes, and some factors are fractions")
        is_grid = prod(dataset.factor_sizes) == dataset.num_images and getattr(dataset, "table", None) is None
        if is_grid and hasattr(dataset, "index"):
            return dataset.index(self.factors(other).scatter(1, factor[:, None], values))
        table, values = self.factors(torch.arange(dataset.num_images, device="cpu")), values[:, 0]
        for f, value in set(zip(factor.tolist(), values.tolist())):
            rows = (factor == f) & (values == value)
            same = (table[:, f] == value).nonzero()[:, 0]
            other[rows] = same[other[rows] % len(same)]
        return other

    def factor_vae(self) -> Scores:
        (groups, factor), heldout = self.groups(self.protocol.groups, 0), self.groups(self.protocol.heldout_groups, 2)
        points = self.encode(self.draw(self.protocol.scale_samples, 4))  # the images of `fit`, encoded once
        min_std, ddof = (0.05, 1) if self.dlib else (0.0, 0)
        return factor_vae(groups, factor, points, heldout=heldout, min_std=min_std, ddof=ddof)

    def beta_vae(self) -> Scores:
        if self.dlib:
            pairs, factor = self.groups(self.protocol.groups, 6, pairs=True)
            heldout = self.groups(self.protocol.heldout_groups, 8, pairs=True)
            return prediction.beta_vae(pairs, factor, heldout=heldout)
        groups, factor = self.groups(self.protocol.groups, 0)  # FactorVAE's groups, their images taken two by two
        return prediction.beta_vae(groups[:, : self.protocol.group_size // 2 * 2].unflatten(1, (-1, 2)), factor)

    def dci(self, predictor: str = "") -> Scores:
        default = "boosting" if self.dlib else "lasso"
        return prediction.dci(*self.fit(), test=self.test(), predictor=predictor or default)

    def sap(self) -> Scores:
        names, sizes = self.dataset.factor_names, self.dataset.factor_sizes
        ordered = [i for i, f in enumerate(self.varying) if names[f] not in CATEGORIES and sizes[f] > 2]
        return prediction.sap(*self.fit(), test=self.test(), continuous=() if self.dlib else ordered)

    def dhsic(self) -> Scores:
        distinct = torch.randperm(self.dataset.num_images, generator=self.generator(11), device="cpu")
        return information.dhsic(self.encode(distinct[: self.protocol.dhsic_points]))

    def reconstruction(self) -> Scores:
        index = self.draw(self.protocol.reconstructed, 10).to(self.model.device)
        codes, rebuilt = self.encode(index), []
        for start in range(0, len(index), CHUNK):
            seed = int(np.random.SeedSequence([self.seed, start]).generate_state(1)[0])  # below 2^32
            rebuilt.append(self.model.generate(codes[start : start + CHUNK], seed))
            self.progress("reconstruction", start, len(index))
        return images.reconstruction(self.dataset.images(index), torch.cat(rebuilt))


class Metric(NamedTuple):
    compute: Callable[[Samples], Scores]
    factors: int = 1  # varying factors needed; with one, every vote or guess of some metrics is right
    shown: tuple[str, ...] = ("score",)  # what a table shows of the result


DCI = ("disentanglement", "completeness", "informativeness")
METRICS = {
    "factor_vae": Metric(Samples.factor_vae, 2),
    "beta_vae": Metric(Samples.beta_vae, 2),
    "mig": Metric(lambda s: information.mig(*s.fit())),
    "dci": Metric(Samples.dci, 2, DCI),
    **{f"dci_{name}": Metric(partial(Samples.dci, predictor=name), 2, DCI) for name in prediction.PREDICTORS},
    "sap": Metric(Samples.sap),
    "modularity": Metric(lambda s: information.modularity(*s.fit()), 2),
    "explicitness": Metric(lambda s: prediction.explicitness(*s.fit(), test=s.test(), standardise=s.dlib)),
    "irs": Metric(lambda s: information.irs(*s.fit())),
    "dhsic": Metric(Samples.dhsic, 0),
    "reconstruction": Metric(Samples.reconstruction, 0, ("psnr", "ssim")),
}


def varying_factors(dataset: Any) -> list[int]:
    """Return the numbers of the factors that have several values in the data set."""
    table, sizes = getattr(dataset, "table", None), dataset.factor_sizes
    return [f for f, size in enumerate(sizes) if size > 1 and (table is None or (table[:, f] != table[0, f]).any())]


def applicable(dataset: Any, model: Any = None) -> list[str]:
    """Return the metrics that make sense on this data set and that this model has the methods for."""
    varying = len(varying_factors(dataset))
    rebuilds = min(dataset.image_shape[1:]) >= 11 and (model is None or hasattr(model, "generate"))
    suited = [name for name, metric in METRICS.items() if varying >= metric.factors]
    return [name for name in suited if rebuilds or name != "reconstruction"]


def metric_names(metrics: str | Sequence[str], dataset: Any, model: Any = None) -> list[str]:
    """Return the names with "all" expanded; raise InputError for one that is unknown or does not apply."""
    fitting, names = applicable(dataset, model), list[str]()
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        check_name(f"metric for the data set {dataset.name} and this model called", metric, ["all", *fitting])
        names += [name for name in fitting if not name.startswith("dci_")] if metric == "all" else [metric]
    return list(dict.fromkeys(names))


def rows(metric: str) -> list[tuple[str, str, str]]:
    """Return (key of the result, label, "higher" or "lower" for which is better) of a metric's rows in a table."""
    labels = {key: metric if key == "score" else f"{metric} {key}" for key in METRICS[metric].shown}
    return [(key, label, "lower" if label == "dhsic" else "higher") for key, label in labels.items()]


@exact_arithmetic()  # scores must not depend on the caller's settings
@plain_defaults()
@torch.no_grad()
def evaluate(
    model: Any,
    dataset: Any,
    metrics: str | Sequence[str] = ("factor_vae",),  # or "all"
    protocol: str = "paper",
    seed: int = 0,
    *,
    batch_size: int | None = None,  # None: 128 on a CPU, 500 on a GPU
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **sizes: Any,  # fields of Protocol, in place of the protocol's own
) -> dict[str, Scores]:
    """Score a model on a data set: {metric: its dict}.

    `model` is any object with `encode`; reconstruction needs `generate` too. `dataset` is any object with
    images(index), factors(index), factor_names, factor_sizes, num_images, image_shape and name. Factors of a single
    value are left out; index f of every result counts the others, in the order of the data set. The same seed draws the
    same images, whichever metrics are asked for. `progress(what, done, total)` is called as work proceeds. Raises
    InputError for an unknown metric, protocol or size, and for a metric that the data or the model do not support.
    """
    check_name("protocol", protocol, PROTOCOLS)
    for what, given, verb in (("data set", dataset, "images"), ("model", model, "encode")):
        if not hasattr(given, verb):
            raise InputError(f"the {what} is {given!r}, without {verb}(); expected an object such as crgan.load gives")
    names = metric_names(metrics, dataset, model)
    for verb in ("sample", "generate"):
        if not hasattr(model, verb):  # an encoder gets stand-ins, which no metric that applies calls
            model = copy(model)
            setattr(model, verb, lambda n, seed: dataset.images(torch.zeros(n, dtype=torch.int64)))
    opened = model if isinstance(model, LoadedModel) else LoadedModel("the model", model, "unhashed")
    opened.check_data(dataset)
    if batch_size is None:
        batch_size = 128 if opened.device.type == "cpu" else 500
    for name in sizes:
        check_name("size", name, [field.name for field in fields(Protocol)[1:]])
    for name, value in {**sizes, "seed": seed, "batch_size": batch_size}.items():
        least = 1 if name == "batch_size" else 0
        if value % 1 or not least <= value < 2**32:
            raise InputError(f"{name} is {value!r}; expected a whole number below 2^32")
    sizes = {name: int(value) for name, value in sizes.items()}  # 1e4 is a whole number, too
    samples = Samples(opened, dataset, replace(PROTOCOLS[protocol], **sizes), int(seed), int(batch_size), progress)
    results = {}
    with eval_mode([opened]):
        for name in names:
            progress(name, 0, 1)
            results[name] = METRICS[name].compute(samples)
    return results
