"""SAP: by how much the best code of a factor predicts it better than the second best."""

from collections.abc import Collection
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import active_dimensions, fit_and_test, is_continuous


def sap(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] classes or numbers
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) to score on; None: the same
    continuous: Collection[int] = (),  # factors predicted as numbers, as those with fractions always are
) -> dict[str, Any]:
    """Compute Separated Attribute Predictability (Kumar et al. 2018, Variational Inference of Disentangled Latent
    Concepts, section 3).

    matrix[k, f] is how well code k alone predicts factor f: for a continuous factor their squared correlation, for a
    discrete one the accuracy of a linear SVM (scikit-learn's LinearSVC with C = 0.01 and balanced class weights). The
    score is the mean over factors of best less second best. Returns score and matrix [K, F].
    """
    from joblib import Parallel, delayed
    from sklearn.svm import LinearSVC

    x, y, test_x, test_y = fit_and_test(codes, factors, test, continuous=True)
    if unknown := set(continuous) - set(range(y.shape[1])):
        raise InputError(f"continuous holds {unknown.pop()!r}; expected indices of factors, 0 to {y.shape[1] - 1}")
    regressed = {*continuous, *np.flatnonzero(is_continuous(y))}
    active = active_dimensions(x)[1].numpy()
    x, test_x = (part * active for part in (x, test_x))  # a constant code is 0

    def predictability(k: int, f: int) -> float:
        if f in regressed:
            return np.corrcoef(x[:, k], y[:, f])[0, 1] ** 2 if active[k] else 0.0
        machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(x[:, k, None], y[:, f])
        return machine.score(test_x[:, k, None], test_y[:, f])

    cells = [(k, f) for k in range(x.shape[1]) for f in range(y.shape[1])]
    # liblinear works outside the interpreter's lock
    values = Parallel(n_jobs=-1, prefer="threads")(delayed(predictability)(*cell) for cell in cells)
    matrix = np.array(values).reshape(x.shape[1], y.shape[1])
    ordered = np.sort(matrix, 0)[::-1]
    gaps = ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)
    return {"score": float(gaps.mean()), "matrix": matrix}
