"""Models that crgan trains. `infogan` and `vae` each offer a model class, `make_optimisers` and `train_step`."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ..config import Config
from . import infogan, vae
from .infogan import InfoGAN
from .losses import Optimisers
from .model import Model
from .vae import VAE

__all__ = ["ALGORITHMS", "VAE", "Algorithm", "Build", "InfoGAN", "Model", "Optimisers", "build_model"]

Build = Callable[[Config, tuple[int, int, int]], Model]
"""Makes the untrained model of a configuration for images of one shape [C, H, W]."""


class Algorithm(Protocol):
    """What `infogan` and `vae` have in common."""

    def make_optimisers(self, model: Any, cfg: Config) -> Optimisers: ...

    def train_step(self, model: Any, optimisers: Any, x: Any, cfg: Any, phase: Any, step: Any) -> dict[str, Tensor]: ...


ALGORITHMS: dict[str, Algorithm] = {
    "infogan-cr": infogan,
    "factor-vae": vae,
    "beta-vae": vae,
    "beta-tcvae": vae,
}


def build_model(cfg: Config, image_shape: tuple[int, int, int]) -> Model:
    """Return the untrained model of a configuration. Its weights are fixed by the seed."""
    return (InfoGAN if cfg.model == "infogan-cr" else VAE)(cfg, image_shape)
