"""Data sets rendered from their factors [n, F]. New tensors state their type and device, whatever torch's defaults."""

from collections.abc import Iterator
from functools import cache
from math import pi, prod
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset

DSPRITES = {"color": 1, "shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
CIRCULAR = {"angle": 40, "radius": 27}
SQUARES = {"posX": 16, "posY": 16, "size": 8, "colour": 10}
SHAPES3D = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}


def dsprites(factors: Tensor) -> Tensor:
    """Draw dSprites (Matthey et al. 2017) anew: 1x64x64, {0, 1}; 99.9 % of lit pixels agree with the published file."""
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
    return _paste(lit, corner.long())


def circular_dsprites(factors: Tensor) -> Tensor:
    """Draw circular dSprites (Lin et al. 2020) anew: 1x64x64, {0, 1}, a disc of radius 5 px at an angle and radius."""
    offset = torch.arange(-5, 6, device=factors.device).square()
    disc = (offset[:, None] + offset) <= 30
    angle, radius = factors[:, 0].double() * (2 * pi / CIRCULAR["angle"]), factors[:, 1].double()
    centre = 32 + torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    # The published discs sit on whole pixels: their corner is the truncated position. (In 17 images rounding put a
    # position just below a whole pixel, which widened the disc by one; adding 1e-9 avoids that.)
    return _paste(disc.expand(len(factors), -1, -1), (centre - 5 + 1e-9).long())


def squares(factors: Tensor) -> Tensor:
    """Draw coloured squares on black, 3x16x16: side 2 to 7 px, wholly inside the image, red to blue through purple.

    Red and blue add up to 1, so that colour does not change the brightness as size does; a pixel on an edge is
    lit by the share that is covered.
    """
    half = 1 + factors[:, 2:3, None].float() * (2.5 / 7)
    centre = 3.5 + factors[:, :2, None].float() * (9 / 15)
    pixel = torch.arange(16, device=factors.device)
    # Share of each pixel's width, and height, that the square covers: [n, 2, 16].
    cover = (torch.minimum(pixel + 1, centre + half) - torch.maximum(pixel, centre - half)).clamp_(0, 1)
    blue = factors[:, 3].float() / 9
    colour = torch.stack([1 - blue, torch.zeros_like(blue), blue], 1)
    return colour[:, :, None, None] * (cover[:, 1, :, None] * cover[:, 0, None, :])[:, None]


def _paste(window: Tensor, corner: Tensor) -> Tensor:  # [n, h, w] bool, [n, 2] int64: x, y -> [n, 1, 64, 64]
    n, h, w = window.shape
    pixels = torch.arange(h, device=corner.device)[:, None] * 64 + torch.arange(w, device=corner.device)
    pixels = (corner[:, 1] * 64 + corner[:, 0])[:, None, None] + pixels
    out = torch.zeros(n, 64 * 64, dtype=torch.float32, device=corner.device)
    return out.scatter_(1, pixels.flatten(1), window.flatten(1).float()).view(n, 1, 64, 64)


# shapes3d_like, in units of the camera's distance from the object: x to the right, y into the picture, z upwards.
_CAMERA_HEIGHT, _FOCAL, _ROOM, _WALL = 0.273, 72.7, 1.243, 0.734  # focal length in pixels of a 64 px image
_CUBE, _CYLINDER, _SPHERE, _CAPSULE = (0.206, 0.206), (0.218, 0.218), (0.239, 0.239), (0.18, 0.37)  # width, height
_SKY = (153 / 255, 226 / 255, 249 / 255)
_LIGHT = (-0.58, -0.28, 0.765)  # unit vector towards the lamp: left, in front, above
_AMBIENT, _FILL, _KEY = 0.5, 0.38, 0.42  # the fill light shines along y and casts no shadow
_SCALES = [1 + 2 / 3 * k / 7 for k in range(SHAPES3D["scale"])]  # the widths above are those of scale 0.75
_SAMPLES = 3  # per pixel and direction


def shapes3d_like(factors: Tensor) -> Tensor:
    """Draw a scene like that of Shapes3D (Burgess and Kim 2018), 3x64x64.

    The first request for a device traces the 480 geometries on the CPU (seconds); after that an image is one
    small matrix product.
    """
    # Light is linear in the colours of the surfaces: an image is colours [3, 4] times the geometry's maps.
    scale, shape, orientation = factors[:, 3], factors[:, 4], factors[:, 5]
    all_maps, sky = _maps(factors.device)
    maps = all_maps[(orientation * 4 + shape) * 8 + scale]
    sixths = factors[:, :3].float() / 10 * 6  # of the circle of pure colours HSV(hue, 1, 1)
    hues = torch.stack([(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()], -1).clamp_(0, 1)
    colours = torch.cat([hues, sky.expand(len(hues), 1, 3)], 1)  # [n, 4, 3]
    return torch.bmm(colours.transpose(1, 2), maps).clamp_(max=1).view(-1, 3, 64, 64)


@cache
def _maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how much light floor, walls, object and sky send to each pixel [480, 4, 64 * 64], and the sky's RGB."""
    angles = torch.linspace(-pi / 6, pi / 6, 15, dtype=torch.float32, device="cpu")  # the same maps for every device
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: two threads on a busy CPU take 15 times as long
    try:
        maps = torch.stack([m for angle in angles for m in _trace(angle)])
    finally:
        torch.set_num_threads(threads)
    return maps.to(device), torch.tensor(_SKY, dtype=torch.float32, device=device)


def _trace(angle: Tensor) -> Iterator[Tensor]:  # scalar, radians
    """Yield the maps [4, 64 * 64] of one view of each shape at each scale."""
    size = 64 * _SAMPLES
    at = (torch.arange(size, dtype=torch.float32, device=angle.device) + 0.5) / _SAMPLES - 32
    across, down = at.repeat(size) / _FOCAL, at.repeat_interleave(size) / _FOCAL
    c, s = angle.cos(), angle.sin()
    eye = torch.stack([s, -c, torch.full_like(s, _CAMERA_HEIGHT)])[:, None]
    ray = torch.stack([c * across - s, s * across + c, -down])  # [3, r], of length 1 in the direction of view
    lamp = ray.new_tensor(_LIGHT)[:, None]

    # The room: a ray leaves through a wall, above it (sky), or below it (floor).
    to_x, to_y = (_ROOM * ray[:2].sign() - eye[:2]) / ray[:2]
    t = torch.minimum(to_x, to_y)
    height = eye[2] + t * ray[2]
    floor, sky = height < 0, height > _WALL
    point = eye + torch.where(floor, -eye[2] / ray[2], t) * ray
    facing_x, facing_y = ~floor & (to_x < to_y), ~floor & (to_x >= to_y)
    normal = torch.stack([-ray[0].sign() * facing_x, -ray[1].sign() * facing_y, floor.float()])

    for shape in range(SHAPES3D["shape"]):
        for scale in _SCALES:
            distance, object_normal = _hit(shape, scale, eye, ray)
            seen, shaded = distance.isfinite(), _hit(shape, scale, point, lamp)[0].isfinite()
            room = _shade(normal, lamp, ~shaded)
            thing = _shade(object_normal, lamp, seen).where(seen, 0)  # where nothing is hit the normal is not a number
            maps = torch.stack([room * (floor & ~seen), room * ~(floor | sky | seen), thing, (sky & ~seen).float()])
            yield maps.view(4, 64, _SAMPLES, 64, _SAMPLES).mean((2, 4)).flatten(1)


def _shade(normal: Tensor, lamp: Tensor, lit: Tensor) -> Tensor:  # [3, r], [3, 1], [r] bool -> [r]
    key = (normal * lamp).sum(0).clamp(min=0) * lit
    return _AMBIENT + _FILL * (-normal[1]).clamp(min=0) + _KEY * key


def _hit(shape: int, scale: float, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:  # origin, ray [3, r or 1]
    """Return the distance [r] to an object on the floor at the origin, infinite for a miss, and its normal [3, r]."""
    width, height = (_CUBE, _CYLINDER, _SPHERE, _CAPSULE)[shape]
    radius, height = width / 2 * scale, height * scale
    middle = origin.new_tensor([0, 0, height / 2])[:, None]
    (x, y, z), (dx, dy, dz) = origin, ray
    if shape == 0:
        centre = (middle - origin) / ray
        reach = radius / ray.abs()
        t, axis = (centre - reach).max(0)  # a ray enters the box when it has entered all three slabs
        normal = -ray.sign() * (axis == torch.arange(3, device=ray.device)[:, None])
        return t.where((t < (centre + reach).amin(0)) & (t > 0), torch.inf), normal
    side = _root(dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - radius**2)
    level = z + side * dz
    if shape == 1:
        side = side.where((level > 0) & (level < height), torch.inf)
        lid = (height - z) / dz
        lid = lid.where(((x + lid * dx) ** 2 + (y + lid * dy) ** 2 < radius**2) & (lid > 0), torch.inf)
        t, flat = torch.minimum(side, lid), lid < side
        return t, torch.stack([(x + t * dx) / radius * ~flat, (y + t * dy) / radius * ~flat, flat.float()])
    # A capsule is two balls and the wall between them; a sphere is one without a wall.
    low, high = radius, height - radius
    t = side.where((level > low) & (level < high), torch.inf)
    for c in {low, high}:
        rest = x * x + y * y + (z - c) ** 2 - radius**2
        t = torch.minimum(t, _root((ray * ray).sum(0), x * dx + y * dy + (z - c) * dz, rest))
    level = z + t * dz
    return t, torch.stack([x + t * dx, y + t * dy, level - level.clamp(low, high)]) / radius


def _root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the smaller solution of a t^2 + 2 b t + c = 0 where it is real and positive, else infinity."""
    square = b * b - a * c
    t = (-b - square.clamp(min=0).sqrt()) / a
    return t.where((square > 0) & (t > 0), torch.inf)


_ABOUT: dict[str, Any] = {"source": "rendered", "identity": "rendered"}
RENDERED = {
    draw.__name__: Dataset(draw.__name__, shape, prod(f.values()), tuple(f), tuple(f.values()), draw, **_ABOUT)
    for draw, shape, f in (
        (squares, (3, 16, 16), SQUARES),
        (dsprites, (1, 64, 64), DSPRITES),
        (circular_dsprites, (1, 64, 64), CIRCULAR),
        (shapes3d_like, (3, 64, 64), SHAPES3D),
    )
}
