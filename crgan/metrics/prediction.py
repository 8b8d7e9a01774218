"""Metrics of predicting the factors from the codes: BetaVAE, DCI, SAP and Explicitness."""

from collections.abc import Collection
from typing import Any

import numpy as np

from ..errors import InputError, check_name
from .arrays import Array, Pair, Scores, fit_and_test, group_factors, tensor
from .information import entropy, top_gap

PREDICTORS = ("boosting", "lasso", "forest")
FOREST_DEPTHS = (4, 5, 2, 5, 5)  # per factor of dSprites; the last for any more


def beta_vae(pairs: Any, factor: Any, *, heldout: Pair | None = None) -> Scores:
    """Compute the BetaVAE score in [0, 1] (Higgins et al. 2017, beta-VAE, section 3).

    `pairs` are codes [G, P, 2, K], both of a pair with the same value of factor `factor` [G]; `heldout` is such a pair
    of arguments to score on (None: the same). Group g becomes the mean over its pairs of |c - c'| [K], from which
    multinomial logistic regression (scikit-learn's, C = 1) predicts the factor; the score is its accuracy. Returns
    score and train_score.
    """
    from sklearn.linear_model import LogisticRegression

    def features(pairs: Any, factor: Any) -> tuple[Array, Array]:  # -> [G, K], [G]
        codes = tensor(pairs, "pairs", "G P 2 K")
        means = (codes[:, :, 0] - codes[:, :, 1]).abs_().mean(1)
        return means.numpy(force=True), group_factors(factor, codes).numpy(force=True)

    train = x, y = features(pairs, factor)
    if (y == y[0]).all():
        raise InputError(f"factor is {y[0]} in all {len(y)} groups; expected groups of at least two factors")
    classifier = LogisticRegression(max_iter=1000).fit(x, y)
    test = features(*heldout) if heldout else train
    return {"score": float(classifier.score(*test)), "train_score": float(classifier.score(*train))}


def dci(codes: Any, factors: Any, *, test: Pair | None = None, predictor: str = "boosting") -> Scores:
    """Compute the DCI scores (Eastwood and Williams 2018, section 2).

    `codes` are [N, K], `factors` [N, F] classes or numbers; `test` is such a pair for informativeness (None: the same).
    importance[k, f] says how much code k helps a predictor of factor f. Disentanglement of code k is 1 - the entropy
    (base F) of its row, completeness of factor f 1 - the entropy (base K) of its column. The scores are means:
    disentanglement weighted by each code's share of all importance, completeness plain.

    predictor "boosting" (disentanglement_lib) fits gradient boosting classifiers, or regressors where a factor holds
    fractions; completeness is weighted by importance too, informativeness is the mean accuracy (R^2 of a regressor).
    "lasso" (alpha 0.02) and "forest" (Eastwood and Williams, and the original code of InfoGAN-CR) regress on
    standardised codes and factors; informativeness is 1 - the mean root mean square error, 0 for guessing the mean.

    Returns score (the disentanglement), disentanglement, completeness, informativeness, importance [K, F],
    per_code [K], per_factor [F]. Raises InputError for an unknown predictor.
    """
    from joblib import Parallel, cpu_count, delayed
    from sklearn.preprocessing import StandardScaler

    check_name("DCI predictor", predictor, PREDICTORS)
    x, y, test_x, test_y = fit_and_test(codes, factors, test)
    boosting = predictor == "boosting"
    if not boosting:
        of_codes, of_factors = StandardScaler().fit(x.astype(np.float64)), StandardScaler().fit(y)
        x, test_x = (of_codes.transform(part.astype(np.float64)) for part in (x, test_x))
        y, test_y = of_factors.transform(y), of_factors.transform(test_y)
    # Boosting 10,000 points takes minutes, and holds the interpreter's lock.
    jobs = min(cpu_count(), y.shape[1]) if boosting and len(x) > 2000 else 1
    tasks = (delayed(_fit)(predictor, f, x, y[:, f], test_x, test_y[:, f]) for f in range(y.shape[1]))
    columns, qualities = zip(*Parallel(jobs)(tasks))
    importance = np.stack(columns, 1)
    per_code, per_factor = _one_minus_entropy(importance), _one_minus_entropy(importance.T)
    total = importance.sum() or 1.0
    disentanglement = float(per_code @ importance.sum(1) / total)
    completeness = float(per_factor @ importance.sum(0) / total if boosting else per_factor.mean())
    scores = {"score": disentanglement, "disentanglement": disentanglement, "completeness": completeness}
    scores["informativeness"] = float(np.mean(qualities))
    return scores | {"importance": importance, "per_code": per_code, "per_factor": per_factor}


def _fit(predictor: str, f: int, x: Array, y: Array, test_x: Array, test_y: Array) -> tuple[Array, float]:
    """Return the importance of each code [K] for factor f, and the quality of the predictor."""
    from sklearn import ensemble, linear_model

    if predictor == "boosting":
        kind = ensemble.GradientBoostingRegressor if (y != y.round()).any() else ensemble.GradientBoostingClassifier
        trees = kind(random_state=0).fit(x, y)
        return trees.feature_importances_, trees.score(test_x, test_y)
    forest = ensemble.RandomForestRegressor(max_depth=FOREST_DEPTHS[min(f, 4)], random_state=0, n_jobs=-1)
    model: Any = (linear_model.Lasso(0.02) if predictor == "lasso" else forest).fit(x, y)
    importance = np.abs(model.coef_) if predictor == "lasso" else model.feature_importances_
    return importance, 1 - np.sqrt(np.mean((model.predict(test_x) - test_y) ** 2))


def _one_minus_entropy(importance: Array) -> Array:  # [R, n] -> [R], 0 where a row is all zero
    total = importance.sum(1)
    share = importance / np.where(total > 0, total, 1)[:, None]
    return np.where(total > 0, 1 - entropy(share) / np.log(max(importance.shape[1], 2)), 0.0)


def sap(codes: Any, factors: Any, *, test: Pair | None = None, continuous: Collection[int] = ()) -> Scores:
    """Compute Separated Attribute Predictability (SAP; Kumar et al. 2018, section 3).

    `codes` are [N, K], `factors` [N, F] classes or numbers; `test` is such a pair to score on (None: the same).
    matrix[k, f] is how well code k alone predicts factor f: for a factor that holds fractions, or whose index is in
    `continuous`, their squared correlation in the rows to fit, for others the accuracy of a linear SVM (scikit-learn's
    LinearSVC with C = 0.01 and balanced class weights). The score is the mean over factors of the best code's value
    minus the second best's. Returns score and matrix [K, F].
    """
    from sklearn.svm import LinearSVC

    x, y, test_x, test_y = fit_and_test(codes, factors, test)
    matrix = np.zeros((x.shape[1], y.shape[1]))
    regressed = {*continuous, *np.flatnonzero((y != y.round()).any(0))}
    for k, f in np.ndindex(matrix.shape):
        if f in regressed:
            matrix[k, f] = np.corrcoef(x[:, k], y[:, f])[0, 1] ** 2 if x[:, k].any() else 0.0
        else:
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(x[:, [k]], y[:, f])
            matrix[k, f] = machine.score(test_x[:, [k]], test_y[:, f])
    return {"score": float(top_gap(matrix).mean()), "matrix": matrix}


def explicitness(codes: Any, factors: Any, *, test: Pair | None = None, standardise: bool = False) -> Scores:
    """Compute Explicitness in [0, 1] (Ridgeway and Mozer 2018, Learning Deep Disentangled Embeddings, section 3).

    `codes` are [N, K], `factors` [N, F] classes; `test` is such a pair to score on (None: the same).
    Mean over factors, and over the values of each, of the area under the ROC curve of multinomial logistic regression
    (scikit-learn's, C = 1), one value against the rest. Chance is 0.5: as in disentanglement_lib, the area is not
    rescaled to [0, 1] as in the paper. `standardise` divides by the standard deviation of the training codes first.
    Values in no row of `test`, or in all, are left out; a factor without others counts 0.5. Returns score and
    per_factor [F]. Raises InputError for factors with fractions.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = fit_and_test(codes, factors, test)
    if (y != y.round()).any():
        raise InputError("factors hold fractions; expected the class of each factor")
    scaler = StandardScaler(with_std=standardise).fit(x)  # the intercept is free, but centred codes fit faster
    x, test_x = scaler.transform(x), scaler.transform(test_x)
    per_factor = []
    for column, truth in zip(y.T, test_y.T):
        classifier = LogisticRegression(max_iter=1000).fit(x, column)
        areas = [
            roc_auc_score(truth == value, probability)
            for value, probability in zip(classifier.classes_, classifier.predict_proba(test_x).T)
            if 0 < (truth == value).sum() < len(truth)
        ]
        per_factor.append(np.mean(areas) if areas else 0.5)
    return {"score": float(np.mean(per_factor)), "per_factor": np.array(per_factor)}
