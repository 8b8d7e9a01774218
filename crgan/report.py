"""`python -m crgan.report DIR`: one HTML page, report.html, of a run, a selection or a sweep."""

import base64
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import log
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import tyro
from PIL import Image

from . import cli
from .errors import InputError
from .figures import colour, curves, data_uri, duration, number, scatter, schedule_marks, shade
from .files import write_atomically
from .selection.tables import MAX_MODELS, Tables, matrix, read_tables, short_names

MAX_CODES = 32  # codes that the explorer shows
THUMBNAILS = 4_000_000  # characters of all thumbnails of a page


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html, one page that needs no other file and no network, into a folder.

    Args:
        folder: Run folder of crgan.train, or the --out folder of crgan.select or crgan.sweep.
    """
    folder = Path(folder).expanduser()
    if (folder / "config.json").is_file():
        template, page = "run.html", run_page
    elif (folder / "ranking.json").is_file():
        template, page = "selection.html", selection_page
    elif (folder / ".sweep").is_dir() or any(folder.glob("*/config.json")):
        template, page = "sweep.html", sweep_page
    else:
        raise InputError(
            f"{folder} holds neither config.json nor ranking.json nor run folders; "
            "expected a run folder, or the --out of crgan.select or crgan.sweep"
        )
    try:
        content = page(folder)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"the files in {folder} are damaged, or not of this library ({error!r})") from error
    text = render(template, title=folder.resolve().name, **content)
    write_atomically(folder / "report.html", lambda temporary: temporary.write_text(text, "utf-8", "replace"))
    print(f"wrote {folder / 'report.html'}")


def render(template: str, **content: Any) -> str:
    """Fill in a template. Everything is escaped, and a policy in the page lets no script run but report.js."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("crgan"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters.update(number=number, shade=shade)
    environment.globals["gradient"] = ",".join(colour(i / 8) for i in range(9))
    folder = Path(__file__).parent / "templates"
    script, style = (Markup((folder / name).read_text("utf-8")) for name in ("report.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=script, style=style, digest=digest, **content)


# ---------------------------------------------------------------- a run


def run_page(folder: Path) -> dict[str, Any]:
    from . import pictures
    from .checkpoint import latest

    about, rows, checkpoint = _read(folder / "config.json"), _metrics(folder), latest(folder)
    config, made = about["config"], about.get("made_with", {})
    last = max((row["step"] for row in rows), default=0)
    scored = [row for row in rows if "factor_vae" in row][-1:]
    state = _read(checkpoint / "state.json") if checkpoint else {}
    model, problem = _open(folder)
    encoder = _encoder(model, config) if model else {"labels": []}
    threads, shape = made.get("threads", "?"), "×".join(map(str, about.get("image_shape", ())))
    marks = schedule_marks(config, last)
    return {
        "facts": [
            *(("FactorVAE score", number(row["factor_vae"]), f"at step {row['step']:,}") for row in scored),
            ("Steps", number(last), f"of {config['steps']:,}"),
            ("Training time", duration(state.get("seconds")), f"started {made['date']}" if "date" in made else ""),
            ("Device", made.get("device", "–"), f"threads: {threads}, {config.get('precision')}"),
            ("Versions", f"crgan {made.get('crgan', '?')}", f"torch {made.get('torch', '?')}"),
            ("Data", config["data"], f"{about.get('source', 'source unknown')}, {shape}"),
        ],
        "explorer": pictures.sprite_sheets(model.model, MAX_CODES, config["seed"]) if model else None,
        "problem": problem,
        "encoder": encoder,
        "traversal": None if model else _uri(folder / "traversal.png"),
        "samples": _uri(folder / "samples.png"),
        "marks": marks,
        "curves": curves(rows, marks, log(config["num_codes"])),
        "scores": _scores(folder, model.cache_key if model else None),
        "config": _grouped(config),
        "command": made.get("command"),
        "trunk": about.get("from"),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]  # a kill may leave half of one at the end
    return [json.loads(line) for line in lines]


def _uri(path: Path) -> str | None:
    return data_uri(path.read_bytes()) if path.is_file() else None


def _open(folder: Path) -> tuple[Any, str]:
    """Return the model of a run folder or an exported one, or None and the reason."""
    from .loading import open_models

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that training has not finished: the page shows it
            return open_models([str(folder)])[0], ""
    except (InputError, OSError) as error:
        return None, str(error)


def _encoder(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Compare codes and factors by mutual information and FactorVAE votes, on few images."""
    from . import data, metrics, pictures

    codes = [f"c{k + 1}" for k in range(model.num_codes)]
    view: dict[str, Any] = {"codes": codes, "labels": [], "votes": None, "problem": ""}
    try:
        dataset = data.load(config["data"], config["root"])
        names = [name for name, size in zip(dataset.factor_names, dataset.factor_sizes) if size > 1]
        if not names:
            return view | {"problem": f"{dataset.name} has no factors to compare the codes with."}
        asked = ["mig", "factor_vae"][: len(names)]  # with one factor every vote is right
        sizes: dict[str, Any] = {"groups": 100, "scale_samples": 5_000, "points": 5_000}
        found = metrics.evaluate(model, dataset, asked, "paper", config["seed"], **sizes)
    except (InputError, OSError) as error:
        return view | {"problem": f"The codes cannot be compared with the factors: {error}."}
    view["factors"] = names
    view["information"] = found["mig"]["mutual_information"] / found["mig"]["entropies"]
    if "factor_vae" in found:
        votes = view["votes"] = found["factor_vae"]["votes"]
        view["vote_shares"] = votes / votes.sum(1, keepdims=True).clip(min=1)
        view["labels"] = pictures.followed_factors(votes, names)
    return view


def _scores(folder: Path, cache_key: str | None) -> dict[str, Any] | None:
    """Return what crgan.evaluate has found: a column for each data set, protocol, seed and checkpoint."""
    if not (folder / "metrics.json").is_file():
        return None
    heads, columns = [], []
    for key, entries in _read(folder / "metrics.json").items():
        for entry in entries:
            old = "" if key == cache_key else ", earlier checkpoint"
            heads.append((entry["data"], f"{entry['protocol']} protocol, seed {entry['seed']}{old}"))
            columns.append(
                {
                    f"{metric} {part}".removesuffix(" score"): value
                    for metric, result in entry["metrics"].items()
                    for part, value in result.items()
                    if isinstance(value, float) and part != "train_score"
                }
            )
    names = dict.fromkeys(name for column in columns for name in column)
    return {"heads": heads, "rows": [(name, [column.get(name) for column in columns]) for name in names]}


def _grouped(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any, bool]]]]:
    """Sort a configuration by topic; with each value whether it differs from the paper's, which is the default."""
    from .config import TOPICS, Config

    paper = Config().to_json()
    names = [(topic.__name__, [field.name for field in fields(topic) if field.name in config]) for topic in TOPICS]
    return [(title, [(name, config[name], config[name] != paper[name]) for name in found]) for title, found in names]


# ---------------------------------------------------------------- a selection


def selection_page(folder: Path) -> dict[str, Any]:
    result = _read(folder / "ranking.json")
    models, sentences = result["models"], result.get("sentences", [])
    short = short_names([model["name"] for model in models])
    by_name = {model["name"]: name for model, name in zip(models, short)}
    errors = [model.get("standard_error") or 0.0 for model in models]
    low = min(model["score"] - error for model, error in zip(models, errors))
    high = max(model["score"] + error for model, error in zip(models, errors))
    for model, name, error in zip(models, short, errors):
        scale = 100 / (high - low or 1)
        model.update(short=name, x=(model["score"] - low) * scale, e=error * scale)
    scores, keys = folder / "scores.h5", [model.get("cache_key") for model in models]
    tables = read_tables(scores, keys) if scores.is_file() else {}
    truth = [(model["score"], model["factor_vae"]) for model in models if model.get("factor_vae") is not None]
    extra = {"own_score": "own images", "factor_vae": "FactorVAE"}
    encodes = f"{result['encodes']:,} images encoded" if "encodes" in result else ""
    return {
        "facts": [
            ("Winner", short[0], f"{number(models[0]['score'])} ± {number(errors[0])}"),
            ("Models", number(len(models)), f"by {result['method']}"),
            ("Budget", f"{100 * result.get('budget', 1):.3g} %", encodes),
            ("Groups", number(result.get("groups")), f"of {number(result.get('group_size'))} images"),
            ("Time", duration(result.get("seconds")), f"on {result['device']}" if "device" in result else ""),
        ],
        "warnings": [text.removeprefix("warning: ") for text in sentences if text.startswith("warning: ")],
        "sentences": [text for text in sentences if not text.startswith("warning: ")],
        "clusters": [[by_name.get(name, name) for name in side] for side in result.get("clusters", [])],
        "models": models,
        "extra": {key: label for key, label in extra.items() if any(model.get(key) is not None for model in models)},
        "traversals": _best_and_worst(folder, models, tables),
        "matrix": matrix(tables, short) if tables else None,
        "similarity": None if tables and len(models) <= MAX_MODELS else _uri(folder / "similarity.png"),
        "scatter": scatter(truth, result["method"]) if len(truth) > 1 else None,
        "correlation": result.get("rank_correlation"),
    }


def _best_and_worst(folder: Path, models: Sequence[Any], tables: Tables) -> list[tuple[Any, list[Any], str]]:
    """Draw traversals of the best three models and the worst, with the code of the winner that each code follows."""
    from . import pictures

    drawn = []
    for i in sorted({0, *range(min(3, len(models))), len(models) - 1}):
        row, strips = models[i], []
        places = [base / row["name"] for base in (Path(), *folder.resolve().parents[:3])]  # names may be relative
        place = next((place for place in places if place.is_dir()), None)
        model, problem = _open(place) if place else (None, f"There is no folder {row['name']} here.")
        if model is not None:
            images = pictures.traversal_images(model.model, num_values=7)[:MAX_CODES].cpu()
            names = [f"c{k + 1}" for k in range(max(len(images), *(table.shape[1] for table in tables.values()), 0))]
            votes = tables[i, 0][:-1] if i and (i, 0) in tables else np.zeros((len(images), 1))
            follows = pictures.followed_factors(votes, names)
            for k in sorted(range(len(images)), key=lambda k: (follows[k] == "–", votes[k].argmax())):
                strip = pictures.image_grid(images[k : k + 1], gutter=1, shortest=1)
                strips.append((f"{names[k]} ~ {follows[k]}".removesuffix(" ~ –"), data_uri(strip)))
            if row.get("cache_key") not in (None, model.cache_key):
                problem = "It has changed since the selection."
        drawn.append((row, strips, problem))
    return drawn


# ---------------------------------------------------------------- a sweep


def sweep_page(folder: Path) -> dict[str, Any]:
    listed = folder / ".sweep" / "sweep.json"
    states = {row["run"]: row["state"] for row in _read(listed)} if listed.is_file() else {}
    configs, runs, room = {}, [], THUMBNAILS
    for name in sorted({*states, *(path.parent.name for path in folder.glob("*/config.json"))}):
        run, row = folder / name, {"name": name, "state": states.get(name, ""), "link": "", "thumbnail": ""}
        rows = _metrics(run) if (run / "metrics.jsonl").is_file() else []
        row["step"] = max((line["step"] for line in rows), default=0)
        row["score"] = next((line["factor_vae"] for line in reversed(rows) if "factor_vae" in line), None)
        row["settings"] = configs[name] = (
            _read(run / "config.json")["config"] if (run / "config.json").is_file() else {}
        )
        if (run / "report.html").is_file():
            row["link"] = quote(f"{name}/report.html")
        if (run / "traversal.png").is_file() and room > 0:
            with Image.open(run / "traversal.png") as picture:
                picture.thumbnail((240, 160))
                row["thumbnail"] = data_uri(picture)
            room -= len(row["thumbnail"])
        runs.append(row)
    found = [config for config in configs.values() if config]
    varied = [key for key in (found or [{}])[0] if any(config.get(key) != found[0][key] for config in found)]
    scores = [row["score"] for row in runs if row["score"] is not None]
    runs.sort(key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True)
    return {
        "facts": [
            ("Runs", number(len(runs)), f"{sum(row['state'] == 'failed' for row in runs)} failed" * bool(states)),
            ("Best score", number(max(scores, default=None)), "FactorVAE score"),
            ("Median score", number(float(np.median(scores)) if scores else None), f"of {len(scores)} runs"),
            ("Fields that vary", number(len(varied)), ", ".join(varied)),
        ],
        "runs": runs,
        "varied": varied,
    }


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.report", report, args)


if __name__ == "__main__":
    main()
