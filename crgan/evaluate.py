"""`crgan evaluate RUN...`: score models on a data set."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from . import cli, metrics
from . import data as datasets
from .checkpoint import read
from .errors import InputError
from .files import write_json
from .loading import open_models


def evaluate(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    metrics_: Annotated[tuple[str, ...], tyro.conf.arg(name="metrics")] = ("all",),
    protocol: Literal["paper", "dlib"] = "paper",
    data: str | None = None,
    root: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Score models by disentanglement metrics and print a table. Scores that metrics.json holds are not computed again.

    Args:
        runs: Run folders, exported folders or module:function, as for crgan select.
        metrics_: Metrics by name, or all that apply to the data; dci_boosting, dci_lasso or dci_forest for a predictor.
        protocol: Sizes and variants: paper (InfoGAN-CR's original code) or dlib (disentanglement_lib).
        data: Data set; default the one that each model was trained on.
        root: Folder of the data set's published files.
        out: Folder for one metrics.json of all models; default one in each run folder.
        seed: Seed of the samples.
        device: auto, cpu, cuda or cuda:<number>.
        batch_size: Images encoded at a time; default 128 on a CPU, 500 on a GPU.
    """
    asked = [name for text in metrics_ for name in text.split(",") if name]
    if not runs or not asked:
        raise InputError(f"no {'metric' if runs else 'RUN'} is given; expected RUN... --metrics NAME...")
    torch_device = cli.device(device)
    models = open_models(runs, torch_device)
    files = [Path(out or model.name).expanduser() / "metrics.json" for model in models]
    for file in files:
        if out is None and not file.parent.is_dir():
            raise InputError(f"{file.parent} is no folder to write metrics.json into; give --out DIR")
    cli.announce(f"scoring {len(models)} models", torch_device, protocol=protocol)
    results: dict[str, Any] = {}
    load = cache(datasets.load)
    with cli.progress() as bar:
        for model, file in zip(models, files):
            trained_on = getattr(model.model, "cfg", None)
            if data:
                dataset = load(data, root)
            elif trained_on and trained_on.data in datasets.NAMES:
                dataset = load(trained_on.data, trained_on.root if root is None else root)
            else:
                way = "give --data NAME, or call crgan.metrics.evaluate"
                raise InputError(f"{model.name} was not trained on a data set that crgan knows by name; {way}")
            names = metrics.metric_names(asked, dataset, model)
            origin = {"data": dataset.name, "source": dataset.source, "data_identity": dataset.identity}
            head = {**origin, "protocol": protocol, "seed": seed}
            known = _entry(file, model.cache_key, head)[1]["metrics"]
            due = [name for name in names if name not in known]
            if len(due) < len(names):
                print(f"{model.name}: {', '.join(name for name in names if name in known)} from {file}")

            def progress(what: str, done: int, total: int, model: str = model.name) -> None:
                if bar.what != f"{model}: {what}":
                    bar.start(f"{model}: {what}", total)
                bar.update(done)

            scores = metrics.evaluate(model, dataset, due, protocol, seed, batch_size=batch_size, progress=progress)
            content, entry = _entry(file, model.cache_key, head)  # once more: another process may have written to it
            entry["name"] = model.name
            entry["metrics"] |= json.loads(json.dumps(scores, default=np.ndarray.tolist))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, content)
            results[model.name] = {name: entry["metrics"][name] for name in names}
    table = Table("metric", "better", *(Column(escape(name), overflow="fold") for name in results))
    table.title = f"{protocol} protocol"
    for metric in dict.fromkeys(metric for result in results.values() for metric in result):
        for part, label, better in metrics.rows(metric):
            table.add_row(label, better, *(f"{r[metric][part]:.4f}" if metric in r else "" for r in results.values()))
    Console().print(table)
    print("wrote", ", ".join(str(file) for file in dict.fromkeys(files)))


def _entry(file: Path, key: str, head: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of metrics.json, by cache key, and the entry of this model, data, protocol and seed."""
    content = read(file) if file.exists() else {}
    if not all(isinstance(found, list) and all("metrics" in entry for entry in found) for found in content.values()):
        raise InputError(f"{file} is of another version; move it away or give --out DIR")
    entries = content.setdefault(key, [])
    entry = next((entry for entry in entries if head.items() <= entry.items()), None)
    if entry is None:
        entry = {"name": "", **head, "metrics": {}}
        entries.append(entry)
    return content, entry


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.evaluate", evaluate, args)


if __name__ == "__main__":
    main()
