"""Disentanglement metrics.

Each metric is a pure function of arrays, except that `shape_classifier` trains the network behind `inception`.
`evaluate` samples, encodes and scores.
"""

from .beta_vae import beta_vae
from .dci import dci
from .dhsic import dhsic
from .evaluation import METRICS, applicable, evaluate, metric_names, rows
from .explicitness import explicitness
from .factor_vae import factor_vae
from .inception import inception, shape_classifier
from .irs import irs
from .mutual_information import mig, modularity
from .protocol import PROTOCOLS, Protocol
from .reconstruction import reconstruction
from .sap import sap

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "applicable", "beta_vae", "dci", "dhsic", "evaluate", "explicitness"]
__all__ += ["factor_vae", "inception", "irs", "metric_names", "mig", "modularity", "reconstruction", "rows", "sap"]
__all__ += ["shape_classifier"]
