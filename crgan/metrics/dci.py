"""DCI: disentanglement, completeness and informativeness, from how much each code helps to predict each factor."""

from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import Array, fit_and_test, is_continuous

PREDICTORS = ("boosting", "lasso", "forest")
FOREST_DEPTHS = (4, 5, 2, 5, 5)  # per factor of dSprites; the last for any more


def dci(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] classes or numbers
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) for informativeness; None: the same
    predictor: str = "boosting",
) -> dict[str, Any]:
    """Compute the DCI scores (Eastwood and Williams 2018, A Framework for the Quantitative Evaluation of Disentangled
    Representations, section 2).

    importance[k, f] says how much code k helps a predictor of factor f. Disentanglement of code k is 1 - the entropy
    (base F) of its row, completeness of factor f 1 - the entropy (base K) of its column. The scores are means:
    disentanglement weighted by each code's share of all importance, completeness plain.

    predictor "boosting" (disentanglement_lib) fits gradient boosting classifiers, or regressors where a factor holds
    fractions; completeness is weighted by importance too, informativeness is the mean accuracy (R^2 of a regressor).
    "lasso" (alpha 0.02) and "forest" (Eastwood and Williams, and the original code of InfoGAN-CR) regress on
    standardised codes and factors; informativeness is 1 - the mean root mean square error, 0 for guessing the mean.
    Random states are 0.

    Returns score (the disentanglement), disentanglement, completeness, informativeness, importance [K, F],
    per_code [K], per_factor [F]. Raises InputError for an unknown predictor.
    """
    from joblib import Parallel, cpu_count, delayed

    if predictor not in PREDICTORS:
        raise InputError(f"unknown DCI predictor {predictor!r}; expected one of {', '.join(PREDICTORS)}")
    x, y, test_x, test_y = fit_and_test(codes, factors, test, continuous=True)
    continuous = is_continuous(y)
    if predictor != "boosting":
        (x, test_x), (y, test_y) = _standardise(x, test_x), _standardise(y, test_y)
    # Boosting holds the interpreter's lock, so threads would not help; small fits take less than a process to start.
    jobs = min(cpu_count(), y.shape[1]) if predictor == "boosting" and len(x) > 2000 else 1
    fitted = Parallel(jobs)(
        delayed(_fit)(predictor, f, continuous[f], x, y[:, f], test_x, test_y[:, f]) for f in range(y.shape[1])
    )
    importance = np.stack([columns for columns, _ in fitted], 1)
    rows, columns, total = importance.sum(1), importance.sum(0), importance.sum() or 1.0
    per_code, per_factor = _one_minus_entropy(importance), _one_minus_entropy(importance.T)
    weight = columns / total if predictor == "boosting" else np.full(len(columns), 1 / len(columns))
    disentanglement = float(per_code @ rows / total)
    return {
        "score": disentanglement,
        "disentanglement": disentanglement,
        "completeness": float(per_factor @ weight),
        "informativeness": float(np.mean([quality for _, quality in fitted])),
        "importance": importance,
        "per_code": per_code,
        "per_factor": per_factor,
    }


def _fit(
    predictor: str, f: int, continuous: bool, x: Array, y: Array, test_x: Array, test_y: Array
) -> tuple[Array, float]:
    """Return the importances [K] and the quality of the predictor of factor f."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import Lasso

    if predictor == "boosting":
        boosting = (GradientBoostingRegressor if continuous else GradientBoostingClassifier)(random_state=0).fit(x, y)
        return boosting.feature_importances_, boosting.score(test_x, test_y)
    if predictor == "lasso":
        model = Lasso(0.02).fit(x, y)
        importance = np.abs(model.coef_)
    else:
        model = RandomForestRegressor(max_depth=FOREST_DEPTHS[min(f, 4)], random_state=0, n_jobs=-1).fit(x, y)
        importance = model.feature_importances_
    return importance, 1 - np.sqrt(np.mean((model.predict(test_x) - test_y) ** 2))


def _standardise(x: Array, test: Array) -> tuple[Array, Array]:
    mean, std = x.mean(0, dtype=float), x.std(0, dtype=float)
    std = np.where(std > 0, std, 1)
    return (x - mean) / std, (test - mean) / std


def _one_minus_entropy(importance: Array) -> Array:  # [R, n] -> [R], 0 where a row is all zero
    share = importance / np.maximum(importance.sum(1, keepdims=True), 1e-300)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    return np.where(importance.sum(1) > 0, 1 - entropy / np.log(max(importance.shape[1], 2)), 0.0)
