"""Rank a pool of models without labels: what `crgan.rank` and `python -m crgan.select` have in common."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import cli
from ..device import exact_arithmetic
from ..errors import InputError
from ..files import lock, write_atomically, write_json
from ..loading import LoadedModel, eval_mode, open_models
from ..metrics.arrays import Array
from .budget import sequential_halving
from .centrality import Pool, Sizes, similarity
from .scores import restore, save, votes_by_index
from .udr import udr
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
    sentences: list[str] = field(default_factory=list)  # what to know about the outcome
    details: dict[str, Any] = field(default_factory=dict)  # what else ranking.json holds
    factor_vae: Array | None = None  # [N], the supervised score, where it was asked for; NaN: not known

    @property
    def winner(self) -> str:
        return self.names[self.order[0]]

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict for each model, the best first, as ranking.json lists them."""
        columns = {
            "score": self.scores,
            "standard_error": self.standard_errors,
            "own_score": self.similarity.diagonal(),
        }
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

        N = len(self.order)
        size = min(4 + 0.25 * N, 20)
        figure = Figure((size + 1, size), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(self.similarity[np.ix_(self.order, self.order)], vmin=0, vmax=1, cmap="magma")
        if N <= 60:
            names = [f"{self.names[i][-40:]}  {rank}" for rank, i in enumerate(self.order, 1)]
            axes.set_yticks(range(N), names, fontsize=8, parse_math=False)
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

    `models_or_runs` holds models (docs/select.md), in a sequence or a mapping of names, or what the command takes:
    run folders, folders with exported programs, `module:function`; these are opened on `device`. `budget` is the share
    of the exact selection's encodes to spend, in (0, 1]. With `out`, the folder gets scores.h5, ranking.json and
    similarity.png, and what it holds is not computed again; an interrupt loses at most the generator in progress.

    Raises InputError for fewer than 2 models, images of unlike shape, and models that break the contract.
    """
    folder = Path(out).expanduser() if out is not None else None
    pool = Pool(open_models(models_or_runs, device), Sizes(groups, group_size, scale_samples, seed), batch_size)
    with output_folder(folder, "centrality"), cli.progress() as bar:
        ranking = rank_pool(pool, budget, folder, bar)
        if folder is not None:
            ranking.save(folder)
    return ranking


@contextmanager
def output_folder(out: Path | None, method: str) -> Iterator[dict[str, Any]]:
    """Make the folder, hold its lock, and yield what its ranking.json has from before.

    Raises InputError where the folder is a run's, holds the ranking of another method, or is in use.
    """
    if out is None:
        yield {}
        return
    if (out / "config.json").exists():
        raise InputError(f"{out} is a run folder; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with lock(out) as acquired:
        if not acquired:
            raise InputError(f"another process selects into {out}; wait for its end, or give another --out")
        before: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):  # none, or one that is damaged
            before = dict(json.loads((out / "ranking.json").read_text()))
        if before.get("method", method) != method:
            raise InputError(f"{out} holds the ranking by {before['method']}; give another --out for that by {method}")
        yield before


def rank_pool(pool: Pool, budget: float, out: Path | None, bar: cli.progress) -> Ranking:
    """Rank a pool by ModelCentrality, keeping its votes in scores.h5 of the folder `out`."""
    if not 0 < budget <= 1:
        raise InputError(f"budget is {budget:g}, expected a share above 0 and up to 1")
    begin = saved = time.monotonic()
    if out and (out / "scores.h5").exists():
        for name in restore(out / "scores.h5", pool):
            print(f"{name} has changed since it was scored: its pairs are measured anew")
    N, seed, all_encodes = len(pool.models), pool.sizes.seed, len(pool.models) ** 2 * pool.sizes.encodes
    due = int(pool.missing().sum()) * pool.sizes.encodes
    exact = budget == 1 or not due

    def save_votes() -> None:
        nonlocal saved
        if out and (exact or time.monotonic() - saved > SAVE_EVERY):  # a race takes little time for each generator
            save(out / "scores.h5", pool)
            saved = time.monotonic()

    before = all_encodes - due if exact else 0
    bar.start("encoding", all_encodes if exact else budget * all_encodes, before, "images")
    pool.progress, pool.on_votes = bar.advance, save_votes
    details: dict[str, Any] = {"device": pool.device, **asdict(pool.sizes), "budget": budget}
    if exact:
        pool.measure(np.ones((N, N), bool))
        met = np.arange(N)
    else:
        first = 3 * max(model.num_codes for model in pool.models)
        halving = sequential_halving(pool.measure, N, budget, sizes=pool.sizes, first_groups=first)
        met = halving.references[: halving.rounds[0]["references"]]
        details |= {"rounds": halving.rounds, "share_of_encodes": halving.encodes / all_encodes}
    if out:
        save(out / "scores.h5", pool)
    A, votes = similarity(pool.B), votes_by_index(pool.keys, pool.known)
    names, num_codes = [model.name for model in pool.models], [model.num_codes for model in pool.models]
    mask = np.isfinite(A) & ~np.eye(N, dtype=bool)
    scores = A.sum(1, where=mask) / mask.sum(1)
    order = np.argsort(-scores, kind="stable") if exact else halving.ranking
    gap = {"winner": names[order[0]], "runner_up": names[order[1]]}
    gap |= confidence_gap(A, votes, num_codes, order[0], order[1], seed)
    details |= {"encodes": int(bar.task.completed) - before, "gap": gap}
    sentences = [gap_sentence(gap)]
    if len(details.get("rounds", ())) > 1:
        sentences.append("the scores of models that left the race early rest on fewer references and groups")
    sentences += [f"warning: {text}" for text in _warnings(votes, names)]
    if clusters := split(A, met):
        sides = [[names[i] for i in np.flatnonzero(clusters[0] == side)] for side in (True, False)]
        sentences.append(
            f"warning: the pool splits into clusters of {len(sides[0])} and {len(sides[1])} models that agree only "
            f"within themselves (by {clusters[1]:.2f}): the winner speaks for its own cluster; select among each alone"
        )
        details["clusters"] = sides
    errors = bootstrap(votes, num_codes, mask, seed).std(0)
    details["seconds"] = time.monotonic() - begin
    return Ranking("centrality", names, pool.keys, order, scores, errors, A, sentences, details)


def gap_sentence(gap: dict[str, Any]) -> str:
    p, by = gap["confidence"], f"{gap['gap']:.4f} ± {gap['standard_error']:.4f}"
    sure = f"{'within' if p < 0.95 else 'beyond'} sampling error ({'p > 0.99' if p > 0.99 else f'p = {p:.2f}'})"
    agreement = "this is agreement within the pool, not a measurement of disentanglement"
    return f"{gap['winner']} is ahead of {gap['runner_up']} by {by}, {sure}; {agreement}"


def _warnings(votes: Votes, names: Sequence[str]) -> Iterator[str]:
    if len(names) == 2:
        yield "two models are as similar to each other: only a third can tell which is the better"
    measured, voting = np.zeros((2, len(names), len(names)), bool)
    for pair, given in votes.items():
        measured[pair], voting[pair] = True, (given >= 0).any()
    mute = ~voting.any(1)
    still = measured[~mute].any(0) & ~voting.any(0)
    for chance, what in ((mute, "no code of {} varies"), (still, "no encoder's codes vary over the images of {}")):
        if who := ", ".join(names[int(i)] for i in np.flatnonzero(chance)):
            yield f"{what.format(who)}, or they are not finite: what is scored there is chance"


@exact_arithmetic()
def rank_by_udr(
    models: Sequence[LoadedModel], dataset: Any, samples: int, seed: int, method: str, bar: cli.progress
) -> Ranking:
    """Rank models by UDR, from their codes of the same images: of the data set, or else of every generator in turn."""
    draw, generators = torch.Generator().manual_seed(seed), sorted(models, key=lambda model: model.cache_key)
    begin, size = time.monotonic(), min(256, -(-samples // len(models)))
    high = dataset.num_images if dataset else 1 << 31
    bar.start("encoding", samples * len(models), 0, "images")
    parts: list[list[Array]] = [[] for _ in models]
    with eval_mode(models), torch.inference_mode():
        for n, start in enumerate(range(0, samples, size)):
            drawn = torch.randint(high, (min(size, samples - start),), generator=draw)
            generator = generators[n % len(models)]
            images = dataset.images(drawn) if dataset else generator.sample(len(drawn), int(drawn[0]))
            for model, part in zip(models, parts):
                part.append(model.encode(images).double().cpu().numpy())
            bar.advance(len(drawn) * len(models))
    found, unknown = udr([np.concatenate(part) for part in parts], method=method), np.full(len(models), np.nan)
    order, pairs = np.argsort(-found["score"], kind="stable"), found["pairs"] + np.diag(unknown)
    names, keys = [model.name for model in models], [model.cache_key for model in models]
    details = {"device": str(models[0].device), "samples": samples, "seed": seed, "seconds": time.monotonic() - begin}
    return Ranking(method, names, keys, order, found["score"], unknown, pairs, details=details)
