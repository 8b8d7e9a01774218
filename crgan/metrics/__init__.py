"""Disentanglement metrics: a pure function of arrays each; `evaluate` samples, encodes and scores."""

from .beta_vae import beta_vae
from .dci import dci
from .dhsic import dhsic
from .explicitness import explicitness
from .factor_vae import factor_vae, vote_score
from .inception import inception, shape_classifier
from .irs import irs
from .mig import mig
from .modularity import modularity
from .protocol import METRICS, PROTOCOLS, Protocol, applicable, evaluate
from .reconstruction import reconstruction
from .sap import sap

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "applicable", "beta_vae", "dci", "dhsic", "evaluate", "explicitness"]
__all__ += ["factor_vae", "inception", "irs", "mig", "modularity", "reconstruction", "sap", "shape_classifier"]
__all__ += ["vote_score"]
