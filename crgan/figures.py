"""What the report page shows of numbers: figures as SVG whose colours follow the page, colours, numbers, data URIs."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

from PIL import Image

from .config import Config

INK, SERIES = "#010203", {"#0072b2": "var(--series-1)", "#d55e00": "var(--series-2)"}

# Title, what it says, and {name in metrics.jsonl: name in the legend}.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("FactorVAE score", "Higher is better; 1 is perfect.", {"factor_vae": "FactorVAE score"}),
    (
        "Adversarial losses",
        "D's error in telling real images from generated ones, and G's in passing for real.",
        {"discriminator": "discriminator D", "generator": "generator G"},
    ),
    ("Information loss", "Q's negative log-likelihood of the codes; lower is better.", {"info": "encoder Q"}),
    (
        "Contrastive loss",
        "H's cross-entropy of the code that two images share; the dashed line is chance.",
        {"contrastive": "contrastive H"},
    ),
    ("Reconstruction loss", "Negative log-likelihood of the images; lower is better.", {"reconstruction": "decoder"}),
    (
        "Divergence from the prior",
        "KL divergence of the codes from the prior, and their total correlation.",
        {"kl": "KL divergence", "total_correlation": "total correlation"},
    ),
)
MAX_POINTS = 1_500  # of a curve


def curves(rows: Sequence[Mapping[str, Any]], marks: Sequence[tuple[str, int, str]], chance: float) -> list[Any]:
    """Draw a panel for each group of curves that `rows` hold: (title, explanation, SVG).

    `marks` are letters at steps where the schedule changes; `chance` is the contrastive loss of an H that guesses.
    """
    drawn = []
    known = {name for _, _, names in PANELS for name in names}
    others = [(name, "", {name: name}) for name in dict.fromkeys(n for row in rows for n in row) if name != "step"]
    for title, text, names in (*PANELS, *(panel for panel in others if panel[0] not in known)):
        series = {
            label: [(row["step"], row[name]) for row in rows if name in row]
            for name, label in names.items()
            if any(name in row for row in rows)
        }
        if not series:
            continue
        figure, axes = _figure(4.8, 2.4)
        for colour, (label, points) in zip(SERIES, series.items()):
            points = points[:: -(-len(points) // MAX_POINTS)]
            marker = "o" if len(points) < 40 else ""
            axes.plot(*zip(*points), color=colour, label=label, linewidth=1.4, marker=marker, markersize=3)
        if "contrastive" in names:
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle="--")
        if "factor_vae" in names:
            axes.set_ylim(0, 1.03)
        axes.set_xlim(0, max(row["step"] for row in rows))
        axes.set_xlabel("step")
        for letter, step, _ in marks:
            axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
            axes.text(step, 1.01, letter, color=INK, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        last = "; ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in series.items())
        drawn.append((title, text, _svg(figure, f"{title} by training step: {last}.")))
    return drawn


def schedule_marks(config: Mapping[str, Any], last: int) -> list[tuple[str, int, str]]:
    """Return where the schedule changes, up to step `last`: a letter, the step and what happens."""
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


def scatter(points: Sequence[tuple[float, float]], method: str) -> Any:
    """Draw the supervised score of each model against its score by the selection; the first, the winner, stands out."""
    figure, axes = _figure(4.8, 3.2)
    colours = list(SERIES)
    axes.scatter(*zip(*points[1:]), color=colours[0], s=22)
    axes.scatter(*points[0], color=colours[1], s=60, marker="D")
    axes.annotate("winner", points[0], (-8, 0), textcoords="offset points", color=INK, ha="right", va="center")
    axes.set_xlabel(method)
    axes.set_ylabel("FactorVAE score")
    return _svg(figure, f"FactorVAE score against {method} of {len(points)} models.")


def colour(share: float) -> str:
    """Return a colour of cividis, whose colours colour-blind readers can tell apart, for a number in [0, 1]."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["cividis"](float(share)))


def shade(share: float | None) -> str:
    """Return the style of a cell for a number in [0, 1]."""
    return "" if share is None else f"background:{colour(share)};color:{'#fff' if share < 0.55 else '#000'}"


def data_uri(picture: Image.Image | bytes) -> str:
    """Return a picture as text for a web page: bytes as they are, an image as PNG or, where that is large, WebP."""
    if isinstance(picture, bytes):
        return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content, kind = io.BytesIO(), "png"
    picture.save(content, format="PNG", optimize=True)
    if content.tell() > 150_000:
        content, kind = io.BytesIO(), "webp"
        picture.save(content, format="WEBP", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def number(value: Any, digits: int = 3) -> str:
    """Return a number as a reader expects it; a dash for None."""
    if isinstance(value, float):
        return f"{value:.{digits}f}".replace("-", "−")
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float | None) -> str:
    """Return a time in its largest units; a dash for None."""
    if seconds is None:
        return "–"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    return figure, axes


def _svg(figure: Any, description: str) -> Any:
    from markupsafe import Markup
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "svg.id": None}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])  # the same in every figure
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    for colour, name in {INK: "currentColor", **SERIES}.items():
        text = text.replace(colour, name)
    return Markup(text)
