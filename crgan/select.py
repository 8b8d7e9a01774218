"""`python -m crgan.select RUN... --out DIR` and `crgan.rank`: rank a pool of models without labels."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from . import cli, metrics
from . import data as datasets
from .errors import InputError, NotFiniteError
from .files import lock, write_atomically, write_json
from .loading import LoadedModel, open_models
from .metrics.arrays import Array
from .selection.budget import sequential_halving
from .selection.centrality import Pool, Sizes, similarity
from .selection.scores import restore, save, short_names
from .selection.udr import common_codes, udr
from .selection.uncertainty import Votes, bootstrap, confidence_gap, split

SAVE_EVERY = 5.0  # seconds of a race between two saves


def select(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    out: Path,
    method: Literal["centrality", "udr-lasso", "udr-spearman"] = "centrality",
    budget: float = 1.0,
    with_labels: bool = False,
    data: str | None = None,
    root: str | None = None,
    sizes: Annotated[Sizes, tyro.conf.arg(name="")] = Sizes(),  # noqa: B008
    samples: int = 10_000,
    batch_size: int | None = None,
    device: str = "auto",
    ray: str | None = None,
    threads: int = 1,
) -> None:
    """Rank a pool of models and choose the best one, without labels.

    Writes scores.h5, ranking.json and similarity.png to the --out folder. A run that was stopped goes on where it was;
    models that are added later cost only their own pairs.

    Args:
        runs: Run folders, a folder of run folders, folders with generate.pt2 and encode.pt2, or module:function.
        out: Folder for the results.
        method: ModelCentrality, or the UDR baseline with Lasso or Spearman.
        budget: Share of the exact selection's encodes to spend, in (0, 1]; below 1 only the leaders are scored fully.
        with_labels: Also score each model with the factors of --data (FactorVAE score), to see whether to trust this.
        data: Data set for --with-labels and UDR; default: the one that the models were trained on.
        root: Folder with the files of --data.
        samples: Images that all models encode for UDR.
        batch_size: Images encoded at once; default: 512 on the CPU, 4096 on a GPU.
        device: auto, cpu, cuda or cuda:<number>.
        ray: Address of a Ray cluster that encodes, or auto; it must see the runs at the same paths.
        threads: CPU cores of each of its workers.
    """
    begin, out = time.monotonic(), Path(out).expanduser()
    cli.at_least(2, samples=samples)
    cli.at_least(1, batch_size=batch_size)
    if method != "centrality" and (budget < 1 or ray):
        raise InputError(f"--budget and --ray serve ModelCentrality: {method} encodes each model once; leave them out")
    if ray:
        from .cluster import ClusterPool

        pool: Pool = ClusterPool(runs, sizes, batch_size, ray, threads, device)
    else:
        pool = Pool(open_models(runs, cli.device(device)), sizes, batch_size)
    dataset: Any = _dataset(pool.models, data, root) if with_labels or method != "centrality" else None
    if with_labels and (dataset is None or "factor_vae" not in metrics.applicable(dataset)):
        raise InputError("--with-labels needs a data set with two factors or more; give --data NAME")
    print(f"ranking {len(pool.models)} models by {method}: {ray or pool.device}, into {out}", flush=True)
    with output_folder(out, method) as before, cli.progress() as bar:
        if method == "centrality":
            ranking = rank_pool(pool, budget, out, bar)
        else:
            bar.start("encoding", samples * len(pool.models), 0, "images")
            found = udr(common_codes(pool.models, dataset, samples, sizes.seed, bar.advance), method=method)
            scores, unknown = found["score"], np.full(len(pool.models), np.nan)
            order, pairs = np.argsort(-scores, kind="stable"), found["pairs"] + np.diag(unknown)
            details = {"device": pool.device, "samples": samples, "seed": sizes.seed}
            ranking = Ranking(method, pool.names, pool.keys, order, scores, unknown, pairs, [], details)
        labels = known = before.get("labels")
        if with_labels:
            labels = {"data": dataset.name, "root": root and str(Path(root).expanduser().resolve()), "seed": sizes.seed}
        if labels:  # once asked for, they stay
            truth = {row["cache_key"]: row["factor_vae"] for row in before["models"]} if labels == known else {}
            _add_labels(ranking, pool.models, dataset if with_labels else None, labels, truth, bar)
        ranking.details["seconds"] = time.monotonic() - begin
        ranking.save(out)
    print(ranking.table(), *ranking.sentences, f"wrote {out}/ranking.json and similarity.png", sep="\n")


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
    sentences: list[str]  # what to know about the outcome
    details: dict[str, Any]  # what else ranking.json holds
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

    `models_or_runs` holds models (docs/models.md), in a sequence or a mapping of names, or what the command takes,
    which is opened on `device`. `budget` is the share of the exact selection's encodes to spend, in (0, 1]. With `out`,
    the folder gets scores.h5, ranking.json and similarity.png, and what it holds is not computed again; an interrupt
    loses at most the generator in progress.

    Raises InputError for fewer than 2 models, images of unlike shape, and models that break the contract.
    """
    pool = Pool(open_models(models_or_runs, device), Sizes(groups, group_size, scale_samples, seed), batch_size)
    begin, folder = time.monotonic(), Path(out).expanduser() if out is not None else None
    with output_folder(folder, "centrality") if folder else nullcontext(), cli.progress() as bar:
        ranking = rank_pool(pool, budget, folder, bar)
        ranking.details["seconds"] = time.monotonic() - begin
        if folder:
            ranking.save(folder)
    return ranking


@contextmanager
def output_folder(out: Path, method: str) -> Iterator[dict[str, Any]]:
    """Make the folder, hold its lock, and yield what its ranking.json has from before.

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
            raise InputError(f"{out} holds the ranking by {before['method']}; give another --out for that by {method}")
        yield before


def rank_pool(pool: Pool, budget: float, out: Path | None, bar: cli.progress) -> Ranking:
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
            f"within themselves (by {clusters[1]:.2f}): the winner speaks for its own cluster; select among each alone"
        )
        details["clusters"] = sides
    return Ranking("centrality", names, pool.keys, order, scores, errors, A, sentences, details)


def gap_sentence(gap: dict[str, Any]) -> str:
    p, by = gap["confidence"], f"{gap['gap']:.4f} ± {gap['standard_error']:.4f}"
    sure = f"{'within' if p < 0.95 else 'beyond'} sampling error ({'p > 0.99' if p > 0.99 else f'p = {p:.2f}'})"
    agreement = "this is agreement within the pool, not a measurement of disentanglement"
    return f"{gap['winner']} is ahead of {gap['runner_up']} by {by}, {sure}; {agreement}"


def _warnings(votes: Votes, names: Sequence[str]) -> Iterator[str]:
    if len(names) == 2:
        yield "warning: two models are as similar to each other: only a third can tell which is the better"
    voting = [pair for pair, given in votes.items() if (given >= 0).any()]
    mute = {i for i, _ in votes} - {i for i, _ in voting}
    still = {j for i, j in votes if i not in mute} - {j for _, j in voting}
    for chance, what in ((mute, "no code of {} varies"), (still, "no encoder's codes vary over the images of {}")):
        if chance:
            who = what.format(", ".join(names[i] for i in sorted(chance)))
            yield f"warning: {who}, or they are not finite: what is scored there is chance"


def _dataset(models: Sequence[LoadedModel], name: str | None, root: str | None) -> Any:
    """Load the data set named, else the one that all models were trained on; None where there is no such one."""
    configs = [getattr(model.model, "cfg", None) for model in models]
    if name is None and len({cfg and (cfg.data, cfg.root) for cfg in configs}) == 1 and configs[0]:
        name, root = configs[0].data, configs[0].root if root is None else root
    if name is None:
        return None
    dataset = datasets.load(name, root)
    for model in models:
        model.check_data(dataset)
    return dataset


def _add_labels(
    ranking: Ranking, models: Sequence[LoadedModel], dataset: Any, labels: dict[str, Any], found: Any, bar: Any
) -> None:
    """Add the supervised FactorVAE score of each model: those `found` by cache key, the others by the data set."""
    bar.start("labels", len(models), 0, "models")
    for model in models:
        if dataset and found.get(model.cache_key) is None:
            with suppress(NotFiniteError):
                scores = metrics.evaluate(model, dataset, ["factor_vae"], "paper", labels["seed"])
                found[model.cache_key] = scores["factor_vae"]["score"]
        bar.advance()
    ranking.factor_vae = truth = np.array([found.get(model.cache_key) for model in models], np.float64)
    scored, correlation = np.isfinite(truth), None
    if len({*truth[scored]}) > 1 and len({*ranking.scores[scored]}) > 1:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(ranking.scores[scored], truth[scored]).statistic)
    ranking.details |= {"labels": labels, "rank_correlation": correlation}
    value = "not defined" if correlation is None else f"{correlation:.2f}"
    ranking.sentences.append(f"rank correlation with the supervised FactorVAE score: {value}")


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.select", select, args)


if __name__ == "__main__":
    main()
