"""The configuration of a training run, and a table of presets: one row per published or shipped setting.

The comment of a field is its documentation: `crgan train --help` and `help(crgan.Config)` show it.
"""

import inspect
import sys
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from .errors import InputError, check_name


class Phase(NamedTuple):
    """Settings that the schedules fix for a stretch of steps. Constant inside a captured CUDA graph."""

    cr_weight: float
    gap: float
    r1: bool
    blur: bool
    warmup: bool = False


@dataclass(frozen=True)
class Data:
    """Data: what the model is trained on."""

    data: str = "dsprites"  # Name of the data set: one of crgan.data.NAMES.
    root: str | None = None  # Folder of the published files. None: draw the images from their factors.
    batch_size: int = 64  # Images per batch, and pairs per traversal batch.


@dataclass(frozen=True)
class Networks:
    """Networks: the model and its layers."""

    # Algorithm: InfoGAN-CR or a variational autoencoder. VAEs use lr_g for encoder and decoder.
    model: Literal["infogan-cr", "factor-vae", "beta-vae", "beta-tcvae"] = "infogan-cr"
    num_codes: int = 5  # K, number of codes c_i ~ U(-1, 1).
    num_noise: int = 5  # Z, number of noise inputs z_i ~ U(-1, 1).
    network: Literal["conv4", "dcgan"] = "conv4"  # 4x4 convolutions and a hidden layer, or 5x5 ones and tanh images.
    width: int = 32  # Channels of the first convolution; deeper layers have multiples of it.
    hidden: int = 128  # Units of the fully connected layers of conv4.
    spectral_norm: Literal["all", "trunk", "none"] = "all"  # Which layers of D and Q have it. trunk: all but the heads.
    h_norm: Literal["spectral", "batch", "none"] = "spectral"  # Normalisation of H, except its last layer.
    init: Literal["normal", "he"] = "normal"  # First weights: N(0, 0.02^2) (paper), or N(0, 2/fan-in), dark images.
    # None: G's fully connected layers activate before batch norm (paper). A number: batch norm comes first and starts
    # with this bias. Above 1 the ReLUs are nearly linear at the start.
    g_bias: float | None = None


@dataclass(frozen=True)
class Losses:
    """Losses: the weights of the terms of the objective."""

    info_weight: float = 0.05  # lambda, weight of the information loss for G and for D with Q.
    # Standard deviation of Q's Gaussian: 1 (paper), or each code's maximum-likelihood value in the batch.
    q_std: Literal["one", "fitted"] = "one"
    cr_weight: float = 2.0  # alpha, weight of the contrastive regularizer for G from cr_start on.
    r1_weight: float = 0.0  # Weight of D's gradient penalty on real images (R1). 0: none.
    gamma: float = 10.0  # Weight of FactorVAE's total correlation.
    beta: float = 4.0  # Weight of BetaVAE's divergence from the prior, and of BetaTCVAE's total correlation.


@dataclass(frozen=True)
class Schedule:
    """Schedule: how long to train, and what changes on the way."""

    steps: int = 322_560  # Training steps. Each updates H, then D with Q, then G g_steps times, on one batch.
    g_steps: int = 2  # Updates of G per step.
    cr_start: int = 288_000  # Step at which the contrastive regularizer starts, with a new H.
    gap: float = 0.0  # Contrastive gap in [0, 2) until gap_switch.
    gap_switch: int | None = None  # Step at which the gap becomes gap_after, with a new H. None: never.
    gap_after: float = 0.0  # Contrastive gap in [0, 2) from gap_switch on.
    r1_every: int = 4  # Apply R1 every r1_every steps, scaled by r1_every.
    blur: float = 0.0  # Gaussian blur of what D sees: standard deviation at step 0, in pixels.
    blur_steps: int = 0  # Steps until the blur, which decays linearly, is gone.
    # Steps over which each code k > 2 fades in, from step (k - 2) code_warmup_steps on. Early on, blurred images show
    # only position, and all codes would encode it. 0: all codes are always active.
    code_warmup_steps: int = 0


@dataclass(frozen=True)
class Optimiser:
    """Optimiser: Adam, and the moving average of the weights."""

    lr_g: float = 1e-3  # Adam's learning rate of G.
    lr_d: float = 2e-3  # Adam's learning rate of D and Q.
    lr_h: float = 2e-3  # Adam's learning rate of H.
    beta1: float = 0.5  # Adam's beta1.
    beta2: float = 0.999  # Adam's beta2.
    ema: float = 0.0  # Decay per step of the moving average of G, D and Q, which replaces them in use. 0: none.


@dataclass(frozen=True)
class Run:
    """Run: seed, evaluation and arithmetic."""

    seed: int = 0  # Seed of the weights and of every random draw.
    eval_every: int = 10_000  # Steps between two evaluations: pictures and the FactorVAE score.
    # Arithmetic of the networks; weights and losses are float32. auto: bfloat16 if the processor has it, else float32.
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    threads: int = 0  # CPU threads; the last bits depend on it. 0: one for images up to 32x32, else all cores.
    compile: bool = False  # torch.compile G, D and H, without R1: pays off from some 20,000 steps on a GPU.


@dataclass(frozen=True)
class Config(Run, Optimiser, Schedule, Losses, Networks, Data):
    """A training run. The defaults are the paper's dSprites setting.

    Every field is a flag of `python -m crgan.train`, whose preset gives the defaults. Raises InputError for a value
    that a field does not take.
    """

    def __post_init__(self):
        for name, hint in get_type_hints(Config).items():
            value, types = getattr(self, name), get_args(hint) or (hint,)
            least, end = _LIMITS.get(name, (0, inf))
            if get_origin(hint) is Literal:
                if value not in types:
                    raise InputError(f"{name} is {value!r}; expected one of {', '.join(types)}")
            elif not isinstance(value, (*types, int) if float in types else types):
                raise InputError(f"{name} is {value!r}; expected {' or '.join(kind.__name__ for kind in types)}")
            elif isinstance(value, int | float) and not least <= value < end:  # a NaN fails too
                raise InputError(f"{name} is {value}; expected a number in [{least}, {end})")
        if self.cr_weight and self.num_codes > 256:
            raise InputError(f"num_codes is {self.num_codes}; expected at most 256 with the contrastive regularizer")
        if self.cr_weight and self.cr_start < (end := (self.num_codes - 1) * self.code_warmup_steps):
            raise InputError(f"cr_start is {self.cr_start}; expected cr_start {end} or later: until then codes fade in")
        if self.blur and not self.blur_steps:
            raise InputError(f"blur is {self.blur} but blur_steps is 0; give the step at which the blur is gone")
        if self.compile and self.r1_weight:
            raise InputError(f"r1_weight is {self.r1_weight}; expected 0 with compile, which has no second derivative")
        if self.model != "infogan-cr":
            for name in ("num_noise", "code_warmup_steps", "cr_weight", "r1_weight", "blur", "ema", "compile"):
                if getattr(self, name):
                    raise InputError(f"{name} is {getattr(self, name)}; expected 0: a {self.model} does not use it")

    @property
    def images_per_step(self) -> int:
        """Return the number of real images per step; FactorVAE's discriminator takes a second batch."""
        return 2 * self.batch_size if self.model == "factor-vae" else self.batch_size

    def phase(self, step: int) -> Phase:
        """Return the weights and the gap of step `step`, counted from 0."""
        return Phase(
            cr_weight=self.cr_weight if step >= self.cr_start else 0.0,
            gap=self.gap if self.gap_switch is None or step < self.gap_switch else self.gap_after,
            r1=self.r1_weight > 0 and step % self.r1_every == 0,
            blur=self.blur > 0 and step < self.blur_steps,
            warmup=step < (self.num_codes - 1) * self.code_warmup_steps,
        )

    def restarts_h(self, step: int) -> bool:
        """Return whether H starts anew at `step`: where the regularizer begins and where the gap changes."""
        return self.cr_weight > 0 and step in (self.cr_start, self.gap_switch) and step > 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Return the configuration; raise InputError for an unknown field and for a value that does not fit."""
        for name in values:
            check_name("field of the configuration", name, [field.name for field in fields(cls)])
        return cls(**values)


_LIMITS: dict[str, tuple[float, float]] = {"seed": (0, 2**31), "g_bias": (-inf, inf), "num_codes": (2, inf)}
_LIMITS |= {name: (1, 10**9) for name in ("width", "hidden", "steps", "g_steps", "r1_every", "eval_every")}
_LIMITS |= {"batch_size": (2, inf), "beta1": (0, 1), "beta2": (0, 1), "ema": (0, 1), "gap": (0, 2), "gap_after": (0, 2)}
TOPICS = (Data, Networks, Losses, Schedule, Optimiser, Run)
source = inspect.getsource(sys.modules[__name__])
Config.__doc__ = f"{Config.__doc__}\n{source[source.index('class Data:') : source.index('class Config(')]}"

_PAPER = Config()
# 27 epochs of 737,280 images in batches of 64; the pool has gamma in 1, 10, 20, 40 with ten seeds each.
_FACTOR_VAE = replace(
    _PAPER, model="factor-vae", num_codes=10, num_noise=0, cr_weight=0.0, steps=27 * 11_520, lr_g=1e-4, lr_d=1e-4,
    beta1=0.9,
)  # fmt: skip
# docs/notebook.md says what each of these changes is worth.
_FAST = Config(
    num_noise=0, spectral_norm="none", h_norm="none", init="he", g_bias=1.5, g_steps=1, lr_d=3e-3, lr_h=1e-3,
    beta2=0.99, info_weight=0.1, r1_weight=0.005, r1_every=8, ema=0.995, precision="auto", gap=1.0, cr_weight=1.0,
)  # fmt: skip

# Codes fade in one after another; the blur keeps positions unfolded.
_DSPRITES = replace(
    _FAST, info_weight=0.05, q_std="fitted", code_warmup_steps=1_500, r1_weight=0.02, steps=10_000, blur=4.0,
    blur_steps=20_000, cr_start=6_000, eval_every=2_000,
)  # fmt: skip
# Nothing moves across these images, so no blur is needed; under blur G draws colours as patterns.
_SCENES = replace(_DSPRITES, lr_d=3e-4, r1_weight=0.1, blur=0.0, blur_steps=0, cr_weight=0.0)
_PICTURES = replace(
    _FAST, lr_d=3e-4, r1_weight=0.1, num_codes=5, num_noise=50, steps=8_000, cr_start=4_000, eval_every=1_000
)  # fmt: skip

PRESETS: dict[str, Config] = {
    # Shipped: minutes on two CPU cores.
    "quick": replace(
        _FAST, data="squares", num_codes=4, info_weight=0.05, q_std="fitted", steps=4_000, blur=3.0,
        blur_steps=4_000, cr_start=1_300, eval_every=1_000,
    ),
    "dsprites-fast": replace(_DSPRITES, data="dsprites", num_codes=5),
    "shapes3d_like": replace(_SCENES, data="shapes3d_like", num_codes=6),
    "shapes3d": replace(_SCENES, data="shapes3d", num_codes=6),
    "mpi3d_toy": replace(_SCENES, data="mpi3d_toy", num_codes=7),
    "cars3d": replace(_SCENES, data="cars3d", num_codes=3),
    "smallnorb": replace(_SCENES, data="smallnorb", num_codes=4),
    **{name: replace(_PICTURES, data=name, num_noise=20) for name in ("mnist", "rmnist", "rbmn", "adrenalmnist3d")},
    "folder": replace(_PICTURES, data="folder"),
    # The paper's settings, to the letter.
    "dsprites": _PAPER,
    "dsprites-infogan": replace(_PAPER, cr_weight=0.0, steps=288_000),  # "InfoGAN (modified)": the state before CR
    # 8,000 epochs of 1,080 images in batches of 30.
    "circular_dsprites": replace(
        _PAPER, data="circular_dsprites", num_codes=2, batch_size=30, steps=288_000, info_weight=0.2, cr_start=216_000
    ),
    # 40 epochs of 200,000 images in batches of 64.
    "teapots": replace(
        _PAPER, data="teapots", h_norm="batch", steps=125_000, info_weight=0.2, cr_weight=3.0, cr_start=50_000,
        gap=1.9, gap_switch=85_000,
    ),
    # 57 epochs of 202,599 images in batches of 128.
    "celeba": replace(
        _PAPER, data="celeba", num_noise=100, network="dcgan", width=64, h_norm="batch", steps=90_174, batch_size=128,
        lr_g=2e-3, lr_d=2e-4, lr_h=2e-4, info_weight=2.0, cr_weight=1.0, cr_start=80_000,
    ),
    # The VAEs that the paper's pools are made of or compared with (Kim and Mnih 2018; Higgins et al. 2017;
    # Chen et al. 2018).
    "factorvae-dsprites": _FACTOR_VAE,
    "betavae-dsprites": replace(_FACTOR_VAE, model="beta-vae"),
    "betatcvae-dsprites": replace(_FACTOR_VAE, model="beta-tcvae", beta=6.0),
}  # fmt: skip
