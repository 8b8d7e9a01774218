"""`python -m crgan.evaluate RUN...`: scores models on a data set."""

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
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
from .metrics.protocol import check_names


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
    batch_size: int = 500,
) -> None:
    """Scores models by the metrics of disentanglement and prints a table; what metrics.json has is not computed again.

    Args:
        runs: Run folders, model archives or module:function, as for crgan.select.
        metrics_: Metrics by name, or all that apply to the data.
        protocol: Sizes and variants: paper (the original of InfoGAN-CR) or dlib (disentanglement_lib).
        data: Data set; default the one that each model was trained on.
        root: Folder of the data set's published files.
        out: Folder for one metrics.json of all models; default one in each run folder.
        seed: Seed of the samples.
        device: auto, cpu, cuda or cuda:<number>.
        batch_size: Images encoded at a time.
    """
    if not runs:
        raise InputError("no RUN is given; put run folders, model archives or module:function before --metrics")
    cli.at_least(1, batch_size=batch_size)
    metrics_ = tuple(name for text in metrics_ for name in text.split(","))
    check_names(metrics_)
    if not metrics_:
        raise InputError("--metrics names none; give names, or leave it out for all that apply")
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed is {seed}; expected a number from 0 to 2^31 - 1")
    members = open_models(runs, cli.device(device))
    for member in members:
        if out is None and not Path(member.name).is_dir():
            raise InputError(f"{member.name} is no folder to write metrics.json into; give --out DIR")
    if out is not None and (out / "config.json").exists():
        raise InputError(f"{out} is a run folder, whose scores are its own; leave --out out, or give another")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    load = cache(datasets.load)
    with Progress() as bar:
        for member in members:
            config = getattr(member.model, "cfg", None)
            if data is not None:
                name, place = data, root
            elif config is not None:
                name, place = config.data, root or config.root
            else:
                raise InputError(f"{member.name} does not say which data it was trained on; give --data NAME")
            dataset = load(name, place)
            head = {
                "data": dataset.name,
                "root": place and str(Path(place).resolve()),
                "protocol": protocol,
                "seed": seed,
                "model": member.cache_key,
            }
            file, known = _known_scores(out, member.name, head)
            task = bar.add_task(escape(member.name))

            def progress(what: str, done: int, total: int, task: Any = task, name: str = member.name) -> None:
                bar.update(task, description=escape(f"{name}: {what}"), completed=done, total=total)

            fitting = metrics.applicable(dataset)
            wanted = [name for given in metrics_ for name in (fitting if given == "all" else [given])]
            due = [name for name in wanted if name not in known]
            if len(due) < len(wanted):
                found = ", ".join(name for name in wanted if name in known)
                bar.console.print(f"{member.name}: {found} as {file} has it", highlight=False, markup=False)
            scores = metrics.evaluate(member, dataset, due, protocol, seed, batch_size=batch_size, progress=progress)
            bar.update(task, description=escape(member.name), completed=1, total=1)
            known |= _plain(scores)
            results[member.name] = {**head, "metrics": {name: known[name] for name in wanted}}
            kept = {**head, "metrics": known}
            # After each model: one that cannot be scored does not cost the scores of those before it.
            write_json(file, kept if out is None else _read(file) | {member.name: kept})
    console = Console()
    written = ", ".join(f"{folder}/metrics.json" for folder in (results if out is None else [out]))
    for first in range(0, len(results), 4):  # side by side as many as fit 80 columns
        beside = dict(list(results.items())[first : first + 4])
        table = Table(
            "metric", *(Column(escape(name), overflow="fold") for name in beside), title=f"{protocol} protocol"
        )
        for name in dict.fromkeys(name for result in beside.values() for name in result["metrics"]):
            for part, label in shown(name):
                cells = [result["metrics"].get(name, {}).get(part) for result in beside.values()]
                table.add_row(label, *("" if cell is None else f"{cell:.4f}" for cell in cells))
        console.print(table)
    console.print(f"wrote {written}", soft_wrap=True, highlight=False, markup=False)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise InputError(f"{file} is no JSON object any more; move it away or give --out DIR")


def _known_scores(out: Path | None, name: str, head: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The file for a model's scores and the metrics in it that stay: those of the same model, data and draws.

    A model that was trained on since loses its old scores; scores under another protocol are not written over."""
    file = (out or Path(name)) / "metrics.json"
    before = _read(file) if out is None else _read(file).get(name, {})
    if before.get("model") != head["model"]:
        return file, {}
    for field in ("data", "root", "protocol", "seed"):
        if before.get(field) != head[field]:
            raise InputError(
                f"{file} holds scores of {name} with {field} {before.get(field)}, "
                f"now it is {head[field]}; give --out DIR"
            )
    return file, before.get("metrics", {})


def shown(name: str) -> list[tuple[str, str]]:
    """(key, label) of the rows of a metric in the table."""
    more = {
        "dci": ("disentanglement", "completeness", "informativeness"),
        "inception": ("score", "confidence", "mode_kl"),
        "reconstruction": ("psnr", "ssim"),
    }
    return [(part, f"{name} {part}") for part in more.get(name, ())] or [("score", name)]


def _plain(value: Any) -> Any:
    """Arrays as lists, as JSON takes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value


if __name__ == "__main__":
    cli.run("crgan.evaluate", evaluate)
