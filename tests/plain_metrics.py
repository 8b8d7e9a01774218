"""The metrics written out from their definitions with numpy and scikit-learn, one code and one factor at a time.

Tests take their expected values from here, and the benchmarks their baselines.
"""

import numpy as np
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC


def factor_vae(groups, factor, points, heldout=None, min_std=0.0, ddof=0):
    std = np.std(points, 0, ddof=ddof)
    dims = [d for d in range(len(std)) if std[d] >= min_std]  # indices, not a mask
    scale = std[dims]

    def table(groups, factor):
        votes = np.zeros((len(std), int(np.max(factor)) + 1), int)
        for group, f in zip(groups, factor):
            votes[dims[int(np.argmin(np.var(group[:, dims], 0, ddof=ddof) / scale**2))], f] += 1
        return votes

    votes = table(groups, factor)
    if heldout is None:
        return {"votes": votes, "score": votes.max(1).sum() / votes.sum()}
    held = table(*heldout)
    return {"votes": votes, "score": sum(held[d, votes[d].argmax()] for d in range(len(std))) / held.sum()}


def beta_vae(pairs, factor, heldout=None):
    def features(pairs):
        return np.array([np.mean(np.abs(p[:, 0] - p[:, 1]), 0) for p in pairs])

    held_pairs, held_factor = heldout or (pairs, factor)
    return LogisticRegression().fit(features(pairs), factor).score(features(held_pairs), held_factor)


def discretise(values, bins=20):
    return np.digitize(values, np.histogram(values, bins)[1][:-1])


def mutual_information(codes, factors):
    return np.array([[mutual_info_score(f, discretise(c)) for f in factors.T] for c in codes.T])


def mig(codes, factors):
    info = np.sort(mutual_information(codes, factors), 0)
    return np.mean((info[-1] - info[-2]) / [mutual_info_score(column, column) for column in factors.T])


def modularity(codes, factors):
    scores = []
    for row in np.square(mutual_information(codes, factors)):
        top = row.max()
        scores.append(0.0 if top == 0 else 1 - (row.sum() - top) / (top * (len(row) - 1)))
    return np.mean(scores)


def explicitness(codes, factors, test=None, standardise=False):
    test_codes, test_factors = test or (codes, factors)
    if standardise:
        mean, std = codes.mean(0), codes.std(0)
        codes, test_codes = (codes - mean) / std, (test_codes - mean) / std
    areas = []
    for f in range(factors.shape[1]):
        classifier = LogisticRegression().fit(codes, factors[:, f])
        areas.append(roc_auc_score(test_factors[:, f], classifier.predict_proba(test_codes), multi_class="ovr"))
    return np.mean(areas)


def dci_boosting(codes, factors, test):
    """As disentanglement_lib: disentanglement and completeness weighted by importance, and accuracy."""
    models = [GradientBoostingClassifier(random_state=0).fit(codes, y) for y in factors.T]
    importance = np.array([model.feature_importances_ for model in models]).T  # [K, F]
    d = 1 - entropy(importance.T + 1e-11, base=importance.shape[1])
    c = 1 - entropy(importance + 1e-11, base=importance.shape[0])
    rows, columns = importance.sum(1) / importance.sum(), importance.sum(0) / importance.sum()
    return d @ rows, c @ columns, np.mean([model.score(test[0], y) for model, y in zip(models, test[1].T)])


def dci_lasso(codes, factors):
    """Eastwood and Williams' own: codes and factors standardised; completeness unweighted."""
    codes, factors = ((x - x.mean(0)) / x.std(0) for x in (codes.astype(float), factors.astype(float)))
    importance = np.abs([Lasso(0.02).fit(codes, y).coef_ for y in factors.T]).T
    d, c = (np.nan_to_num(1 - entropy(share, base=len(share))) for share in (importance.T, importance))
    return np.dot(d, importance.sum(1)) / importance.sum(), np.mean(c)


def sap(codes, factors, test=None, continuous=()):
    test_codes, test_factors = test or (codes, factors)
    score = np.zeros((codes.shape[1], factors.shape[1]))
    for k in range(codes.shape[1]):
        for f in range(factors.shape[1]):
            if f in continuous:
                score[k, f] = np.corrcoef(codes[:, k], factors[:, f])[0, 1] ** 2
            else:
                machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
                machine.fit(codes[:, k : k + 1], factors[:, f])
                score[k, f] = machine.score(test_codes[:, k : k + 1], test_factors[:, f])
    ordered = np.sort(score, 0)
    return np.mean(ordered[-1] - ordered[-2])


def irs(codes, factors, quantile=0.99):
    codes = codes[:, codes.var(0) > 0].astype(float)
    largest = np.abs(codes - codes.mean(0)).max(0)
    spread = np.zeros((codes.shape[1], factors.shape[1]))
    for f in range(factors.shape[1]):
        classes = discretise(factors[:, f])
        for value in np.unique(classes):
            same = codes[classes == value]
            spread[:, f] += np.quantile(np.abs(same - same.mean(0)), quantile, 0) / len(np.unique(classes))
    return np.average((1 - spread / largest[:, None]).max(1), weights=largest)


def dhsic(codes):
    kernels = []
    for x in codes.astype(float).T:
        distance = np.abs(x[:, None] - x[None])
        kernels.append(np.exp(-distance / np.median(distance) ** 2))
    kernels = np.array(kernels)  # [K, n, n]
    joint, rows = kernels.prod(0).mean(), kernels.mean(2)
    return joint + rows.mean(1).prod() - 2 * rows.prod(0).mean()
