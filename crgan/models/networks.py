"""Generator G, discriminator D with its code head Q, contrastive discriminator H, and the model that they make."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize, pad, pixel_shuffle, pixel_unshuffle

from .. import ops, parallel
from ..config import Config
from ..errors import InputError


class Normalised(NamedTuple):
    """The weights of a network's layers under spectral norm, for all passes until the weights change."""

    weights: dict[nn.Module, Tensor]
    vectors: dict[Any, Tensor]  # the next u of each layer

    @torch.no_grad()
    def advance(self) -> None:
        """Stores the singular vectors. Once per training step, as in the original, however many passes it makes."""
        if self.vectors:
            torch._foreach_copy_([layer.u for layer in self.vectors], list(self.vectors.values()))


def normalise(network: nn.Module) -> Normalised:
    """W / sigma(W) of all layers of `network` that are under spectral norm (Miyato et al. 2018), in one op."""
    layers: list[Any] = [module for module in network.modules() if "u" in module._buffers]
    # The taps of a channels-last convolution lie before its input channels; the order of columns changes no sigma.
    taps: list[Tensor] = [layer.weight.movedim(1, -1) for layer in layers]
    found, moved = ops.spectral_norm([t.flatten(1) for t in taps], [layer.u for layer in layers])
    weights = [matrix.view(t.shape).movedim(-1, 1) for matrix, t in zip(found, taps)]
    return Normalised(dict(zip(layers, weights)), dict(zip(layers, moved)))


def _pass(layers: nn.Sequential, x: Tensor, weights: Mapping[nn.Module, Tensor]) -> Tensor:
    layer: Any
    for layer in layers:
        weight = weights.get(layer)
        if weight is None:
            x = layer(x)
        elif isinstance(layer, nn.Conv2d):
            x = layer._conv_forward(x, weight, layer.bias)
        else:
            x = linear(x, weight, layer.bias)
    return x


class BlockConv2d(nn.Conv2d):
    """A 4x4 convolution of stride 2, padding 1, worked out with 2x2 taps on the 2x2 blocks of pixels.

    On images of one or two channels cuDNN is slow otherwise: a whole step in TF32 takes 1.4 times as long.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        after, before = weight.shape[:2]
        blocks = pixel_unshuffle(pad(input, (1, 1, 1, 1)), 2).contiguous(memory_format=torch.channels_last)
        taps = weight.reshape(after, before, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(after, 4 * before, 2, 2)
        return conv2d(blocks, taps, bias)


class BlockConvTranspose2d(nn.ConvTranspose2d):
    """The transposed convolution that goes with it: 2x2 taps make the 2x2 blocks of pixels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        before, after = self.weight.shape[:2]
        taps = self.weight.reshape(before, after, 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
        assert self.bias is not None
        bias = self.bias[:, None].expand(-1, 4).reshape(-1)
        blocks = conv2d(input, taps.reshape(4 * after, before, 2, 2), bias, padding=1)
        return pixel_shuffle(blocks, 2)[:, :, 1:-1, 1:-1]


def _spectral(layer: nn.Conv2d | nn.Linear, on: bool) -> nn.Module:
    if on:
        layer.register_buffer("u", normalize(torch.ones(len(layer.weight)), dim=0))
    return layer


def initialise(network: nn.Module, generator: torch.Generator, init: str = "normal") -> None:
    """Draws the weights; biases 0, batch norms the identity.

    "normal": N(0, 0.02), for convolutions, not for transposed ones, cut at two standard deviations (the original).
    "he": N(0, 2 / fan-in) of He et al. (2015), N(0, 1 / fan-in) where a layer ends in a few outputs, with the taps
    that reach one output as the fan-in of a transposed convolution.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            weight = module.weight
            if init == "he":
                transposed = isinstance(module, nn.ConvTranspose2d)
                fan_in = len(weight) * weight[0, 0].numel() / 4 if transposed else weight[0].numel()
                gain = 1.0 if isinstance(module, nn.Linear) and len(weight) <= 16 else 2.0
                nn.init.normal_(weight, std=(gain / fan_in) ** 0.5, generator=generator)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            else:
                nn.init.normal_(weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            if (u := module._buffers.get("u")) is not None:
                u.copy_(normalize(torch.randn(u.shape, generator=generator), dim=0))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.reset_parameters()


def _channels(cfg: Config, image_shape: tuple[int, int, int], smallest: int) -> list[int]:
    """Channels after each stride-2 convolution on the way from the image to a map of `smallest` by `smallest`."""
    _, height, width = image_shape
    count = max(height // smallest, 1).bit_length() - 1
    if height != width or height != smallest * 2**count or count < 2:
        raise InputError(
            f"the images are {height} x {width}; expected squares whose side is a power of two, 16 or more: "
            "resize them first"
        )
    if cfg.network == "dcgan":
        return [cfg.width * 2**i for i in range(count)]
    return [cfg.width] * (count // 2) + [2 * cfg.width] * (count - count // 2)


def _kernel(cfg: Config) -> int:
    return 5 if cfg.network == "dcgan" else 4


def _activate(cfg: Config, activation: nn.Module, norm: nn.Module | None, norm_first: bool = False) -> list[nn.Module]:
    """The paper's conv4 nets activate before batch norm, its dcgan nets after."""
    if norm is None:
        return [activation]
    return [norm, activation] if norm_first or cfg.network == "dcgan" else [activation, norm]


def _batch_norm(channels: int, dims: int) -> nn.Module:
    return (parallel.BatchNorm1d if dims == 1 else parallel.BatchNorm2d)(channels, eps=1e-5, momentum=0.1)


class Generator(nn.Module):
    """G(c, z): codes and noise to images in [0, 1]."""

    def __init__(self, cfg: Config, image_shape: tuple[int, int, int]):
        super().__init__()
        self.tanh = cfg.network == "dcgan"
        maps = _channels(cfg, image_shape, smallest=4)[::-1]
        hidden = 1024 if self.tanh else cfg.hidden
        layers: list[nn.Module] = []
        for before, after in ((cfg.num_codes + cfg.num_noise, hidden), (hidden, 16 * maps[0])):
            norm = _batch_norm(after, 1)
            layers += [nn.Linear(before, after), *_activate(cfg, nn.ReLU(), norm, norm_first=cfg.g_bias is not None)]
        self.fully_connected = nn.Sequential(*layers, nn.Unflatten(1, (maps[0], 4, 4)))
        layers = []
        for before, after in pairwise(maps):
            activation = nn.ReLU() if self.tanh else nn.LeakyReLU(0.2)
            layers += [self._upsample(cfg, before, after), *_activate(cfg, activation, _batch_norm(after, 2))]
        self.convolutions = nn.Sequential(*layers, self._upsample(cfg, maps[-1], image_shape[0]))

    @staticmethod
    def _upsample(cfg: Config, before: int, after: int) -> nn.Module:
        kernel = _kernel(cfg)  # "same" padding: the map's side exactly doubles
        layer = BlockConvTranspose2d if kernel == 4 and after <= 2 else nn.ConvTranspose2d
        return layer(before, after, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2)

    @torch.no_grad()
    def start(self, cfg: Config) -> None:
        """What the fast recipes set beyond the draw of the weights."""
        for module in self.fully_connected:
            if isinstance(module, nn.BatchNorm1d) and cfg.g_bias is not None:
                module.bias.fill_(cfg.g_bias)
        if cfg.init == "he":
            last: Any = self.convolutions[-1]
            last.weight.mul_(0.5)
            last.bias.fill_(-2.0)

    def forward(
        self,
        c: Tensor,  # [B, K] in [-1, 1]
        z: Tensor,  # [B, Z] in [-1, 1]
    ) -> Tensor:
        maps = self.fully_connected(torch.cat([c, z], 1))
        x = self.convolutions(maps.contiguous(memory_format=torch.channels_last))
        return (x.tanh() + 1) / 2 if self.tanh else x.sigmoid()


class Trunk(nn.Sequential):
    """Stride-2 convolutions, in conv4 nets with a fully connected layer: images [B, C, H, W] to features [B, D]."""

    def __init__(
        self,
        cfg: Config,
        image_shape: tuple[int, int, int],
        spectral_norm: bool = False,
        batch_norm: bool = False,
    ):
        smallest = 2 if cfg.network == "dcgan" else 4
        kernel, features, layers = _kernel(cfg), image_shape[0], list[nn.Module]()
        for i, after in enumerate(_channels(cfg, image_shape, smallest)):
            layer = BlockConv2d if kernel == 4 and features <= 2 else nn.Conv2d
            convolution = layer(features, after, kernel, 2, padding=(kernel - 1) // 2)
            norm = _batch_norm(after, 2) if batch_norm and i > 0 else None
            layers += [_spectral(convolution, spectral_norm), *_activate(cfg, nn.LeakyReLU(0.2), norm)]
            features = after
        layers.append(nn.Flatten())
        features *= smallest**2
        if cfg.network == "conv4":
            norm = _batch_norm(cfg.hidden, 1) if batch_norm else None
            layers.append(_spectral(nn.Linear(features, cfg.hidden), spectral_norm))
            layers += _activate(cfg, nn.LeakyReLU(0.2), norm)
            features = cfg.hidden
        super().__init__(*layers)
        self.num_features = features
        self.centred = cfg.network == "dcgan"

    def forward(  # type: ignore[override]
        self,
        images: Tensor,  # [B, C, H, W] in [0, 1]
        weights: Mapping[nn.Module, Tensor],
    ) -> Tensor:  # [B, D]
        """`weights` stand in for those of the layers under spectral norm."""
        images = images.contiguous(memory_format=torch.channels_last)
        return _pass(self, images * 2 - 1 if self.centred else images, weights)


def gaussian_blur(
    images: Tensor,  # [B, C, S, S]
    deviation: Tensor,  # 0-d, in pixels
) -> Tensor:
    """Blurs square images, black beyond their edges; as the deviation goes to 0 the images stay as they are."""
    side = images.shape[-1]
    offset = torch.arange(-side + 1, side, device=images.device)
    weight = torch.exp(-0.5 * (offset / deviation.clamp(min=1e-3)).square())
    weight = weight / weight.sum()
    row = torch.arange(side, device=images.device)
    matrix = weight[row[:, None] - row + side - 1].to(images.dtype)
    return matrix @ images @ matrix


class Discriminator(nn.Module):
    """D and Q on one trunk: images to the logit of being real and to the estimate of the codes."""

    def __init__(self, cfg: Config, image_shape: tuple[int, int, int]):
        super().__init__()
        heads = cfg.spectral_norm == "all"
        self.trunk = Trunk(cfg, image_shape, spectral_norm=cfg.spectral_norm != "none")
        features = self.trunk.num_features
        self.real = nn.Sequential(_spectral(nn.Linear(features, 1), heads))
        layers: list[nn.Module] = []
        if cfg.network == "conv4":
            layers = [_spectral(nn.Linear(features, cfg.hidden), heads), nn.LeakyReLU(0.2)]
            features = cfg.hidden
        self.codes = nn.Sequential(*layers, _spectral(nn.Linear(features, cfg.num_codes), heads))

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] in [0, 1]
        normalised: Normalised | None = None,  # None: normalises for this pass
    ) -> tuple[Tensor, Tensor]:
        """-> logits [B], codes [B, K], both float32."""
        weights = (normalised or normalise(self)).weights
        features = self.trunk(images, weights)
        return _pass(self.real, features, weights).squeeze(1).float(), _pass(self.codes, features, weights).float()


class ContrastiveDiscriminator(nn.Module):
    """H: tells which code a pair of images shares, from both stacked on the channel axis."""

    def __init__(self, cfg: Config, image_shape: tuple[int, int, int]):
        super().__init__()
        channels, height, width = image_shape
        self.trunk = Trunk(
            cfg,
            (2 * channels, height, width),
            spectral_norm=cfg.h_norm == "spectral",
            batch_norm=cfg.h_norm == "batch",
        )
        self.head = nn.Linear(self.trunk.num_features, cfg.num_codes)

    def forward(
        self,
        first: Tensor,  # [B, C, H, W] images of c1
        second: Tensor,  # [B, C, H, W] images of c2
        index: Tensor,  # [B] int64, the code that c1 and c2 share
        normalised: Normalised | None = None,  # None: normalises for this pass
    ) -> Tensor:
        """-> the cross-entropy of the index (Lin et al. 2020, section 3); chance is ln K."""
        features = self.trunk(torch.cat([first, second], 1), (normalised or normalise(self)).weights)
        loss = ops.contrastive_loss(features.float(), self.head.weight, self.head.bias, index)
        assert isinstance(loss, Tensor)
        return loss


def weight_draw(seed: int, network: int = 0, step: int = 0) -> torch.Generator:
    # torch's generator on the CPU heeds the low 32 bits of its seed alone: an odd factor brings every seed into them.
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + (step << 2) + network) % 2**32)


class InfoGAN(nn.Module):
    """InfoGAN-CR: a generator of images from codes and an encoder of images to codes, with what trains them."""

    prior = "uniform"

    def __init__(self, cfg: Config, image_shape: tuple[int, int, int]):
        super().__init__()
        self.cfg = cfg
        self.num_codes, self.num_noise, self.image_shape = cfg.num_codes, cfg.num_noise, image_shape
        self.generator = Generator(cfg, image_shape)
        self.discriminator = Discriminator(cfg, image_shape)
        self.contrastive = ContrastiveDiscriminator(cfg, image_shape)
        for i, network in enumerate((self.generator, self.discriminator, self.contrastive)):
            initialise(network, weight_draw(cfg.seed, i), cfg.init)
        self.generator.start(cfg)
        self.average = None
        if cfg.ema > 0:
            trained = {"generator": self.generator, "discriminator": self.discriminator}
            self.average = nn.ModuleDict(copy.deepcopy(trained)).requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def restart_contrastive(self, step: int) -> None:
        """Gives H new weights, fixed by the seed and the step, in the memory of the old ones."""
        fresh = ContrastiveDiscriminator(self.cfg, self.image_shape)
        initialise(fresh, weight_draw(self.cfg.seed, 2, step), self.cfg.init)
        self.contrastive.load_state_dict(fresh.state_dict())

    @torch.no_grad()
    def move_average(self, decay: float) -> None:
        """Moves the average networks, their batch-norm statistics too, by 1 - decay towards the present ones."""
        assert self.average is not None
        now = self.state_dict()
        pairs = [(mean, now[name]) for name, mean in self.average.state_dict().items() if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in pairs], [value for _, value in pairs], 1 - decay)

    def _best(self, network: str) -> nn.Module:
        """The averaged network where there is one, for use and not for training."""
        return (self if self.average is None else self.average).get_submodule(network).eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def generate(
        self,
        codes: Tensor,  # [n, K] in [-1, 1]
        seed: int = 0,
        noise: Tensor | None = None,  # [n, Z] in [-1, 1]
    ) -> Tensor:
        """-> images [n, C, H, W] in [0, 1] on the model's device; `seed` draws noise that is not given."""
        codes = codes.to(self.device, torch.float32)
        if noise is None:
            _, noise = ops.sample_latents(codes.shape[0], self.num_codes, self.num_noise, seed, 0, device=self.device)
        return self._best("generator")(codes, noise.to(self.device))

    def sample(self, n: int, seed: int) -> Tensor:
        """-> n images [n, C, H, W] of codes and noise drawn from the prior."""
        codes, _ = ops.sample_latents(n, self.num_codes, self.num_noise, seed, 0, device=self.device)
        return self.generate(codes, seed)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,  # [n, C, H, W] in [0, 1]
    ) -> Tensor:
        """-> codes [n, K], Q's estimate."""
        return self._best("discriminator")(images.to(self.device, torch.float32))[1]
