"""`python -m crgan.select RUN... --out DIR`: ranks a pool of models without labels."""

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from scipy.stats import spearmanr

from . import cli, metrics
from . import data as datasets
from .cluster import ClusterPool
from .device import exact_arithmetic
from .errors import InputError, NotFiniteError
from .files import lock, write_atomically, write_json
from .loading import Member, open_models
from .selection.budget import sequential_halving
from .selection.centrality import (
    Array,
    Pool,
    Sizes,
    bootstrap,
    confidence_gap,
    model_centrality,
    similarity,
    split,
)
from .selection.scores import CodesPool, ScoreFile
from .selection.udr import udr


def select(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    out: Path,
    method: Literal["centrality", "udr-lasso", "udr-spearman"] = "centrality",
    budget: float = 1.0,
    with_labels: bool = False,
    data: str | None = None,
    root: Path | None = None,
    seed: int = 0,
    groups: int = Sizes.groups,
    group_size: int = Sizes.group_size,
    scale_samples: int = Sizes.scale_samples,
    samples: int = 10_000,
    batch_size: int | None = None,
    device: str = "auto",
    ray: str | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Rank a pool of models and choose the best one, without labels.

    Writes scores.h5, ranking.json and similarity.png to the --out folder. A run that was stopped goes on where it was;
    models that are added later cost only their own pairs.

    Args:
        runs: Run folders, folders with generate.pt2 and encode.pt2, TorchScript files, module:function, or one HDF5
            file with codes.
        out: Folder for the results.
        method: ModelCentrality, or the UDR baseline with Lasso or Spearman.
        budget: Share of the exact selection's encodes to spend, in (0, 1]; below 1 only the leaders are scored fully.
        with_labels: Also score each model with the factors of --data (FactorVAE score), to see whether to trust this.
        data: Data set for --with-labels and UDR; default: the one that the models were trained on.
        root: Folder with the files of --data.
        seed: Keys every random draw.
        groups: Groups of images for each generator, M.
        group_size: Images in a group, L.
        scale_samples: Images for the deviation of each code, R.
        samples: Images that all models encode for UDR.
        batch_size: Images encoded at once; default: 512 on the CPU, 4096 on a GPU.
        device: auto, cpu, cuda or cuda:<number>.
        ray: Address of a Ray cluster that encodes, or auto; it must see the runs at the same paths.
        threads: CPU cores of each of its workers.
    """
    if not 0 < budget <= 1:
        raise InputError(f"--budget is {budget:g}, expected a share above 0 and up to 1")
    cli.at_least(2, samples=samples)
    cli.at_least(1, batch_size=batch_size)
    if method != "centrality" and budget < 1:
        raise InputError(f"--budget is {budget:g}, but {method} encodes each model once; leave it out")
    if method == "centrality" and not with_labels and (data or root):
        raise InputError("--data and --root serve --with-labels and UDR; leave them out")
    if method != "centrality" and ray:
        raise InputError(f"--ray is given, but {method} encodes each model once, on this machine; leave it out")
    begin, console = time.monotonic(), Console()
    sizes = Sizes(groups, group_size, scale_samples, seed)
    pool: Pool
    if len(runs) == 1 and Path(runs[0]).suffix in (".h5", ".hdf5"):
        pool = CodesPool(Path(runs[0]), seed)
        if with_labels:
            raise InputError(f"--with-labels needs models, but {runs[0]} holds only their codes")
    elif ray:
        pool = ClusterPool(runs, sizes, ray, threads, device, batch_size)
    else:
        pool = Pool(open_models(runs, cli.device(device)), sizes, batch_size=batch_size)
    labelled: Any = _dataset(pool.members, data, root) if with_labels else None
    if with_labels and "factor_vae" not in metrics.applicable(labelled):
        raise InputError(
            f"--with-labels needs two factors or more, which {labelled.name} lacks; leave it out or give --data NAME"
        )
    if (out / "config.json").exists():
        raise InputError(f"{out} is a run folder; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    before = _ranking_before(out)
    if before.get("method", method) != method:
        raise InputError(f"{out} holds the ranking by {before['method']}; give another --out for that by {method}")
    result: dict[str, Any] = {"method": method, "seed": seed, "device": str(pool.device)}
    if method == "centrality":
        result |= asdict(pool.sizes) | {"budget": budget}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Rate(), TimeRemainingColumn())
    with lock(out) as mine, Progress(*columns, console=console) as bar:
        if not mine:
            raise InputError(f"another process selects into {out}; wait for its end, or give another --out")
        if method == "centrality":
            found = _centrality(pool, budget, out / "scores.h5", bar)
        else:
            found = _udr(pool, method, samples, data, root, bar)
        # Supervised scores that were asked for once stay.
        labels = before.get("labels")
        if with_labels:
            asked = {"data": labelled.name, "root": root and str(root.resolve()), "seed": seed, "scores": {}}
            labels = labels if labels and labels | {"scores": {}} == asked else asked
        if labels:
            truth = _supervised(pool.members, labelled, seed, labels["scores"], bar)
            labels["scores"] |= {member.fingerprint: _number(score) for member, score in zip(pool.members, truth)}
            result["labels"] = labels
            result["rank_correlation"] = _rank_correlation(found.score, truth)
    result |= found.extra
    result["seconds"] = time.monotonic() - begin
    result["models"] = [
        {
            "rank": rank,
            "name": pool.members[i].name,
            "score": float(found.score[i]),
            "standard_error": _number(found.error[i]),
            "own_score": _number(found.A[i, i]),
            **({"factor_vae": _number(truth[i])} if "labels" in result else {}),
            "fingerprint": pool.members[i].fingerprint,
        }
        for rank, i in enumerate(found.ranking, 1)
    ]
    result["winner"] = result["models"][0]["name"]
    write_json(out / "ranking.json", result)
    write_atomically(out / "similarity.png", lambda path: _heat_map(found, pool.members, path))
    _print(result, console)
    console.print(
        f"wrote ranking.json, similarity.png{' and scores.h5' if method == 'centrality' else ''} to {out}", markup=False
    )
    return result


def _ranking_before(out: Path) -> dict[str, Any]:
    try:
        result = json.loads((out / "ranking.json").read_text())
        return result if {"method", "models"} <= result.keys() else {}
    except (OSError, ValueError, AttributeError):  # none, or one that is damaged
        return {}


class Outcome(NamedTuple):
    ranking: Array  # [N] models, best first
    score: Array  # [N]
    error: Array  # [N] standard error, NaN: not known
    A: Array  # [N, N] similarity, NaN: not measured
    extra: dict[str, Any]  # what else to report


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _centrality(pool: Pool, budget: float, path: Path, bar: Progress) -> Outcome:
    N, full = len(pool), int(pool.sizes.encodes(pool.sizes.groups))
    file = ScoreFile(path, pool)
    for name in file.replaced:
        bar.console.print(f"{name} has changed since {path} was written: its pairs are computed anew", markup=False)
    task = bar.add_task("encoding", total=max(1, int(budget * N * N * full)))
    made = 0

    def progress(encodes: int) -> None:
        nonlocal made
        made += encodes
        bar.advance(task, encodes)
        file.tick()

    pool.progress = progress
    extra: dict[str, Any] = {}
    exact = budget == 1 or pool.complete()
    try:
        if not exact:
            halving = sequential_halving(
                pool.measure, N, budget, sizes=pool.sizes, first_groups=3 * max(m.num_codes for m in pool.members)
            )
            ranking, references = halving.ranking, halving.references
            met = references[: halving.rounds[0]["references"]]
            order = np.concatenate([met, np.setdiff1d(references, met)])
            extra = {"rounds": halving.rounds, "share_of_encodes": halving.encodes / (N * N * full)}
        else:
            bar.advance(task, sum(pair.done == pool.sizes.groups for pair in pool.pairs.values()) * full)
            pool.measure_all()
            order = met = np.arange(N)
    finally:
        if pool.pairs:
            file.save()
    bar.update(task, total=1, completed=1)
    A = similarity(pool.B)
    mask = np.isfinite(A) & ~np.eye(N, dtype=bool)
    if not exact:
        score = np.where(mask, A, 0).sum(1) / np.maximum(mask.sum(1), 1)
    else:
        score = model_centrality(A)
        ranking = np.argsort(-score, kind="stable")
    first, second = map(int, ranking[:2])
    names = {"winner": pool.members[first].name, "runner_up": pool.members[second].name}
    extra |= {"encodes": made, "gap": names | confidence_gap(pool, first, second)}
    warnings = []
    if N == 2:
        warnings.append("two models are as similar to each other: only a third can tell which is the better")
    measured = [(i, j, bool((pair.votes < 0).all())) for (i, j), pair in pool.pairs.items() if pair.done]
    for side, what in (
        (0, "no code of {} varies, or they are not finite: what such an encoder scores is chance"),
        (1, "no encoder's codes vary over the images of {}: what is scored on such a generator is chance"),
    ):
        mute = {row[side] for row in measured} - {row[side] for row in measured if not row[2]}
        if mute:
            warnings.append(what.format(", ".join(pool.members[i].name for i in sorted(mute))))
        measured = [row for row in measured if row[0] not in mute]  # generators are judged by the encoders that vote
    if len(met) > 3 and (parted := split(A[np.ix_(order, met)])):
        sides = [[pool.members[order[n]].name for n in np.flatnonzero(parted[0] == side)] for side in (True, False)]
        warnings.append(
            f"the pool splits into clusters of {len(sides[0])} and {len(sides[1])} models that agree only within "
            f"themselves (by {parted[1]:.2f}): the winner speaks for its own cluster; select among each alone"
        )
        extra["clusters"] = sides
    if warnings:
        extra["warning"] = "; ".join(warnings)
    return Outcome(ranking, score, bootstrap(pool, mask).std(0), A, extra)


@exact_arithmetic()
def _udr(pool: Pool, method: str, samples: int, name: str | None, root: Path | None, bar: Progress) -> Outcome:
    if isinstance(pool, CodesPool):
        codes = pool.common_codes()
    else:
        task = bar.add_task("encoding", total=samples * len(pool))
        parts: list[list[Array]] = [[] for _ in pool.members]
        for images in _common_images(pool, samples, name, root):
            for member, part in zip(pool.members, parts):
                with torch.inference_mode():
                    part.append(member.encode(images).double().cpu().numpy())
                bar.advance(task, len(images))
        codes = [np.concatenate(part) for part in parts]
    found = udr(codes, method=method)
    A = found["pairs"] + np.diag(np.full(len(pool), np.nan))
    ranking = np.argsort(-found["score"], kind="stable")
    return Outcome(ranking, found["score"], np.full(len(pool), np.nan), A, {"samples": len(codes[0])})


def _common_images(pool: Pool, samples: int, name: str | None, root: Path | None) -> Any:
    """Batches of images that all models encode: of the data set, or else of every generator an equal share."""
    dataset = _dataset(pool.members, name, root, needed=False)
    draw = torch.Generator().manual_seed(pool.sizes.seed)
    sources = [dataset] if dataset else sorted(pool.members, key=lambda member: member.fingerprint)
    for n, source in enumerate(sources):
        share = samples * (n + 1) // len(sources) - samples * n // len(sources)
        for start in range(0, share, 256):
            size = min(256, share - start)
            if dataset:
                yield dataset.images(torch.randint(dataset.num_images, (size,), generator=draw))
            else:
                yield source.sample(size, int(torch.randint(1 << 31, (), generator=draw)))


def _dataset(members: Sequence[Member], name: str | None, root: Path | None, needed: bool = True) -> Any:
    if name is None:
        trained = {(cfg.data, cfg.root) if (cfg := getattr(m.model, "cfg", None)) else None for m in members}
        if len(trained) == 1 and (only := next(iter(trained))):
            name, root = only[0], root or only[1]
        elif needed:
            raise InputError("--with-labels needs --data NAME: the models do not tell one data set that they share")
        else:
            return None
    dataset = datasets.load(name, root)
    for member in members:
        member.check_data(dataset)
    return dataset


def _supervised(
    members: Sequence[Member], dataset: Any, seed: int, known: dict[str, float | None], bar: Progress
) -> Array:
    """FactorVAE score [N] on the data's factors, `known` by fingerprint or computed if there is a data set; NaN for
    a model whose codes are not finite."""
    task = bar.add_task("labels", total=len(members))
    scores = np.full(len(members), np.nan)
    for i, member in enumerate(members):
        if known.get(member.fingerprint) is not None:
            scores[i] = known[member.fingerprint]
        elif dataset is not None:
            with suppress(NotFiniteError):
                scores[i] = metrics.evaluate(member, dataset, ["factor_vae"], "paper", seed)["factor_vae"]["score"]
        bar.advance(task)
    return scores


def _rank_correlation(score: Array, truth: Array) -> float | None:
    """Spearman's, over the models with a supervised score; None where all of them have the same."""
    known = np.isfinite(truth)
    if len({*truth[known]}) < 2 or len({*score[known]}) < 2:
        return None
    return float(spearmanr(score[known], truth[known]).statistic)


def _heat_map(found: Outcome, members: Sequence[Member], path: Path) -> None:
    ranking, N = found.ranking, len(members)
    size = min(4 + 0.25 * N, 20)
    figure, axes = plt.subplots(figsize=(size + 1, size), layout="constrained")
    picture = axes.imshow(found.A[np.ix_(ranking, ranking)], vmin=0, vmax=1, cmap="magma")
    if N <= 60:
        axes.set_xticks(range(N), [str(n) for n in range(1, N + 1)], fontsize=8)
        names = _short_names([members[i].name for i in ranking])
        axes.set_yticks(
            range(N), [f"{name[-40:]}  {rank}" for rank, name in enumerate(names, 1)], fontsize=8, parse_math=False
        )
    axes.set_title("similarity of the models, by rank")
    figure.colorbar(picture, shrink=0.7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _short_names(names: Sequence[str]) -> list[str]:
    """The names without the folders and settings that all of them have."""
    parts = [re.split("[/,]", name) for name in names]
    shared = set.intersection(*map(set, parts))
    return [",".join(part for part in of if part not in shared) or name for of, name in zip(parts, names)]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def _print(result: dict[str, Any], console: Console) -> None:
    labels = "rank_correlation" in result
    table = Table(
        "rank", Column("model", overflow="fold"), "score", "standard error", *(["FactorVAE"] if labels else [])
    )
    for row in result["models"][:50]:
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        cells = [str(row["rank"]), escape(row["name"]), f"{row['score']:.4f}", error]
        table.add_row(*cells, *(["nan" if row["factor_vae"] is None else f"{row['factor_vae']:.3f}"] if labels else []))
    console.print(table)
    for sentence in sentences(result):
        console.print(sentence, markup=False, style="yellow" if sentence.startswith("warning") else None)


def sentences(result: dict[str, Any]) -> list[str]:
    """What ranking.json says beside the ranking."""
    lines = []
    if gap := result.get("gap"):
        lines.append(
            f"{gap['winner']} leads {gap['runner_up']} by {gap['gap']:.4f} +- {gap['standard_error']:.4f}: "
            f"the better of the two with probability {gap['confidence']:.2f}"
        )
    if len(result.get("rounds", ())) > 1:
        lines.append("with a budget the scores of models that left the race early rest on fewer references and groups")
    if "rank_correlation" in result:
        known = result["rank_correlation"]
        value = "not defined" if known is None else f"{known:.2f}"
        lines.append(f"rank correlation with the supervised FactorVAE score: {value}")
    if warning := result.get("warning"):
        lines.append(f"warning: {warning}")
    return lines


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.select", select, args)


if __name__ == "__main__":
    main()
