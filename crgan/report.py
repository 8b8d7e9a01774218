"""`python -m crgan.report RUN|SELECTION`: one page, report.html, of what a run or a selection has written."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from . import cli
from .errors import InputError
from .files import write_atomically
from .loading import run_key
from .metrics import rows

STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em 1em .2em 0;text-align:left}"


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Writes report.html, which holds its pictures, into the folder.

    Args:
        folder: A run folder of crgan.train or the --out folder of crgan.select.
    """
    if (folder / "config.json").is_file():
        write = _run
    elif (folder / "ranking.json").is_file():
        write = _selection
    else:
        raise InputError(
            f"{folder} holds neither config.json nor ranking.json; expected a run folder or the --out of crgan.select"
        )
    try:
        body = write(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the files in {folder} are damaged, or not of this library ({error})") from error
    title = html.escape(folder.resolve().name)
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}"
    write_atomically(folder / "report.html", lambda temporary: temporary.write_text(page))
    print(f"wrote {folder / 'report.html'}")


def _run(folder: Path) -> str:
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]  # a kill may leave half of one at the end
    rows = [json.loads(line) for line in lines]
    scores = [(row["step"], row["factor_vae"]) for row in rows if "factor_vae" in row]
    figure = Figure((8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in sorted({name for row in rows for name in row} - {"step", "factor_vae"}):
        points = [(row["step"], row[name]) for row in rows if name in row]
        above.plot(*zip(*points), label=name, linewidth=0.8)
    above.set_ylabel("loss")
    if above.lines:
        above.legend(ncols=6, fontsize="small")
    if scores:
        below.plot(*zip(*scores), marker="o", markersize=3)
    below.set(ylabel="FactorVAE score", xlabel="step", ylim=(0, 1.02))
    config = json.loads((folder / "config.json").read_text())["config"]
    parts = [_picture(path) for path in (folder / "traversal.png", folder / "samples.png") if path.is_file()]
    return "".join([f"<p>{_figure(figure)}", *parts, _scores(folder), _table([("field", "value"), *config.items()])])


def _scores(folder: Path) -> str:
    """What crgan.evaluate has found, if it was asked."""
    file = folder / "metrics.json"
    if not file.is_file():
        return ""
    current = run_key(folder)
    parts = []
    for key, entries in json.loads(file.read_text()).items():
        for entry in entries:
            table = [("metric", "better", "score")]
            for name, result in entry["metrics"].items():
                table += [(label, better, _short(result[part])) for part, label, better in rows(name) if part in result]
            when = ", of an earlier checkpoint" * (key != current)
            title = f"{entry['data']}, {entry['protocol']} protocol, seed {entry['seed']}{when}"
            parts.append(f"<h2>{html.escape(title)}</h2>{_table(table)}")
    return "".join(parts)


def _selection(folder: Path) -> str:
    result = json.loads((folder / "ranking.json").read_text())
    models = result["models"]
    told = [name for name in models[0] if any(model.get(name) is not None for model in models)]
    names = [name for name in told if name != "cache_key"]
    rows = [names, *([_short(model.get(name, "")) for name in names] for model in models)]
    similarity = folder / "similarity.png"
    words = "".join(f"<p>{html.escape(line)}" for line in [f"method: {result['method']}", *result.get("sentences", [])])
    return words + _table(rows) + (_picture(similarity) if similarity.is_file() else "")


def _short(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def _table(rows: Any) -> str:
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _figure(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return _image(content.getvalue())


def _picture(path: Path) -> str:
    return f"<h2>{path.stem}</h2>{_image(path.read_bytes())}"


def _image(content: bytes) -> str:
    return f'<img style="max-width:100%" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.report", report, args)


if __name__ == "__main__":
    main()
