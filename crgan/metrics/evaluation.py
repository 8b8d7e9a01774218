"""`evaluate`: draws the samples of a protocol, encodes each image once and scores the codes."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..device import exact_arithmetic
from ..errors import InputError
from ..loading import LoadedModel
from .arrays import codes_array
from .beta_vae import beta_vae
from .dci import PREDICTORS, dci
from .dhsic import dhsic
from .explicitness import explicitness
from .factor_vae import factor_vae
from .inception import inception, shape_classifier
from .irs import irs
from .mutual_information import mig, modularity
from .protocol import PROTOCOLS, Protocol, whole_number
from .reconstruction import reconstruction
from .sampling import Samples
from .sap import sap

# Factors whose classes have no order, by the names that the data sets give them.
CATEGORIES = {"background", "block", "camera", "category", "color", "digit", "label", "lighting", "object", "shape"}


def _factor_vae(s: Samples) -> dict[str, Any]:
    p = s.protocol
    points = s.encode(s.draw(p.scale_samples, 4))  # of the stream of `fit`: its images serve both
    heldout = s.groups(p.heldout_groups, 2) if p.heldout_groups else None
    return factor_vae(*s.voting_groups, points, heldout=heldout, min_std=p.min_std, ddof=p.ddof)


def _beta_vae(s: Samples) -> dict[str, Any]:
    p = s.protocol
    if p.pair_groups:
        heldout = s.groups(p.heldout_pair_groups, 8, pairs=True) if p.heldout_pair_groups else None
        return beta_vae(*s.groups(p.pair_groups, 6, pairs=True), heldout=heldout)
    groups, factor = s.voting_groups
    return beta_vae(groups[:, : groups.shape[1] // 2 * 2].unflatten(1, (-1, 2)), factor)


def _dci(s: Samples, predictor: str = "") -> dict[str, Any]:
    s.progress(f"DCI {predictor or s.protocol.dci}", 0, 1)
    return dci(*s.fit, test=s.test, predictor=predictor or s.protocol.dci)


def _sap(s: Samples) -> dict[str, Any]:
    names, sizes = s.dataset.factor_names, s.dataset.factor_sizes
    ordered = [i for i, f in enumerate(s.varying) if names[f] not in CATEGORIES and sizes[f] > 2]
    return sap(*s.fit, test=s.test, continuous=ordered if s.protocol.continuous else ())


def _inception(s: Samples) -> dict[str, Any]:
    s.progress("training the shape classifier", 0, 1)
    classifier, accuracy = shape_classifier(str(s.model.device))
    probabilities = []
    for start, stop, seed in s.chunks(s.protocol.generated):
        images = codes_array(s.model.sample(stop - start, seed), "a sample", "N C H W").to(torch.float32)
        probabilities.append(classifier(images.clamp(0, 1)))
        s.progress("classifying", stop, s.protocol.generated)
    return {**inception(torch.cat(probabilities)), "classifier_accuracy": accuracy}


def _reconstruction(s: Samples) -> dict[str, Any]:
    index = s.draw(s.protocol.reconstructed, 10).to(s.model.device)
    codes = s.encode(index)
    total: dict[str, float] = {}
    for start, stop, seed in s.chunks(len(index)):
        rebuilt = s.model.generate(codes[start:stop], seed)
        for name, value in reconstruction(s.dataset.images(index[start:stop]), rebuilt).items():
            total[name] = total.get(name, 0.0) + value * len(rebuilt) / len(index)
        s.progress("reconstructing", stop, len(index))
    return total


class Metric(NamedTuple):
    compute: Callable[[Samples], dict[str, Any]]
    shown: tuple[str, ...] = ("score",)  # what a table shows of the result
    lower_is_better: tuple[str, ...] = ()
    needs: str = "encode"  # the model's method


METRICS = {
    "factor_vae": Metric(_factor_vae),
    "beta_vae": Metric(_beta_vae),
    "mig": Metric(lambda s: mig(*s.fit)),
    "dci": Metric(_dci, ("disentanglement", "completeness", "informativeness")),
    **{f"dci_{name}": Metric(partial(_dci, predictor=name)) for name in PREDICTORS},
    "sap": Metric(_sap),
    "modularity": Metric(lambda s: modularity(*s.fit)),
    "explicitness": Metric(lambda s: explicitness(*s.fit, test=s.test, standardise=s.protocol.standardise)),
    "irs": Metric(lambda s: irs(*s.fit)),
    "dhsic": Metric(lambda s: dhsic(s.encode(s.distinct(s.protocol.dhsic_points, 11))), lower_is_better=("score",)),
    "inception": Metric(_inception, ("score", "confidence", "mode_kl"), ("mode_kl",), "sample"),
    "reconstruction": Metric(_reconstruction, ("psnr", "ssim"), needs="generate"),
}


def applicable(dataset: Any, model: Any = None) -> list[str]:
    """Return the metrics that mean something on this data set, and that this model has the methods for."""
    varying = sum(size > 1 for size in dataset.factor_sizes)
    fits = {
        "dhsic": True,
        "reconstruction": min(dataset.image_shape[1:]) >= 11,
        "inception": getattr(dataset, "name", "") == "dsprites",
        # With one factor every vote and guess is right, whatever the codes.
        **dict.fromkeys(("factor_vae", "beta_vae", "modularity"), varying > 1),
    }
    able = [name for name in METRICS if model is None or callable(getattr(model, METRICS[name].needs, None))]
    return [name for name in able if fits.get(name, varying > 0)]


def metric_names(metrics: str | Sequence[str], dataset: Any, model: Any = None) -> list[str]:
    """Return the names with "all" spelled out: every metric that applies, DCI with the protocol's own predictor.

    Raises InputError for a name that is unknown or does not apply to the data set or the model.
    """
    fitting = applicable(dataset, model)
    whole = [name for name in fitting if not name.startswith("dci_")]
    given = (metrics,) if isinstance(metrics, str) else metrics
    names = list(dict.fromkeys(name for metric in given for name in (whole if metric == "all" else [metric])))
    for name in names:
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}; expected all, or some of {', '.join(METRICS)}")
        if name not in fitting:
            raise InputError(
                f"metric {name!r} does not apply to the data set {getattr(dataset, 'name', '')!r} and this model; "
                f"those that do: {', '.join(fitting)}"
            )
    return names


def rows(metric: str) -> list[tuple[str, str, str]]:
    """Return (key of the result, label, "higher" or "lower" for which is better) of a metric's rows in a table."""
    _, shown, lower_is_better, _ = METRICS[metric]
    return [
        (key, metric if key == "score" else f"{metric} {key}", "lower" if key in lower_is_better else "higher")
        for key in shown
    ]


class _Encoder:
    """Give a model without `sample` or `generate` what LoadedModel asks for."""

    def __init__(self, model: Any, dataset: Any):
        parameters = list(model.eval().parameters())[:1] if isinstance(model, nn.Module) else []
        self.device = torch.device(getattr(model, "device", parameters[0].device if parameters else "cpu"))
        self.encode, self.num_noise = model.encode, getattr(model, "num_noise", 0)
        self.sample, self.generate = (getattr(model, verb, self._refuse) for verb in ("sample", "generate"))
        self.image_shape = getattr(model, "image_shape", dataset.image_shape)
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.num_codes = getattr(model, "num_codes", None) or self.encode(dataset.images(first)).shape[-1]

    def _refuse(self, *_: Any) -> None:
        raise InputError("the model has no sample() or no generate(); expected one that has both")


DATASET = ("images", "factors", "factor_names", "factor_sizes", "num_images", "image_shape")


def _opened(model: Any, dataset: Any) -> LoadedModel:
    """Return the model behind checks of what it returns. Raises InputError where it does not take the images."""
    if not isinstance(model, LoadedModel):
        whole = all(callable(getattr(model, verb, None)) for verb in ("sample", "generate"))
        model = LoadedModel("the model", model if whole else _Encoder(model, dataset), "unhashed")
    if tuple(dataset.image_shape) != model.image_shape:
        raise InputError(
            f"{model.name} takes images {list(model.image_shape)}, those of {getattr(dataset, 'name', 'the data set')} "
            f"are {list(dataset.image_shape)}; expected the data that it was trained on, or data of that shape"
        )
    return model


@exact_arithmetic()  # scores must not depend on the caller's settings
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
) -> dict[str, dict[str, Any]]:
    """Score a model on a data set: {metric: its dict}.

    `model` is any object with `encode`; inception needs `sample` too, reconstruction `generate`. `dataset` is any
    object with images(index), factors(index), factor_names, factor_sizes, num_images and image_shape.

    "all" stands for every metric that applies. Factors of size 1 are left out; index f of every result counts the
    others, in the order of the data set. The same seed draws the same images, whichever metrics are asked for.
    `progress(what, done, total)` is called as work proceeds. A torch module is left in eval mode. Raises InputError
    for an unknown metric, protocol or size, and for a metric that the data or the model cannot have.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    known = [field.name for field in fields(Protocol)]
    if unknown := [size for size in sizes if size not in known]:
        raise InputError(f"unknown size {unknown[0]!r}; expected some of {', '.join(known)}")
    settings = replace(PROTOCOLS[protocol], **sizes)
    seed = whole_number("seed", seed, 0, 2**32 - 1)
    if missing := [name for name in DATASET if not hasattr(dataset, name)]:
        raise InputError(
            f"the data set is {dataset!r}, without {missing[0]}; "
            f"expected an object with {', '.join(DATASET)}, such as crgan.data.load(name)"
        )
    if not callable(getattr(model, "encode", None)):
        raise InputError(f"the model is {model!r}, which has no encode(); expected an object that has it")
    names = metric_names(metrics, dataset, model)
    opened = _opened(model, dataset)
    if batch_size is None:
        batch_size = 128 if opened.device.type == "cpu" else 500
    samples = Samples(opened, dataset, settings, seed, whole_number("batch_size", batch_size, 1), progress)
    return {name: METRICS[name].compute(samples) for name in names}
