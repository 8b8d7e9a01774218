from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso

from crgan import InputError, udr


def plain_udr(codes, method):
    """The definition, code by code, on standardised codes that all vary."""
    codes = [(c - c.mean(0)) / c.std(0) for c in codes]
    pairs = np.zeros((len(codes), len(codes)))
    for i, j in permutations(range(len(codes)), 2):
        R = np.zeros((codes[i].shape[1], codes[j].shape[1]))
        for a, b in np.ndindex(R.shape):
            R[a, b] = abs(spearmanr(codes[i][:, a], codes[j][:, b]).statistic)
        if method == "udr-lasso":
            fit = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000)
            R = np.stack([np.abs(fit.fit(codes[i], code).coef_) for code in codes[j].T], 1)
        parts = [[max(row) ** 2 / sum(row) if sum(row) else 0 for row in rows] for rows in (R, R.T)]
        pairs[i, j] = (np.mean(parts[0]) + np.mean(parts[1])) / 2
    return pairs, [np.median(np.delete(pairs[:, i], i)) for i in range(len(codes))]


@pytest.fixture
def pool():
    rng = np.random.default_rng(0)
    factors = rng.uniform(-1, 1, (800, 4))
    codes = [factors @ rng.normal(size=(4, k)) + 0.1 * rng.normal(size=(800, k)) for k in (4, 3, 6)]
    return [*codes, np.round(factors * 4)]  # the last with many ties


@pytest.mark.parametrize("method", ["udr-lasso", "udr-spearman"])
def test_agrees_with_the_definition(pool, method):
    found = udr(pool, method=method)
    pairs, score = plain_udr(pool, method)
    np.testing.assert_allclose(found["pairs"], pairs, atol=1e-6)
    np.testing.assert_allclose(found["score"], score, atol=1e-6)
    padded = [np.concatenate([c, np.full((len(c), 2), 3.0)], 1) for c in pool]
    np.testing.assert_array_equal(found["pairs"], udr(padded, method=method)["pairs"])  # constants change nothing


@pytest.mark.parametrize("method", ["udr-lasso", "udr-spearman"])
def test_known_answers(method):
    rng = np.random.default_rng(1)
    c = rng.uniform(-1, 1, (5000, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    collapsed, broken = np.zeros_like(c), c.copy()
    broken[7, 1] = np.nan
    found = udr([c, -3 * c[:, [2, 0, 3, 1]] + 7, c**3, c @ turn, collapsed, broken], method=method)
    # the penalty of the Lasso shortens a coefficient of 1 to 1 - alpha
    assert found["pairs"][0, 1] == pytest.approx(0.9 if method == "udr-lasso" else 0.95, abs=0.06)
    assert (found["pairs"][4:] == 0).all()
    assert (found["pairs"][:, 4:] == 0).all()
    assert np.isfinite(found["score"]).all()
    score = udr([c, -3 * c[:, [2, 0, 3, 1]] + 7, c**3, c @ turn], method=method)["score"]
    assert score.argmin() == 3
    assert score[:3].min() > score[3] + 0.2


def test_lasso_takes_the_median_over_columns_as_the_authors_do():
    """The values are those of disentanglement_lib's evaluation/udr."""
    f = np.random.default_rng(0).uniform(-1, 1, (2000, 5))
    narrow = [f[:, 0] + 0.3 * np.random.default_rng(k).normal(size=2000) for k in range(5)]
    score = udr([f, f.cumsum(1), np.stack(narrow, 1)])["score"]
    np.testing.assert_allclose(score, [0.418, 0.166, 0.409], atol=5e-4)


def test_user_mistakes(pool):
    for codes, more, value in (
        (pool[:1], {}, "at least 2 models"),
        ([pool[0], pool[1][:10]], {}, r"\[800, 4\], \[10, 3\]"),
        (pool, {"method": "udr-kendall"}, "udr-kendall"),
    ):
        with pytest.raises(InputError, match=value):
            udr(codes, **more)
