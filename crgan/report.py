"""`python -m crgan.report DIR`: one HTML page, report.html, of a run, a selection or a sweep."""

import base64
import hashlib
import json
import re
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

from . import cli, figures, pictures
from .errors import InputError
from .files import write_atomically

MAX_CODES = 32  # codes that the explorer shows
MAX_MODELS = 60  # models that the matrix shows
SHEETS = 3_500_000  # characters of all sprite sheets of a page
THUMBNAILS = 4_000_000
VOTE_TABLES = 1_000_000

Tables = dict[tuple[int, int], np.ndarray]


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html, one page that needs no other file and no network, into a folder.

    Args:
        folder: Run folder of crgan.train, or the --out folder of crgan.select or crgan.sweep.
    """
    folder = Path(folder).expanduser()
    if (folder / "config.json").is_file():
        template, content_of = "run.html", run_page
    elif (folder / "ranking.json").is_file():
        template, content_of = "selection.html", selection_page
    elif (folder / ".sweep").is_dir() or any(folder.glob("*/config.json")):
        template, content_of = "sweep.html", sweep_page
    else:
        raise InputError(
            f"{folder} holds neither config.json nor ranking.json nor run folders; "
            "expected a run folder, or the --out of crgan.select or crgan.sweep"
        )
    try:
        content = content_of(folder)
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
    environment.filters.update(number=number, shade=figures.shade)
    environment.globals["gradient"] = ",".join(figures.colour(i / 8) for i in range(9))
    folder = Path(__file__).parent / "templates"
    script, style = (Markup((folder / name).read_text("utf-8")) for name in ("report.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=script, style=style, digest=digest, **content)


def number(value: Any, digits: int = 3) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}".replace("-", "−")
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float | None) -> str:
    hours, minutes = divmod(round((seconds or 0) / 60), 60)
    if seconds is None or seconds < 100:
        return "–" if seconds is None else f"{seconds:.0f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


# ---------------------------------------------------------------- a run


def run_page(folder: Path) -> dict[str, Any]:
    from .checkpoint import latest

    about, rows, checkpoint = _read(folder / "config.json"), _metrics(folder), latest(folder)
    config, made = about["config"], about.get("made_with", {})
    last = max((row["step"] for row in rows), default=0)
    scores = [(row["step"], row["factor_vae"]) for row in rows if "factor_vae" in row]
    state = _read(checkpoint / "state.json") if checkpoint else {}
    model, problem = _open(folder)
    encoder = _encoder(model, config) if model else {"labels": []}
    threads, shape = made.get("threads", "?"), "×".join(map(str, about.get("image_shape", ())))
    marks = _marks(config, last)
    return {
        "facts": [
            ("FactorVAE score", number(scores[-1][1] if scores else None), f"at step {scores[-1][0]:,}" * bool(scores)),
            ("Steps", number(last), f"of {config['steps']:,}"),
            ("Training time", duration(state.get("seconds")), f"started {made['date']}" if "date" in made else ""),
            ("Device", made.get("device", "–"), f"threads: {threads}, {config.get('precision')}"),
            ("Versions", f"crgan {made.get('crgan', '?')}", f"torch {made.get('torch', '?')}"),
            ("Data", config["data"], f"{about.get('source', 'source unknown')}, {shape}"),
        ],
        "explorer": _explorer(model, encoder["labels"], config["seed"]) if model else None,
        "problem": problem,
        "encoder": encoder,
        "traversal": None if model else _uri(folder / "traversal.png"),
        "samples": _uri(folder / "samples.png"),
        "marks": marks,
        "curves": figures.curves(rows, marks, log(config["num_codes"])),
        "scores": _scores(folder, model.fingerprint if model else None),
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
    return pictures.data_uri(path.read_bytes()) if path.is_file() else None


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
    from . import data, metrics

    view: dict[str, Any] = {"labels": [], "votes": None, "problem": ""}
    try:
        dataset = data.load(config["data"], config["root"])
        names = [name for name, size in zip(dataset.factor_names, dataset.factor_sizes) if size > 1]
        if not names:
            return view | {"problem": f"{dataset.name} has no factors to compare the codes with."}
        asked = ["mig", "factor_vae"][: len(names)]  # with one factor every vote is right
        sizes: dict[str, Any] = {"groups": 200, "scale_samples": 5_000, "points": 5_000}
        found = metrics.evaluate(model, dataset, asked, "paper", config["seed"], **sizes)
    except (InputError, OSError) as error:
        return view | {"problem": f"The codes cannot be compared with the factors: {error}."}
    codes = [f"c{k + 1}" for k in range(model.num_codes)]
    view |= {"codes": codes, "factors": names, "information": found["mig"]["mutual_information"]}
    view["information"] = found["mig"]["mutual_information"] / found["mig"]["entropies"]
    if "factor_vae" in found:
        votes = view["votes"] = found["factor_vae"]["votes"]
        view["vote_shares"] = votes / votes.sum(1, keepdims=True).clip(min=1)
        view["labels"] = pictures.followed_factors(votes, names)
    return view


def _explorer(model: Any, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the sprite sheets of up to six base images; the rows of a sheet are codes, its columns values."""
    shown, num_values, reach = min(model.num_codes, MAX_CODES), 15, pictures.code_reach(model)
    sheets: list[str] = []
    columns = []
    for base in pictures.base_traversals(model.model, 6, num_values, seed):
        picture = pictures.image_grid(base.images[:shown], gutter=0, shortest=1)
        factor = -(-max(base.images.shape[3:]) // 128)
        sheet = pictures.data_uri(picture.reduce(factor) if factor > 1 else picture)
        if sheets and sum(map(len, sheets)) + len(sheet) > SHEETS:
            break
        sheets.append(sheet)
        columns.append(base.columns[:shown])
    values = np.linspace(-reach, reach, num_values).tolist()
    labels = labels[:shown] or [""] * shown
    return {"sheets": sheets, "columns": columns, "steps": values, "labels": labels, "num_codes": model.num_codes}


def _marks(config: Mapping[str, Any], last: int) -> list[tuple[str, int, str]]:
    """Return where the schedule changes, up to step `last`: a letter, the step and what happens."""
    from .config import Config

    cfg = Config(**{field.name: config[field.name] for field in fields(Config) if field.name in config})
    regularizer = f"the contrastive regularizer starts, with gap {cfg.gap:g}"
    changes = [
        (cfg.code_warmup_steps > 0, (cfg.num_codes - 1) * cfg.code_warmup_steps, "all codes are faded in"),
        (cfg.cr_weight > 0, cfg.cr_start, regularizer),
        (cfg.cr_weight > 0, cfg.gap_switch or 0, f"the contrastive gap becomes {cfg.gap_after:g}, with a new H"),
        (cfg.blur > 0, cfg.blur_steps, "the blur of what D sees has decayed to 0"),
    ]
    due = sorted((step, text) for used, step, text in changes if used and 0 < step <= last)
    return [(letter, step, text) for letter, (step, text) in zip("ABCD", due)]


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
    tables = vote_tables(folder, [model.get("cache_key") for model in models])
    truth = [(model["score"], model["factor_vae"]) for model in models if model.get("factor_vae") is not None]
    extra = {"own_score": "own images", "factor_vae": "FactorVAE"}
    encodes = f"{result['encodes']:,} images encoded" if "encodes" in result else ""
    return {
        "facts": [
            ("Winner", short[0], f"{number(models[0]['score'])} ± {number(errors[0])}"),
            ("Models", number(len(models)), f"by {result['method']}"),
            ("Budget", f"{100 * result.get('budget', 1):.3g} %", encodes),
            ("Time", duration(result.get("seconds")), f"on {result['device']}" if "device" in result else ""),
        ],
        "warnings": [text.removeprefix("warning: ") for text in sentences if text.startswith("warning: ")],
        "sentences": [text for text in sentences if not text.startswith("warning: ")],
        "clusters": [[by_name.get(name, name) for name in side] for side in result.get("clusters", [])],
        "models": models,
        "extra": {key: label for key, label in extra.items() if any(model.get(key) is not None for model in models)},
        "traversals": _best_and_worst(folder, models, tables),
        "matrix": _matrix(tables, short) if tables else None,
        "similarity": None if tables and len(models) <= MAX_MODELS else _uri(folder / "similarity.png"),
        "scatter": figures.scatter(truth, result["method"]) if len(truth) > 1 else None,
        "correlation": result.get("rank_correlation"),
        "settings": [
            (name, result[name]) for name in ("groups", "group_size", "scale_samples", "seed") if name in result
        ],
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the folders and settings that all of them have."""
    parts = [re.split("[/,]", name) for name in names]
    shared = set.intersection(*map(set, parts))
    return [",".join(part for part in of if part not in shared) or name for of, name in zip(parts, names)]


def vote_tables(folder: Path, keys: Sequence[str | None]) -> Tables:
    """Read the votes of pairs from scores.h5: {(encoder, generator): counts [K_encoder + 1, K_generator]}.

    Models are numbered as in `keys`. The last row counts the groups in which no code could vote.
    """
    if not (folder / "scores.h5").is_file():
        return {}
    from .selection.scores import read

    _, found, num_codes, votes = read(folder / "scores.h5")
    rank, tables = {i: keys.index(key) for i, key in enumerate(found) if key in keys}, {}
    for (i, j), vote in votes.items():
        if i in rank and j in rank and len(vote):
            table = np.zeros((num_codes[i] + 1, num_codes[j]), np.int64)
            np.add.at(table, (vote.astype(np.int64), np.arange(len(vote)) % num_codes[j]), 1)  # -1: the last row
            tables[rank[i], rank[j]] = table
    return tables


def _matrix(tables: Tables, short: Sequence[str]) -> dict[str, Any]:
    """Return the scores of the pairs among the best models, and vote tables as long as there is room for them."""
    N, room, votes = min(len(short), MAX_MODELS), VOTE_TABLES, {}
    B = np.full((N, N), np.nan)
    for (i, j), table in sorted(tables.items(), key=lambda item: max(item[0])):
        if i < N and j < N:
            B[i, j] = table.max(1).sum() / table.sum()
            text = json.dumps(table.tolist(), separators=(",", ":"))
            room -= len(text)
            if room > 0:
                votes[f"{i},{j}"] = table.tolist()
    scores, mean = (
        [[None if np.isnan(x) else round(x, 4) for x in row] for row in X.tolist()] for X in (B, (B + B.T) / 2)
    )
    return {"names": short[:N], "mean": mean, "data": {"names": short[:N], "scores": scores, "votes": votes}}


def _best_and_worst(folder: Path, models: Sequence[Any], tables: Tables) -> list[tuple[Any, str | None, str]]:
    """Draw traversals of the best three models and the worst, with the code of the winner that each code follows."""
    drawn: list[tuple[Any, str | None, str]] = []
    for i in sorted({0, *range(min(3, len(models))), len(models) - 1}):
        row = models[i]
        places = [base / row["name"] for base in (Path(), *folder.resolve().parents[:3])]  # names may be relative
        place = next((place for place in places if place.is_dir()), None)
        model, problem = _open(place) if place else (None, f"there is no folder {row['name']} to open")
        if model is None:
            drawn.append((row, None, problem))
            continue
        images = pictures.traversal_images(model.model, num_values=7)[:MAX_CODES]
        order, labels = list(range(len(images))), [f"c{k + 1}" for k in range(len(images))]
        if i and (i, 0) in tables:
            votes = tables[i, 0][:-1]
            follows = pictures.followed_factors(votes, [f"c{k + 1}" for k in range(votes.shape[1])])
            labels = [f"{label} ~ {of}".removesuffix(" ~ –") for label, of in zip(labels, follows)]
            order.sort(key=lambda k: (follows[k] == "–", votes[k].argmax()))
        picture = pictures.image_grid(images[order], [labels[k] for k in order], shortest=48)
        changed = row.get("cache_key") not in (None, model.fingerprint)
        drawn.append((row, pictures.data_uri(picture), "It has changed since the selection." * changed))
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
                row["thumbnail"] = pictures.data_uri(picture)
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
            ("Varied", ", ".join(varied) or "–", ""),
        ],
        "runs": runs,
        "varied": varied,
    }


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.report", report, args)


if __name__ == "__main__":
    main()
