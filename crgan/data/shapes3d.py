"""A Shapes3D-like scene, ray-cast: one coloured object with its shadow in a square room under the sky."""

from collections.abc import Iterator
from functools import cache
from math import pi
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset, grid

FACTORS = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}

# Lengths in units of the camera's distance from the object; x to the right, y into the picture, z upwards.
_CAMERA_HEIGHT, _FOCAL, _ROOM, _WALL = 0.273, 72.7, 1.243, 0.734  # focal length in pixels of a 64 px image
_CUBE, _CYLINDER, _SPHERE, _CAPSULE = (0.206, 0.206), (0.218, 0.218), (0.239, 0.239), (0.18, 0.37)  # width, height
_SKY = (153 / 255, 226 / 255, 249 / 255)
_LIGHT = (-0.58, -0.28, 0.765)  # unit vector towards the lamp: left, in front, above
_AMBIENT, _FILL, _KEY = 0.5, 0.38, 0.42  # the fill light shines along y and casts no shadow
_SCALES = [1 + 2 / 3 * k / 7 for k in range(FACTORS["scale"])]  # the widths above are those of scale 0.75
_SAMPLES = 3  # per pixel and direction


def shapes3d_like() -> Dataset:
    """Make a scene like that of Shapes3D (Burgess and Kim 2018), with its six factors and 480,000 images, 3x64x64.

    The first request on a device traces the 480 geometries there (seconds); after that an image is one small
    matrix product.
    """
    return grid("shapes3d_like", FACTORS, (3, 64, 64), render=_render)


def _render(factors: Tensor) -> Tensor:
    # Light is linear in the colours of the surfaces: an image is colours [3, 4] times the geometry's maps.
    scale, shape, orientation = factors[:, 3], factors[:, 4], factors[:, 5]
    all_maps, sky = _maps(factors.device)
    maps = all_maps[(orientation * 4 + shape) * 8 + scale]
    hues = _hue_to_rgb(factors[:, :3].reshape(-1).float() / 10).view(-1, 3, 3)
    colours = torch.cat([hues, sky.expand(len(hues), 1, 3)], 1)  # [n, 4, 3]
    return torch.bmm(colours.transpose(1, 2), maps).clamp_(max=1).view(-1, 3, 64, 64)


@cache
def _maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how much light floor, walls, object and sky send to each pixel [480, 4, 64 * 64], and the sky's RGB."""
    f32: Any = {"dtype": torch.float32, "device": "cpu"}  # traced on the CPU: the same on every device
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: on a busy CPU two threads took 9 s, one 1.6 s
    try:
        angles = torch.linspace(-pi / 6, pi / 6, FACTORS["orientation"], **f32)
        maps = torch.stack([m for angle in angles for m in _trace(angle)])
        return maps.to(device), torch.tensor(_SKY, **f32).to(device)
    finally:
        torch.set_num_threads(threads)


def _trace(
    angle: Tensor,  # scalar, radians
) -> Iterator[Tensor]:
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

    def light(rays: Tensor, seen: Tensor, shaded: Tensor, object_normal: Tensor) -> Tensor:  # -> [4, len(rays)]
        room = _shade(normal[:, rays], lamp, ~shaded)
        is_floor, is_sky = floor[rays], sky[rays]
        return torch.stack(
            [
                room * (is_floor & ~seen),
                room * ~(is_floor | is_sky | seen),
                _shade(object_normal, lamp, seen).where(seen, 0),  # where nothing is hit the normal is not a number
                (is_sky & ~seen).float(),
            ]
        )

    everywhere, nowhere = torch.arange(size * size, device=angle.device), torch.zeros_like(sky)
    empty = light(everywhere, nowhere, nowhere, torch.zeros_like(ray))
    for shape in range(FACTORS["shape"]):
        # Convex and standing on one point, an object covers and shades a part of what a larger one does.
        most = _hit(shape, _SCALES[-1], eye, ray)[0].isfinite() | _hit(shape, _SCALES[-1], point, lamp)[0].isfinite()
        rays = most.nonzero()[:, 0]
        for scale in _SCALES:
            distance, object_normal = _hit(shape, scale, eye, ray[:, rays])
            shadow, _ = _hit(shape, scale, point[:, rays], lamp)
            maps = empty.index_copy(1, rays, light(rays, distance.isfinite(), shadow.isfinite(), object_normal))
            yield maps.view(4, 64, _SAMPLES, 64, _SAMPLES).mean((2, 4)).flatten(1)


def _shade(
    normal: Tensor,  # [3, r]
    lamp: Tensor,  # [3, 1]
    lit: Tensor,  # [r] bool
) -> Tensor:
    key = (normal * lamp).sum(0).clamp(min=0) * lit
    return _AMBIENT + _FILL * (-normal[1]).clamp(min=0) + _KEY * key


def _hit(
    shape: int,
    scale: float,
    origin: Tensor,  # [3, r] or [3, 1]
    ray: Tensor,  # [3, r] or [3, 1]
) -> tuple[Tensor, Tensor]:
    """Return the distance [r] to an object on the floor at the origin, infinite for a miss, and its normal [3, r]."""
    width, height = (_CUBE, _CYLINDER, _SPHERE, _CAPSULE)[shape]
    radius, height = width / 2 * scale, height * scale
    middle = origin.new_tensor([0, 0, height / 2])[:, None]
    (x, y, z), (dx, dy, dz) = origin, ray
    if shape == 0:
        centre = (middle - origin) / ray
        reach = radius / ray.abs()
        t, axis = (centre - reach).max(0)  # it enters the box when it has entered all three slabs
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


def _hue_to_rgb(
    hue: Tensor,  # [n] in [0, 1]
) -> Tensor:
    """Return RGB [n, 3] of the pure colours HSV(hue, 1, 1)."""
    sixths = hue[:, None] * 6
    return torch.cat([(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()], -1).clamp_(0, 1)
