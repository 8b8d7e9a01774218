"""`crgan select RUN... --out DIR`: rank a pool of models without labels, as `crgan.rank` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from . import cli, metrics
from . import data as datasets
from .errors import InputError
from .loading import LoadedModel, open_models
from .selection.centrality import Pool, Sizes
from .selection.ranking import rank_pool


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

    Writes scores.h5, ranking.json and similarity.png to the --out folder. A selection that was stopped continues;
    models that are added later cost only their own pairs.

    Args:
        runs: Run folders, a folder of run folders, folders with generate.pt2 and encode.pt2, or module:function.
        out: Folder for the results.
        method: ModelCentrality, or the UDR baseline with Lasso or Spearman.
        budget: Share of the exact selection's encodes to spend, in (0, 1]; below 1 only the leaders are scored fully.
        with_labels: Also score each model with the factors of --data (FactorVAE score), to check the ranking.
        data: Data set for --with-labels and UDR; default: the one that the models were trained on.
        root: Folder with the files of --data.
        samples: Images that all models encode for UDR.
        batch_size: Images encoded at once; default: 512 on the CPU, 4096 on a GPU.
        device: auto, cpu, cuda or cuda:<number>.
        ray: Address of a Ray cluster that encodes, or auto; its machines must see the runs at the same paths.
        threads: CPU cores of each Ray worker.
    """
    out = Path(out).expanduser()
    cli.at_least(2, samples=samples)
    cli.at_least(1, batch_size=batch_size, threads=threads)
    if method != "centrality" and (budget < 1 or ray):
        raise InputError(f"--budget and --ray serve ModelCentrality: {method} encodes each model once; leave them out")
    if ray:
        from .cluster import ClusterPool

        pool: Pool = ClusterPool(runs, sizes, batch_size, ray, threads, device)
    else:
        pool = Pool(open_models(runs, cli.device(device)), sizes, batch_size)
    dataset: Any = _dataset(pool.models, data, root) if with_labels or method != "centrality" else None
    labels = None
    if with_labels:
        if dataset is None or "factor_vae" not in metrics.applicable(dataset):
            raise InputError("--with-labels needs a data set with two factors or more; give --data NAME")
        labels = {"data": dataset.name, "data_identity": dataset.identity, "seed": sizes.seed}
    print(f"ranking {len(pool.models)} models by {method}: {ray or pool.device}, into {out}", flush=True)
    ranking = rank_pool(pool, out, method, budget=budget, samples=samples, dataset=dataset, labels=labels)
    print(ranking.table(), *ranking.sentences, f"wrote {out}/ranking.json and similarity.png", sep="\n")


def _dataset(models: Sequence[LoadedModel], name: str | None, root: str | None) -> Any:
    """Load the data set `name`, else the one that all models were trained on; None if there is no such one."""
    if name is None:
        configs: list[Any] = [getattr(model.model, "cfg", None) for model in models]
        if not all(configs) or len({(cfg.data, cfg.root) for cfg in configs}) > 1:
            return None
        if configs[0].data not in datasets.NAMES:  # images of their own
            return None
        name, root = configs[0].data, root or configs[0].root
    dataset = datasets.load(name, root)
    for model in models:
        model.check_data(dataset)
    return dataset


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.select", select, args)


if __name__ == "__main__":
    main()
