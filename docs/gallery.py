"""`python docs/gallery.py OUT.png`: a picture of the sets that need no files, one factor changing along each row."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from crgan.cli import run
from crgan.data import RENDERED, load
from crgan.errors import InputError

_COLUMNS = 10
_SEED = 3425  # of what stays fixed: factors that all show


def gallery(out: Path, /) -> None:
    """Draws each set that is drawn from its factors, one row per factor."""
    if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"{out} is no name for a picture; expected one that ends in .png, .jpg, .pdf or .svg")
    sets = [load(name) for name in RENDERED]
    rows = [[f for f, size in enumerate(dataset.factor_sizes) if size > 1] for dataset in sets]
    height = 0.72 * sum(map(len, rows)) + 0.4 * len(sets)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(9.2, height), dpi=100, layout=layout)
    parts = figure.subfigures(len(sets), 1, height_ratios=[len(row) + 0.55 for row in rows], squeeze=False)[:, 0]
    for dataset, varying, part in zip(sets, rows, parts):
        part.suptitle(f"{dataset.name}: {dataset.num_images:,} images", fontsize=10)
        fixed = dataset.sample_factors(1, _SEED)[0]
        axes = part.subplots(len(varying), _COLUMNS, squeeze=False)
        for f, line in zip(varying, axes):
            factors = fixed.repeat(_COLUMNS, 1)
            factors[:, f] = torch.linspace(0, dataset.factor_sizes[f] - 1, _COLUMNS).round()
            for image, axis in zip(dataset.images(factors), line):
                axis.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(dataset.factor_names[f], rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(out)
    print(f"wrote {out}")


run("docs/gallery.py", gallery)
