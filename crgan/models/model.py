"""The base class of the models that crgan trains, their optimiser and its step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .. import ops
from ..config import Config
from ..device import evaluating
from ..errors import InputError
from .networks import Shape

Optimisers = dict[str, torch.optim.Optimizer]


class Model(nn.Module):
    """A generator of images from codes and an encoder of images to codes.

    Images are float [n, C, H, W] in [0, 1] on the way in, on any device, and on the model's device on the way out.
    Subclasses implement `decode` and `code_mean`, which get checked inputs, in eval mode.
    """

    prior = "uniform"  # of each code: "uniform" on [-1, 1), or "normal"
    decode: Callable[[Tensor, Tensor], Tensor]  # codes [n, K] and noise [n, Z] to images
    code_mean: Callable[[Tensor], Tensor]  # images to codes

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__()
        self.cfg, self.image_shape = cfg, tuple(image_shape)
        self.num_codes, self.num_noise = cfg.num_codes, cfg.num_noise

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def generate(self, codes: Tensor, seed: int = 0, noise: Tensor | None = None) -> Tensor:  # [n, C, H, W]
        """Generate images from codes [n, K] and noise [n, Z] in [-1, 1].

        Noise that is not given is drawn, keyed by `seed`. Raises InputError for a wrong type or shape of either.
        """
        codes = self._checked("codes", codes, self.num_codes)
        if noise is None and self.num_noise:
            _, noise = ops.sample_latents(len(codes), self.num_codes, self.num_noise, seed, 0, device=self.device)
        noise = codes[:, :0] if noise is None else self._checked("noise", noise, self.num_noise)
        with evaluating(self):
            return self.decode(codes, noise)

    def sample(self, n: int, seed: int = 0) -> Tensor:  # [n, C, H, W] in [0, 1]
        """Generate n images from codes and noise drawn from the prior."""
        codes, _ = ops.sample_latents(n, self.num_codes, self.num_noise, seed, 0, device=self.device)
        return self.generate(codes if self.prior == "uniform" else gaussian(codes), seed)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:  # [n, C, H, W] in [0, 1] -> [n, K]
        """Return the estimate of the codes. Raises InputError for images of another type, shape or range."""
        checked = self._checked("images", images, *self.image_shape)
        # Reading a value back would stall a GPU, and cannot be traced.
        traced = torch.compiler.is_compiling() or images.is_cuda or not images.numel()
        if not traced and (high := images.amax().item()) > 2:
            raise InputError(f"images reach {high:g}; expected values in [0, 1]: divide 8-bit values by 255")
        with evaluating(self):
            return self.code_mean(checked)

    def for_use(self) -> "Model":
        """Return what is saved for users: this model in eval mode, or a copy of it that is cheaper to run."""
        return self.eval()

    def _checked(self, what: str, value: Tensor, *shape: int) -> Tensor:
        """Return `value`, a float tensor [n, *shape], on the model's device."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[1:] != shape:
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"{what} are {found}; expected a float tensor [n, {', '.join(map(str, shape))}]")
        return value.to(self.device, torch.float32)


def gaussian(uniform: Tensor) -> Tensor:  # uniform on the grid of 2^24 values of `ops.sample_latents`, in [-1, 1)
    """Transform to N(0, 1) by inversion. Half a grid step keeps the values finite and symmetric."""
    return math.sqrt(2) * torch.erfinv(uniform + 2.0**-24)


def adam(parameters: Iterable[nn.Parameter], lr: float, beta1: float, beta2: float) -> torch.optim.Optimizer:
    """Return a fused Adam, whose step a CUDA graph can capture."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr, (beta1, beta2), fused=True, capturable=parameters[0].is_cuda)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down `loss` in the optimiser's parameters. No other network receives a gradient."""
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()
    optimiser.zero_grad()
