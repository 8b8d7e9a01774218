"""crgan: disentangled generative models with PyTorch, and the choice of the best one without labels."""

from importlib.metadata import version

from . import data, metrics
from .checkpoint import load
from .config import PRESETS, Config
from .errors import InputError
from .ops import contrastive_loss, group_votes, traversal_pairs, vote_table
from .selection.centrality import cross_scores, model_centrality, similarity
from .selection.rank import Ranking, rank
from .selection.udr import udr

__all__ = [
    "PRESETS",
    "Config",
    "InputError",
    "Ranking",
    "__version__",
    "contrastive_loss",
    "cross_scores",
    "data",
    "group_votes",
    "load",
    "metrics",
    "model_centrality",
    "rank",
    "similarity",
    "traversal_pairs",
    "udr",
    "vote_table",
]

__version__ = version("crgan")
