"""Metrics of arrays: known answers, the definitions of plain_metrics.py on the same arrays, and arguments."""

import itertools
import math
import subprocess
import sys

import numpy as np
import plain_metrics as plain
import pytest
import torch
from scipy.ndimage import gaussian_filter

from crgan import data, metrics
from crgan.errors import InputError
from crgan.metrics.images import shape_classifier
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

# ---------------------------------------------------------------- the definitions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_mig_and_modularity_equal_the_definition(dtype, shift):
    codes = (CODES + shift).astype(dtype)
    assert metrics.mig(codes, FACTORS)["score"] == pytest.approx(plain.mig(codes, FACTORS), abs=1e-9)
    assert metrics.modularity(codes, FACTORS)["score"] == pytest.approx(plain.modularity(codes, FACTORS), abs=1e-9)
    renamed = np.where(FACTORS == 0, -1, FACTORS * 10**9)  # classes may be any whole numbers
    assert metrics.mig(codes, renamed)["score"] == metrics.mig(codes, FACTORS)["score"]


def test_every_value_gets_the_bin_that_numpy_gives_it():
    rng = np.random.default_rng(0)
    for column in rng.integers(21, size=5000), rng.integers(41, size=5000) / 40, rng.normal(size=5000):
        for x in (column.astype(np.float32), column.astype(float)):  # most of the first two lie on an edge
            assert (discretise(x) == plain.discretise(x) - 1).all()


def test_other_metrics_equal_the_definition():
    for standardise in (False, True):
        expected = plain.explicitness(CODES, FACTORS, TEST, standardise)
        score = metrics.explicitness(CODES, FACTORS, test=TEST, standardise=standardise)["score"]
        assert score == pytest.approx(expected, abs=1e-3)
    assert metrics.sap(CODES, FACTORS, test=TEST)["score"] == pytest.approx(plain.sap(CODES, FACTORS, TEST))
    mixed = metrics.sap(CODES, FACTORS, continuous=(1, 2, 3, 4))["score"]
    assert mixed == pytest.approx(plain.sap(CODES, FACTORS, continuous=(1, 2, 3, 4)))
    codes = np.insert(CODES, 3, 0.5, axis=1)  # a constant code is left out of IRS
    assert metrics.irs(codes, FACTORS)["score"] == pytest.approx(plain.irs(codes, FACTORS), abs=1e-9)
    many = mixture(4000, 5, (50, 50, 50, 50, 50))  # more values than bins
    assert metrics.irs(*many)["score"] == pytest.approx(plain.irs(*many), abs=1e-9)
    for codes in (CODES[:499], CODES[:500].astype(float) * 100 + 1e3):
        assert metrics.dhsic(codes)["score"] == pytest.approx(plain.dhsic(codes), rel=1e-6)


def test_dci_equals_the_definition_with_boosting_and_with_lasso():
    codes, factors = mixture(400, 4, (2, 4))
    held = mixture(200, 4, (2, 4), seed=1)
    result = metrics.dci(codes, factors, test=held)
    found = [result[name] for name in ("disentanglement", "completeness", "informativeness")]
    assert found == pytest.approx(plain.dci_boosting(codes, factors, held), abs=1e-6)
    result = metrics.dci(CODES, FACTORS, predictor="lasso")
    assert [result["disentanglement"], result["completeness"]] == pytest.approx(plain.dci_lasso(CODES, FACTORS))


def test_beta_vae_equals_the_definition():
    def pairs(groups, seed, noise=1.0):
        rng = np.random.default_rng(seed)
        factors, label = rng.uniform(-1, 1, (groups, 30, 2, 5)), rng.integers(5, size=groups)
        for g, f in enumerate(label):
            factors[g, :, 1, f] = factors[g, :, 0, f]
        return factors @ np.random.default_rng(7).normal(size=(5, 7)) + noise * rng.normal(size=(groups, 30, 2, 7)), label

    train, held = pairs(500, 0), pairs(300, 1)
    result = metrics.beta_vae(*train, heldout=held)
    assert result["score"] == pytest.approx(plain.beta_vae(*train, heldout=held), abs=0.005)
    assert result["train_score"] == pytest.approx(plain.beta_vae(*train), abs=0.005)


def test_psnr_and_ssim_equal_the_definition():
    rng = np.random.default_rng(0)
    x = rng.random((4, 3, 20, 24))
    y = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)

    def smooth(image):
        return gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    ssim = []
    for a, b in zip(x.reshape(-1, 20, 24), y.reshape(-1, 20, 24)):
        ma, mb = smooth(a), smooth(b)
        va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
        top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
        ssim.append(np.mean(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))))
    psnr = [10 * math.log10(1 / np.mean((a - b) ** 2)) for a, b in zip(x, y)]
    result = metrics.reconstruction(x, y)
    assert (result["psnr"], result["ssim"]) == pytest.approx((np.mean(psnr), np.mean(ssim)), abs=1e-4)
    assert metrics.reconstruction(x, x) == pytest.approx({"score": 100.0, "psnr": 100.0, "ssim": 1.0})


# ---------------------------------------------------------------- known answers


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
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_codes_score_chance_and_give_no_nan(name, value):
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


def test_one_code_for_two_factors_is_complete_but_not_disentangled():
    codes = np.stack([IDENTITY[:, 0] * 4 + IDENTITY[:, 1], IDENTITY[:, 2], IDENTITY[:, 3]], 1)
    # The code names both factors, so both gaps are whole; but it mixes them.
    assert metrics.mig(codes, GRID)["score"] == pytest.approx(1.0)
    h0, h1 = math.log(3), math.log(4)
    assert metrics.modularity(codes, GRID)["per_code"] == pytest.approx([1 - h0**2 / h1**2 / 3, 1, 1])
    scores = metrics.dci(codes, GRID, predictor="lasso")
    assert scores["completeness"] == pytest.approx(1.0)
    assert scores["per_code"][0] < 0.9
    assert scores["per_code"][1:] == pytest.approx([1.0, 1.0])


def test_two_codes_for_one_factor_are_disentangled_but_not_complete():
    codes = IDENTITY[:, [0, 0, 1, 2, 3]] * [1, -2, 1, 1, 1]
    assert metrics.mig(codes, GRID)["gaps"] == pytest.approx([0, 1, 1, 1])
    assert metrics.sap(codes, GRID, continuous=range(4))["score"] == pytest.approx(0.75)
    assert metrics.modularity(codes, GRID)["score"] == pytest.approx(1.0)
    for score in SCORES.values():  # a single code, a single factor
        assert 0 <= score(codes[:, :1], GRID)["score"] <= 1
        assert 0 <= score(codes, GRID[:, :1])["score"] <= 1
    scores = metrics.dci(codes, GRID, predictor="forest")
    assert scores["disentanglement"] > 0.95
    assert scores["per_factor"][0] < 0.7 < scores["per_factor"][1:].min()


def test_dhsic_separates_independent_codes_from_dependent_ones():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (800, 3))
    independent, dependent = metrics.dhsic(x)["score"], metrics.dhsic(x[:, [0, 0, 1]])["score"]
    assert 0 <= independent < dependent / 10
    assert metrics.dhsic(np.full((50, 3), 0.1))["score"] == pytest.approx(0, abs=1e-7)
    # Two values, mostly the same one: the median distance is 0 and the kernel [a = b].
    coin = (rng.random(400) < 0.2).astype(float)
    share, square = np.array([coin.mean(), 1 - coin.mean()]), lambda v: np.sum(v**2)
    expected = square(share) + square(share) ** 2 - 2 * np.sum(share**3)
    assert metrics.dhsic(np.stack([coin, coin * 7], 1))["score"] == pytest.approx(expected, abs=1e-6)


def test_inception_score_of_clear_unclear_and_one_sided_shapes():
    clear = metrics.inception(np.eye(3)[np.arange(300) % 3])
    assert (clear["score"], clear["confidence"], clear["mode_kl"]) == pytest.approx((3.0, 1.0, 0.0), abs=1e-9)
    assert metrics.inception(np.full((10, 3), 1 / 3))["score"] == pytest.approx(1.0)
    one = metrics.inception(np.eye(3)[np.ones(10, int)])
    assert (one["score"], one["mode_kl"]) == pytest.approx((1.0, math.log(3)))
    assert one["modes"].tolist() == [0, 1, 0]


def test_the_shape_classifier_names_every_shape_of_dsprites():
    classify, accuracy = shape_classifier()
    assert accuracy > 0.999
    dataset = data.load("dsprites")
    index = torch.randint(dataset.num_images, (600,), generator=torch.Generator().manual_seed(5))
    assert metrics.inception(classify(dataset.images(index)))["score"] > 2.95
    assert torch.isfinite(classify(torch.zeros(1, 1, 64, 64))).all()


# ---------------------------------------------------------------- arguments


class Frame:
    """What a data frame is to numpy: read-only, of objects."""

    def __init__(self, array):
        self.array = array.astype(object)
        self.array.flags.writeable = False

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


@pytest.mark.parametrize("name", SCORES)
def test_arrays_of_any_kind_give_the_same_plain_values(name):
    codes, factors = CODES[:300].astype(np.float16), FACTORS[:300]
    expected = SCORES[name](codes.astype(np.float32), factors)
    assert all(isinstance(value, float | np.ndarray) for value in expected.values())
    for same in (codes[::-1][::-1], codes.astype(">f4"), torch.tensor(codes).requires_grad_()):
        found = SCORES[name](same, factors.astype(np.uint16))
        assert all(np.array_equal(value, found[key]) for key, value in expected.items())
    wide = SCORES[name](codes.astype(float), factors)["score"]
    for same in (codes.astype(float).tolist(), Frame(codes), list(torch.tensor(codes).double())):
        assert SCORES[name](same, Frame(factors))["score"] == wide


@pytest.mark.parametrize("name", SCORES)
def test_wrong_arrays_are_named(name):
    for codes, factors, message in (
        (CODES[:, 0], FACTORS, r"\[3000\].*\[N K\]"),
        (CODES[:0], FACTORS[:0], "codes"),
        (np.where(CODES > 1, np.inf, CODES), FACTORS, "codes.*not finite"),
        (CODES, FACTORS[:10], r"\[10, 5\].*3000"),
        (CODES, FACTORS * [1, 0, 1, 1, 1], r"factors\[:, 1\] is constant"),
        (CODES, FACTORS * [1, math.nan, 1, 1, 1], "factors.*not finite"),
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
    for call, message in (
        (lambda: metrics.sap(CODES, FACTORS, test=(TEST[0][:, 1:], TEST[1])), r"\(6, 5\); expected \(7, 5\)"),
        (lambda: metrics.dci(CODES, FACTORS, test=(TEST[0], TEST[1][:, 1:])), r"\(7, 4\); expected \(7, 5\)"),
        (lambda: metrics.dci(CODES, FACTORS, predictor="tree"), "'tree'"),
        (lambda: metrics.reconstruction(np.zeros((2, 1, 8, 8)), np.zeros((2, 1, 8, 8))), "11 x 11"),
        (lambda: metrics.beta_vae(np.zeros((5, 4, 2)), np.zeros(5, int)), r"\[5, 4, 2\]"),
        (lambda: metrics.beta_vae(np.zeros((5, 4, 3, 7)), np.zeros(5, int)), r"\[5, 4, 3, 7\]"),
        (lambda: metrics.beta_vae(np.zeros((5, 4, 2, 7)), np.zeros(5, int)), "two factors"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_importing_the_library_leaves_scikit_learn_alone():
    code = "import sys, crgan.metrics; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
