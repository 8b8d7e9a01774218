"""SAP: how far the best code of a factor is ahead of the second best at predicting it alone."""

from collections.abc import Collection
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed

from ..errors import InputError
from .arrays import active_dimensions, fit_and_test


def sap(
    codes: Any,  # [N, K]
    factors: Any,  # [N, F] int classes
    *,
    test: tuple[Any, Any] | None = None,  # (codes, factors) to score on; None: the same
    continuous: Collection[int] = (),  # factors predicted as numbers
) -> dict[str, Any]:
    """Separated Attribute Predictability (Kumar et al. 2018, Variational Inference of Disentangled Latent
    Concepts, section 3).

    matrix[k, f] is how well code k alone predicts factor f: for a continuous factor their squared
    correlation, for a discrete one the accuracy of a linear SVM (squared hinge loss, C = 0.01, classes
    weighted to balance, one against the rest: scikit-learn's LinearSVC). The score is the mean over factors
    of best less second best. Returns score and matrix [K, F].
    """
    from sklearn.svm import LinearSVC  # only here: a second that no other command need wait

    codes, factors, test_codes, test_factors = fit_and_test(codes, factors, test)
    x, y = codes.double().cpu().numpy(), factors.cpu().numpy()
    test_x, test_y = test_codes.double().cpu().numpy(), test_factors.cpu().numpy()
    if wrong := set(continuous) - set(range(y.shape[1])):
        raise InputError(f"continuous holds {wrong.pop()!r}; expected indices of factors, 0 to {y.shape[1] - 1}")
    varies = active_dimensions(codes)[1].tolist()

    def predictability(k: int, f: int) -> float:
        if f in continuous:
            return np.corrcoef(x[:, k], y[:, f])[0, 1] ** 2 if varies[k] else 0.0
        machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(x[:, k, None], y[:, f])
        return machine.score(test_x[:, k, None], test_y[:, f])

    cells = [(k, f) for k in range(x.shape[1]) for f in range(y.shape[1])]
    # liblinear works outside the interpreter's lock
    values = Parallel(n_jobs=cpu_count(), prefer="threads")(delayed(predictability)(*cell) for cell in cells)
    matrix = np.array(values).reshape(x.shape[1], y.shape[1])
    ordered = np.sort(matrix, 0)[::-1]
    gaps = ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)
    return {"score": float(gaps.mean()), "matrix": matrix}
