"""InfoGAN-CR: the model, its optimisers, and one training step (Lin et al. 2020, section 3)."""

import copy

import torch
from torch import Tensor, nn

from .. import ops
from ..config import Config, Phase
from . import losses
from .losses import Optimisers, adam, update
from .model import Model, evaluating
from .networks import (
    ContrastiveDiscriminator,
    Discriminator,
    Generator,
    Shape,
    fold_spectral_norm,
    gaussian_blur,
    initialise,
    normalise,
    seeded_generator,
)


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

        def make(i: int, network: nn.Module) -> nn.Module:
            initialise(network, seeded_generator(cfg.seed, i), cfg.init)
            if isinstance(network, Generator):
                network.apply_recipe(cfg)
            return network

        self.generator = generator or make(0, Generator(cfg, image_shape))
        self.discriminator = discriminator or make(1, Discriminator(cfg, image_shape))
        self.contrastive = contrastive or make(2, ContrastiveDiscriminator(cfg, image_shape))
        self.average: nn.ModuleDict | None = None  # moving averages of G, D and Q
        if cfg.ema > 0:
            trained = {"generator": self.generator, "discriminator": self.discriminator}
            self.average = nn.ModuleDict(copy.deepcopy(trained)).requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def move_average(self, decay: float) -> None:
        """Move the averaged networks, batch-norm statistics included, by 1 - decay towards the trained ones.

        torch.optim.swa_utils.AveragedModel reads its counter on the host, which a CUDA graph cannot capture.
        """
        assert self.average is not None
        now = self.state_dict()
        pairs = [(mean, now[name]) for name, mean in self.average.state_dict().items() if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in pairs], [value for _, value in pairs], 1 - decay)

    def _best(self, network: str) -> nn.Module:
        """Return the averaged network where there is one."""
        return (self if self.average is None else self.average).get_submodule(network)

    def for_use(self) -> "InfoGAN":
        """Return a copy in eval mode with the averaged networks, whose weights are already divided by sigma(W)."""
        model = copy.deepcopy(self)
        if model.average is not None:
            model.generator, model.discriminator = model.average["generator"], model.average["discriminator"]
            model.average = None
        for network in (model.discriminator, model.contrastive):
            fold_spectral_norm(network)
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def generate(self, codes: Tensor, seed: int = 0, noise: Tensor | None = None) -> Tensor:  # [n, C, H, W]
        """Generate images from codes [n, K] and noise [n, Z], both in [-1, 1].

        Noise that is not given is drawn, keyed by `seed`. Raises InputError for another type or shape of either.
        """
        codes = self._checked("codes", codes, self.num_codes)
        if noise is None and self.num_noise:
            _, noise = ops.sample_latents(codes.shape[0], self.num_codes, self.num_noise, seed, 0, device=self.device)
        noise = codes[:, :0] if noise is None else self._checked("noise", noise, self.num_noise)
        with evaluating(self._best("generator")) as generator:
            return generator(codes, noise)

    def sample(self, n: int, seed: int = 0) -> Tensor:  # [n, C, H, W] in [0, 1]
        """Generate n images from codes and noise drawn from the prior."""
        codes, _ = ops.sample_latents(n, self.num_codes, self.num_noise, seed, 0, device=self.device)
        return self.generate(codes, seed)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:  # [n, C, H, W] in [0, 1] -> [n, K]
        """Return Q's estimate of the codes. Raises InputError for images of another type, shape or range."""
        images = self._images(images)
        with evaluating(self._best("discriminator")) as discriminator:
            return normalise(discriminator)(images)[1]


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
    mask = None
    if phase.warmup:
        mask = code_mask(k, cfg.code_warmup_steps, step, device)
        c = c * mask
    if phase.cr_weight:
        c1, c2, pair_z, index = ops.traversal_pairs(batch, k, cfg.num_noise, phase.gap, cfg.seed, step, device=device)

    def generate() -> tuple[Tensor, ...]:
        # Each half of a pair is a batch of its own to G's batch norm.
        return (generator(c, z), *((generator(c1, pair_z), generator(c2, pair_z)) if phase.cr_weight else ()))

    def blur(images: Tensor) -> Tensor:
        if not phase.blur:
            return images
        return gaussian_blur(images, cfg.blur * (1 - torch.as_tensor(step, device=device) / cfg.blur_steps))

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
        report["discriminator"] = losses.discriminator_loss(logits[:batch], logits[batch:])
        info = losses.info_loss(c, predicted[batch:], cfg.q_std, mask)
        loss = report["discriminator"] + cfg.info_weight * info
    if phase.r1:
        x = blur(x).detach().requires_grad_()
        logits, _ = discriminator(x)  # in float32: the penalty is the gradient of a gradient
        loss = loss + cfg.r1_weight * cfg.r1_every * losses.r1_penalty(logits, x)
    update(optimisers["discriminator"], loss)

    with torch.no_grad():  # the updated weights, which stay while G learns
        discriminator = normalise(model.discriminator)
        contrastive_h = normalise(contrastive) if phase.cr_weight else None
    for i in range(cfg.g_steps):
        with autocast:
            if i > 0:
                fakes = generate()
            logits, predicted = discriminator(blur(fakes[0]))
            report["generator"] = losses.generator_loss(logits)
            report["info"] = losses.info_loss(c, predicted, cfg.q_std, mask)
            loss = report["generator"] + cfg.info_weight * report["info"]
            if contrastive_h is not None:
                report["contrastive"] = contrastive_h(fakes[1], fakes[2], index)
                loss = loss + phase.cr_weight * report["contrastive"]
        update(optimisers["generator"], loss)

    discriminator.advance()  # by the updated weights, as in the original code
    if contrastive_h is not None:
        contrastive_h.advance()
    if model.average is not None:
        model.move_average(cfg.ema)
    return {name: value.detach() for name, value in report.items()}


def code_mask(num_codes: int, warmup_steps: int, step: Tensor | int, device: torch.device | str) -> Tensor:
    """Return how far each code is faded in, [K] in [0, 1]: see Config.code_warmup_steps."""
    code = torch.arange(num_codes, device=device)
    since = torch.as_tensor(step, device=device) - (code - 1) * warmup_steps
    return (since / warmup_steps).clamp(0, 1).where(code > 1, 1.0)


def restart_h(model: InfoGAN, optimisers: Optimisers, step: int) -> None:
    """Give H new weights and a new Adam state, as the original code does where a schedule switches.

    In place, as a captured CUDA graph knows the memory. H's singular vectors stay, as in the original. The new weights
    depend on the seed and the step alone.
    """
    fresh = copy.deepcopy(model.contrastive).cpu()
    fresh.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # draws fill it in this order
    initialise(fresh, seeded_generator(model.cfg.seed, 2, step), model.cfg.init, keep_vectors=True)
    model.contrastive.load_state_dict(fresh.state_dict())
    for entry in optimisers["contrastive"].state.values():
        for value in entry.values():
            value.zero_()
