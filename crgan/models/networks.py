"""The networks: generator G, discriminator D with its code head Q, contrastive discriminator H."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, normalize, pad, pixel_shuffle, pixel_unshuffle

from .. import ops
from ..config import Config
from ..errors import InputError

Shape = tuple[int, int, int]  # of an image: C, H, W


class Normalised(NamedTuple):
    """A network whose layers under spectral norm compute with W / sigma(W), for all passes until its weights change."""

    network: nn.Module
    weights: dict[str, Tensor]  # W / sigma(W) by the name of the parameter W
    vectors: list[tuple[Tensor, Tensor]]  # the singular vector u of each layer, and its next value

    def __call__(self, *inputs: Tensor) -> Any:
        return functional_call(self.network, self.weights, inputs) if self.weights else self.network(*inputs)

    @torch.no_grad()
    def advance(self) -> None:
        """Store the next singular vectors. Called once per training step, as in the original code."""
        if self.vectors:
            now, following = zip(*self.vectors)
            torch._foreach_copy_(list(now), list(following))


def normalise(network: nn.Module) -> Normalised:
    """Divide the weights of all layers under spectral norm by their largest singular value (Miyato et al. 2018)."""
    layers: dict[str, Any] = {name: module for name, module in network.named_modules() if "u" in module._buffers}
    # A channels-last convolution stores its taps before its input channels. Sigma does not depend on their order.
    taps: list[Tensor] = [layer.weight.movedim(1, -1) for layer in layers.values()]
    vectors = [layer.u for layer in layers.values()]
    matrices, following = ops.spectral_norm([tap.flatten(1) for tap in taps], vectors)
    weights = [matrix.view(tap.shape).movedim(-1, 1) for matrix, tap in zip(matrices, taps)]
    named = {f"{name}.weight": weight for name, weight in zip(layers, weights)}
    return Normalised(network, named, list(zip(vectors, following)))


@torch.no_grad()
def fold_spectral_norm(network: nn.Module) -> None:
    """Replace each weight W under spectral norm by W / sigma(W) for good: for use, not for training."""
    for name, weight in normalise(network).weights.items():
        network.get_parameter(name).copy_(weight)
        del network.get_submodule(name.rpartition(".")[0])._buffers["u"]


class BlockConv2d(nn.Conv2d):
    """A 4x4 convolution of stride 2 and padding 1, computed with 2x2 taps on 2x2 blocks of pixels.

    Libraries are slow on images of one or two channels: blocks make a step of the dsprites preset on a CPU 5 to 10 %
    faster, in float32 and in bfloat16.
    """

    def forward(self, input: Tensor) -> Tensor:
        after, before = self.weight.shape[:2]
        blocks = pixel_unshuffle(pad(input, (1, 1, 1, 1)), 2).contiguous(memory_format=torch.channels_last)
        taps = self.weight.reshape(after, before, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(after, 4 * before, 2, 2)
        return conv2d(blocks, taps, self.bias)


class BlockConvTranspose2d(nn.ConvTranspose2d):
    """The matching transposed convolution: 2x2 taps produce 2x2 blocks of pixels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        before, after = self.weight.shape[:2]
        taps = self.weight.reshape(before, after, 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
        assert self.bias is not None
        bias = self.bias[:, None].expand(-1, 4).reshape(-1)
        blocks = conv2d(input, taps.reshape(4 * after, before, 2, 2), bias, padding=1)
        return pixel_shuffle(blocks, 2)[:, :, 1:-1, 1:-1]


def _upsample(cfg: Config, before: int, after: int) -> nn.ConvTranspose2d:
    """Return the transposed convolution that doubles the sides of a map."""
    if cfg.network == "dcgan":
        return nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=1)
    return (BlockConvTranspose2d if after <= 2 else nn.ConvTranspose2d)(before, after, 4, 2, 1)


def _spectral(layer: nn.Conv2d | nn.Linear, on: bool) -> nn.Module:
    """Put a layer under spectral norm if `on`."""
    if on:
        layer.register_buffer("u", normalize(torch.ones(len(layer.weight)), dim=0))
    return layer


def _activate(cfg: Config, activation: nn.Module, norm: nn.Module | None, norm_first: bool = False) -> list[nn.Module]:
    """Return activation and batch norm in the paper's order: conv4 nets activate first, dcgan nets last."""
    if norm is None:
        return [activation]
    return [norm, activation] if norm_first or cfg.network == "dcgan" else [activation, norm]


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator, init: str) -> None:
    """Draw new weights and singular vectors u in place; biases become 0, batch norms the identity.

    "normal": N(0, 0.02^2), truncated at two standard deviations for convolutions (the original code).
    "he": N(0, 2 / fan-in) of He et al. (2015), N(0, 1 / fan-in) for the layers in `network.outputs`. The fan-in of a
    transposed convolution counts the taps that reach one output.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight, transposed = module.weight, isinstance(module, nn.ConvTranspose2d)
            if init == "he":
                fan_in = len(weight) * weight[0, 0].numel() / 4 if transposed else weight[0].numel()
                gain = 1.0 if any(module is layer for layer in getattr(network, "outputs", ())) else 2.0
                weight.normal_(std=(gain / fan_in) ** 0.5, generator=generator)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            else:
                weight.normal_(std=0.02, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
            if (u := module._buffers.get("u")) is not None:
                u.copy_(normalize(torch.randn(u.shape, generator=generator, dtype=torch.float32), dim=0))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()


def seeded_generator(seed: int, network: int = 0, step: int = 0) -> torch.Generator:
    """Return the random generator of a network's first weights, or of those drawn anew at `step`.

    torch's CPU generator uses the low 32 bits of its seed only; the odd factor spreads every seed over them.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + (step << 2) + network) % 2**32)


def conv_channels(cfg: Config, image_shape: Shape, smallest: int) -> list[int]:
    """Return the channels after each stride-2 convolution, from the image down to `smallest` x `smallest`.

    Raises InputError unless images are squares whose side is a power of two, 16 pixels or more.
    """
    _, height, width = image_shape
    if height != width or height < 16 or height & (height - 1):
        raise InputError(f"images are {height} x {width}; expected squares whose side is a power of two, 16 or more")
    count = (height // smallest).bit_length() - 1
    if cfg.network == "dcgan":
        return [cfg.width * 2**i for i in range(count)]
    return [cfg.width] * (count // 2) + [2 * cfg.width] * (count - count // 2)


class Generator(nn.Module):
    """G(c, z): codes and noise to images in [0, 1]."""

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__()
        self.tanh = cfg.network == "dcgan"
        maps = conv_channels(cfg, image_shape, smallest=4)[::-1]
        hidden = 1024 if self.tanh else cfg.hidden
        layers: list[nn.Module] = []
        for before, after in pairwise((cfg.num_codes + cfg.num_noise, hidden, 16 * maps[0])):
            norm = nn.BatchNorm1d(after)
            layers += [nn.Linear(before, after), *_activate(cfg, nn.ReLU(), norm, norm_first=cfg.g_bias is not None)]
        self.fully_connected = nn.Sequential(*layers, nn.Unflatten(1, (maps[0], 4, 4)))
        layers = []
        for before, after in pairwise(maps):
            activation = nn.ReLU() if self.tanh else nn.LeakyReLU(0.2)
            layers += [_upsample(cfg, before, after), *_activate(cfg, activation, nn.BatchNorm2d(after))]
        last = _upsample(cfg, maps[-1], image_shape[0])
        self.convolutions = nn.Sequential(*layers, last)
        initialise(self, seeded_generator(cfg.seed, 0), cfg.init)
        for layer in self.fully_connected:
            if isinstance(layer, nn.BatchNorm1d):
                layer.bias.data.fill_(cfg.g_bias or 0.0)
        if cfg.init == "he":  # a dark output layer
            last.weight.data.mul_(0.5)
            nn.init.constant_(last.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, c: Tensor, z: Tensor) -> Tensor:  # c [B, K] in [-1, 1]; z [B, Z] in [-1, 1] -> [B, C, H, W]
        maps = self.fully_connected(torch.cat([c, z], 1))
        x = self.convolutions(maps.contiguous(memory_format=torch.channels_last))
        return (x.tanh() + 1) / 2 if self.tanh else x.sigmoid()


class Trunk(nn.Sequential):
    """Stride-2 convolutions, then a fully connected layer in conv4 nets: images [B, C, H, W] to features [B, D]."""

    def __init__(self, cfg: Config, image_shape: Shape, spectral_norm: bool = False, batch_norm: bool = False):
        super().__init__()
        self.centred = cfg.network == "dcgan"
        smallest = 2 if self.centred else 4
        maps = conv_channels(cfg, image_shape, smallest)
        layers: list[nn.Module] = []
        for before, after in pairwise([image_shape[0], *maps]):
            norm: nn.Module | None = nn.BatchNorm2d(after) if batch_norm and layers else None
            if self.centred:
                convolution = nn.Conv2d(before, after, 5, 2, 2)
            else:
                convolution = (BlockConv2d if before <= 2 else nn.Conv2d)(before, after, 4, 2, 1)
            layers.append(_spectral(convolution, spectral_norm))
            layers += _activate(cfg, nn.LeakyReLU(0.2), norm)
        layers.append(nn.Flatten())
        self.num_features = maps[-1] * smallest**2
        if not self.centred:
            layers.append(_spectral(nn.Linear(self.num_features, cfg.hidden), spectral_norm))
            layers += _activate(cfg, nn.LeakyReLU(0.2), nn.BatchNorm1d(cfg.hidden) if batch_norm else None)
            self.num_features = cfg.hidden
        self.extend(layers)

    def forward(self, input: Tensor) -> Tensor:  # [B, C, H, W] in [0, 1] -> [B, D]
        images = input.contiguous(memory_format=torch.channels_last)
        return super().forward(images * 2 - 1 if self.centred else images)


def gaussian_blur(images: Tensor, std: Tensor) -> Tensor:  # images [B, C, S, S]; std 0-d, in pixels
    """Blur square images, taken as black beyond their edges. A standard deviation of 0 leaves them unchanged."""
    side = images.shape[-1]
    offset = torch.arange(-side + 1, side, device=images.device)
    weight = torch.exp(-0.5 * (offset / std.clamp(min=1e-3)).square())
    weight = weight / weight.sum()
    row = torch.arange(side, device=images.device)
    matrix = weight[row[:, None] - row + side - 1].to(images.dtype)
    return matrix @ images @ matrix


class Discriminator(nn.Module):
    """D and Q on one trunk: images to the logit of being real and to an estimate of the codes."""

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__()
        self.trunk, heads = Trunk(cfg, image_shape, cfg.spectral_norm != "none"), cfg.spectral_norm == "all"
        features = self.trunk.num_features
        self.real = nn.Sequential(_spectral(nn.Linear(features, 1), heads))
        layers: list[nn.Module] = []
        if cfg.network == "conv4":  # features is cfg.hidden
            layers = [_spectral(nn.Linear(features, features), heads), nn.LeakyReLU(0.2)]
        self.codes = nn.Sequential(*layers, _spectral(nn.Linear(features, cfg.num_codes), heads))
        self.outputs = [self.real[-1], self.codes[-1]]
        initialise(self, seeded_generator(cfg.seed, 1), cfg.init)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W] in [0, 1] -> logits [B], codes [B, K]
        features = self.trunk(images)
        return self.real(features).squeeze(1).float(), self.codes(features).float()


class ContrastiveDiscriminator(nn.Module):
    """H: which code does a pair of images share? It sees both stacked on the channel axis."""

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__()
        channels, height, width = image_shape
        self.trunk = Trunk(cfg, (2 * channels, height, width), cfg.h_norm == "spectral", cfg.h_norm == "batch")
        self.head = nn.Linear(self.trunk.num_features, cfg.num_codes)
        self.outputs = [self.head]
        initialise(self, seeded_generator(cfg.seed, 2), cfg.init)

    def forward(self, first: Tensor, second: Tensor, index: Tensor) -> Tensor:  # images [B, C, H, W] of c1 and of c2
        """Return the cross-entropy of the index [B] int64, the code that c1 and c2 share, a scalar; chance is ln K."""
        features = self.trunk(torch.cat([first, second], 1))
        return ops.contrastive_loss(features.float(), self.head.weight, self.head.bias, index)
