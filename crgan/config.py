"""One frozen dataclass for a training run and a table of presets: one row per published or shipped setting."""

from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from .errors import InputError


class Phase(NamedTuple):
    """What the schedules fix for a stretch of steps; constant inside a captured CUDA graph."""

    cr_weight: float
    gap: float
    r1: bool
    blur: bool
    fading: bool = False


@dataclass(frozen=True)
class Config:
    """A training run. Every field is a flag of `python -m crgan.train`, whose preset gives the defaults; from Python
    they are the paper's dSprites row."""

    model: Literal["infogan-cr", "factor-vae", "beta-vae", "beta-tcvae"] = "infogan-cr"
    """infogan-cr, or a variational autoencoder; VAEs take lr_g for encoder and decoder."""
    data: str = "dsprites"
    """Data set, by the name that `crgan.data.load` takes."""
    root: str | None = None
    """Folder of the published files; None renders the procedural sets."""
    num_codes: int = 5
    """K, the number of codes c_i ~ U(-1, 1)."""
    num_noise: int = 5
    """Z, the number of noise inputs z_i ~ U(-1, 1)."""
    network: Literal["conv4", "dcgan"] = "conv4"
    """conv4: 4x4 convolutions and a fully connected layer; dcgan: 5x5 convolutions, tanh images."""
    width: int = 32
    """Channels of the first convolution; deeper ones are multiples of it."""
    hidden: int = 128
    """Units of the fully connected layers of conv4."""
    spectral_norm: Literal["all", "trunk", "none"] = "all"
    """Layers of D and Q under spectral norm: all, all but the heads, or none."""
    h_norm: Literal["spectral", "batch", "none"] = "spectral"
    """Normalisation of H; its last layer never has one."""
    init: Literal["normal", "he"] = "normal"
    """First weights: N(0, 0.02) as in the paper; or N(0, 2 / fan-in) and dark images, to learn from the first step."""
    g_bias: float | None = None
    """None: G's fully connected layers activate before batch norm (paper). A number: batch norm comes first and starts
    with that bias; above 1 the ReLUs start out nearly linear, so that no code folds."""
    steps: int = 322_560
    """Training steps; one is an H, a D/Q and g_steps G updates on one batch."""
    batch_size: int = 64
    """Images in a batch; also pairs in a traversal batch."""
    g_steps: int = 2
    """G updates in a step."""
    lr_g: float = 1e-3
    """Adam's learning rate of G."""
    lr_d: float = 2e-3
    """Adam's learning rate of D and Q."""
    lr_h: float = 2e-3
    """Adam's learning rate of H."""
    beta1: float = 0.5
    """Adam's beta1."""
    beta2: float = 0.999
    """Adam's beta2."""
    info_weight: float = 0.05
    """lambda, the weight of the information loss for G and for D/Q."""
    q_deviation: Literal["one", "fitted"] = "one"
    """Standard deviation of Q's Gaussian: one (paper), or fitted to each code's errors over the batch. With one, a turn
    of the codes away from the axes costs no information; with fitted it does."""
    code_steps: int = 0
    """0: all codes act from the start. Else two do, and code k > 2 fades in over code_steps steps, from step (k - 2)
    code_steps on: while there is nothing to see but position, further codes would have to share it."""
    cr_weight: float = 2.0
    """alpha, the weight of the contrastive regularizer for G from cr_start on."""
    cr_start: int = 288_000
    """Step at which the contrastive regularizer starts, with H made anew."""
    gap: float = 0.0
    """Contrastive gap, in [0, 2), until gap_switch."""
    gap_switch: int | None = None
    """Step at which the gap becomes gap_after, with H made anew; None: never."""
    gap_after: float = 0.0
    """Contrastive gap from gap_switch on."""
    r1_weight: float = 0.0
    """Weight of D's gradient penalty on real images (R1), 0: none."""
    r1_every: int = 4
    """Apply R1 on every r1_every-th step, scaled by r1_every."""
    blur: float = 0.0
    """Gaussian blur of what D sees: its standard deviation in pixels at step 0, falling linearly to 0 at blur_steps."""
    blur_steps: int = 0
    """Steps until the blur is gone."""
    gamma: float = 10.0
    """Weight of FactorVAE's total correlation."""
    beta: float = 4.0
    """Weight of BetaVAE's divergence from the prior, and of BetaTCVAE's total correlation."""
    ema: float = 0.0
    """Decay per step of the moving average of G, D and Q for pictures, metrics and selection; 0: none."""
    precision: Literal["float32", "tf32", "bfloat16", "auto"] = "float32"
    """Arithmetic of the networks' passes; weights and losses stay float32. tf32: GPUs round factors to 10 bits;
    bfloat16: autocast; auto: bfloat16 where the processor has it."""
    seed: int = 0
    """Seed of the weights and of every random draw."""
    eval_every: int = 10_000
    """Pictures and FactorVAE score on every eval_every-th step and at the end."""

    def __post_init__(self):
        for name, hint in get_type_hints(Config).items():
            value, kinds = getattr(self, name), get_args(hint) or (hint,)
            if get_origin(hint) is Literal:
                if value not in kinds:
                    raise InputError(f"{name} is {value!r}; expected one of {', '.join(kinds)}")
            elif not isinstance(value, (*kinds, int) if float in kinds else kinds):
                raise InputError(f"{name} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}")
        at_least = {
            "num_codes": 2, "num_noise": 0, "width": 1, "hidden": 1, "steps": 1, "batch_size": 2, "g_steps": 1,
            "lr_g": 0, "lr_d": 0, "lr_h": 0, "beta1": 0, "beta2": 0, "info_weight": 0, "code_steps": 0, "cr_weight": 0,
            "cr_start": 0, "r1_weight": 0, "r1_every": 1, "blur": 0, "blur_steps": 0, "gamma": 0, "beta": 0, "ema": 0,
            "seed": 0, "eval_every": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            if not least <= getattr(self, name) < inf:  # a NaN fails too
                raise InputError(f"{name} is {getattr(self, name)}; expected a finite number of at least {least}")
        for name in ("beta1", "beta2", "ema"):
            if not getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a decay in [0, 1)")
        if self.gap_switch is not None and self.gap_switch < 0:
            raise InputError(f"gap_switch is {self.gap_switch}; expected a step of at least 0, or None")
        for name in ("gap", "gap_after"):
            if not 0 <= getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}; expected a contrastive gap in [0, 2)")
        if self.cr_weight and self.num_codes > 256:
            raise InputError(f"num_codes is {self.num_codes}; expected at most 256 with the contrastive regularizer")
        if self.blur and not self.blur_steps:
            raise InputError(f"blur is {self.blur} but blur_steps is 0; give the step at which the blur is gone")
        if self.seed >= 2**31:
            raise InputError(f"seed is {self.seed}; expected a number below 2^31")
        if self.model != "infogan-cr":
            for name in ("num_noise", "code_steps", "cr_weight", "r1_weight", "blur", "ema"):
                if getattr(self, name):
                    raise InputError(f"{name} is {getattr(self, name)}; expected 0: a {self.model} does not use it")

    @property
    def images_per_step(self) -> int:
        """FactorVAE's discriminator takes a batch of its own."""
        return 2 * self.batch_size if self.model == "factor-vae" else self.batch_size

    def phase(self, step: int) -> Phase:
        """The weights and the gap of step `step` (counted from 0)."""
        cr_on = step >= self.cr_start
        gap_switched = self.gap_switch is not None and step >= self.gap_switch
        return Phase(
            cr_weight=self.cr_weight if cr_on else 0.0,
            gap=self.gap_after if gap_switched else self.gap,
            r1=self.r1_weight > 0 and step % self.r1_every == 0,
            blur=self.blur > 0 and step < self.blur_steps,
            fading=step < (self.num_codes - 1) * self.code_steps,
        )

    def restarts_h(self, step: int) -> bool:
        """Whether H and its optimiser start anew at `step`: where the regularizer begins and where the gap changes."""
        return self.cr_weight > 0 and step in (self.cr_start, self.gap_switch) and step > 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"the configuration has the unknown field {unknown[0]}; expected those of crgan.Config")
        return cls(**values)


_PAPER = Config()
# 27 epochs of 737,280 images in batches of 64; the pool has gamma in 1, 10, 20, 40 with ten seeds each.
_FACTOR_VAE = replace(
    _PAPER, model="factor-vae", num_codes=10, num_noise=0, cr_weight=0.0, steps=27 * 11_520, lr_g=1e-4, lr_d=1e-4,
    beta1=0.9,
)  # fmt: skip
# What each of these changes is worth is in docs/recipes.md.
_FAST = Config(
    num_noise=0, spectral_norm="none", h_norm="none", init="he", g_bias=1.5, g_steps=1, lr_d=3e-3, lr_h=1e-3,
    beta2=0.99, info_weight=0.1, r1_weight=0.005, r1_every=8, ema=0.995, precision="auto", gap=1.0, cr_weight=1.0,
)  # fmt: skip

# Codes that come in one after another; the blur keeps positions unfolded.
_DSPRITES = replace(
    _FAST, info_weight=0.05, q_deviation="fitted", code_steps=1_500, r1_weight=0.02, steps=10_000, blur=4.0,
    blur_steps=20_000, cr_start=6_000, eval_every=2_000,
)  # fmt: skip
# Where nothing moves across the image no blur is needed, and under it G draws colours as patterns.
_SCENES = replace(_DSPRITES, lr_d=3e-4, r1_weight=0.1, blur=0.0, blur_steps=0, cr_weight=0.0)
_PICTURES = replace(
    _FAST, lr_d=3e-4, r1_weight=0.1, num_codes=5, num_noise=50, steps=8_000, cr_start=4_000, eval_every=1_000
)  # fmt: skip

PRESETS: dict[str, Config] = {
    # Shipped: minutes on two CPU cores.
    "quick": replace(
        _FAST, data="squares", num_codes=4, info_weight=0.05, q_deviation="fitted", steps=4_000, blur=3.0,
        blur_steps=4_000, cr_start=1_300, eval_every=1_000,
    ),
    "dsprites-fast": replace(_DSPRITES, data="dsprites", num_codes=5),
    "shapes3d-like": replace(_SCENES, data="shapes3d_like", num_codes=6),
    "shapes3d": replace(_SCENES, data="shapes3d", num_codes=6),
    "mpi3d": replace(_SCENES, data="mpi3d_toy", num_codes=7),
    "cars3d": replace(_SCENES, data="cars3d", num_codes=3),
    "smallnorb": replace(_SCENES, data="smallnorb", num_codes=4),
    "mnist": replace(_PICTURES, data="mnist", num_noise=20),
    "rmnist": replace(_PICTURES, data="rmnist", num_noise=20),
    "rbmn": replace(_PICTURES, data="rbmn", num_noise=20),
    "adrenal": replace(_PICTURES, data="adrenalmnist3d", num_noise=20),
    "folder": replace(_PICTURES, data="folder"),
    # The paper's settings, to the letter.
    "dsprites": _PAPER,
    "dsprites-infogan": replace(_PAPER, cr_weight=0.0),
    # 8,000 epochs of 1,080 images in batches of 30.
    "circular": replace(
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
