"""`python -m crgan.select RUN... --out DIR`: ranks a pool of models without labels."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from . import cli, metrics
from . import data as datasets
from .errors import InputError, NotFiniteError
from .loading import LoadedModel, open_models
from .selection.centrality import Pool, Sizes
from .selection.rank import Ranking, output_folder, rank_by_udr, rank_pool


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
) -> Ranking:
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
        seed: Keys every random draw.
        groups: Groups of images for each generator, M.
        group_size: Images in a group, L.
        scale_samples: Images for the standard deviation of each code, R.
        samples: Images that all models encode for UDR.
        batch_size: Images encoded at once; default: 512 on the CPU, 4096 on a GPU.
        device: auto, cpu, cuda or cuda:<number>.
        ray: Address of a Ray cluster that encodes, or auto; it must see the runs at the same paths.
        threads: CPU cores of each of its workers.
    """
    out, root = Path(out).expanduser(), root and Path(root).expanduser()
    cli.at_least(2, samples=samples)
    cli.at_least(1, batch_size=batch_size)
    if method != "centrality" and (budget < 1 or ray):
        raise InputError(f"--budget and --ray serve ModelCentrality: {method} encodes each model once; leave them out")
    sizes = Sizes(groups, group_size, scale_samples, seed)
    if ray:
        from .cluster import ClusterPool

        pool: Pool = ClusterPool(runs, sizes, ray, threads, device, batch_size)
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
            ranking = rank_by_udr(pool.models, dataset, samples, seed, method, bar)
        labels = known = before.get("labels")
        if with_labels:
            labels = {"data": dataset.name, "root": root and str(root.resolve()), "seed": seed}
        if labels:  # once asked for, they stay
            found = {row["cache_key"]: row["factor_vae"] for row in before["models"]} if labels == known else {}
            _add_labels(ranking, pool.models, dataset if with_labels else None, labels, found, bar)
        ranking.save(out)
    print(ranking.table(), *ranking.sentences, f"wrote {out}/ranking.json and similarity.png", sep="\n")
    return ranking


def _dataset(models: Sequence[LoadedModel], name: str | None, root: Path | None) -> Any:
    """Load the data set named, else the one that all models were trained on; None where there is no such one."""
    if name is None:
        configs = [getattr(model.model, "cfg", None) for model in models]
        if len({cfg and (cfg.data, cfg.root) for cfg in configs}) > 1 or configs[0] is None:
            return None
        name, root = configs[0].data, root or configs[0].root
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
    scored, correlation, value = np.isfinite(truth), None, "not defined"
    if len({*truth[scored]}) > 1 and len({*ranking.scores[scored]}) > 1:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(ranking.scores[scored], truth[scored]).statistic)
        value = f"{correlation:.2f}"
    ranking.details |= {"labels": labels, "rank_correlation": correlation}
    ranking.sentences.append(f"rank correlation with the supervised FactorVAE score: {value}")


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.select", select, args)


if __name__ == "__main__":
    main()
