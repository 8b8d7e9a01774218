"""Figures of the report page, as SVG whose colours follow those of the page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

INK, SERIES = "#010203", ("#0072b2", "#d55e00")
CSS = {INK: "currentColor", SERIES[0]: "var(--series-1)", SERIES[1]: "var(--series-2)"}
STYLE: Any = dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"], INK)

# Title, what it says, and names in metrics.jsonl.
PANELS = (
    ("FactorVAE score", "Higher is better; 1 is perfect.", ["factor_vae"]),
    ("Adversarial losses", "D's for telling real from generated, G's for fooling D.", ["discriminator", "generator"]),
    ("Information loss", "Q's negative log-likelihood of the codes; lower is better.", ["info"]),
    ("Contrastive loss", "H's cross-entropy of the code that two images share.", ["contrastive"]),
    ("Reconstruction loss", "Negative log-likelihood of the images; lower is better.", ["reconstruction"]),
    ("Divergence of the codes", "KL from the prior, and total correlation, in nats.", ["kl", "total_correlation"]),
)


def curves(rows: Sequence[Mapping[str, Any]], marks: Sequence[tuple[str, int, str]]) -> list[tuple[str, str, str]]:
    """Draw a panel for each group of curves in `rows`, marked with letters: (title, explanation, SVG)."""
    drawn = []
    for title, text, names in PANELS:
        series = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
        series = {name.replace("_", " "): points for name, points in series.items() if points}
        if series:
            last = "; ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in series.items())
            drawn.append((title, text, _svg(f"{title}: {last}.", partial(_curves, series, marks))))
    return drawn


def _curves(series: Mapping[str, Sequence[Any]], marks: Sequence[tuple[str, int, str]], axes: Any) -> None:
    for colour, (name, points) in zip(SERIES, series.items()):
        axes.plot(*zip(*points), color=colour, label=name, linewidth=1.4, marker="." if len(points) < 40 else "")
    for letter, step, _ in marks:
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
        axes.text(step, 1.01, letter, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.margins(x=0)
    axes.set(xlabel="step", xlim=(0, None), ylim=(0, 1.03) if "factor vae" in series else None)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(series) > 1:
        axes.legend(frameon=False)


def schedule_marks(config: Mapping[str, Any], last: int) -> list[tuple[str, int, str]]:
    """Return where the schedule changes, up to step `last`: a letter, the step and what happens."""
    changes = [((config["num_codes"] - 1) * config["code_warmup_steps"], "all codes are faded in")]
    if config["cr_weight"]:
        gap, new_gap = f"{config['gap']:g}", f"{config['gap_after']:g}"
        changes.append((config["cr_start"], f"the contrastive regularizer starts, with gap {gap}"))
        changes.append((config["gap_switch"] or 0, f"the contrastive gap becomes {new_gap}, with a new H"))
    if config["blur"]:
        changes.append((config["blur_steps"], "the blur of what D sees has decayed to 0"))
    reached = sorted((step, text) for step, text in changes if 0 < step <= last)
    return [(letter, step, text) for letter, (step, text) in zip("ABCD", reached)]


def scatter(points: Sequence[tuple[float, float]], method: str) -> str:
    """Draw the supervised score of each model against its score by the selection; the first, the winner, stands out."""

    def draw(axes: Any) -> None:
        axes.scatter(*zip(*points[1:]), color=SERIES[0])
        axes.scatter(*points[0], color=SERIES[1], marker="D", label="the winner")
        axes.legend(frameon=False)
        axes.set(xlabel=method, ylabel="FactorVAE score")

    return _svg(f"FactorVAE score against {method} of {len(points)} models.", draw)


def _svg(description: str, draw: Callable[[Any], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    content = io.StringIO()
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": description}):
        figure = Figure((4.8, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # which would repeat in every figure of a page
    for colour, name in CSS.items():
        text = text.replace(colour, name)
    return text
