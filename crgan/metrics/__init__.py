"""Disentanglement metrics: pure functions of arrays, and `evaluate`, which samples, encodes and scores."""

from .evaluation import METRICS, PROTOCOLS, Protocol, Samples, applicable, evaluate, metric_names, rows
from .images import inception, reconstruction
from .information import dhsic, irs, mig, modularity
from .prediction import beta_vae, dci, explicitness, factor_vae, sap, vote_score

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "Samples", "applicable", "beta_vae", "dci", "dhsic", "evaluate"]
__all__ += ["explicitness", "factor_vae", "inception", "irs", "metric_names", "mig", "modularity", "reconstruction"]
__all__ += ["rows", "sap", "vote_score"]
