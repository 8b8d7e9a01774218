"""The base class of the models that crgan trains: what training, metrics and selection ask of a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import InputError
from .networks import Shape


class Model(nn.Module):
    """A generator of images from codes and an encoder of images to codes.

    Subclasses implement `generate`, `sample` and `encode`. Images are float [n, C, H, W] in [0, 1] on the way in, on
    any device, and on the model's device on the way out.
    """

    prior = "uniform"  # of each code: "uniform" on [-1, 1), or "normal"

    def __init__(self, cfg: Config, image_shape: Shape):
        super().__init__()
        self.cfg, self.image_shape = cfg, tuple(image_shape)
        self.num_codes, self.num_noise = cfg.num_codes, cfg.num_noise

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    generate: Callable[..., Tensor]  # (codes, seed=0, noise=None)
    sample: Callable[..., Tensor]  # (n, seed=0)
    encode: Callable[..., Tensor]  # (images)

    def for_use(self) -> "Model":
        """Return what is saved for users: this model in eval mode, or a copy of it that is cheaper to run."""
        return self.eval()

    def _checked(self, what: str, value: Tensor, *shape: int) -> Tensor:
        """Return `value`, a float tensor [n, *shape], on the model's device."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[1:] != shape:
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"{what} are {found}; expected a float tensor [n, {', '.join(map(str, shape))}]")
        return value.to(self.device, torch.float32)

    def _images(self, images: Tensor) -> Tensor:
        checked = self._checked("images", images, *self.image_shape)
        # Reading a value back would stall a GPU, and cannot be traced.
        traced = torch.compiler.is_compiling() or images.is_cuda or not images.numel()
        if not traced and (high := images.amax().item()) > 2:
            raise InputError(f"images reach {high:g}; expected values in [0, 1]: divide 8-bit values by 255")
        return checked


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Context manager: put `network` into eval mode, and give each part its own mode back afterwards."""
    training = [module for module in network.modules() if module.training]
    try:
        yield network.eval()
    finally:
        for module in training:
            module.training = True
