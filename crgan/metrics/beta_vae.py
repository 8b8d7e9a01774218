"""The BetaVAE score: can a linear classifier tell which factor a set of pairs shares?"""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .arrays import codes_array, float_array, labels_array
from .logistic import fit_logistic


def beta_vae(
    pairs: Any,  # [G, P, 2, K] codes; both of a pair share the value of factor `factor[g]`
    factor: Any,  # [G] int
    *,
    heldout: tuple[Any, Any] | None = None,  # (pairs, factor) to score on; None: the same
) -> dict[str, Any]:
    """BetaVAE score in [0, 1] (Higgins et al. 2017, beta-VAE, section 3).

    Group g becomes the mean over its pairs of |c - c'| [K], from which multinomial logistic regression
    (penalty |w|^2 / 2, as scikit-learn's default) predicts the factor; the score is its accuracy. Returns
    score and train_score.
    """
    x, y = _features(pairs, factor, "pairs")
    logits = fit_logistic(x, y, int(y.max()) + 1)
    train_score = score = float((logits(x).max(0).indices == y).double().mean())
    if heldout is not None:
        x, y = _features(*heldout, "heldout pairs")
        score = float((logits(x).max(0).indices == y).double().mean())
    return {"score": score, "train_score": train_score}


def _features(pairs: Any, factor: Any, name: str) -> tuple[Tensor, Tensor]:  # -> [G, K], [G]
    codes = float_array(pairs, name, "G P 2 K")
    if codes.shape[2] != 2:
        raise InputError(f"{name} has shape {list(codes.shape)}; expected [G P 2 K], two images in a pair")
    # In cache, and of few groups too small to wake torch's threads for; what is not finite shows in the means.
    blocks = codes.split(max(50, len(codes) // 40))
    means = torch.cat([(block[:, :, 0] - block[:, :, 1]).abs_().mean(1) for block in blocks])
    return codes_array(means, name, "G K"), labels_array(factor, codes)
