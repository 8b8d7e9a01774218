"""Models that crgan trains. `infogan` and `vae` each offer a model class, `make_optimisers` and `train_step`."""

from collections.abc import Callable

from ..config import Config
from ..device import plain_defaults
from . import infogan, vae
from .infogan import InfoGAN
from .model import Model
from .networks import Shape
from .vae import VAE

Build = Callable[[Config, Shape], Model]  # makes the untrained model of a configuration for images [C, H, W]
ALGORITHMS = {"infogan-cr": infogan, "factor-vae": vae, "beta-vae": vae, "beta-tcvae": vae}


def build_model(cfg: Config, image_shape: Shape, build: Build | None = None) -> Model:
    """Return the untrained model, in float32 on the CPU whatever torch's defaults are. The seed fixes its weights."""
    with plain_defaults():
        return (build or (InfoGAN if cfg.model == "infogan-cr" else VAE))(cfg, image_shape)
