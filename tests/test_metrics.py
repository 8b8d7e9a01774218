"""Metrics of arrays: known answers, and the definitions of plain_metrics.py on the same arrays."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import plain_metrics as plain
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from crgan import data, metrics
from crgan.errors import InputError
from crgan.metrics.explicitness import roc_area
from crgan.metrics.logistic import fit_logistic

SIZES = (3, 4, 5, 6)
GRID = np.array(list(itertools.product(*map(range, SIZES))))  # every combination once: factors exactly independent
IDENTITY = GRID.astype(float)


def mixture(n, num_codes, sizes=(3, 6, 10, 8, 8), noise=0.1, seed=0):
    """Codes that mix the factors, each with one that it follows most, as a model half-way trained has them."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=n) for size in sizes], 1)
    weight = np.random.default_rng(7).normal(size=(num_codes, len(sizes))) * 0.3
    weight[: len(sizes)] += np.eye(len(sizes))
    codes = (factors / sizes * 2 - 1) @ weight.T + noise * rng.normal(size=(n, num_codes))
    return codes.astype(np.float32), factors


CODES, FACTORS = mixture(3000, 7)
TEST = mixture(1500, 7, seed=1)
SCORES = {
    "mig": metrics.mig,
    "modularity": metrics.modularity,
    "dci": lambda c, f: metrics.dci(c, f, predictor="lasso", jobs=1),
    "sap": lambda c, f: metrics.sap(c, f, continuous=range(f.shape[1])),
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


@pytest.mark.parametrize("column", [[1.0, 1.0000001], [5e5, 5e5], [1e7, 1e7 + 1], [1e17, 1e17]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_code_that_varies_by_rounding_alone_tells_nothing(column, dtype):
    codes = np.array(CODES, dtype)
    codes[:, 2] = np.resize(np.array(column, dtype), len(codes))
    found = metrics.mig(codes, FACTORS)
    if dtype == np.float32:
        assert (found["mutual_information"][2] < 1e-12).all()
    assert np.isfinite(found["score"])


def test_classes_may_be_any_whole_numbers():
    renamed = np.where(FACTORS == 0, -1, FACTORS * 10**9)
    assert metrics.mig(CODES, renamed)["score"] == metrics.mig(CODES, FACTORS)["score"]
    assert metrics.modularity(CODES, renamed)["score"] == metrics.modularity(CODES, FACTORS)["score"]


def test_binning_puts_every_value_where_numpy_does():
    rng = np.random.default_rng(0)
    columns = [rng.integers(21, size=5000), rng.integers(41, size=5000) / 40, rng.normal(size=5000), np.full(5000, 3)]
    codes = np.stack(columns, 1).astype(np.float32)  # most values of the first two lie on an edge
    ours = metrics.information.bin_equal_width(torch.tensor(codes), 20).numpy()
    assert (ours == np.stack([plain.discretise(c) - 1 for c in codes.T], 1)).all()


@pytest.mark.parametrize("standardise", [False, True])
def test_explicitness_equals_the_definition(standardise):
    expected = plain.explicitness(CODES, FACTORS, TEST, standardise)
    assert metrics.explicitness(CODES, FACTORS, test=TEST, standardise=standardise)["score"] == pytest.approx(
        expected, abs=1e-3
    )


def test_sap_equals_the_definition_for_discrete_and_for_continuous_factors():
    result = metrics.sap(CODES, FACTORS, test=TEST)
    assert result["score"] == pytest.approx(plain.sap(CODES, FACTORS, TEST), abs=1e-3)
    mixed = metrics.sap(CODES, FACTORS, continuous=(1, 2, 3, 4))["score"]
    assert mixed == pytest.approx(plain.sap(CODES, FACTORS, continuous=(1, 2, 3, 4)), abs=1e-3)


def test_irs_and_dhsic_equal_the_definition():
    codes = np.insert(CODES, 3, 0.5, axis=1)  # a constant code is left out of IRS
    assert metrics.irs(codes, FACTORS)["score"] == pytest.approx(plain.irs(codes, FACTORS), abs=1e-9)
    many = mixture(4000, 5, (50, 50, 50, 50, 50))  # more values than bins
    assert metrics.irs(*many)["score"] == pytest.approx(plain.irs(*many), abs=1e-9)
    for n in (999, 1000):  # the median of an odd and of an even number of distances
        assert metrics.dhsic(CODES[:n])["score"] == pytest.approx(plain.dhsic(CODES[:n]), rel=1e-4)
    assert metrics.dhsic(CODES[:500] * 100 + 1e3)["score"] == pytest.approx(
        plain.dhsic(CODES[:500].astype(float) * 100 + 1e3), rel=1e-3
    )


def test_dci_equals_the_definition_with_boosting_and_with_lasso():
    codes, factors = mixture(400, 4, (2, 4))
    held = mixture(200, 4, (2, 4), seed=1)
    result = metrics.dci(codes, factors, test=held, jobs=1)
    expected = plain.dci_boosting(codes, factors, held)
    ours = [result[name] for name in ("disentanglement", "completeness", "informativeness")]
    assert ours == pytest.approx(expected, abs=1e-6)
    result = metrics.dci(CODES, FACTORS, predictor="lasso", jobs=2)
    assert [result["disentanglement"], result["completeness"]] == pytest.approx(plain.dci_lasso(CODES, FACTORS))


@pytest.mark.parametrize("predictor", ["lasso_cv", "forest", "forest_ibgan"])
def test_other_predictors_of_dci_agree_that_the_identity_is_disentangled(predictor):
    result = metrics.dci(IDENTITY, GRID, predictor=predictor, jobs=1)
    assert result["disentanglement"] > 0.95
    assert result["completeness"] > 0.95
    assert 0.5 < result["informativeness"] <= 1


def pairs_of(groups, num_codes, noise, seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.uniform(-1, 1, (groups, 30, 2, 5))
    label = rng.integers(5, size=groups)
    for g, f in enumerate(label):
        factors[g, :, 1, f] = factors[g, :, 0, f]
    weight = np.random.default_rng(7).normal(size=(num_codes, 5)) * 0.3 + np.eye(num_codes, 5)
    codes = factors @ weight.T + noise * rng.normal(size=(groups, 30, 2, num_codes))
    return codes.astype(np.float32), label


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_beta_vae_equals_the_definition(noise):
    train, held = pairs_of(1500, 7, noise), pairs_of(1000, 7, noise, seed=1)
    result = metrics.beta_vae(*train, heldout=held)
    assert result["score"] == pytest.approx(plain.beta_vae(*train, heldout=held), abs=0.005)
    assert result["train_score"] == pytest.approx(plain.beta_vae(*train), abs=0.005)


@pytest.mark.parametrize("classes", [2, 5, 32])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.02, 0.0), (1.0, 1e3)])
def test_logistic_regression_finds_the_minimum_of_scikit_learn(classes, scale, shift):
    codes, factors = mixture(4000, 6, (classes, 4))
    x = codes.astype(float) * scale + shift
    y = factors[:, 0]
    model = LogisticRegression(tol=1e-8, max_iter=5000).fit(x - shift, y)
    logits = fit_logistic(torch.tensor(x), torch.tensor(y), classes, tolerance=1e-5)(torch.tensor(x))
    if classes == 2:
        ours, theirs = logits[1] - logits[0], model.decision_function(x - shift)
    else:
        ours, theirs = torch.log_softmax(logits, 0).T, model.predict_log_proba(x - shift)
    assert np.abs(np.exp(ours.numpy()) / np.exp(theirs) - 1)[np.asarray(theirs) > -5].max() < 0.02


def test_the_area_under_the_curve_counts_ties_by_half():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(10, size=500).astype(np.float32), rng.random(500) < 0.3
    assert roc_area(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert math.isnan(roc_area(score, np.zeros(500, bool)))


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", SCORES)
def test_the_identity_scores_one_in_any_order_and_scale(name):
    expected = pytest.approx(1.0, abs=0.01 if name == "explicitness" else 1e-6)
    assert SCORES[name](IDENTITY, GRID)["score"] == expected
    changed = IDENTITY[:, [2, 0, 3, 1]] * [-3, 1, 100, 0.1] + [0, 1e3, 0, -5]
    assert SCORES[name](changed, GRID)["score"] == expected


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_codes_score_chance_and_give_no_nan(name, value):
    result = SCORES[name](np.full((len(GRID), 4), value, np.float32), GRID)
    assert result["score"] == pytest.approx(0.5 if name == "explicitness" else 0.0, abs=1e-6)
    assert all(np.isfinite(part).all() for part in result.values())


@pytest.mark.parametrize("name", ["mig", "modularity", "dci", "sap", "irs"])
def test_rotated_codes_score_less(name):
    centred = (IDENTITY - IDENTITY.mean(0)) / IDENTITY.std(0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    assert SCORES[name](centred @ turn, GRID)["score"] < (0.99 if name == "modularity" else 0.8)


def test_one_code_for_two_factors_is_complete_but_not_disentangled():
    codes = np.stack([IDENTITY[:, 0] * 4 + IDENTITY[:, 1], IDENTITY[:, 2], IDENTITY[:, 3]], 1)
    # The code names both factors, so both gaps are whole; but it mixes them.
    assert metrics.mig(codes, GRID)["score"] == pytest.approx(1.0)
    info = metrics.modularity(codes, GRID)
    h0, h1 = math.log(3), math.log(4)
    assert info["per_code"] == pytest.approx([1 - h0**2 / h1**2 / 3, 1, 1])
    scores = metrics.dci(codes, GRID, predictor="lasso", jobs=1)
    assert scores["completeness"] == pytest.approx(1.0)
    assert scores["per_code"][0] < 0.9
    assert scores["per_code"][1:] == pytest.approx([1.0, 1.0])


def test_two_codes_for_one_factor_are_disentangled_but_not_complete():
    codes = IDENTITY[:, [0, 0, 1, 2, 3]] + 0.0
    codes[:, 1] *= -2
    assert metrics.mig(codes, GRID)["gaps"] == pytest.approx([0, 1, 1, 1])
    assert metrics.sap(codes, GRID, continuous=range(4))["score"] == pytest.approx(0.75)
    assert metrics.modularity(codes, GRID)["score"] == pytest.approx(1.0)
    scores = metrics.dci(codes, GRID, predictor="forest", jobs=1)
    assert scores["disentanglement"] > 0.95
    assert scores["per_factor"][0] < 0.7 < scores["per_factor"][1:].min()


def test_a_single_code_and_a_single_factor():
    for name in SCORES:
        assert 0 <= SCORES[name](IDENTITY[:, :1], GRID)["score"] <= 1
        assert 0 <= SCORES[name](IDENTITY, GRID[:, :1])["score"] <= 1


def test_dhsic_tells_independent_codes_from_dependent_ones():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1500, 3))
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
    assert clear["score"] == pytest.approx(3.0)
    assert clear["confidence"] == 1.0
    assert clear["mode_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics.inception(np.full((10, 3), 1 / 3))["score"] == pytest.approx(1.0)
    one = metrics.inception(np.eye(3)[np.ones(10, int)])
    assert one["score"] == pytest.approx(1.0)
    assert one["mode_kl"] == pytest.approx(math.log(3))
    assert one["modes"].tolist() == [0, 1, 0]


def test_the_shape_classifier_names_every_shape_of_dsprites():
    classifier, accuracy = metrics.shape_classifier()
    assert accuracy > 0.999
    assert metrics.shape_classifier()[0] is classifier
    dataset = data.load("dsprites")
    index = torch.randint(dataset.num_images, (600,), generator=torch.Generator().manual_seed(5))
    result = metrics.inception(classifier(dataset.images(index)))
    assert result["score"] > 2.95
    assert torch.isfinite(classifier(torch.zeros(1, 1, 64, 64))).all()


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
    assert result["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert result["ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)
    assert metrics.reconstruction(x, x) == pytest.approx({"score": 100.0, "psnr": 100.0, "ssim": 1.0})
    colours_last = [torch.from_numpy(images).to(memory_format=torch.channels_last) for images in (x, y)]
    assert metrics.reconstruction(*colours_last) == pytest.approx(result)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", SCORES)
def test_numpy_and_torch_give_the_same_plain_values(name):
    ours, same = (
        SCORES[name](CODES[:300], FACTORS[:300]),
        SCORES[name](torch.tensor(CODES[:300]), torch.tensor(FACTORS[:300])),
    )
    assert ours.keys() == same.keys()
    for key, value in ours.items():
        assert isinstance(value, float | np.ndarray), key
        assert np.array_equal(value, same[key])


@pytest.mark.parametrize("name", SCORES)
def test_wrong_arrays_are_named(name):
    score = SCORES[name]
    with pytest.raises(InputError, match=r"codes has shape \[3000\]; expected a non-empty array \[N K\]"):
        score(CODES[:, 0], FACTORS)
    with pytest.raises(InputError, match="codes holds values that are not finite"):
        score(np.where(CODES > 1, np.inf, CODES), FACTORS)
    with pytest.raises(InputError, match=r"factors has shape \[10, 5\].*N = 3000"):
        score(CODES, FACTORS[:10])
    with pytest.raises(InputError, match="factors holds fractions"):
        score(CODES, FACTORS + 0.5)
    with pytest.raises(InputError, match=r"factors\[:, 1\] is constant"):
        score(CODES, FACTORS * [1, 0, 1, 1, 1])


@pytest.mark.parametrize("name", SCORES)
def test_arrays_of_any_kind(name):
    codes, factors = CODES[:300].astype(np.float16), FACTORS[:300]
    expected = SCORES[name](codes.astype(np.float32), factors)["score"]
    for same in (codes, codes[::-1][::-1], codes.astype(">f4"), torch.tensor(codes)):
        assert SCORES[name](same, factors)["score"] == expected
    assert SCORES[name](codes, factors.astype(np.uint16))["score"] == expected
    rounded = torch.tensor(codes).bfloat16()
    assert SCORES[name](rounded, factors)["score"] == SCORES[name](rounded.float(), factors)["score"]


def test_a_dead_code_costs_nothing():
    codes, factors = mixture(20_000, 7)
    faint = 1e-20 * np.random.default_rng(0).normal(size=(len(codes), 1)).astype(np.float32)
    padded = np.concatenate([codes, faint], 1)
    expected = metrics.explicitness(codes, factors[:, :2])["score"]
    assert metrics.explicitness(padded, factors[:, :2])["score"] == pytest.approx(expected, abs=1e-3)
    pairs, factor = codes.reshape(500, 20, 2, 7), np.arange(500) % 5
    pairs[np.arange(500), :, 1, factor] = pairs[np.arange(500), :, 0, factor]
    with_dead = np.concatenate([pairs, faint.reshape(500, 20, 2, 1)], 3)
    assert metrics.beta_vae(with_dead, factor)["score"] == metrics.beta_vae(pairs, factor)["score"] == 1


def test_explicitness_of_factors_that_the_test_holds_still_is_chance():
    still = (TEST[0], np.zeros_like(TEST[1]))
    assert metrics.explicitness(CODES, FACTORS, test=still)["score"] == 0.5


def test_explicitness_leaves_the_threads_as_they_were():
    with ThreadPoolExecutor(1) as threads:
        expected = threads.submit(torch.get_num_threads).result()
    metrics.explicitness(CODES, FACTORS)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(torch.get_num_threads).result() == expected


@pytest.mark.parametrize("name", ["dci", "sap", "explicitness"])
def test_codes_and_factors_to_test_on_are_as_many_as_those_to_fit_on(name):
    for test in ((TEST[0][:, 1:], TEST[1]), (TEST[0], TEST[1][:, 1:])):
        with pytest.raises(InputError, match=r"test has \d codes and \d factors; expected the 7 and 5 to fit on"):
            getattr(metrics, name)(CODES, FACTORS, test=test)


def test_wrong_arguments_of_single_metrics():
    with pytest.raises(InputError, match="unknown DCI predictor 'tree'"):
        metrics.dci(CODES, FACTORS, predictor="tree")
    with pytest.raises(InputError, match="11 x 11 or more"):
        metrics.reconstruction(np.zeros((2, 1, 8, 8)), np.zeros((2, 1, 8, 8)))
    with pytest.raises(InputError, match=r"pairs has shape \[5, 4, 2\]"):
        metrics.beta_vae(np.zeros((5, 4, 2)), np.zeros(5, int))
    with pytest.raises(InputError, match=r"pairs has shape \[5, 4, 3, 7\].*two images in a pair"):
        metrics.beta_vae(np.zeros((5, 4, 3, 7)), np.zeros(5, int))
