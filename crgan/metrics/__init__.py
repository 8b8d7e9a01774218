"""Disentanglement metrics: pure functions of arrays, and `evaluate`, which samples, encodes and scores."""

from .evaluation import METRICS, PROTOCOLS, Protocol, Samples, applicable, evaluate, metric_names, rows, varying_factors
from .factor_vae import factor_vae, vote_score
from .images import reconstruction
from .information import dhsic, irs, mig, modularity
from .prediction import beta_vae, dci, explicitness, sap

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "Samples", "applicable", "beta_vae", "dci", "dhsic", "evaluate"]
__all__ += ["explicitness", "factor_vae", "irs", "metric_names", "mig", "modularity", "reconstruction"]
__all__ += ["rows", "sap", "varying_factors", "vote_score"]
