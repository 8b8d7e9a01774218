"""crgan: disentangled generative models with PyTorch, and the choice of the best one without labels.

    model = crgan.fit("quick")                      train
    ranking = crgan.rank("runs/pool")               choose the best model of a pool without labels
    crgan.metrics.evaluate(model, crgan.data.load("squares"), ("factor_vae", "mig"))

Every command is `python -m crgan.<command>` or `crgan <command>`; `crgan --help` lists them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, metrics
    from .checkpoint import load
    from .config import PRESETS, Config
    from .errors import InputError
    from .exporting import export
    from .models import InfoGAN
    from .ops import contrastive_loss, group_votes, traversal_pairs, vote_table
    from .selection.centrality import cross_scores, model_centrality, similarity
    from .selection.rank import Ranking, rank
    from .selection.udr import udr
    from .train import fit

    __version__: str

__all__ = [
    "PRESETS",
    "Config",
    "InfoGAN",
    "InputError",
    "Ranking",
    "__version__",
    "contrastive_loss",
    "cross_scores",
    "data",
    "export",
    "fit",
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

# Imported when they are first used: `crgan --help` must not wait for torch.
_MODULES = {
    "checkpoint": ("load",),
    "config": ("PRESETS", "Config"),
    "errors": ("InputError",),
    "exporting": ("export",),
    "models": ("InfoGAN",),
    "ops": ("contrastive_loss", "group_votes", "traversal_pairs", "vote_table"),
    "selection.centrality": ("cross_scores", "model_centrality", "similarity"),
    "selection.rank": ("Ranking", "rank"),
    "selection.udr": ("udr",),
    "train": ("fit",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("crgan")
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in ("data", "metrics"):
        return import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
