"""Disentanglement metrics: a pure function of arrays each; `evaluate` samples, encodes and scores."""

from .factor_vae import factor_vae
from .protocol import METRICS, PROTOCOLS, Protocol, evaluate

__all__ = ["METRICS", "PROTOCOLS", "Protocol", "evaluate", "factor_vae"]
