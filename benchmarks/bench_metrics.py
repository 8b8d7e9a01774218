"""Each metric against its definition written out with numpy and scikit-learn, on the same arrays.

The arrays are those that `evaluate` gives to the metric in the two protocols: `dlib` with 10 codes, `paper` with 5,
both with the five factors of dSprites. Scores are compared before a time counts, and all cores are free to both.
"""

import sys
import time
import warnings
from functools import cache, partial
from math import prod
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.utils import _pytree as pytree

from crgan import metrics
from crgan.data import Dataset
from crgan.metrics import PROTOCOLS, evaluation, information, prediction

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import plain_metrics as plain

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
NUM_CODES = {"dlib": 10, "paper": 5}
TOLERANCES = {  # of the score
    **dict.fromkeys(("mig", "modularity", "dhsic"), 1e-6),
    **dict.fromkeys(("beta_vae", "explicitness", "sap"), 5e-3),
    **{"factor_vae": 2e-3, "dci_lasso": 2e-2, "dci_boosting": 2e-2},
}
IN_ONE_PROTOCOL = {"dci_lasso": "paper", "dhsic": "paper", "dci_boosting": "dlib"}
CASES = [
    pytest.param(metric, protocol, marks=pytest.mark.slow if metric == "dci_boosting" else ())
    for metric in TOLERANCES
    for protocol in PROTOCOLS
    if IN_ONE_PROTOCOL.get(metric, protocol) == protocol
]
seconds: dict[tuple[str, str, str], float] = {}
expected: dict[tuple[str, str], float] = {}


class Encoder:
    """Codes as of a model half-way trained: each follows one factor most, and all mix. The images are the factors."""

    image_shape = (5, 1, 1)

    def __init__(self, num_codes):
        self.noise, self.num_codes = torch.Generator().manual_seed(0), num_codes
        self.weight = torch.randn(num_codes, 5, generator=torch.Generator().manual_seed(7)) * 0.2
        self.weight[:5] += torch.eye(5)

    def encode(self, images):
        codes = (images.flatten(1) / torch.tensor([*FACTORS.values()]) * 2 - 1) @ self.weight.T
        return codes + 0.5 * torch.randn(codes.shape, generator=self.noise)


@cache
def arrays(metric, protocol):
    """The function that computes a metric, and the arguments that it gets."""
    function = metric.split("_")[0] if metric.startswith("dci") else metric
    module = next(m for m in (information, prediction, evaluation) if hasattr(m, function))  # which calls it
    sizes = tuple(FACTORS.values())
    dataset = Dataset(
        "grid", (5, 1, 1), prod(sizes), tuple(FACTORS), sizes, render=lambda x: x[..., None, None].float()
    )
    with patch.object(module, function) as called:
        metrics.evaluate(Encoder(NUM_CODES[protocol]), dataset, metric, protocol)
    as_arrays = pytree.tree_map_only(torch.Tensor, torch.Tensor.numpy, tuple(called.call_args))
    return getattr(module, function), *as_arrays


def value(result):
    """The score in what a metric returns; the plain DCI gives three numbers, its score first."""
    return result["score"] if isinstance(result, dict) else float(np.ravel(result)[0])


@pytest.mark.parametrize("provider", ["plain", "crgan"])
@pytest.mark.parametrize(("metric", "protocol"), CASES)
def test_metric(benchmark, metric, protocol, provider):
    """One round of what takes seconds, else the median of up to 50, after one untimed and a pause in which the threads
    of the other provider's libraries, which wait for work by spinning, go to sleep."""
    ours, args, settings = arrays(metric, protocol)
    # The definitions have no settings that follow from the arguments, or from the metric's name.
    plainly = {name: setting for name, setting in settings.items() if name != "predictor" and setting is not None}
    definition = partial(getattr(plain, metric), *args, **plainly)
    score = definition if provider == "plain" else partial(ours, *args, **settings)

    def call():
        return value(score())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the definition stops where scikit-learn does
        begin = time.perf_counter()
        result = call()
        rounds = max(1, min(50, int(2 / (time.perf_counter() - begin))))
        if (metric, protocol) not in expected:
            expected[metric, protocol] = result if provider == "plain" else value(definition())
        assert result == pytest.approx(expected[metric, protocol], abs=TOLERANCES[metric])
        benchmark.group = f"{metric}, {protocol}"
        time.sleep(0.5)
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=rounds > 5)
    spent = seconds[metric, protocol, provider] = benchmark.stats["median"]
    benchmark.extra_info |= {"ms": spent * 1e3, "score": result}
    if (metric, protocol, "plain") in seconds:
        benchmark.extra_info["speedup_over_plain"] = seconds[metric, protocol, "plain"] / spent
    print(f"\n{metric}, {protocol}, {provider}: {benchmark.extra_info}")
