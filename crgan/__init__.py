"""crgan: disentangled generative models with PyTorch, and the choice of the best one without labels."""

from . import data, metrics
from .checkpoint import load
from .config import PRESETS, Config
from .errors import InputError
from .ops import vote_table

__all__ = ["PRESETS", "Config", "InputError", "data", "load", "metrics", "vote_table"]
