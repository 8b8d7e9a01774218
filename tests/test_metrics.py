"""Metrics of arrays: known answers, the definitions of plain_metrics.py on the same arrays, and arguments."""

import itertools
import math

import numpy as np
import plain_metrics as plain
import pytest
import torch
from scipy.ndimage import gaussian_filter

from crgan import metrics
from crgan.errors import InputError
from crgan.metrics.information import discretise

GRID = np.array(list(itertools.product(range(3), range(4), range(5), range(6))))  # factors exactly independent
IDENTITY = GRID.astype(float)


def mixture(n, num_codes, sizes=(3, 6, 10, 8, 8), seed=0):
    """Codes that mix the factors, each with one that it follows most, as a model half-way trained has them."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=n) for size in sizes], 1)
    weight = np.random.default_rng(7).normal(size=(num_codes, len(sizes))) * 0.3
    weight[: len(sizes)] += np.eye(len(sizes))
    codes = (factors / sizes * 2 - 1) @ weight.T + 0.1 * rng.normal(size=(n, num_codes))
    return codes.astype(np.float32), factors


CODES, FACTORS = mixture(3000, 7)
TEST = mixture(1500, 7, seed=1)
SCORES = {
    "mig": metrics.mig,
    "modularity": metrics.modularity,
    "dci": lambda c, f: metrics.dci(c, f, predictor="lasso"),
    "sap": lambda c, f: metrics.sap(c, f, continuous=range(np.shape(f)[1])),
    "explicitness": metrics.explicitness,
    "irs": metrics.irs,
}


def test_metrics_equal_their_definitions():
    for dtype, shift in itertools.product((np.float32, float), (0, 1e4)):
        codes = (CODES + shift).astype(dtype)
        assert metrics.mig(codes, FACTORS)["score"] == pytest.approx(plain.mig(codes, FACTORS), abs=1e-9)
        assert metrics.modularity(codes, FACTORS)["score"] == pytest.approx(plain.modularity(codes, FACTORS), abs=1e-9)
    edges = np.random.default_rng(0).integers(41, size=5000) / 40  # most values lie on an edge of a bin
    assert (discretise(edges.astype(np.float32)) == plain.discretise(edges.astype(np.float32)) - 1).all()
    for standardise in (False, True):
        score = metrics.explicitness(CODES, FACTORS, test=TEST, standardise=standardise)["score"]
        assert score == pytest.approx(plain.explicitness(CODES, FACTORS, TEST, standardise), abs=1e-3)
    assert metrics.sap(CODES, FACTORS, test=TEST)["score"] == pytest.approx(plain.sap(CODES, FACTORS, TEST))
    mixed = metrics.sap(CODES, FACTORS, continuous=(1, 2, 3, 4))["score"]
    assert mixed == pytest.approx(plain.sap(CODES, FACTORS, continuous=(1, 2, 3, 4)))
    codes, factors = mixture(4000, 5, (50, 50, 50, 50, 50))  # more values than bins
    codes[:, 3] = 0.5  # a constant code is left out
    assert metrics.irs(codes, factors)["score"] == pytest.approx(plain.irs(codes, factors), abs=1e-9)
    for codes in (CODES[:499], CODES[:500].astype(float) * 100 + 1e3):
        assert metrics.dhsic(codes)["score"] == pytest.approx(plain.dhsic(codes), rel=1e-6)


def test_dci_equals_the_definition_with_boosting_and_with_lasso():
    codes, factors = mixture(400, 4, (2, 4))
    result = metrics.dci(codes, factors, test=(held := mixture(200, 4, (2, 4), seed=1)))
    found = [result[name] for name in ("disentanglement", "completeness", "informativeness")]
    assert found == pytest.approx(plain.dci_boosting(codes, factors, held), abs=1e-6)
    result = metrics.dci(CODES, FACTORS, predictor="lasso")
    assert [result["disentanglement"], result["completeness"]] == pytest.approx(plain.dci_lasso(CODES, FACTORS))


def test_beta_vae_equals_the_definition():
    rng, label = np.random.default_rng(0), np.arange(800) % 5
    factors = rng.uniform(-1, 1, (800, 30, 2, 5))
    factors[np.arange(800), :, 1, label] = factors[np.arange(800), :, 0, label]
    pairs = factors @ rng.normal(size=(5, 7)) + 0.5 * rng.normal(size=(800, 30, 2, 7))
    train, held = (pairs[:500], label[:500]), (pairs[500:], label[500:])
    result = metrics.beta_vae(*train, heldout=held)
    assert result["score"] == pytest.approx(plain.beta_vae(*train, heldout=held), abs=0.005)
    assert result["train_score"] == pytest.approx(plain.beta_vae(*train), abs=0.005)


def test_psnr_and_ssim_equal_the_definition():
    rng = np.random.default_rng(0)
    x = rng.random((4, 3, 20, 24))
    y = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)

    def smooth(images):
        return gaussian_filter(images, (0, 0, 1.5, 1.5), truncate=3.5)[..., 5:-5, 5:-5]

    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    ssim = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    psnr = 10 * np.log10(1 / np.mean((x - y) ** 2, (1, 2, 3)))
    result = metrics.reconstruction(x, y)
    assert (result["psnr"], result["ssim"]) == pytest.approx((psnr.mean(), ssim.mean()), abs=1e-4)
    assert metrics.reconstruction(x, x) == pytest.approx({"score": 100.0, "psnr": 100.0, "ssim": 1.0})


@pytest.mark.parametrize("name", SCORES)
def test_the_identity_scores_one_in_any_order_and_scale_and_rotated_less(name):
    expected = pytest.approx(1.0, abs=0.01 if name == "explicitness" else 1e-6)
    assert SCORES[name](IDENTITY, GRID)["score"] == expected
    changed = IDENTITY[:, [2, 0, 3, 1]] * [-3, 1, 100, 0.1] + [0, 1e3, 0, -5]
    assert SCORES[name](changed, GRID)["score"] == expected
    if name != "explicitness":  # a rotation keeps what a linear classifier reads
        centred = (IDENTITY - IDENTITY.mean(0)) / IDENTITY.std(0)
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
        assert SCORES[name](centred @ turn, GRID)["score"] < (0.99 if name == "modularity" else 0.8)


@pytest.mark.parametrize("name", SCORES)
def test_constant_codes_score_chance_and_give_no_nan(name):
    for value in (0.0, 0.1, 1e4):
        result = SCORES[name](np.full((len(GRID), 4), value, np.float32), GRID)
        assert result["score"] == pytest.approx(0.5 if name == "explicitness" else 0.0, abs=1e-6)
        assert all(np.isfinite(part).all() for part in result.values())


@pytest.mark.parametrize("column", [[1.0, 1.0000001], [5e5, 5e5], [1e7, 1e7 + 1], [1e-21, -1e-21]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_rule_says_which_codes_are_constant(column, dtype):
    codes = CODES[:600].astype(dtype)
    codes[:, 2] = np.resize(np.array(column, np.float32), len(codes))
    zero, factors = np.where(np.arange(7) == 2, 0, codes), FACTORS[:600]
    assert (metrics.mig(codes, factors)["mutual_information"][2] < 1e-12).all()
    assert (metrics.irs(codes, factors)["matrix"][2] == 0).all()
    assert (metrics.sap(codes, factors, continuous=range(1, 5))["matrix"][2, 1:] == 0).all()
    for score in (metrics.dhsic, lambda c: metrics.sap(c, factors), lambda c: metrics.explicitness(c, factors)):
        assert score(codes)["score"] == pytest.approx(score(zero)["score"])


def test_one_code_for_two_factors_and_two_codes_for_one():
    merged = np.stack([IDENTITY[:, 0] * 4 + IDENTITY[:, 1], IDENTITY[:, 2], IDENTITY[:, 3]], 1)
    # The code names both factors, so both gaps are whole; but it mixes them.
    assert metrics.mig(merged, GRID)["score"] == pytest.approx(1.0)
    share = math.log(3) ** 2 / math.log(4) ** 2
    assert metrics.modularity(merged, GRID)["per_code"] == pytest.approx([1 - share / 3, 1, 1])
    scores = metrics.dci(merged, GRID, predictor="lasso")
    assert (scores["completeness"], *scores["per_code"][1:]) == pytest.approx((1.0, 1.0, 1.0))
    assert scores["per_code"][0] < 0.9
    twice = IDENTITY[:, [0, 0, 1, 2, 3]] * [1, -2, 1, 1, 1]
    assert metrics.mig(twice, GRID)["gaps"] == pytest.approx([0, 1, 1, 1])
    assert metrics.sap(twice, GRID, continuous=range(4))["score"] == pytest.approx(0.75)
    assert metrics.modularity(twice, GRID)["score"] == pytest.approx(1.0)
    scores = metrics.dci(twice, GRID, predictor="forest")
    assert scores["disentanglement"] > 0.95
    assert scores["per_factor"][0] < 0.7 < scores["per_factor"][1:].min()
    for score in SCORES.values():  # a single code, a single factor
        assert 0 <= score(twice[:, :1], GRID)["score"] <= 1
        assert 0 <= score(twice, GRID[:, :1])["score"] <= 1


def test_dhsic_separates_independent_codes_from_dependent_ones():
    x = np.random.default_rng(0).uniform(-1, 1, (800, 3))
    assert 0 <= metrics.dhsic(x)["score"] < metrics.dhsic(x[:, [0, 0, 1]])["score"] / 10
    assert metrics.dhsic(np.full((50, 3), 0.1))["score"] == pytest.approx(0, abs=1e-7)
    # Two values, mostly the same one: the median distance is 0 and the kernel [a = b].
    coin = (np.arange(400) % 5 == 0) * 1.0
    expected = 0.68 + 0.68**2 - 2 * (0.2**3 + 0.8**3)
    assert metrics.dhsic(np.stack([coin, coin * 7], 1))["score"] == pytest.approx(expected, abs=1e-6)


def draw(weight, groups=200, size=64, seed=0):
    """Groups, labels and points of codes = weight @ factors with uniform continuous factors."""
    rng = np.random.default_rng(seed)
    factors = rng.uniform(-1, 1, (groups, size, len(weight[0])))
    label = rng.integers(len(weight[0]), size=groups)
    factors[np.arange(groups), :, label] = factors[np.arange(groups), :1, label]
    points = rng.uniform(-1, 1, (3000, len(weight[0])))
    return factors @ np.transpose(weight), label, points @ np.transpose(weight)


@pytest.mark.parametrize(("heldout", "min_std", "ddof"), [(False, 0.0, 0), (True, 0.05, 1)])
def test_factor_vae_equals_the_definition(heldout, min_std, ddof):
    weight = np.random.default_rng(1).normal(size=(6, 4)) * [[1], [0.02], [3], [0.01], [1], [1]]  # two to prune
    groups, label, points = draw(weight, 400, 20)
    held = draw(weight, 300, 20, seed=2)[:2] if heldout else None
    expected = plain.factor_vae(groups, label, points, held, min_std, ddof)
    result = metrics.factor_vae(groups, label, torch.tensor(points), heldout=held, min_std=min_std, ddof=ddof)
    assert (result["votes"] == expected["votes"]).all()
    assert result["score"] == pytest.approx(expected["score"], abs=1e-12)
    assert result["num_active"] == (4 if heldout else 6)
    assert np.allclose(result["scale"], np.std(points, 0, ddof=ddof), rtol=1e-12)
    assert metrics.vote_score([[[3, 1], [0, 4]], [[2, 2], [2, 2]]]).tolist() == [7 / 8, 1 / 2]


def test_factor_vae_of_scaled_rotated_merged_and_repeated_codes():
    exact = metrics.factor_vae(*draw([[0, 0, -3], [0.5, 0, 0], [0, 100, 0]]))
    assert (exact["score"], exact["train_score"], exact["votes"].argmax(1).tolist()) == (1.0, 1.0, [2, 0, 1])
    turn = [[2**-0.5, 2**-0.5, 0], [2**-0.5, -(2**-0.5), 0], [0, 0, 1]]
    assert 0.5 < metrics.factor_vae(*draw(turn))["score"] < 0.85
    votes = metrics.factor_vae(*draw([[1, 1, 0], [0, 0, 1]], 3000))["votes"]
    assert abs(votes[0, 0] - votes[0, 1]) < 0.1 * votes[0].sum()  # both factors still the one code
    assert metrics.factor_vae(*draw([[1, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]]))["score"] == 1.0


def test_constant_codes_do_not_vote_and_tiny_ones_do():
    groups, label, points = draw(np.eye(3))
    for value in (0.0, 0.1, 1e4, float(np.float32(1) / 3)):
        beside, all_points = (np.insert(x, 1, value, axis=-1).astype(np.float32) for x in (groups, points))
        result = metrics.factor_vae(beside, label, all_points)
        assert (result["score"], result["votes"][1].sum(), result["num_active"]) == (1.0, 0, 3)
        constant = metrics.factor_vae(beside[..., [1, 1]], label, all_points[:, [1, 1]])
        assert (constant["score"], constant["votes"].sum()) == (np.bincount(label).max() / 200, 0)
    for size, counts in ((1e-15, True), (1e-25, False)):  # as long as their squares are numbers
        small, small_points = ((x * [size, 1, 1]).astype(np.float32) for x in (groups, points))
        votes = metrics.factor_vae(small, label, small_points)["votes"]
        assert votes[0].tolist() == [(label == 0).sum() * counts, 0, 0]


def test_codes_that_are_pruned_score_zero_with_a_warning_that_names_them():
    arguments = draw(np.eye(3) * 0.02)
    with pytest.warns(UserWarning, match=r"\(0\.01\d+, 0\.01\d+, 0\.01\d+\) below 0\.05"):
        assert metrics.factor_vae(*arguments, min_std=0.05)["score"] == 0.0
    assert metrics.factor_vae(*arguments, min_std=0.001)["score"] == 1.0


@pytest.mark.parametrize("name", SCORES)
def test_arrays_of_any_kind_give_the_same_plain_values(name):
    codes, factors = CODES[:300].astype(np.float16), FACTORS[:300]
    expected = SCORES[name](codes.astype(np.float32), factors)
    assert all(isinstance(value, float | np.ndarray) for value in expected.values())
    for same in (codes[::-1][::-1], codes.astype(">f4"), torch.tensor(codes).requires_grad_()):
        found = SCORES[name](same, factors.astype(np.uint16))
        assert all(np.array_equal(value, found[key]) for key, value in expected.items())
    for same in (codes.tolist(), codes.astype(object), list(torch.tensor(codes).double())):  # object: a data frame
        assert SCORES[name](same, (factors * 10**9).astype(object))["score"] == pytest.approx(
            expected["score"], abs=1e-3
        )


@pytest.mark.parametrize("name", SCORES)
def test_wrong_arrays_are_named(name):
    for codes, factors, message in (
        (CODES[:, 0], FACTORS, r"\[3000\].*\[N K\]"),
        (CODES[:0], FACTORS[:0], "codes"),
        (np.where(CODES > 1, np.inf, CODES), FACTORS, "codes.*not finite"),
        (CODES, FACTORS[:10], r"\[3000, 7\], factors \[10, 5\]"),
        (CODES, FACTORS * [1, 0, 1, 1, 1], r"factors\[:, 1\] is constant"),
        (CODES, [["red"] * 5] * 3000, "factors is no array"),
        ([[1.0], [1.0, 2.0]], FACTORS, "codes is no array"),
        (CODES + 1j, FACTORS, "codes is no array"),
    ):
        with pytest.raises(InputError, match=message):
            SCORES[name](codes, factors)


def test_continuous_factors_are_binned_or_regressed_or_refused():
    values = GRID + np.random.default_rng(0).uniform(-0.3, 0.3, GRID.shape)
    values[:, 0] = GRID[:, 0]  # one of classes among them
    assert metrics.mig(values, values)["score"] > 0.5
    assert metrics.modularity(values, values)["score"] > 0.9
    assert metrics.irs(values, values)["score"] > 0.8
    for predictor in ("lasso", "boosting"):
        result = metrics.dci(values, values, predictor=predictor)
        assert result["disentanglement"] > 0.95
        assert result["informativeness"] > 0.9
    assert np.diag(metrics.sap(values, values)["matrix"])[1:] == pytest.approx([1, 1, 1])  # squared correlations
    with pytest.raises(InputError, match="fractions"):
        metrics.explicitness(values, values)


def test_wrong_arguments_of_single_metrics():
    still = (TEST[0], np.zeros_like(TEST[1]))
    assert metrics.explicitness(CODES, FACTORS, test=still)["score"] == 0.5
    groups, label, points = draw(np.eye(3))
    for call, message in (
        (lambda: metrics.sap(CODES, FACTORS, test=(TEST[0][:, 1:], TEST[1])), r"\[1500, 6\]"),
        (lambda: metrics.dci(CODES, FACTORS, test=(TEST[0], TEST[1][:, 1:])), r"\[1500, 4\]"),
        (lambda: metrics.dci(CODES, FACTORS, predictor="tree"), "'tree'"),
        (lambda: metrics.reconstruction(np.zeros((2, 1, 8, 8)), np.zeros((2, 1, 8, 8))), "11 x 11"),
        (lambda: metrics.beta_vae(np.zeros((5, 4, 3, 7)), np.zeros(5, int)), r"\[5, 4, 3, 7\]"),
        (lambda: metrics.beta_vae(np.zeros((5, 4, 2, 7)), np.zeros(5, int)), "two factors"),
        (lambda: metrics.factor_vae(np.where(groups > 0.9, np.nan, groups), label, points), "not finite"),
        (lambda: metrics.factor_vae(groups, label, points[:, :2]), "2 codes, groups have 3"),
        (lambda: metrics.factor_vae(groups, label[:5], points), "expected 200 indices"),
        (lambda: metrics.factor_vae(groups, label - 1, points), "from -1"),
        (lambda: metrics.factor_vae(groups, label + 0.5, points), "indices"),
    ):
        with pytest.raises(InputError, match=message):
            call()
