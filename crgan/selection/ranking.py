"""Rank a pool of models: `crgan.rank`, the code that the command shares with it, and the result of both."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import cli, metrics
from ..errors import InputError, NotFiniteError
from ..files import lock, write_atomically, write_json
from ..loading import open_models
from ..metrics.arrays import Array
from .budget import sequential_halving
from .centrality import Pool, Sizes, similarity
from .scores import restore, save, short_names
from .udr import common_codes, udr
from .uncertainty import Votes, bootstrap, confidence_gap, split

SAVE_EVERY = 5.0  # seconds of a race between two saves


@dataclass
class Ranking:
    """The outcome of a selection. Arrays are in the order of the models given; `order` sorts them, the best first."""

    method: str
    names: list[str]
    cache_keys: list[str]
    order: Array  # [N]
    scores: Array  # [N]: the centrality in [0, 1], or UDR
    standard_errors: Array  # [N], by the bootstrap over groups; NaN: not known
    similarity: Array  # [N, N], A of ModelCentrality, or the pairs of UDR; NaN: not measured
    details: dict[str, Any]  # what else ranking.json holds
    sentences: list[str] = field(default_factory=list)  # what to know about the outcome
    factor_vae: Array | None = None  # [N], the supervised score, where it was asked for; NaN: not known

    @property
    def winner(self) -> str:
        return self.names[self.order[0]]

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict for each model, the best first, as ranking.json lists them."""
        columns = {"score": self.scores, "standard_error": self.standard_errors, "own_score": np.diag(self.similarity)}
        if self.factor_vae is not None:
            columns["factor_vae"] = self.factor_vae
        return [
            {"rank": rank, "name": self.names[i]}
            | {name: float(column[i]) if np.isfinite(column[i]) else None for name, column in columns.items()}
            | {"cache_key": self.cache_keys[i]}
            for rank, i in enumerate(self.order, 1)
        ]

    def table(self, limit: int = 50) -> str:
        """Return the first `limit` rows as text."""
        heads, rows = {"score": "score", "standard_error": "std. error", "factor_vae": "FactorVAE"}, self.rows()
        shown = [name for name in heads if any(row.get(name) is not None for row in rows)]
        lines = ["rank" + "".join(f"{heads[name]:>12}" for name in shown) + "  model"]
        for row in rows[:limit]:
            cells = ("" if row[name] is None else f"{row[name]:.4f}" for name in shown)
            lines.append(f"{row['rank']:4}" + "".join(f"{cell:>12}" for cell in cells) + f"  {row['name']}")
        return "\n".join(lines)

    def save(self, out: Path) -> None:
        """Write ranking.json and similarity.png."""
        head = {"method": self.method, "winner": self.winner, "sentences": self.sentences}
        write_json(out / "ranking.json", head | self.details | {"models": self.rows()})
        write_atomically(out / "similarity.png", self._heat_map)

    def _heat_map(self, path: Path) -> None:
        from matplotlib.figure import Figure

        size = min(4 + 0.25 * len(self.order), 20)
        figure = Figure((size + 1, size), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(self.similarity[np.ix_(self.order, self.order)], vmin=0, vmax=1, cmap="magma")
        if len(self.order) <= 60:
            short = short_names(self.names)
            names = [f"{short[i][-40:]}  {rank}" for rank, i in enumerate(self.order, 1)]
            axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
            axes.set_xticks(range(len(names)), [str(rank + 1) for rank in range(len(names))], fontsize=8)
        axes.set_title("similarity of the models, by rank")
        figure.colorbar(picture, shrink=0.7)
        figure.savefig(path, dpi=120)


def rank(
    models_or_runs: Sequence[Any] | Mapping[str, Any] | str | Path,
    *,
    budget: float = 1.0,
    out: str | Path | None = None,
    groups: int = Sizes.groups,
    group_size: int = Sizes.group_size,
    scale_samples: int = Sizes.scale_samples,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Ranking:
    """Rank models by ModelCentrality and return the ranking: `.winner`, `.order`, `.scores`, `.similarity`, `.table()`.

    `models_or_runs` holds models (docs/models.md), in a sequence or a mapping from names, or RUN arguments, which
    are opened on `device`. `budget` is the share of the exact selection's encodes to spend, in (0, 1]. With `out`,
    the folder gets scores.h5, ranking.json and similarity.png, and what it holds is not computed again; an interrupt
    loses at most the generator in progress.

    Raises InputError for fewer than 2 models, images of unequal shape, and models that break the contract.
    """
    pool = Pool(open_models(models_or_runs, device), Sizes(groups, group_size, scale_samples, seed), batch_size)
    return rank_pool(pool, Path(out).expanduser() if out is not None else None, budget=budget)


def rank_pool(
    pool: Pool,
    out: Path | None,
    method: str = "centrality",
    *,
    budget: float = 1.0,
    samples: int = 0,  # images that all models encode for UDR
    dataset: Any = None,  # for UDR's images, and for the labels
    labels: dict[str, Any] | None = None,  # data set and seed of the supervised scores; None: no such scores
) -> Ranking:
    """Rank a pool; with `out`, continue from what that folder holds and write the ranking into it."""
    begin = time.monotonic()
    folder = output_folder(out, method) if out else nullcontext[dict[str, Any]]({})
    with folder as before, cli.progress() as bar:
        if method == "centrality":
            ranking = _by_centrality(pool, out, budget, bar)
        else:
            ranking = _by_udr(pool, method, dataset, samples, bar)
        known = before.get("labels")
        if asked := labels or known:  # once asked for, labels stay
            truth = {row["cache_key"]: row["factor_vae"] for row in before["models"]} if asked == known else {}
            _add_labels(ranking, pool, dataset if labels else None, asked, truth, bar)
        ranking.details["seconds"] = time.monotonic() - begin
        if out:
            ranking.save(out)
    return ranking


@contextmanager
def output_folder(out: Path, method: str) -> Iterator[dict[str, Any]]:
    """Create the folder, hold its lock, and yield the content of its earlier ranking.json.

    Raises InputError where the folder is a run's, holds the ranking of another method, or is in use.
    """
    if (out / "config.json").exists():
        raise InputError(f"{out} is a run folder; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with lock(out) as acquired:
        if not acquired:
            raise InputError(f"another process selects into {out}; wait for its end, or give another --out")
        before: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):  # none, or one that is damaged
            before |= json.loads((out / "ranking.json").read_text())
        if before.get("method", method) != method:
            raise InputError(f"{out} holds the ranking by {before['method']}; give another --out for {method}")
        yield before


def _by_udr(pool: Pool, method: str, dataset: Any, samples: int, bar: cli.progress) -> Ranking:
    bar.start("encoding", samples * len(pool.models), 0, "images")
    found = udr(common_codes(pool.models, dataset, samples, pool.sizes.seed, bar.advance), method=method)
    scores, unknown = found["score"], np.full(len(pool.models), np.nan)
    details = {"device": pool.device, "samples": samples, "seed": pool.sizes.seed}
    order, pairs = np.argsort(-scores, kind="stable"), found["pairs"] + np.diag(unknown)
    return Ranking(method, pool.names, pool.keys, order, scores, unknown, pairs, details)


def _by_centrality(pool: Pool, out: Path | None, budget: float, bar: cli.progress) -> Ranking:
    """Rank a pool by ModelCentrality, keeping its votes in scores.h5 of the folder `out`."""
    if not 0 < budget <= 1:
        raise InputError(f"budget is {budget:g}, expected a share above 0 and up to 1")
    saved = time.monotonic()
    if out and (out / "scores.h5").exists():
        for name in restore(out / "scores.h5", pool):
            print(f"{name} has changed since it was scored: its pairs are measured anew")
    N, seed, encodes = len(pool.models), pool.sizes.seed, pool.sizes.encodes  # of a pair
    due = int(pool.missing().sum())
    exact = budget == 1 or not due

    def save_votes() -> None:
        nonlocal saved
        if out and (exact or time.monotonic() - saved > SAVE_EVERY):  # a race takes little time for each generator
            save(out / "scores.h5", pool)
            saved = time.monotonic()

    before = (N * N - due) * encodes if exact else 0
    bar.start("encoding", budget * N * N * encodes, before, "images")
    pool.progress, pool.on_votes = bar.advance, save_votes
    details: dict[str, Any] = {"device": pool.device, **asdict(pool.sizes), "budget": budget}
    met, sentences = np.arange(N), []
    if exact:
        pool.measure(np.ones((N, N), bool))
    else:
        first = 3 * max(model.num_codes for model in pool.models)
        halving = sequential_halving(pool.measure, N, budget, sizes=pool.sizes, first_groups=first)
        met = halving.references[: halving.rounds[0]["references"]]
        details |= {"rounds": halving.rounds, "share_of_encodes": halving.encodes / (N * N * encodes)}
        if len(halving.rounds) > 1:
            sentences.append("the scores of models that left the race early rest on fewer references and groups")
    if out:
        save(out / "scores.h5", pool)
    A, votes, names = similarity(pool.B), pool.scored, pool.names
    num_codes = [model.num_codes for model in pool.models]
    mask = np.isfinite(A) & ~np.eye(N, dtype=bool)
    scores, errors = A.sum(1, where=mask) / mask.sum(1), bootstrap(votes, num_codes, mask, seed).std(0)
    order = np.argsort(-scores, kind="stable") if exact else halving.ranking
    gap = {"winner": names[order[0]], "runner_up": names[order[1]]}
    gap |= confidence_gap(A, votes, num_codes, order[0], order[1], seed)
    details |= {"encodes": int(bar.task.completed) - before, "gap": gap}
    sentences = [gap_sentence(gap), *sentences, *_warnings(votes, names)]
    if clusters := split(A, met):
        sides = [[names[i] for i in np.flatnonzero(clusters[0] == side)] for side in (True, False)]
        sentences.append(
            f"warning: the pool splits into clusters of {len(sides[0])} and {len(sides[1])} models that agree only "
            f"within themselves (by {clusters[1]:.2f}): the winner represents only its own; rank each separately"
        )
        details["clusters"] = sides
    return Ranking("centrality", names, pool.keys, order, scores, errors, A, details, sentences)


def gap_sentence(gap: dict[str, Any]) -> str:
    p, by = gap["confidence"], f"{round(gap['gap'], 4) + 0:.4f} ± {gap['standard_error']:.4f}"  # + 0: never -0
    sure = f"{'within' if p < 0.95 else 'beyond'} sampling error ({'p > 0.99' if p > 0.99 else f'p = {p:.2f}'})"
    agreement = "this is agreement within the pool, not a measurement of disentanglement"
    return f"{gap['winner']} is ahead of {gap['runner_up']} by {by}, {sure}; {agreement}"


def _warnings(votes: Votes, names: Sequence[str]) -> Iterator[str]:
    if len(names) == 2:
        yield "warning: two models are equally similar to each other: only a third can show which is better"
    voting = [pair for pair, given in votes.items() if (given >= 0).any()]
    mute = {i for i, _ in votes} - {i for i, _ in voting}
    static = {j for i, j in votes if i not in mute} - {j for _, j in voting}
    for models, what in ((mute, "no code of {} varies"), (static, "no encoder's codes vary over the images of {}")):
        if models:
            who = what.format(", ".join(names[i] for i in sorted(models)))
            yield f"warning: {who}, or they are not finite: their scores are chance"


def _add_labels(
    ranking: Ranking, pool: Pool, dataset: Any, labels: dict[str, Any], truth: dict[str, Any], bar: cli.progress
) -> None:
    """Add the supervised FactorVAE score of each model: from `truth` by cache key, else measured on `dataset`."""
    bar.start("labels", len(pool.models), 0, "models")
    for model in pool.models:
        if dataset and truth.get(model.cache_key) is None:
            with suppress(NotFiniteError):
                scores = metrics.evaluate(model, dataset, ["factor_vae"], "paper", labels["seed"])
                truth[model.cache_key] = scores["factor_vae"]["score"]
        bar.advance()
    ranking.factor_vae = found = np.array([truth.get(key) for key in pool.keys], np.float64)
    scored, correlation = np.isfinite(found), None
    if len({*found[scored]}) > 1 and len({*ranking.scores[scored]}) > 1:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(ranking.scores[scored], found[scored]).statistic)
    ranking.details |= {"labels": labels, "rank_correlation": correlation}
    value = "not defined" if correlation is None else f"{correlation:.2f}"
    ranking.sentences.append(f"rank correlation with the supervised FactorVAE score: {value}")
