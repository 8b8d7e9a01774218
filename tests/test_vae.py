"""VAEs: losses against their definitions, what a step updates, and runs that behave as the GANs' do."""

import math
from dataclasses import replace

import pytest
import torch
from run_folders import model_and_batch, tensors_of
from scipy.stats import kstest
from torch.distributions import Bernoulli, Normal, kl_divergence

from crgan import PRESETS, load, ops
from crgan.models import build_model, vae
from crgan.train import fit

KINDS = ("factorvae-dsprites", "betavae-dsprites", "betatcvae-dsprites")
PHASE = PRESETS["betavae-dsprites"].phase(0)


def tiny(preset):
    return replace(PRESETS[preset], num_codes=3, width=4, hidden=8, batch_size=4, steps=24, eval_every=12)


def test_gaussian_draws_are_finite_symmetric_and_standard_normal():
    ends = torch.tensor([-1.0, -(2.0**-23), 0.0, 1 - 2.0**-23])
    drawn = vae.gaussian(ends)
    assert drawn.isfinite().all()
    assert drawn[0] == -drawn[3]
    assert drawn[1] == -drawn[2]
    uniform, _ = ops.sample_latents(100_000, 2, 0, 7, 0, device="cpu")
    assert kstest(vae.gaussian(uniform).flatten(), "norm").pvalue > 0.001


def test_divergence_and_total_correlation_are_their_definitions():
    mean, log_variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    # 1/2 for the mean of 1; (4 - ln 4 - 1) / 2 for the variance of 4; averaged over two images
    assert vae.gaussian_kl(mean, log_variance).item() == pytest.approx((0.5 + (3 - math.log(4)) / 2) / 2)
    codes, mean, log_variance = torch.randn(3, 6, 3).double()
    total = 0.0
    for b in range(6):
        densities = Normal(mean, (log_variance / 2).exp()).log_prob(codes[b]).exp()  # [6, 3]
        total += math.log(densities.prod(1).mean()) - sum(math.log(densities[:, j].mean()) for j in range(3))
    assert vae.total_correlation(codes, mean, log_variance).item() == pytest.approx(total / 6)


def test_permuted_dims_keep_each_marginal_and_part_the_codes():
    codes = torch.arange(64.0)[:, None].expand(64, 10).clone()  # all codes equal: as dependent as can be
    _, keys = ops.sample_latents(64, 0, 10, 3, 5, device="cpu")
    permuted = vae.permute_dims(codes, keys)
    assert torch.equal(permuted.sort(0).values, codes)
    assert len({tuple(column.tolist()) for column in permuted.T}) == 10
    correlation = torch.corrcoef(permuted.T) - torch.eye(10)
    assert correlation.abs().max() < 0.5


def test_networks_and_optimisers_are_those_of_the_paper():
    nets = build_model(PRESETS["factorvae-dsprites"], (1, 64, 64))
    optimisers = vae.make_optimisers(nets, PRESETS["factorvae-dsprites"])
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in nets.named_children()}
    assert sizes == {"encoder": 249_172, "decoder": 248_833, "discriminator": 5_018_002}
    assert build_model(PRESETS["betavae-dsprites"], (1, 64, 64)).discriminator is None
    settings = {name: optimiser.defaults for name, optimiser in optimisers.items()}
    assert settings["discriminator"]["betas"] == (0.5, 0.9)
    assert settings["vae"]["betas"] == (0.9, 0.999)
    assert settings["discriminator"]["lr"] == settings["vae"]["lr"] == 1e-4
    held = {id(p) for o in optimisers.values() for group in o.param_groups for p in group["params"]}
    assert held == {id(p) for p in nets.parameters()}


@pytest.mark.parametrize("preset", KINDS)
def test_a_step_equals_the_objective_written_out(preset):
    cfg = replace(tiny(preset), gamma=3.0, beta=2.5)
    nets, optimisers, x = model_and_batch(cfg)
    plain, plain_optimisers, _ = model_and_batch(cfg)
    report = vae.train_step(nets, optimisers, x, cfg, PHASE, 5)

    uniform, keys = ops.sample_latents(4, 6, 3, cfg.seed, 5, device="cpu")
    noise = Normal(0.0, 1.0).icdf((uniform.double() + 2.0**-24 + 1) / 2).float()

    def posterior(images):
        mean, log_variance = plain.encoder(images).split(3, 1)
        return Normal(mean, torch.exp(0.5 * log_variance))

    first = posterior(x[:4])
    codes = first.mean + first.stddev * noise[:, :3]
    likelihood = Bernoulli(logits=plain.decoder(codes)).log_prob(x[:4]).sum((1, 2, 3)).mean()
    kl = kl_divergence(first, Normal(0.0, 1.0)).sum(1).mean()
    if preset == "factorvae-dsprites":
        probability = plain.discriminator(codes).softmax(1)
        penalty = 3.0 * (probability[:, 0] / (1 - probability[:, 0])).log().mean()
    elif preset == "betavae-dsprites":
        penalty = 1.5 * kl
    else:
        penalty = 1.5 * vae.total_correlation(codes, first.mean, 2 * first.stddev.log())
    (-likelihood + kl + penalty).backward()
    plain_optimisers["vae"].step()
    assert report["reconstruction"].item() == pytest.approx(-likelihood.item(), rel=1e-5)
    assert report["kl"].item() == pytest.approx(kl.item(), rel=1e-4, abs=1e-6)
    if preset == "factorvae-dsprites":
        plain.discriminator.zero_grad()
        second = posterior(x[4:])
        other = (second.mean + second.stddev * noise[:, 3:]).detach()
        permuted = torch.stack([other[keys[:, j].argsort(), j] for j in range(3)], 1)
        log_real = plain.discriminator(codes.detach()).log_softmax(1)[:, 0].mean()
        log_permuted = plain.discriminator(permuted).log_softmax(1)[:, 1].mean()
        loss = -(log_real + log_permuted) / 2
        loss.backward()
        plain_optimisers["discriminator"].step()
        assert report["discriminator"].item() == pytest.approx(loss.item(), rel=1e-5)
    for (name, a), b in zip(nets.named_parameters(), plain.parameters()):
        # Adam's first step is lr * sign(gradient): where a gradient is near 0 its rounding decides the sign.
        assert (a - b).abs().gt(1e-6).float().mean() < 0.02, name


@pytest.mark.parametrize("preset", KINDS)
def test_a_run_is_a_model_and_resumes_to_the_same_bytes(preset, tmp_path, small_scores):
    model = fit(tiny(preset), tmp_path / "straight", "cpu")
    fit(tiny(preset), tmp_path / "resumed", "cpu", steps=10, checkpoint_every=5)
    fit(tiny(preset), tmp_path / "resumed", "cpu")
    assert tensors_of(tmp_path / "straight") == tensors_of(tmp_path / "resumed")
    again = load(tmp_path / "straight")
    assert (again.prior, again.num_noise, again.num_codes, again.image_shape) == ("normal", 0, 3, (1, 64, 64))
    images = again.sample(5, seed=1)
    assert images.shape == (5, 1, 64, 64)
    assert 0 <= images.min() < images.max() <= 1
    assert torch.equal(images, again.sample(5, seed=1))
    assert not torch.equal(images, again.sample(5, seed=2))
    assert torch.equal(again.encode(images), model.encode(images))
    assert torch.equal(again.encode(images), again.posterior(images)[0])
