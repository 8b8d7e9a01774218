"""The BetaVAE score: can a linear classifier name the factor that a set of pairs shares?"""

from typing import Any

from ..errors import InputError
from .arrays import Array, codes_array, labels_array


def beta_vae(
    pairs: Any,  # [G, P, 2, K] codes; both of a pair share the value of factor `factor[g]`
    factor: Any,  # [G] int
    *,
    heldout: tuple[Any, Any] | None = None,  # (pairs, factor) to score on; None: the same
) -> dict[str, Any]:
    """Compute the BetaVAE score in [0, 1] (Higgins et al. 2017, beta-VAE, section 3).

    Group g becomes the mean over its pairs of |c - c'| [K], from which multinomial logistic regression (scikit-learn's,
    C = 1) predicts the factor; the score is its accuracy. Returns score and train_score.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = _features(pairs, factor, "pairs")
    if (y == y[0]).all():
        raise InputError(f"factor is {y[0]} in all {len(y)} groups; expected groups of at least two factors")
    classifier = LogisticRegression(max_iter=1000).fit(x, y)
    train_score = score = float(classifier.score(x, y))
    if heldout is not None:
        score = float(classifier.score(*_features(*heldout, "heldout pairs")))
    return {"score": score, "train_score": train_score}


def _features(pairs: Any, factor: Any, name: str) -> tuple[Array, Array]:  # -> [G, K], [G]
    codes = codes_array(pairs, name, "G P 2 K")
    if codes.shape[2] != 2:
        raise InputError(f"{name} has shape {list(codes.shape)}; expected [G P 2 K], two images in a pair")
    means = (codes[:, :, 0] - codes[:, :, 1]).abs_().mean(1)
    return means.numpy(force=True), labels_array(factor, codes).numpy(force=True)
