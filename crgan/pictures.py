"""Pictures of what a model generates: samples and latent traversals."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .figures import data_uri
from .files import write_atomically


def image_grid(
    images: Tensor,  # [rows, columns, C, H, W] in [0, 1]; of more than 3 channels the first is shown
    labels: Sequence[str] = (),
    gutter: int = 2,
    shortest: int = 64,
) -> Image.Image:
    """Arrange images in a grid with a label per row, each enlarged by an integer factor to at least `shortest`."""
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


def traversal_codes(
    base: Tensor,  # [K], the codes that stay
    num_values: int,
    low: float,
    high: float,
) -> Tensor:  # [K, num_values, K]
    """Latent traversal: row i moves code i from `low` to `high` while the others keep their value in `base`."""
    codes = base.expand(len(base), num_values, -1).clone()
    rows = torch.arange(len(base))
    codes[rows, :, rows] = torch.linspace(low, high, num_values, dtype=base.dtype, device=base.device)
    return codes


def code_reach(model: Any) -> float:
    """Return how far from 0 a traversal moves a code: 1 for uniform codes, 2 for Gaussian ones."""
    return 1.0 if getattr(model, "prior", "normal") == "uniform" else 2.0


def traversal_images(
    model: Any,  # with num_codes and generate
    base: Tensor | None = None,  # [K]; None: all 0
    noise: Tensor | None = None,  # [Z]; None: all 0
    num_values: int = 10,
    reach: float | None = None,  # None: code_reach
) -> Tensor:  # [K, num_values, C, H, W]
    """Generate the images of a latent traversal from -reach to reach. The noise is the same in all of them."""
    k, num_noise = model.num_codes, getattr(model, "num_noise", 0)
    reach = code_reach(model) if reach is None else reach
    base = torch.zeros(k, dtype=torch.float32) if base is None else base
    codes = traversal_codes(base, num_values, -reach, reach).flatten(0, 1)
    if not num_noise:
        return model.generate(codes).unflatten(0, (k, num_values))
    noise = torch.zeros(num_noise, dtype=torch.float32) if noise is None else noise
    return model.generate(codes, noise=noise.expand(len(codes), -1)).unflatten(0, (k, num_values))


class BaseTraversal(NamedTuple):
    """The traversals of all codes around one base image."""

    columns: list[int]  # [K], the column that holds each code's value in the base image
    images: Tensor  # [K, num_values, C, H, W]; images[k, columns[k]] is the base image for every k


def base_traversals(model: Any, count: int, num_values: int = 15, seed: int = 0) -> Iterator[BaseTraversal]:
    """Yield traversals around `count` base images: of random codes and noise, and last of codes and noise 0.

    The codes are drawn from the values of the traversal, whose number is odd.
    """
    K, num_noise, middle = model.num_codes, getattr(model, "num_noise", 0), num_values // 2
    uniform = getattr(model, "prior", "normal") == "uniform"
    reach, draw = code_reach(model), torch.Generator().manual_seed(seed)
    for i in range(count):
        if uniform:
            columns = torch.randint(num_values, (K,), generator=draw)
            noise = torch.rand(num_noise, generator=draw) * 2 - 1
        else:
            codes = torch.randn(K, generator=draw).clamp(-reach, reach)
            columns = ((codes / reach + 1) * middle).round().long()
            noise = torch.randn(num_noise, generator=draw)
        if i == count - 1:
            columns, noise = torch.full_like(columns, middle), torch.zeros_like(noise)
        base = (columns / middle - 1) * reach
        yield BaseTraversal(columns.tolist(), traversal_images(model, base, noise, num_values, reach).cpu())


def sprite_sheets(model: Any, max_codes: int, seed: int = 0, max_size: int = 3_500_000) -> dict[str, Any]:
    """Draw traversals around up to six base images, a sheet each: rows are the first codes, columns values.

    Returns the sheets as data URIs of `max_size` characters together, each code's column in the base image, and the
    values of the columns.
    """
    num_values, reach = 15, code_reach(model)
    sheets: list[str] = []
    columns: list[list[int]] = []
    for base in base_traversals(model, 6, num_values, seed):
        sheet = image_grid(base.images[:max_codes], gutter=0, shortest=1)
        factor = -(-max(base.images.shape[3:]) // 128)
        uri = data_uri(sheet.reduce(factor) if factor > 1 else sheet)
        if sheets and sum(map(len, sheets)) + len(uri) > max_size:
            break
        sheets.append(uri)
        columns.append(base.columns[:max_codes])
    steps = [reach * (2 * i / (num_values - 1) - 1) for i in range(num_values)]
    return {"sheets": sheets, "columns": columns, "steps": steps}


def traversal_frames(model: Any, labels: Sequence[str] = ()) -> list[Image.Image]:
    """Draw an animation in which every code (row) moves to and fro, in four base images (columns)."""
    images = torch.stack([base.images for base in base_traversals(model, 4, num_values=9)])  # [4, K, 9, C, H, W]
    frames = [image_grid(images[:, :, v].transpose(0, 1), row_labels(model, labels)) for v in range(9)]
    return frames + frames[-2:0:-1]


def row_labels(model: Any, labels: Sequence[str] = ()) -> list[str]:
    return [f"c{i + 1}" + (f"  {labels[i]}" if labels else "") for i in range(model.num_codes)]


def traversal_picture(
    model: Any,
    labels: Sequence[str] = (),  # K texts: what each code follows
) -> Image.Image:
    """Draw a latent traversal: rows are codes, columns are 10 values of that code; all else stays at 0."""
    return image_grid(traversal_images(model), row_labels(model, labels))


def samples_picture(model: Any, rows: int = 8, columns: int = 8, seed: int = 0) -> Image.Image:
    return image_grid(model.sample(rows * columns, seed).unflatten(0, (rows, columns)), shortest=32)


def followed_factors(votes: np.ndarray, names: Sequence[str]) -> list[str]:
    """Name the factor that each code follows, with its share of the code's votes: "posY 97 %".

    `votes` [K, F] counts the groups of each factor for which a code voted. A code gets "–" unless its best share
    exceeds chance, 1 / F, by three standard errors.
    """
    labels, chance = [], 1 / votes.shape[1]
    for row in votes:
        total, best = int(row.sum()), int(row.argmax())
        share = row[best] / max(total, 1)
        supported = total > 0 and share > chance + 3 * (chance * (1 - chance) / total) ** 0.5
        labels.append(f"{names[best]} {100 * share:.0f} %" if supported else "–")
    return labels


def save_picture(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def save_animation(frames: Sequence[Image.Image], path: Path, milliseconds: int = 120) -> None:
    """Write a GIF that repeats for ever."""
    first, *others = (frame.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for frame in frames)
    options: dict[str, Any] = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    write_atomically(path, lambda temporary: first.save(temporary, format="GIF", **options))
