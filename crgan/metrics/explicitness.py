"""Explicitness: can a linear classifier read each value of each factor off the codes?"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from .arrays import fit_and_test
from .logistic import fit_logistic


def explicitness(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) to score on; None: the same
    standardise: bool = False,
) -> dict[str, Any]:
    """Explicitness in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, section 3).

    Mean over factors, and over the values of each, of the area under the ROC curve of multinomial logistic
    regression, one value against the rest; 0.5 is chance (the area itself, as in disentanglement_lib, not
    rescaled to [0, 1] as in the paper). `standardise`: subtract the mean and divide by the deviation of the
    training codes first. Values that `test` lacks or has alone are left out, 0.5
    where that is all. Returns score and per_factor [F].
    """
    codes, factors, test_codes, test_factors = fit_and_test(codes, factors, test)
    if standardise:
        std, mean = torch.std_mean(codes.double(), 0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        codes, test_codes = (codes - mean) / std, (test_codes - mean) / std

    def area(f: int) -> float:
        values, classes = factors[:, f].unique(return_inverse=True)
        logits = fit_logistic(codes, classes, len(values))
        scores = torch.softmax(logits(test_codes), 0).cpu().numpy()  # [C, N]
        truth = values.cpu().numpy()[:, None] == test_factors[:, f].cpu().numpy()
        areas = [area for area in map(roc_area, scores, truth) if not np.isnan(area)]
        return float(np.mean(areas or [0.5]))

    if codes.is_cuda:  # on the caller's stream
        per_factor = list(map(area, range(factors.shape[1])))
    else:
        count = torch.get_num_threads()
        # One fit's many small steps would not keep several cores busy.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            per_factor = list(threads.map(area, range(factors.shape[1])))
        torch.set_num_threads(count)
    return {"score": float(np.mean(per_factor)), "per_factor": np.array(per_factor)}


def roc_area(
    score: np.ndarray,  # [N]
    positive: np.ndarray,  # [N] bool
) -> float:
    """Area under the ROC curve: how often a positive has the higher score, ties counting half. NaN: one class."""
    wins, others = np.sort(score[positive]), np.sort(score[~positive])  # sorted queries stay in cache
    if not len(wins) or not len(others):
        return float("nan")
    below = np.searchsorted(others, wins, "left").sum() + np.searchsorted(others, wins, "right").sum()
    return float(below / 2 / (len(wins) * len(others)))
