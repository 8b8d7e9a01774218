"""Each metric against its definition written out with numpy and scikit-learn, on the same arrays.

The arrays have the sizes of the two protocols: `dlib` with 10 codes, `paper` with 5, both with the five factors of
dSprites. Scores are compared before a time counts, and all cores are free to both.
"""

import sys
import time
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from crgan import metrics
from crgan.metrics import PROTOCOLS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import plain_metrics as plain

SIZES = np.array([3, 6, 40, 32, 32])
NUM_CODES = {"dlib": 10, "paper": 5}
seconds: dict[tuple[str, str, str], float] = {}
expected: dict[tuple[str, str], float] = {}


def codes_of(factors, num_codes, rng):
    """Codes [..., K] as of a model half-way trained: each follows one factor most, and all mix."""
    weight = np.random.default_rng(7).normal(size=(num_codes, 5)) * 0.2
    weight[:5] += np.eye(5)
    codes = (factors / SIZES * 2 - 1) @ weight.T
    return (codes + 0.5 * rng.normal(size=codes.shape)).astype(np.float32)


@cache
def labelled(protocol, n, seed):
    """Codes [n, K] and factors [n, 5] of random images."""
    rng = np.random.default_rng(seed)
    factors = rng.integers(SIZES, size=(n, 5))
    return codes_of(factors, NUM_CODES[protocol], rng), factors


@cache
def groups(protocol, n, seed, pairs=False):
    """Codes [n, L, K], or [n, L, 2, K], of groups that share one factor, and its index [n]."""
    rng = np.random.default_rng(seed)
    label, size = np.arange(n) % 5, PROTOCOLS[protocol].group_size
    factors = rng.integers(SIZES, size=(n, size, 2, 5) if pairs else (n, size, 5))
    rows = np.arange(n)
    if pairs:
        factors[rows, :, 1, label] = factors[rows, :, 0, label]
    else:
        factors[rows, :, label] = factors[rows, :1, label]
    return codes_of(factors, NUM_CODES[protocol], rng), label


def arrays(metric, protocol):
    """Arguments and settings of a metric under a protocol."""
    p, dlib = PROTOCOLS[protocol], protocol == "dlib"
    images, test = labelled(protocol, p.points, 0), labelled(protocol, p.test_points, 1) if dlib else None
    voting = groups(protocol, p.groups, 2)
    if metric == "factor_vae":
        variant = {"heldout": groups(protocol, p.heldout_groups, 3), "min_std": 0.05, "ddof": 1} if dlib else {}
        return (*voting, labelled(protocol, p.scale_samples, 0)[0]), variant
    if metric == "beta_vae" and dlib:
        heldout = groups(protocol, p.heldout_groups, 5, pairs=True)
        return groups(protocol, p.groups, 4, pairs=True), {"heldout": heldout}
    if metric == "beta_vae":  # the images of the voting groups two by two
        return (voting[0].reshape(p.groups, -1, 2, NUM_CODES[protocol]), voting[1]), {}
    if metric == "dhsic":
        return (labelled(protocol, p.dhsic_points, 0)[0],), {}
    if metric == "explicitness":
        return images, {"test": test, "standardise": dlib}
    if metric == "sap":  # shape is a category, the others are numbers in the paper's protocol
        return images, {"test": test, "continuous": () if dlib else (1, 2, 3, 4)}
    return images, {"test": test} if metric == "dci_boosting" else {}


OURS = {
    "dci_boosting": partial(metrics.dci, predictor="boosting"),
    "dci_lasso": partial(metrics.dci, predictor="lasso"),
}
CASES = [  # and the error allowed of the score
    ("factor_vae", "paper", 2e-3),
    ("factor_vae", "dlib", 2e-3),
    ("beta_vae", "paper", 5e-3),
    ("beta_vae", "dlib", 5e-3),
    ("mig", "paper", 1e-6),
    ("mig", "dlib", 1e-6),
    ("modularity", "paper", 1e-6),
    ("modularity", "dlib", 1e-6),
    ("explicitness", "paper", 5e-3),
    ("explicitness", "dlib", 5e-3),
    ("sap", "paper", 5e-3),
    ("sap", "dlib", 5e-3),
    ("dci_lasso", "paper", 2e-2),
    pytest.param("dci_boosting", "dlib", 2e-2, marks=pytest.mark.slow),
    ("dhsic", "paper", 1e-6),
]


def value(result):
    """The score in what a metric returns: a dict; or a number, or a tuple with the score first or, of votes, last."""
    if isinstance(result, dict):
        return result["score"]
    if isinstance(result, tuple):
        return float(result[1] if np.ndim(result[0]) else result[0])
    return float(result)


@pytest.mark.parametrize("provider", ["plain", "crgan"])
@pytest.mark.parametrize(("metric", "protocol", "tolerance"), CASES)
def test_metric(benchmark, metric, protocol, tolerance, provider):
    """One round of what takes seconds, else the median of up to 50, after one untimed and a pause in which the threads
    of the other provider's libraries, which wait for work by spinning, go to sleep."""
    args, settings = arrays(metric, protocol)
    definition = getattr(plain, metric)
    score = definition if provider == "plain" else OURS.get(metric) or getattr(metrics, metric)

    def call():
        return value(score(*args, **settings))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the definition stops where scikit-learn does
        begin = time.perf_counter()
        result = call()
        rounds = max(1, min(50, int(2 / (time.perf_counter() - begin))))
        if (metric, protocol) not in expected:
            expected[metric, protocol] = result if provider == "plain" else value(definition(*args, **settings))
        assert result == pytest.approx(expected[metric, protocol], abs=tolerance)
        benchmark.group = f"{metric}, {protocol}"
        time.sleep(0.5)
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=rounds > 5)
    spent = seconds[metric, protocol, provider] = benchmark.stats["median"]
    line = f"\n{metric}, {protocol}, {provider}: {spent * 1e3:,.1f} ms, score {result:.4f}"
    if provider == "crgan" and (metric, protocol, "plain") in seconds:
        ratio = seconds[metric, protocol, "plain"] / spent
        benchmark.extra_info["speedup_over_plain"] = float(f"{ratio:.4g}")
        line += f", {ratio:.1f} x plain"
    print(line)
