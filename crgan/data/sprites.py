"""Flat data sets, rendered from their factors: dSprites, circular dSprites, coloured squares.

The caller's default type and device must not matter, so every new tensor names its own.
"""

from functools import cache
from math import cos, pi, sin

import torch
from torch import Tensor

from .dataset import Dataset, grid

DSPRITES = {"color": 1, "shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
CIRCULAR = {"angle": 40, "radius": 27}
SQUARES = {"posX": 16, "posY": 16, "size": 8, "colour": 10}


def dsprites() -> Dataset:
    """Make dSprites (Matthey et al. 2017) re-rendered: 1x64x64, {0, 1}, the published grid of 737,280 images.

    About 99.9 % of the lit pixels agree with the published file.
    """
    return grid("dsprites", DSPRITES, (1, 64, 64), render=_render_dsprites)


def _render_dsprites(factors: Tensor) -> Tensor:
    # A pixel is lit iff its centre lies inside the shape. float64 keeps pixels near the edge from depending
    # on the device. Only a window of 30 px, enough for every shape, is evaluated; it never leaves the image.
    # In-place steps matter: on a CPU fresh memory costs more than the arithmetic.
    shape = factors[:, 1, None, None]
    scale, theta = 0.5 + 0.1 * factors[:, 2].double(), (factors[:, 3] % 39).double() * (2 * pi / 39)
    centre = 16 + factors[:, 4:].double() * (32 / 31)  # x, y with y downwards
    corner = centre.floor() - 15
    pixel = torch.arange(30, device=factors.device)
    x, y = (corner - centre + 0.5)[:, :, None].add(pixel).unbind(1)  # [n, 30], about the shape's centre
    c, s = (theta.cos() / scale)[:, None], (theta.sin() / scale)[:, None]
    # Shape coordinates at scale 1, v upwards: the image turned back by theta, up to symmetry in u.
    u = ((c * x)[:, None, :] - (s * y)[:, :, None]).abs_()
    v = (-s * x)[:, None, :] - (c * y)[:, :, None]
    height = v.abs()
    square = torch.maximum(u, height) < 9.6
    ellipse = height.div_(7.214).square_().addcmul_(u, u, value=12.76**-2) < 1
    # Heart: x = 9.6 sin^3 t, y = 10.6/16 (13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) + 1.44. At a given x,
    # q = cos^2 t, and y is a part even in cos t, plus or minus a part odd in it.
    q = u.div_(9.6).pow_(2 / 3).neg_().add_(1)
    off = v.sub_(0.6625 * 4 + 1.44).add_(q, alpha=0.6625 * 2).addcmul_(q, q, value=0.6625 * 8).abs_()
    half = q.clamp_(min=0).sqrt().mul_(q.mul_(-8 * 0.6625).add_(19 * 0.6625))
    heart = off < half
    lit = torch.where(shape == 0, square, torch.where(shape == 1, ellipse, heart))
    return _paste(lit, corner.long(), 64)


def circular_dsprites() -> Dataset:
    """Make circular dSprites (Lin et al. 2020) re-rendered: 1x64x64, {0, 1}.

    A disc of radius 5 px stands at 40 angles and 27 distances from the centre.
    """
    return grid("circular_dsprites", CIRCULAR, (1, 64, 64), render=_render_circular)


@cache
def _circular_corners(device: torch.device) -> Tensor:
    # The published discs sit on whole pixels: their corner is the truncated position. (In 17 images a position
    # a rounding error below a whole pixel widened the disc by one; 1e-9 steps over that.)
    turns = [2 * pi * (k / CIRCULAR["angle"]) for k in range(CIRCULAR["angle"])]
    at = [[(32 + r * cos(t), 32 + r * sin(t)) for r in range(CIRCULAR["radius"])] for t in turns]
    return torch.tensor(at, dtype=torch.float64, device="cpu").sub(5 - 1e-9).long().to(device)


def _render_circular(factors: Tensor) -> Tensor:
    offset = torch.arange(-5, 6, device=factors.device).square()
    disc = (offset[:, None] + offset) <= 30
    corner = _circular_corners(factors.device)[factors[:, 0], factors[:, 1]]
    return _paste(disc.expand(len(factors), -1, -1), corner, 64)


def squares() -> Dataset:
    """Make coloured squares on black, 3x16x16: side 2 to 7 px, wholly inside the image, red to blue through purple.

    Red and blue add up to 1, so that colour and size do not share the brightness; an edge pixel holds the share
    that is covered. Small, with four independent factors: the quick set.
    """
    return grid("squares", SQUARES, (3, 16, 16), render=_render_squares)


def _render_squares(factors: Tensor) -> Tensor:
    half = 1 + factors[:, 2:3, None].float() * (2.5 / 7)
    centre = 3.5 + factors[:, :2, None].float() * (9 / 15)
    pixel = torch.arange(16, device=factors.device)
    # Share of each pixel's width, and height, that the square covers: [n, 2, 16].
    cover = (torch.minimum(pixel + 1, centre + half) - torch.maximum(pixel, centre - half)).clamp_(0, 1)
    blue = factors[:, 3].float() / 9
    colour = torch.stack([1 - blue, torch.zeros_like(blue), blue], 1)
    return colour[:, :, None, None] * (cover[:, 1, :, None] * cover[:, 0, None, :])[:, None]


def _paste(
    window: Tensor,  # [n, h, w] bool
    corner: Tensor,  # [n, 2] int64: x, y
    size: int,
) -> Tensor:
    n, h, w = window.shape
    row = torch.arange(h, device=corner.device)[:, None] * size + torch.arange(w, device=corner.device)
    where = (corner[:, 1] * size + corner[:, 0])[:, None, None] + row
    out = torch.zeros(n, size * size, dtype=torch.float32, device=corner.device)
    return out.scatter_(1, where.flatten(1), window.flatten(1).float()).view(n, 1, size, size)
