"""DCI: disentanglement, completeness and informativeness from how much each code helps to predict each
factor."""

from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed

from ..errors import InputError
from .arrays import fit_and_test

# Depth per factor of dSprites; the last for any more.
DEPTHS = {"forest": (4, 5, 2, 5, 5), "forest_ibgan": (4, 2, 4, 2, 2)}
PREDICTORS = ("boosting", "lasso", "lasso_cv", *DEPTHS, "forest_cv")


def dci(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) for informativeness; None: the same
    predictor: str = "boosting",
    jobs: int | None = None,
) -> dict[str, Any]:
    """DCI scores (Eastwood and Williams 2018, A Framework for the Quantitative Evaluation of Disentangled
    Representations, section 2).

    importance[k, f] says how much code k helps a predictor of factor f. Disentanglement of code k is 1 - the
    entropy (base F) of its row, completeness of factor f 1 - the entropy (base K) of its column. The scores
    are means: disentanglement weighted by each code's share of all importance, completeness plain.

    predictor "boosting" (disentanglement_lib): gradient boosting classifiers; completeness weighted by
    importance too; informativeness is the mean accuracy. All others (Eastwood and Williams, and the original
    code of InfoGAN-CR) regress on standardised codes and classes: "lasso" (alpha 0.02), "lasso_cv", random
    forests "forest", "forest_ibgan", "forest_cv"; informativeness is 1 - the mean root mean square error of a
    factor in units of its deviation, 0 for guessing the mean. Forests and boosting are seeded with 0.

    Returns score (the disentanglement), disentanglement, completeness, informativeness, importance [K, F],
    per_code [K], per_factor [F]. Raises InputError for an unknown predictor.
    """
    if predictor not in PREDICTORS:
        raise InputError(f"unknown DCI predictor {predictor!r}; expected one of {', '.join(PREDICTORS)}")
    x, y, test_x, test_y = (array.cpu().numpy() for array in fit_and_test(codes, factors, test))
    if predictor != "boosting":
        (x, test_x), (y, test_y) = _standardise(x, test_x), _standardise(y, test_y)
    if predictor == "lasso":
        x, y = _condense(x, y)
        test_x, test_y = (x, y) if test is None else _condense(test_x, test_y)
    jobs = jobs or (1 if predictor == "lasso" else min(cpu_count(), y.shape[1]))
    fitted = Parallel(n_jobs=jobs)(
        delayed(_fit)(predictor, f, x, y[:, f], test_x, test_y[:, f]) for f in range(y.shape[1])
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


def _standardise(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(0, dtype=np.float64)
    centred = x - mean
    std = np.sqrt(np.einsum("nk,nk->k", centred, centred) / len(x))
    std = np.where(std > 0, std, 1)
    return centred / std, (test - mean) / std


def _condense(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K + F points with the second moments of all N: to a lasso without intercept, and to its error, the same."""
    both = np.concatenate([x, y], 1)
    values, vectors = np.linalg.eigh(both.T @ both / len(both))
    points = np.sqrt(len(values) * np.maximum(values, 0))[:, None] * vectors.T
    return points[:, : x.shape[1]], points[:, x.shape[1] :]


def _one_minus_entropy(importance: np.ndarray) -> np.ndarray:  # [R, n] -> [R], 0 where a row is all zero
    share = importance / np.maximum(importance.sum(1, keepdims=True), 1e-300)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    return np.where(importance.sum(1) > 0, 1 - entropy / np.log(max(importance.shape[1], 2)), 0.0)


def _fit(predictor: str, f: int, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray):
    """Importances [K] and quality of the predictor of factor f."""
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor
    from sklearn.linear_model import Lasso, LassoCV
    from sklearn.model_selection import GridSearchCV

    if predictor == "boosting":
        model = GradientBoostingClassifier(random_state=0).fit(x, y)
        return model.feature_importances_, model.score(test_x, test_y)
    if predictor == "lasso":
        model = Lasso(0.02, fit_intercept=False)
    elif predictor == "lasso_cv":
        model = LassoCV()
    elif predictor == "forest_cv":
        model = GridSearchCV(RandomForestRegressor(random_state=0), {"max_depth": list(range(2, 16))}, cv=3)
    else:
        depths = DEPTHS[predictor]
        model = RandomForestRegressor(max_depth=depths[min(f, len(depths) - 1)], random_state=0)
    model.fit(x, y)
    error = np.sqrt(np.mean((model.predict(test_x) - test_y) ** 2))
    best = getattr(model, "best_estimator_", model)
    return np.abs(best.coef_ if predictor.startswith("lasso") else best.feature_importances_), 1 - error
