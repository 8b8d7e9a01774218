"""crgan: disentangled generative models with PyTorch, and the choice of the best one without labels.

    model = crgan.fit("quick")                      train
    ranking = crgan.rank("runs/pool")               choose the best model of a pool without labels
    crgan.metrics.evaluate(model, crgan.data.load("squares"), ("factor_vae", "mig"))

Training: fit, load, export, Config, PRESETS, InfoGAN. Selection: rank, Ranking, cross_scores, similarity,
model_centrality, udr. Operations: contrastive_loss, traversal_pairs, group_votes, vote_table. Invalid input raises
InputError. `help(crgan.fit)` explains one of them. Every command is `python -m crgan.<command>` or `crgan <command>`;
`crgan --help` lists them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time, help(crgan) would print all that __all__ names
    from . import data, metrics
    from .checkpoint import load
    from .config import PRESETS, Config
    from .errors import InputError
    from .exporting import export
    from .models import InfoGAN
    from .ops import contrastive_loss, group_votes, traversal_pairs, vote_table
    from .selection.centrality import cross_scores, model_centrality, similarity
    from .selection.ranking import Ranking, rank
    from .selection.udr import udr
    from .train import fit

    __version__: str
    __all__ = ["PRESETS", "Config", "InfoGAN", "InputError", "Ranking", "data", "export", "fit", "load", "metrics"]
    __all__ += ["contrastive_loss", "cross_scores", "group_votes", "model_centrality", "rank", "similarity"]
    __all__ += ["traversal_pairs", "udr", "vote_table"]

# Imported when they are used: `crgan --help` must not wait for torch.
_MODULES = {"load": "checkpoint", "InputError": "errors", "export": "exporting", "InfoGAN": "models", "fit": "train"}
_MODULES |= dict.fromkeys(["Config", "PRESETS"], "config")
_MODULES |= dict.fromkeys(["contrastive_loss", "group_votes", "traversal_pairs", "vote_table"], "ops")
_MODULES |= dict.fromkeys(["cross_scores", "model_centrality", "similarity"], "selection.centrality")
_MODULES |= {"Ranking": "selection.ranking", "rank": "selection.ranking", "udr": "selection.udr"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("crgan")
    if name in ("data", "metrics"):
        return import_module(f"crgan.{name}")
    if name in _MODULES:
        return getattr(import_module(f"crgan.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", "data", "metrics", *_MODULES]
