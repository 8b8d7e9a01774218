"""`python -m crgan.evaluate RUN...`: scores models on a data set."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from . import cli, metrics
from . import data as datasets
from .errors import InputError
from .files import write_json
from .loading import open_models


def evaluate(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    metrics_: Annotated[tuple[str, ...], tyro.conf.arg(name="metrics")] = ("all",),
    protocol: Literal["paper", "dlib"] = "paper",
    data: str | None = None,
    root: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Score models by disentanglement metrics and print a table. Scores that metrics.json holds are not computed again.

    Args:
        runs: Run folders, model archives or module:function, as for crgan.select.
        metrics_: Metrics by name, or all that apply to the data; dci_boosting, dci_lasso or dci_forest for a predictor.
        protocol: Sizes and variants: paper (the original of InfoGAN-CR) or dlib (disentanglement_lib).
        data: Data set; default the one that each model was trained on.
        root: Folder of the data set's published files.
        out: Folder for one metrics.json of all models; default one in each run folder.
        seed: Seed of the samples.
        device: auto, cpu, cuda or cuda:<number>.
        batch_size: Images encoded at a time; default 128 on a CPU, 500 on a GPU.
    """
    if not runs:
        raise InputError("no RUN is given; put run folders, model archives or module:function before --metrics")
    asked = tuple(name for text in metrics_ for name in text.split(",") if name)
    if not asked:
        raise InputError("--metrics names none; give names, or leave it out for all that apply")
    models = open_models(runs, cli.device(device))
    if out is None:
        if elsewhere := [model.name for model in models if not Path(model.name).is_dir()]:
            raise InputError(f"{elsewhere[0]} is no folder to write metrics.json into; give --out DIR")
    elif (out / "config.json").exists():
        raise InputError(f"{out} is a run folder, whose scores are its own; leave --out out, or give another")
    else:
        out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    load = cache(datasets.load)
    with Progress() as bar:
        for model in models:
            config = getattr(model.model, "cfg", None)
            name, folder = (data, root) if data or not config else (config.data, root or config.root)
            if name is None:
                raise InputError(f"{model.name} does not say which data it was trained on; give --data NAME")
            dataset = load(name, folder)
            source = getattr(dataset, "source", None) or (folder and str(Path(folder).resolve()))
            head = {"data": dataset.name, "source": source, "protocol": protocol, "seed": seed}
            file, key = (out or Path(model.name)) / "metrics.json", model.cache_key
            names = metrics.metric_names(asked, dataset, model)
            known = _entry(_read(file), key, head)["metrics"]
            due = [name for name in names if name not in known]
            if found := [name for name in names if name in known]:
                bar.console.print(f"{model.name}: {', '.join(found)} from {file}", highlight=False, markup=False)
            task = bar.add_task(escape(model.name))

            def progress(what: str, done: int, total: int, task: Any = task, name: str = model.name) -> None:
                bar.update(task, description=escape(f"{name}: {what}"), completed=done, total=total)

            scores = metrics.evaluate(model, dataset, due, protocol, seed, batch_size=batch_size, progress=progress)
            bar.update(task, description=escape(model.name), completed=1, total=1)
            # Written after each model: one that cannot be scored does not cost the scores of those before it.
            content = _read(file)
            entry = _entry(content, key, head)
            lists = json.loads(json.dumps(scores, default=np.ndarray.tolist))
            entry["name"], entry["metrics"] = model.name, entry["metrics"] | lists
            write_json(file, content)
            results[model.name] = {name: entry["metrics"][name] for name in names}
    _print_table(results, protocol)
    written = ", ".join(f"{folder}/metrics.json" for folder in (results if out is None else [out]))
    Console().print(f"wrote {written}", soft_wrap=True, highlight=False, markup=False)


def _print_table(results: dict[str, dict[str, Any]], protocol: str) -> None:
    for first in range(0, len(results), 4):  # as many side by side as fit 80 columns
        beside = dict(list(results.items())[first : first + 4])
        columns = [Column(escape(name), overflow="fold") for name in beside]
        table = Table("metric", "better", *columns, title=f"{protocol} protocol")
        for metric in dict.fromkeys(metric for result in beside.values() for metric in result):
            for part, label, better in metrics.rows(metric):
                cells = [result.get(metric, {}).get(part) for result in beside.values()]
                table.add_row(label, better, *("" if cell is None else f"{cell:.4f}" for cell in cells))
        Console().print(table)


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of metrics.json by the cache key of their model; of earlier checkpoints too."""
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
        for entry in (entry for entries in content.values() for entry in entries):
            entry["metrics"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is damaged, or of another version; move it away or give --out DIR") from None
    return content


def _entry(content: dict[str, list[dict[str, Any]]], key: str, head: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of the model, data and draws that `head` names; a new one in `content` where there is none."""
    entries = content.setdefault(key, [])
    for entry in entries:
        if all(entry.get(name) == value for name, value in head.items()):
            return entry
    entries.append({"name": "", **head, "metrics": {}})
    return entries[-1]


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.evaluate", evaluate, args)


if __name__ == "__main__":
    main()
