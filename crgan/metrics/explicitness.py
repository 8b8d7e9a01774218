"""Explicitness: can a linear classifier read each value of each factor off the codes?"""

from typing import Any

import numpy as np

from .arrays import active_dimensions, fit_and_test


def explicitness(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) to score on; None: the same
    standardise: bool = False,
) -> dict[str, Any]:
    """Compute Explicitness in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, section 3).

    Mean over factors, and over the values of each, of the area under the ROC curve of multinomial logistic regression
    (scikit-learn's, C = 1), one value against the rest. Chance is 0.5: as in disentanglement_lib, the area is not
    rescaled to [0, 1] as in the paper. `standardise` divides by the standard deviation of the training codes first.
    Values that `test` lacks or has alone are left out; a factor with no other counts 0.5. Returns score and
    per_factor [F].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    x, y, test_x, test_y = fit_and_test(codes, factors, test)
    std, active = (part.numpy() for part in active_dimensions(x))
    scale = (1 / np.where(active, std, 1) if standardise else 1) * active  # a constant code becomes 0
    mean = x.mean(0, dtype=float)  # the intercept is free, so the shift only speeds the fit up
    x, test_x = (((part - mean) * scale).astype(x.dtype) for part in (x, test_x))
    per_factor = []
    for column, truth in zip(y.T, test_y.T):
        classifier = LogisticRegression(max_iter=1000).fit(x, column)
        probability = classifier.predict_proba(test_x)
        found = [c for c, value in enumerate(classifier.classes_) if 0 < (truth == value).sum() < len(truth)]
        areas = [roc_auc_score(truth == classifier.classes_[c], probability[:, c]) for c in found]
        per_factor.append(np.mean(areas) if areas else 0.5)
    return {"score": float(np.mean(per_factor)), "per_factor": np.array(per_factor)}
