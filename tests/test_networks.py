"""The networks against the paper's numbers, spectral norm against the singular value, losses against known values."""

import math
from dataclasses import replace

import pytest
import torch

from crgan import PRESETS, InputError, ops
from crgan.models import InfoGAN, build_model, infogan, networks
from crgan.models.infogan import make_optimisers, restart_h
from crgan.models.networks import ContrastiveDiscriminator, Discriminator, Generator, normalise

PAPER = PRESETS["dsprites"]
DSPRITES = (1, 64, 64)


def test_networks_are_those_of_the_original():
    for network, count in ((Generator, 251_393), (Discriminator, 263_878), (ContrastiveDiscriminator, 247_749)):
        assert sum(p.numel() for p in network(PAPER, DSPRITES).parameters()) == count
    kinds = [type(layer).__name__ for layer in Generator(PAPER, DSPRITES).convolutions]
    assert kinds == ["ConvTranspose2d", "LeakyReLU", "BatchNorm2d"] * 3 + ["BlockConvTranspose2d"]
    with pytest.raises(InputError, match="28 x 28; expected squares whose side is a power of two"):
        InfoGAN(PAPER, (1, 28, 28))


def test_shapes_and_ranges():
    sides = {"dsprites": (1, 64), "teapots": (3, 64), "celeba": (3, 32), "quick": (3, 32)}
    for preset, (channels, side) in sides.items():
        model = InfoGAN(PRESETS[preset], (channels, side, side))
        images = model.sample(6, seed=1)
        assert images.shape == (6, channels, side, side)
        assert 0 <= images.min() < images.max() <= 1
        assert model.encode(images).shape == (6, PRESETS[preset].num_codes)
        features = model.contrastive.trunk(torch.cat([images, images], 1))
        assert features.shape == (6, model.contrastive.head.in_features)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_convolutions_on_blocks_of_pixels_are_those_of_torch(channels):
    """Values and all gradients, in float64."""
    for block, plain, sizes in (
        (networks.BlockConv2d, torch.nn.Conv2d, (channels, 5)),
        (networks.BlockConvTranspose2d, torch.nn.ConvTranspose2d, (5, channels)),
    ):
        x, results = torch.randn(3, sizes[0], 12, 8, dtype=torch.float64, requires_grad=True), []
        layers = [kind(*sizes, 4, 2, 1, dtype=torch.float64) for kind in (block, plain)]
        layers[0].load_state_dict(layers[1].state_dict())
        for layer in layers:
            y = layer(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        for a, b in zip(*results, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_initial_weights():
    model = InfoGAN(PAPER, DSPRITES)
    convolution = model.contrastive.trunk[2]
    weight = convolution.weight.detach()
    assert weight.abs().max() <= 0.04
    assert weight.std() == pytest.approx(0.02 * 0.88, rel=0.02)  # of a normal cut at two deviations
    assert model.generator.convolutions[0].weight.detach().std() == pytest.approx(0.02, rel=0.02)
    assert model.generator.fully_connected[3].weight.detach().std() == pytest.approx(0.02, rel=0.02)
    assert not convolution.bias.any()


def normed_layers(network):
    return [network.get_submodule(name.removesuffix(".weight")) for name in normalise(network).weights]


@pytest.mark.parametrize(("where", "layers"), [("all", 8), ("trunk", 5), ("none", 0)])
def test_spectral_norm_is_where_the_configuration_says(where, layers):
    assert len(normed_layers(Discriminator(replace(PAPER, spectral_norm=where), DSPRITES))) == layers
    assert len(normed_layers(ContrastiveDiscriminator(PAPER, DSPRITES))) == 5  # all but H's last


def test_normalised_weights_are_those_of_their_layers():
    network = InfoGAN(PAPER, DSPRITES).contrastive
    for _ in range(100):
        normalise(network).advance()
    for name, weight in normalise(network).weights.items():
        layer = network.get_submodule(name.removesuffix(".weight"))
        truth = layer.weight / torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(weight, truth, rtol=1e-2, atol=1e-3)
    images, index = torch.rand(2, 4, *DSPRITES), torch.tensor([0, 1, 2, 3])
    loss = normalise(network)(*images, index)
    networks.fold_spectral_norm(network)
    assert not normalise(network).weights
    torch.testing.assert_close(loss, network(*images, index), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["dsprites", "teapots", "celeba"])
def test_spectral_norm_reads_the_weights_where_they_lie(preset, monkeypatch):
    """A captured CUDA graph finds them by address: a copy would be gone when it replays."""
    given = []
    monkeypatch.setattr(ops, "spectral_norm", lambda matrices, vectors: given.extend(matrices) or (matrices, vectors))
    model = InfoGAN(PRESETS[preset], (3, 64, 64))
    for network in (model.discriminator, model.contrastive):
        given.clear()
        weights = [network.get_parameter(name) for name in normalise(network).weights]
        assert [m.data_ptr() for m in given] == [weight.data_ptr() for weight in weights]
        assert all(m.is_contiguous() for m in given)


def test_the_singular_vector_moves_only_when_told():
    network = Discriminator(PAPER, DSPRITES)
    before = [layer.u.clone() for layer in normed_layers(network)]
    images = torch.rand(4, *DSPRITES)
    first, second = normalise(network)(images), normalise(network)(images)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(u, layer.u) for u, layer in zip(before, normed_layers(network)))
    normalise(network).advance()
    moved = [not torch.equal(u, layer.u) for u, layer in zip(before, normed_layers(network))]
    assert moved == [len(u) > 1 for u in before]  # a single output has but one direction


def test_he_weights_allow_for_the_activation_that_follows():
    cfg = replace(PAPER, init="he", num_codes=PAPER.hidden)  # Q's hidden layer has the shape of its output
    model = InfoGAN(cfg, DSPRITES)
    restart_h(model, make_optimisers(model, cfg), 5)
    d, h = model.discriminator, model.contrastive
    for layer, gain in ((h.head, 1), (d.codes[-1], 1), (d.codes[0], 2), (d.trunk[-2], 2), (h.trunk[2], 2)):
        assert layer.weight.square().mean().item() * layer.weight[0].numel() == pytest.approx(gain, rel=0.1)


def test_noise_is_fixed_by_the_seed_and_drawn_for_each_row():
    model, codes = InfoGAN(replace(PRESETS["quick"], num_noise=4), (3, 32, 32)), torch.zeros(3, 4)
    rows = model.generate(codes, seed=5)
    assert torch.equal(rows, model.generate(codes, seed=5))
    assert not torch.equal(rows, model.generate(codes, seed=6))
    assert not torch.equal(rows[0], rows[1])


def test_blur_keeps_the_sum_inside_and_vanishes_with_its_deviation():
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 16] = 1.0
    blurred = networks.gaussian_blur(image, torch.tensor(2.0))
    assert blurred.sum().item() == pytest.approx(1.0, abs=1e-4)
    rows = blurred.sum((0, 1, 3))
    variance = (rows * (torch.arange(32) - 16.0).square()).sum()
    assert variance.item() == pytest.approx(4.0, rel=1e-3)
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(networks.gaussian_blur(image, torch.tensor(0.0)), image)


@pytest.mark.parametrize("preset", ["quick", "dsprites", "factorvae-dsprites"])
def test_every_seed_has_first_weights_of_its_own(preset):
    def first_weights(seed):
        cfg = replace(PRESETS[preset], seed=seed, width=2, hidden=8)
        model = build_model(cfg, (3, 16, 16) if preset == "quick" else (1, 64, 64))
        if preset != "factorvae-dsprites":
            restart_h(model, make_optimisers(model, cfg), 5)
        return {name: value for name, value in model.named_parameters() if name.endswith("weight") and value.dim() > 1}

    models = [first_weights(seed) for seed in (0, 1, 2, 65_536, 2**31 - 1)]
    for n, one in enumerate(models):
        for other in models[:n]:
            assert all((one[name] != other[name]).any() for name in one)
    again = first_weights(1)
    assert all(torch.equal(again[name], models[1][name]) for name in again)


def test_losses_have_their_known_values():
    zero, weight = torch.zeros(8), torch.arange(6.0).view(1, 2, 3)
    assert infogan.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert infogan.generator_loss(zero).item() == pytest.approx(math.log(2))
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # summed over codes, averaged over the batch
    assert infogan.info_loss(codes, torch.zeros(2, 2)).item() == pytest.approx(0.25)
    images = torch.rand(5, 1, 2, 3, requires_grad=True)  # of a linear discriminator: half its squared weight
    assert infogan.r1_penalty((images * weight).sum((1, 2, 3)), images).item() == pytest.approx(0.5 * 55.0)


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
