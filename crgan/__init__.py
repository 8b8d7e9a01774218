"""crgan: disentangled generative models with PyTorch, and the choice of the best one without labels."""

from importlib.metadata import version

from . import data, metrics
from .checkpoint import load
from .config import PRESETS, Config
from .errors import InputError
from .ops import contrastive_loss, group_votes, traversal_pairs, vote_table
from .selection.centrality import cross_scores, model_centrality, similarity

__all__ = [
    "PRESETS",
    "Config",
    "InputError",
    "__version__",
    "contrastive_loss",
    "cross_scores",
    "data",
    "group_votes",
    "load",
    "metrics",
    "model_centrality",
    "similarity",
    "traversal_pairs",
    "vote_table",
]

__version__ = version("crgan")
