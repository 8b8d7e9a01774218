"""Known values of the loss terms."""

import math

import pytest
import torch

from crgan.models import infogan


def test_an_undecided_discriminator_costs_two_ln_two():
    zero = torch.zeros(8)
    assert infogan.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert infogan.generator_loss(zero).item() == pytest.approx(math.log(2))


def test_info_loss_sums_over_codes_and_averages_over_the_batch():
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert infogan.info_loss(codes, torch.zeros(2, 2)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("q_std", ["one", "fitted"])
def test_info_loss_counts_each_code_by_its_weight(q_std):
    g = torch.Generator().manual_seed(0)
    codes, predicted = torch.rand(2, 16, 3, generator=g)
    each = [infogan.info_loss(codes[:, [k]], predicted[:, [k]], q_std).item() for k in range(3)]
    weighted = infogan.info_loss(codes, predicted, q_std, torch.tensor([1.0, 0.25, 0.0])).item()
    assert weighted == pytest.approx(each[0] + each[1] / 4)


def test_info_loss_with_fitted_deviations_prefers_the_axes():
    """Two factors seen with errors of .4 and .1: each code alone costs less than both codes turned by 45 degrees."""
    codes, errors = torch.zeros(64, 2), torch.randn(64, 2, dtype=torch.float64) * torch.tensor([0.4, 0.1])
    errors = errors - errors.mean(0)
    squares = errors.square().mean(0) + 1e-3
    straight = infogan.info_loss(codes, errors, "fitted").item()
    assert straight == pytest.approx(0.5 * squares.log().sum().item())
    turned = errors @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2**0.5
    assert infogan.info_loss(codes, turned).item() == pytest.approx(infogan.info_loss(codes, errors).item())
    assert infogan.info_loss(codes, turned, "fitted").item() > straight + 0.3
    assert math.isfinite(infogan.info_loss(codes, codes, "fitted").item())


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight():
    weight = torch.arange(6.0).view(1, 2, 3)
    images = torch.rand(5, 1, 2, 3, requires_grad=True)
    logits = (images * weight).sum((1, 2, 3))
    assert infogan.r1_penalty(logits, images).item() == pytest.approx(0.5 * 55.0)
