"""FactorVAE, BetaVAE and BetaTCVAE: the model, its optimisers, and one training step.

    loss = -E_q(c|x) log p(x|c) + KL(q(c|x) || p(c)) + penalty,   p(c) = N(0, I),   p(x|c) Bernoulli

    FactorVAE   penalty = gamma TC,        TC by a discriminator's density ratio   (Kim and Mnih 2018, eq. 2 and 3)
    BetaVAE     penalty = (beta - 1) KL                                            (Higgins et al. 2017, eq. 4)
    BetaTCVAE   penalty = (beta - 1) TC,   TC of the batch's mixture of posteriors (Chen et al. 2018, eq. 2 and S3)

TC is the total correlation KL(q(c) || prod_j q(c_j)) of the aggregate posterior.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .. import ops
from ..config import Config, Phase
from .model import Model, Optimisers, adam, gaussian, update
from .networks import Shape, conv_channels, seeded_generator


class VAE(Model):
    """Encoder and decoder of Kim and Mnih 2018, table 1: four 4x4 convolutions of stride 2, and one hidden layer."""

    prior = "normal"

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__(cfg, image_shape)
        maps = conv_channels(cfg, image_shape, smallest=4)
        layers: list[nn.Module] = []
        for before, after in pairwise([image_shape[0], *maps]):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(16 * maps[-1], cfg.hidden), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Linear(cfg.hidden, 2 * cfg.num_codes))
        layers = [nn.Linear(cfg.num_codes, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, 16 * maps[-1]), nn.ReLU()]
        layers.append(nn.Unflatten(1, (maps[-1], 4, 4)))
        for before, after in pairwise(maps[::-1]):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(maps[0], image_shape[0], 4, 2, 1))
        self.discriminator: nn.Module | None = None
        if cfg.model == "factor-vae":  # for the total correlation: two logits, joint or permuted codes (appendix A)
            layers = []
            for before in (cfg.num_codes, *[1000] * 5):
                layers += [nn.Linear(before, 1000), nn.LeakyReLU(0.2)]
            self.discriminator = nn.Sequential(*layers, nn.Linear(1000, 2))
        draw = seeded_generator(cfg.seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=draw)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance [B, K] of q(c|x), float32, of images [B, C, H, W] in [0, 1]."""
        mean, log_variance = self.encoder(x.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)
        return mean, log_variance

    def decode(self, codes: Tensor, noise: Tensor) -> Tensor:
        return self.decoder(codes).sigmoid()

    def code_mean(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]


def make_optimisers(model: VAE, cfg: Config) -> Optimisers:
    """Return one Adam for encoder and decoder, and one for FactorVAE's discriminator."""
    both = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimisers = {"vae": adam(both, cfg.lr_g, cfg.beta1, cfg.beta2)}
    if model.discriminator is not None:
        optimisers["discriminator"] = adam(model.discriminator.parameters(), cfg.lr_d, 0.5, 0.9)  # appendix A
    return optimisers


def train_step(
    model: VAE,
    optimisers: Optimisers,
    x: Tensor,  # [B, C, H, W] images in [0, 1]; FactorVAE: [2 B, ...], the second half for the discriminator
    cfg: Config,
    phase: Phase,
    step: Tensor | int,  # 0-d int64: the number of steps done, which keys every random draw
) -> dict[str, Tensor]:
    """Update encoder and decoder; for FactorVAE then its discriminator (Kim and Mnih 2018, algorithm 2).

    Returns the losses as 0-d tensors, in nats per image, and reads nothing back from the device.
    """
    batch, k = cfg.batch_size, cfg.num_codes
    autocast = torch.autocast(x.device.type, torch.bfloat16, cfg.precision == "bfloat16", cache_enabled=False)
    uniform, keys = ops.sample_latents(batch, 2 * k, k, cfg.seed, step, device=x.device)
    noise, other_noise = gaussian(uniform).chunk(2, 1)
    with autocast:
        mean, log_variance = model.posterior(x[:batch])
        codes = mean + noise * (log_variance / 2).exp()
        logits = model.decoder(codes)
    report = {"reconstruction": reconstruction_loss(logits.float(), x[:batch]), "kl": gaussian_kl(mean, log_variance)}
    if model.discriminator is not None:
        with autocast:
            density = model.discriminator(codes).float()
        report["total_correlation"] = (density[:, 0] - density[:, 1]).mean()
        penalty = cfg.gamma * report["total_correlation"]
    elif cfg.model == "beta-tcvae":
        report["total_correlation"] = total_correlation(codes, mean, log_variance)
        penalty = (cfg.beta - 1) * report["total_correlation"]
    else:
        penalty = (cfg.beta - 1) * report["kl"]
    update(optimisers["vae"], report["reconstruction"] + report["kl"] + penalty)

    if model.discriminator is not None:
        with torch.no_grad(), autocast:
            mean, log_variance = model.posterior(x[batch:])
        permuted = permute_dims(mean + other_noise * (log_variance / 2).exp(), keys)
        with autocast:
            density = model.discriminator(torch.cat([codes.detach(), permuted])).float()
        label = torch.arange(2 * batch, device=x.device) // batch
        report["discriminator"] = cross_entropy(density, label)
        update(optimisers["discriminator"], report["discriminator"])
    return {name: value.detach() for name, value in report.items()}


def permute_dims(codes: Tensor, keys: Tensor) -> Tensor:  # [B, K]; the order of keys in a column is its permutation
    """Permute each column independently: a sample of prod_j q(c_j) (Kim and Mnih 2018, algorithm 1)."""
    return codes.gather(0, keys.argsort(dim=0, stable=True))


def reconstruction_loss(logits: Tensor, x: Tensor) -> Tensor:  # both [B, C, H, W]: of the pixels; in [0, 1]
    """Return -log p(x|c) of independent Bernoulli pixels, summed over each image, averaged over the batch."""
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:  # mean [B, K]; log_variance [B, K]
    """Return KL(N(mean, variance) || N(0, 1)), summed over the codes, averaged over the batch."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean()


def total_correlation(codes: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:  # [B, K]; codes[b] ~ posterior b
    """Return E log q(c) - sum_j log q(c_j), with q the mixture of the batch's posteriors.

    Chen et al. 2018 (eq. S3) also weight by the size of the data set. That adds a constant and no gradient.
    """
    deviation = codes[:, None] - mean[None]  # [B, B, K]: code b under posterior a
    log_density = -0.5 * (deviation.square() / log_variance.exp() + log_variance + math.log(2 * math.pi))
    joint = log_density.sum(2).logsumexp(1)
    marginals = log_density.logsumexp(1).sum(1)
    return (joint - marginals).mean() + (codes.shape[1] - 1) * math.log(len(codes))
