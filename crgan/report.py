"""`crgan report DIR`: one HTML page, report.html, of a run, a selection or a sweep."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from . import cli, data, metrics, pictures
from .checkpoint import latest, read, read_config, read_log
from .config import TOPICS, Config
from .errors import InputError
from .figures import curves, scatter, schedule_marks
from .files import write_atomically
from .loading import open_models
from .selection.scores import Tables, read_tables, short_names

MAX_CODES = 32  # codes whose traversals are shown
MAX_MODELS = 60  # in the similarity matrix


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html, one page that needs no other file and no network, into a folder.

    Args:
        folder: Run folder of crgan.train, or the --out folder of crgan.select or crgan.sweep.
    """
    folder = Path(folder).expanduser()
    if (folder / "config.json").exists():
        page = run_page
    elif (folder / "ranking.json").exists():
        page = selection_page
    elif (folder / ".sweep").exists() or any(folder.glob("*/config.json")):
        page = sweep_page
    else:
        raise InputError(f"{folder} holds neither config.json nor ranking.json; expected a run, a selection or a sweep")
    try:
        text = page(folder)
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"the files in {folder} are damaged, or not of this library ({error!r})") from error
    write_atomically(folder / "report.html", lambda temporary: temporary.write_text(text, "utf-8", "replace"))
    print(f"wrote {folder / 'report.html'}")


def render(template: str, folder: Path, **content: Any) -> str:
    """Fill in a template. Everything is escaped, and a policy in the page lets no script run but report.js."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("crgan"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    script = (Path(__file__).parent / "templates" / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = folder.resolve().name
    return environment.get_template(template).render(title=title, script=script, digest=digest, **content)


def number(value: Any, digits: int = 3) -> str:
    """Return a number as a reader expects it; a dash for None."""
    if isinstance(value, float):
        return f"{value:.{digits}f}".replace("-", "−")
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value in (None, "") else str(value)


def run_page(folder: Path) -> str:
    read_config(folder)  # else it is no run
    about = read(folder / "config.json")
    config, checkpoint = about["config"], latest(folder)
    rows, step, scored = _losses(folder)
    marks = schedule_marks(config, step)
    model, problem = _open(folder)
    return render(
        "run.html",
        folder,
        about=about,
        config=config,
        paper=vars(Config()),
        topics={topic.__name__: [field.name for field in fields(topic)] for topic in TOPICS},
        step=step,
        seconds=read(checkpoint / "state.json").get("seconds") if checkpoint else None,
        scored=scored,
        marks=marks,
        curves=curves(rows, marks),
        problem=problem,
        explorer=pictures.sprite_sheets(model.model, MAX_CODES, config["seed"]) if model else None,
        encoder=_encoder(model, config) if model else {},
        traversal=_picture(folder / "traversal.png"),
        samples=_picture(folder / "samples.png"),
        scores=_scores(folder, model.cache_key if model else None),
    )


def selection_page(folder: Path) -> str:
    result = read(folder / "ranking.json")
    models, file = result["models"], folder / "scores.h5"
    names = [model["name"] for model in models]
    short = short_names(names)
    tables = read_tables(file, [model.get("cache_key") for model in models]) if file.is_file() else {}
    pairs = {
        f"{i},{j}": {"score": float(metrics.vote_score(table)), "votes": table.tolist()}
        for (i, j), table in tables.items()
        if max(i, j) < MAX_MODELS
    }
    truth = [(model["score"], model["factor_vae"]) for model in models if model.get("factor_vae") is not None]
    return render(
        "selection.html",
        folder,
        result=result,
        models=models,
        short=dict(zip(names, short)),
        traversals=_best_and_worst(folder, models, tables),
        shown=short[:MAX_MODELS],
        pairs=pairs,
        similarity=_picture(folder / "similarity.png"),
        scatter=scatter(truth, result["method"]) if len(truth) > 1 else None,
    )


def sweep_page(folder: Path) -> str:
    table = folder / ".sweep" / "sweep.json"
    states = {row["name"]: row["state"] for row in json.loads(table.read_text())} if table.is_file() else {}
    names = {*states, *(path.parent.name for path in folder.glob("*/config.json"))}
    runs = []
    for name in sorted(names):
        run = folder / name
        _, step, scored = _losses(run)
        row = {"name": name, "state": states.get(name), "step": step, "score": scored.get("factor_vae")}
        row["config"] = read(run / "config.json").get("config", {}) if (run / "config.json").is_file() else {}
        row["thumbnail"] = _picture(run / "traversal.png", (240, 160))
        row["has_page"] = (run / "report.html").is_file()
        runs.append(row)
    runs.sort(key=lambda run: -1.0 if run["score"] is None else run["score"], reverse=True)
    configs = [run["config"] for run in runs if run["config"]]
    varied = [key for key in vars(Config()) if len({str(config.get(key)) for config in configs}) > 1]
    return render("sweep.html", folder, runs=runs, varied=varied)


def _losses(folder: Path) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
    """Return the rows of metrics.jsonl, the last step, and the last row with a score."""
    rows = read_log(folder)
    scored = [row for row in rows if "factor_vae" in row]
    return rows, rows[-1]["step"] if rows else 0, scored[-1] if scored else {}


def _picture(path: Path, size: tuple[int, int] | None = None) -> str | None:
    """Return a picture as a data URI, at most of this size; None where there is none."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        picture.thumbnail(size or picture.size)
        return pictures.data_uri(picture)


def _open(folder: Path) -> tuple[Any, str]:
    """Return the model of a run folder or an exported one, or None and the reason."""
    try:
        return open_models(str(folder))[0], ""
    except (InputError, OSError) as error:
        return None, str(error)


def _encoder(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Compare codes and factors by mutual information and FactorVAE votes, on few images."""
    try:
        dataset = data.load(config["data"], config["root"])
        asked = [name for name in ("mig", "factor_vae") if name in metrics.applicable(dataset)]
        sizes: dict[str, Any] = {"groups": 100, "scale_samples": 5_000, "points": 5_000}
        found = metrics.evaluate(model, dataset, asked, "paper", config["seed"], **sizes)
    except (InputError, OSError) as error:
        return {"problem": f"The codes cannot be compared with the factors: {error}."}
    factors = [dataset.factor_names[f] for f in metrics.varying_factors(dataset)]
    votes = found.get("factor_vae", {}).get("votes")
    labels = [] if votes is None else pictures.followed_factors(votes, factors)
    return {"factors": factors, "mig": found.get("mig"), "votes": votes, "labels": labels}


def _scores(folder: Path, cache_key: str | None) -> dict[str, Any]:
    """Return the scores of crgan evaluate: a column for each data set, protocol, seed and checkpoint."""
    file = folder / "metrics.json"
    found = read(file) if file.is_file() else {}
    entries = [entry | {"is_old": key != cache_key} for key, entries in found.items() for entry in entries]
    rows = {}
    for metric in metrics.METRICS:
        if any(metric in entry["metrics"] for entry in entries):
            for part, label, _ in metrics.rows(metric):
                rows[label] = [entry["metrics"].get(metric, {}).get(part) for entry in entries]
    return {"entries": entries, "rows": rows}


def _best_and_worst(folder: Path, models: Sequence[Any], tables: Tables) -> list[Any]:
    """Draw traversals of the best three models and the worst, with the code of the winner that each code follows."""
    drawn = []
    for i in sorted({*range(min(3, len(models))), len(models) - 1}):
        name, strips = models[i]["name"], []
        candidates = [Path(name), *(base / name for base in folder.resolve().parents)]  # names may be relative
        model, problem = _open(next((path for path in candidates if path.is_dir()), folder / name))
        if model is not None:
            images = next(pictures.traversals(model.model, num_values=7))[1][:MAX_CODES]
            votes = tables.get((i, 0), np.zeros((len(images) + 1, 1)))[:-1]
            follows = pictures.followed_factors(votes, [f"c{k + 1}" for k in range(votes.shape[1])])
            for k in sorted(range(len(images)), key=lambda k: (follows[k] == "–", votes[k].argmax())):
                strip = pictures.image_grid(images[k : k + 1], gutter=1, shortest=1)
                strips.append((f"c{k + 1}", follows[k], pictures.data_uri(strip)))
            if models[i].get("cache_key") not in (None, model.cache_key):
                problem = "It has changed since the selection."
        drawn.append((models[i], strips, problem))
    return drawn


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.report", report, args)


if __name__ == "__main__":
    main()
