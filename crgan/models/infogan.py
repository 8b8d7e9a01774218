"""InfoGAN-CR (Lin et al. 2020, section 3): the model, its optimisers, one training step, and the losses.

    min_{G,Q,H} max_D  L_adv(G, D) - lambda I(c; Q(G(c, z))) - alpha L_cr(G, H)

The contrastive term is `crgan.contrastive_loss`.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .. import ops
from ..config import Config, Phase
from . import networks
from .model import Model, Optimisers, adam, update
from .networks import Shape, normalise


class InfoGAN(Model):
    """Generator G, discriminator D with the encoder Q, and contrastive discriminator H.

    Any of the three can be a module of your own, with weights of its own:
    `generator(c [B, K], z [B, Z])` -> images [B, C, H, W] in [0, 1];
    `discriminator(images)` -> logits [B] and codes [B, K];
    `contrastive(first, second, index [B])` -> the scalar cross-entropy of the index.
    """

    def __init__(
        self,
        cfg: Config,
        image_shape: Shape,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        contrastive: nn.Module | None = None,
    ):
        super().__init__(cfg, image_shape)
        self.generator = generator or networks.Generator(cfg, image_shape)
        self.discriminator = discriminator or networks.Discriminator(cfg, image_shape)
        self.contrastive = contrastive or networks.ContrastiveDiscriminator(cfg, image_shape)
        self.average: nn.ModuleDict | None = None  # moving averages of G, D and Q
        if cfg.ema > 0:
            trained = {"generator": self.generator, "discriminator": self.discriminator}
            self.average = nn.ModuleDict(copy.deepcopy(trained)).requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def for_use(self) -> "InfoGAN":
        """Return a copy in eval mode with the averaged networks, whose weights are already divided by sigma(W)."""
        model = copy.deepcopy(self)
        if model.average is not None:
            model.generator, model.discriminator = model.average["generator"], model.average["discriminator"]
            model.average = None
        for network in (model.discriminator, model.contrastive):
            networks.fold_spectral_norm(network)
        return model.eval().requires_grad_(False)

    def decode(self, codes: Tensor, noise: Tensor) -> Tensor:
        return (self.average or self).get_submodule("generator")(codes, noise)

    def code_mean(self, images: Tensor) -> Tensor:
        return normalise((self.average or self).get_submodule("discriminator"))(images)[1]


def make_optimisers(model: InfoGAN, cfg: Config) -> Optimisers:
    """Return one Adam each for G, D with Q, and H."""
    rates = {"generator": cfg.lr_g, "discriminator": cfg.lr_d, "contrastive": cfg.lr_h}
    return {name: adam(model.get_submodule(name).parameters(), lr, cfg.beta1, cfg.beta2) for name, lr in rates.items()}


def train_step(
    model: InfoGAN,
    optimisers: Optimisers,
    x: Tensor,  # [B, C, H, W] real images in [0, 1]
    cfg: Config,
    phase: Phase,
    step: Tensor | int,  # 0-d int64: the number of steps done, which keys every random draw
) -> dict[str, Tensor]:
    """Update H, then D with Q, then G `g_steps` times, all on one batch (Lin et al. 2020, section 3).

    Returns the losses as 0-d tensors. Reads nothing back from the device and skips what has weight 0, so that one CUDA
    graph can hold a whole step of a phase.
    """
    batch, k, device = len(x), cfg.num_codes, x.device
    generator, contrastive = model.generator, model.contrastive
    autocast = torch.autocast(device.type, torch.bfloat16, cfg.precision == "bfloat16", cache_enabled=False)
    c, z = ops.sample_latents(batch, k, cfg.num_noise, cfg.seed, step, device=device)
    mask = code_mask(k, cfg.code_warmup_steps, step, device) if phase.warmup else None
    c = c if mask is None else c * mask
    if phase.cr_weight:
        c1, c2, pair_z, index = ops.traversal_pairs(batch, k, cfg.num_noise, phase.gap, cfg.seed, step, device=device)

    def generate() -> tuple[Tensor, ...]:
        # Each half of a pair is a batch of its own to G's batch norm.
        return (generator(c, z), *((generator(c1, pair_z), generator(c2, pair_z)) if phase.cr_weight else ()))

    def blur(images: Tensor) -> Tensor:
        if not phase.blur:
            return images
        return networks.gaussian_blur(images, cfg.blur * (1 - torch.as_tensor(step, device=device) / cfg.blur_steps))

    with autocast:
        fakes = generate()  # serves H, D and the first update of G, whose weights do not change in between
    report: dict[str, Tensor] = {}

    if phase.cr_weight:
        with autocast:
            loss = normalise(contrastive)(fakes[1].detach(), fakes[2].detach(), index)
        update(optimisers["contrastive"], loss)

    discriminator = normalise(model.discriminator)
    with autocast:
        logits, predicted = discriminator(blur(torch.cat([x.to(fakes[0].dtype), fakes[0].detach()])))
        report["discriminator"] = discriminator_loss(logits[:batch], logits[batch:])
        info = info_loss(c, predicted[batch:], cfg.q_std, mask)
        loss = report["discriminator"] + cfg.info_weight * info
    if phase.r1:
        x = blur(x).detach().requires_grad_()
        logits, _ = discriminator(x)  # in float32: the penalty is the gradient of a gradient
        loss = loss + cfg.r1_weight * cfg.r1_every * r1_penalty(logits, x)
    update(optimisers["discriminator"], loss)

    with torch.no_grad():  # with the updated weights, which stay fixed while G learns
        discriminator = normalise(model.discriminator)
        contrastive_h = normalise(contrastive) if phase.cr_weight else None
    for i in range(cfg.g_steps):
        with autocast:
            if i > 0:
                fakes = generate()
            logits, predicted = discriminator(blur(fakes[0]))
            report["generator"] = generator_loss(logits)
            report["info"] = info_loss(c, predicted, cfg.q_std, mask)
            loss = report["generator"] + cfg.info_weight * report["info"]
            if contrastive_h is not None:
                report["contrastive"] = contrastive_h(fakes[1], fakes[2], index)
                loss = loss + phase.cr_weight * report["contrastive"]
        update(optimisers["generator"], loss)

    discriminator.advance()  # by the updated weights, as in the original code
    if contrastive_h is not None:
        contrastive_h.advance()
    if model.average is not None:  # torch's AveragedModel reads its counter back, which a graph cannot capture
        now = model.state_dict()
        means = {name: mean for name, mean in model.average.state_dict().items() if mean.is_floating_point()}
        torch._foreach_lerp_(list(means.values()), [now[name] for name in means], 1 - cfg.ema)
    return {name: value.detach() for name, value in report.items()}


def code_mask(num_codes: int, warmup_steps: int, step: Tensor | int, device: torch.device | str) -> Tensor:
    """Return how far each code is faded in, [K] in [0, 1]: see Config.code_warmup_steps."""
    code = torch.arange(num_codes, device=device)
    since = torch.as_tensor(step, device=device) - (code - 1) * warmup_steps
    return (since / warmup_steps).clamp(0, 1).where(code > 1, 1.0)


def restart_h(model: InfoGAN, optimisers: Optimisers, step: int) -> None:
    """Give H new weights and a new Adam state, as the original code does where a schedule switches.

    In place, as a captured CUDA graph holds the addresses. H's singular vectors stay, as in the original.
    """
    fresh = copy.deepcopy(model.contrastive).cpu()
    fresh.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # draws fill memory in this order
    draw = networks.seeded_generator(model.cfg.seed, 2, step)
    networks.initialise(fresh, draw, model.cfg.init)
    weights = {name: value for name, value in fresh.state_dict().items() if not name.endswith(".u")}
    model.contrastive.load_state_dict(weights, strict=False)
    for entry in optimisers["contrastive"].state.values():
        for value in entry.values():
            value.zero_()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:  # [B] logits of D on real and on generated images
    """Return the logistic loss -log D(x) - log(1 - D(G(c, z))) (Goodfellow et al. 2014, eq. 1); chance is 2 ln 2."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:  # [B] logits of D on generated images
    """Return the non-saturating logistic loss -log D(G(c, z)) (Goodfellow et al. 2014, section 3); chance is ln 2."""
    return softplus(-fake).mean()


def info_loss(
    codes: Tensor,  # [B, K] codes in [-1, 1] that made the images
    predicted: Tensor,  # [B, K] Q's estimate of them: the mean of its Gaussian
    q_std: str = "one",
    weight: Tensor | None = None,  # [K], of each code; None: all 1
) -> Tensor:
    """Return -log q(c | x) without its constant, summed over the codes (Chen et al. 2016, eq. 5).

    With `q_std="one"` every code has standard deviation 1: 1/2 sum_k mean_b e_bk^2 for the errors e. With "fitted" it
    has the maximum-likelihood value of the batch: 1/2 sum_k log(mean_b e_bk^2 + 0.001). A rotation of two codes leaves
    the sum of squares as it is, but increases the sum of logarithms unless their errors are equal.
    """
    error = (codes - predicted).square().mean(0)
    per_code = 0.5 * (error if q_std == "one" else (error + 1e-3).log())
    return (per_code if weight is None else weight * per_code).sum()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:  # [B] of D; real images [B, C, H, W] that require a gradient
    """Return the mean over the batch of |grad_x D(x)|^2 / 2 on real images (Mescheder et al. 2018, eq. 9)."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()
