"""Pictures of what a model generates: samples and latent traversals."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import write_atomically
from .loading import draw_codes


def image_grid(images: Tensor, labels: Sequence[str] = (), gutter: int = 2, shortest: int = 64) -> Image.Image:
    """Arrange images [rows, columns, C, H, W] in [0, 1], enlarged to `shortest` px or more, with a label per row."""
    from matplotlib import get_data_path  # for its font: Pillow's has no dash

    rows, columns, channels, height, width = images.shape
    zoom = max(1, math.ceil(shortest / min(height, width)))
    height, width = height * zoom, width * zoom
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    pixels = pixels[:, :, :3] if channels >= 3 else pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
    font = ImageFont.truetype(get_data_path() + "/fonts/ttf/DejaVuSans.ttf", 13)
    margin = max((int(font.getlength(label)) + 12 for label in labels), default=gutter)
    grid = Image.new("RGB", (margin + columns * (width + gutter), gutter + rows * (height + gutter)), "white")
    for row, column in product(range(rows), range(columns)):
        tile = Image.fromarray(pixels[row, column].permute(1, 2, 0).numpy())
        corner = margin + column * (width + gutter), gutter + row * (height + gutter)
        grid.paste(tile.resize((width, height), Image.Resampling.NEAREST), corner)
    for row, label in enumerate(labels):
        middle = gutter + row * (height + gutter) + height // 2
        ImageDraw.Draw(grid).text((6, middle - 8), label, fill="black", font=font)
    return grid


def save(path: Path, *frames: Image.Image) -> None:
    """Write a picture, or several as an animation that repeats for ever, in the format that `path` names."""
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0}
    write_atomically(path, lambda temporary: frames[0].save(temporary, **(more if len(frames) > 1 else {})))


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text for a web page, in WebP: lossless unless that is large."""
    content = io.BytesIO()
    picture.save(content, format="WEBP", lossless=True)
    if content.tell() > 150_000:
        content = io.BytesIO()
        picture.save(content, format="WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def code_reach(model: Any) -> float:
    """Return how far from 0 a traversal moves a code: 1 for uniform codes, 2 for Gaussian ones."""
    return 1.0 if model.prior == "uniform" else 2.0


def traversal_codes(base: Tensor, num_values: int, low: float, high: float) -> Tensor:  # [K] -> [K, num_values, K]
    """Return a latent traversal: row i moves code i from `low` to `high`, the others keep their value in `base`."""
    codes = base.expand(len(base), num_values, -1).clone()
    rows = torch.arange(len(base))
    codes[rows, :, rows] = torch.linspace(low, high, num_values, dtype=base.dtype, device=base.device)
    return codes


def traversals(model: Any, count: int = 1, num_values: int = 10, seed: int = 0) -> Iterator[tuple[list[int], Tensor]]:
    """Yield traversals around `count` base images of random codes and noise; the last has codes and noise 0.

    Each is (columns [K], images [K, num_values, C, H, W]): column k holds the value of code k in the base image.
    Where `num_values` is odd, images[k, columns[k]] is the base image for every k.
    """
    K, reach, middle = model.num_codes, code_reach(model), num_values // 2
    latents = draw_codes(model.prior, (count, K + model.num_noise), seed)
    latents[-1] = 0
    columns = ((latents[:, :K].clamp(-reach, reach) / reach + 1) * middle).round()
    for column, noise in zip(columns, latents[:, K:]):
        codes = traversal_codes((column / middle - 1) * reach, num_values, -reach, reach).flatten(0, 1)
        given = {"noise": noise.expand(len(codes), -1)} if model.num_noise else {}
        yield column.int().tolist(), model.generate(codes, **given).unflatten(0, (K, num_values)).cpu()


def sprite_sheets(model: Any, max_codes: int, seed: int = 0, max_size: int = 3_500_000) -> dict[str, Any]:
    """Draw traversals around up to six base images, a sheet each: rows are the first codes, columns values.

    Returns the sheets as data URIs of up to `max_size` characters in all, the columns of the base images, the values.
    """
    sheets, columns = list[str](), list[list[int]]()
    for column, images in traversals(model, 6, 15, seed):
        sheet = image_grid(images[:max_codes], gutter=0, shortest=1)
        uri = data_uri(sheet.reduce(math.ceil(max(images.shape[3:]) / 128)))
        if sheets and sum(map(len, sheets)) + len(uri) > max_size:
            break
        sheets.append(uri)
        columns.append(column[:max_codes])
    return {"sheets": sheets, "columns": columns, "values": (np.linspace(-1, 1, 15) * code_reach(model)).tolist()}


def traversal_picture(model: Any, labels: Sequence[str] = ()) -> Image.Image:
    """Draw a latent traversal: rows are codes, columns are 10 values of that code; all else stays at 0."""
    return image_grid(next(traversals(model))[1], _row_labels(model, labels))


def traversal_frames(model: Any, labels: Sequence[str] = ()) -> list[Image.Image]:
    """Draw an animation in which every code (row) moves back and forth, in four base images (columns)."""
    images = torch.stack([images for _, images in traversals(model, 4, num_values=9)])  # [4, K, 9, C, H, W]
    frames = [image_grid(frame, _row_labels(model, labels)) for frame in images.permute(2, 1, 0, 3, 4, 5)]
    return frames + frames[-2:0:-1]


def _row_labels(model: Any, labels: Sequence[str]) -> list[str]:
    return [f"c{i + 1}" + (f"  {labels[i]}" if labels else "") for i in range(model.num_codes)]


def samples_picture(model: Any, rows: int = 8, columns: int = 8, seed: int = 0) -> Image.Image:
    return image_grid(model.sample(rows * columns, seed).unflatten(0, (rows, columns)), shortest=32)


def followed_factors(votes: np.ndarray, names: Sequence[str]) -> list[str]:
    """Name the factor that each code follows, with its share of the code's votes: "posY 97 %".

    `votes` [K, F] counts the groups of each factor for which a code voted. A code gets "–" unless its best share
    exceeds chance, 1 / F, by three standard errors.
    """
    total, chance = votes.sum(1).clip(min=1), 1 / votes.shape[1]
    shares, limits = votes.max(1) / total, chance + 3 * (chance * (1 - chance) / total) ** 0.5
    best = zip(votes.argmax(1), shares, limits)
    return [f"{names[f]} {100 * share:.0f} %" if share > limit else "–" for f, share, limit in best]
