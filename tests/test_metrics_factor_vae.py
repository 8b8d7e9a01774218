"""FactorVAE: known answers, and the definition written out in numpy."""

import numpy as np
import plain_metrics as plain
import pytest
import torch
from grid_data import Encoder, Grid

from crgan.errors import InputError
from crgan.metrics import PROTOCOLS, evaluate, factor_vae, vote_score

EYE = np.eye(3).tolist()


def draw(weight, groups=200, size=64, seed=0):
    """Groups, labels and points of codes = weight @ factors with uniform continuous factors."""
    rng = np.random.default_rng(seed)
    factors = rng.uniform(-1, 1, (groups, size, len(weight[0])))
    label = rng.integers(len(weight[0]), size=groups)
    for g, f in enumerate(label):
        factors[g, :, f] = factors[g, 0, f]
    points = rng.uniform(-1, 1, (3000, len(weight[0])))
    return factors @ np.transpose(weight), label, points @ np.transpose(weight)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_one_code_per_factor_scores_one_in_any_order_and_scale(protocol, order):
    weight = (np.eye(3)[list(order)] * [[-3.0], [0.5], [100.0]]).tolist()
    sizes = dict(groups=150, heldout_groups=150 * (protocol == "dlib"), group_size=50, scale_samples=2000)
    grid = Grid()
    result = evaluate(Encoder(weight), grid, protocol=protocol, **sizes)["factor_vae"]
    assert result["score"] == result["train_score"] == 1.0
    assert result["num_active"] == 3
    assert result["votes"].argmax(1).tolist() == list(order)  # which factor each code moves
    assert result["votes"].sum() == 150
    assert grid.made <= grid.num_images  # each image is encoded once


def test_codes_that_are_pruned_score_zero_with_a_warning_that_names_them():
    groups, label, points = draw((np.eye(3) * 0.02).tolist())
    with pytest.warns(UserWarning, match=r"below 0\.05 \(code 0: 0\.01\d+, code 1: 0\.01\d+, code 2: 0\.01\d+\)"):
        assert factor_vae(groups, label, points, min_std=0.05)["score"] == 0.0
    assert factor_vae(groups, label, points, min_std=0.001)["score"] == 1.0


def test_vote_score_of_tables():
    table = np.array([[[3, 1], [0, 4]], [[2, 2], [2, 2]]])
    assert vote_score(table).tolist() == [7 / 8, 1 / 2]


def test_constant_codes_score_chance_and_never_vote():
    constant = Encoder(np.zeros((3, 3)).tolist(), bias=torch.tensor([0.0, 0.1, 1e4]))
    result = evaluate(constant, Grid(), groups=150, group_size=50, scale_samples=2000)["factor_vae"]
    assert result["score"] == pytest.approx(1 / 3)
    assert result["num_active"] == result["votes"].sum() == 0
    groups, label, points = draw(EYE)
    for value in (0.0, 0.1, 1e4, float(np.float32(1) / 3)):
        beside = (np.insert(x, 1, value, axis=-1).astype(np.float32) for x in (groups, points))
        result = factor_vae(next(beside), label, next(beside))
        assert result["score"] == 1.0
        assert result["votes"].argmax(1)[[0, 2, 3]].tolist() == [0, 1, 2]
        assert result["votes"][1].sum() == 0


@pytest.mark.parametrize(("size", "counts"), [(1e-15, True), (1e-25, False)])
def test_a_tiny_code_votes_as_long_as_its_squares_are_numbers(size, counts):
    groups, label, points = draw(EYE)
    groups, points = ((x * [size, 1, 1]).astype(np.float32) for x in (groups, points))
    assert factor_vae(groups, label, points)["votes"][0].tolist() == [(label == 0).sum() * counts, 0, 0]


def test_rotated_codes_lose_one_code_for_two_factors_loses_two_codes_for_one_do_not():
    turn = [[2**-0.5, 2**-0.5, 0.0], [2**-0.5, -(2**-0.5), 0.0], [0.0, 0.0, 1.0]]
    assert 0.5 < factor_vae(*draw(turn))["score"] < 0.85
    votes = factor_vae(*draw([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 3000))["votes"]
    assert abs(votes[0, 0] - votes[0, 1]) < 0.1 * votes[0].sum()  # both factors still the one code
    assert factor_vae(*draw([[1, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]]))["score"] == 1.0


@pytest.mark.parametrize(("heldout", "min_std", "ddof"), [(False, 0.0, 0), (True, 0.05, 1)])
def test_equals_the_definition_in_numpy(heldout, min_std, ddof):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, 4)) * [[1], [0.02], [3], [0.01], [1], [1]]  # two dimensions to prune
    groups, label, points = draw(weight.tolist(), 400, 20)
    held = draw(weight.tolist(), 300, 20, seed=2)[:2] if heldout else None
    votes, score = plain.factor_vae(groups, label, points, held, min_std, ddof)
    result = factor_vae(groups, label, torch.tensor(points), heldout=held, min_std=min_std, ddof=ddof)
    assert (result["votes"] == votes).all()
    assert result["score"] == pytest.approx(score, abs=1e-12)
    assert result["num_active"] == (4 if heldout else 6)
    assert np.allclose(result["scale"], np.std(points, 0, ddof=ddof), rtol=1e-12)


def test_mistakes_are_named():
    groups, label, points = draw(EYE)
    for arguments, message in (
        ((np.where(groups > 0.9, np.nan, groups), label, points), "not finite"),
        ((groups, label, points[:, :2]), "2 codes, groups have 3"),
        ((groups, label[:5], points), "expected 200 indices"),
        ((groups, label - 1, points), "from -1"),
        ((groups, label + 0.5, points), "indices"),
    ):
        with pytest.raises(InputError, match=message):
            factor_vae(*arguments)
