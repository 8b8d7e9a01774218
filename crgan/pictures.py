"""What a model makes, as pictures: samples and latent traversals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import write_atomically
from .latent import traversal_codes


def image_grid(
    images: Tensor,  # [rows, columns, C, H, W] in [0, 1]; of more than 3 channels the first is shown
    labels: Sequence[str] = (),
    gutter: int = 2,
    shortest: int = 64,
) -> Image.Image:
    """The images in a grid, each enlarged by a whole factor to at least `shortest` pixels, with a label per row."""
    rows, columns, channels, height, width = images.shape
    zoom = max(1, -(-shortest // min(height, width)))
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    pixels = pixels[:, :, :3] if channels >= 3 else pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
    pixels = pixels.repeat_interleave(zoom, 3).repeat_interleave(zoom, 4)
    font = ImageFont.load_default(13)
    margin = max((int(font.getlength(label)) + 12 for label in labels), default=gutter)
    step_y, step_x = height * zoom + gutter, width * zoom + gutter
    grid = Image.new("RGB", (margin + columns * step_x, gutter + rows * step_y), "white")
    draw = ImageDraw.Draw(grid)
    for r in range(rows):
        if labels:
            draw.text((6, gutter + r * step_y + height * zoom // 2 - 8), labels[r], fill="black", font=font)
        for c in range(columns):
            tile = Image.fromarray(np.ascontiguousarray(pixels[r, c].permute(1, 2, 0).numpy()))
            grid.paste(tile, (margin + c * step_x, gutter + r * step_y))
    return grid


def traversal_picture(
    model: Any,  # with num_codes and generate
    moved: Sequence[str] = (),  # K names of the factor that each code moves most
) -> Image.Image:
    """Rows are codes, columns are 10 values of that code, from -1 to 1 or, where codes are Gaussian, from -2 to 2; all
    else, noise too, stands still at 0."""
    k, num_values = model.num_codes, 10
    reach = 1.0 if getattr(model, "prior", "normal") == "uniform" else 2.0
    codes = traversal_codes(torch.zeros(k), num_values, -reach, reach)
    # One row of noise for all images: a batch of equal rows would draw it anew for each.
    noise = torch.zeros(k * num_values, model.num_noise) if getattr(model, "num_noise", 0) else None
    codes = codes.flatten(0, 1)
    images = model.generate(codes) if noise is None else model.generate(codes, noise=noise)
    labels = [f"c{i + 1}" + (f"  {moved[i]}" if moved else "") for i in range(k)]
    return image_grid(images.unflatten(0, (k, num_values)), labels)


def samples_picture(model: Any, rows: int = 8, columns: int = 8, seed: int = 0) -> Image.Image:
    return image_grid(model.sample(rows * columns, seed).unflatten(0, (rows, columns)), shortest=32)


def moved_factors(votes: np.ndarray, names: Sequence[str]) -> list[str]:
    """For each row of a vote table [K, F] the name of the factor with most votes, "-" where it has none."""
    return [names[int(row.argmax())] if row.any() else "-" for row in votes]


def save_picture(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
