"""The sixteen primitives of the miniature world, as signed distances in units of their own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-12  # keeps square roots differentiable at 0


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square() + _FLOOR).sqrt()


def _box(x: Tensor, y: Tensor, z: Tensor, half: tuple[float, float, float]) -> Tensor:
    dx, dy, dz = x.abs() - half[0], y.abs() - half[1], z.abs() - half[2]
    outside = dx.clamp(min=0).square() + dy.clamp(min=0).square() + dz.clamp(min=0).square()
    inside = torch.maximum(torch.maximum(dx, dy), dz).clamp(max=0)
    return (outside + _FLOOR).sqrt() + inside


def _prism(flat: Tensor, z: Tensor, half_height: float) -> Tensor:
    """A figure of signed distance `flat`, between two planes."""
    cap = z.abs() - half_height
    return _length(flat.clamp(min=0), cap.clamp(min=0)) + torch.maximum(flat, cap).clamp(max=0)


def _ring(x: Tensor, y: Tensor, z: Tensor, radius: float, thickness: float) -> Tensor:
    """A torus around the z axis."""
    return _length(_length(x, y) - radius, z) - thickness


def _taper(width: Tensor, z: Tensor, base: float, height: float) -> Tensor:
    """Between z = 0, where |width| may be `base`, and z = `height`, where it is 0."""
    slope = (width * height + (z - height) * base) / math.hypot(height, base)
    return torch.maximum(slope, -z)


def _sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.square() + y.square() + z.square() + _FLOOR).sqrt() - 1


def _cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _box(x, y, z, (1.0, 1.0, 1.0))


def _cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _prism(_length(x, y) - 0.72, z, 1.0)


def _disk(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _prism(_length(x, y) - 1, z, 0.25)


def _cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _taper(_length(x, y), z, 1.0, 2.0)


def _pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _taper(torch.maximum(x.abs(), y.abs()), z, 1.0, 1.9)


def _wedge(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_taper(x.abs(), z, 1.0, 1.7), y.abs() - 0.95)


def _torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _ring(x, y, z, 1.0, 0.4)


def _capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.square() + y.square() + (z.abs() - 1).clamp(min=0).square() + _FLOOR).sqrt() - 0.7


def _diamond(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.abs() + y.abs() + z.abs() - 1) / math.sqrt(3)


def _dome(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_sphere(x, y, z), -z)


def _cross(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    long, wide = 1.0, 0.28
    arms = torch.minimum(_box(x, y, z, (long, wide, wide)), _box(x, y, z, (wide, long, wide)))
    return torch.minimum(arms, _box(x, y, z, (wide, wide, long)))


def _frame(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A square picture frame, upright."""
    hole = torch.maximum(x.abs(), z.abs()) - 0.55
    return torch.maximum(_box(x, y, z, (1.0, 0.35, 1.0)), -hole)


def _eight(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The digit, upright: one ring on the other."""
    return _ring(x, z.abs() - 0.68, y, 0.62, 0.26)


def _arch(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A gate: a block with an opening that is round above z = 0."""
    opening = torch.where(z > 0, _length(x, z), x.abs()) - 0.55
    return torch.maximum(_box(x, y, z, (1.0, 0.45, 0.9)), -opening)


def _star(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A lying star of five points, 1 and 0.45 away from the axis: folded by its mirrors, it is one edge."""
    x = x.abs()
    for angle in (0.2 * math.pi, -0.2 * math.pi):
        mirror = (math.cos(angle) if angle > 0 else -math.cos(angle), -math.sin(abs(angle)))
        beyond = 2 * (x * mirror[0] + y * mirror[1]).clamp(min=0)
        x, y = x - beyond * mirror[0], y - beyond * mirror[1]
    x, y = x.abs(), y - 1
    inner = (0.45 * math.sin(0.2 * math.pi), 0.45 * math.cos(0.2 * math.pi) - 1)
    edge = math.hypot(*inner)
    along, beside = (x * inner[0] + y * inner[1]) / edge, (y * inner[0] - x * inner[1]) / edge
    corner = _length(along - along.clamp(0, edge), beside)
    flat = torch.where(beside > 0, corner, -corner)
    # Beside the edge the distance to its line: the root has no direction on the edge itself.
    return _prism(torch.where((along > 0) & (along < edge), beside, flat), z, 0.35)


@dataclass(frozen=True)
class Shape:
    """A primitive around the z axis, in units of its own.

    sdf: signed distance of x, y, z, negative inside. Its zero set is exact and its slope at most 1; beyond the edges
        of those that are cut (cone, pyramid, wedge, diamond, dome, frame, arch) it is a lower bound of the distance.
    rim: (distance from the axis, height) of the points that decide every enclosing ball centred on the axis.
    width: the largest x.
    rounding: the body lies within the convex hull of the rim, grown by this radius.
    """

    sdf: Callable[[Tensor, Tensor, Tensor], Tensor]
    rim: tuple[tuple[float, float], ...]
    width: float
    rounding: float = 0.0


_ARC = [(math.cos(math.radians(7.5 * k)), math.sin(math.radians(7.5 * k))) for k in range(13)]
_EIGHT = tuple((0.62 * rho, sign * (0.68 + 0.62 * z)) for rho, z in _ARC for sign in (-1, 1))

SHAPES = {
    "sphere": Shape(_sphere, ((0.0, 0.0),), 1.0, 1.0),
    "cube": Shape(_cube, ((math.sqrt(2), -1.0), (math.sqrt(2), 1.0)), 1.0),
    "cylinder": Shape(_cylinder, ((0.72, -1.0), (0.72, 1.0)), 0.72),
    "cone": Shape(_cone, ((1.0, 0.0), (0.0, 2.0)), 1.0),
    "torus": Shape(_torus, ((1.0, 0.0),), 1.4, 0.4),
    "capsule": Shape(_capsule, ((0.0, -1.0), (0.0, 1.0)), 0.7, 0.7),
    "pyramid": Shape(_pyramid, ((math.sqrt(2), 0.0), (0.0, 1.9)), 1.0),
    "diamond": Shape(_diamond, ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0)), 1.0),
    "disk": Shape(_disk, ((1.0, -0.25), (1.0, 0.25)), 1.0),
    "wedge": Shape(_wedge, ((math.hypot(1, 0.95), 0.0), (0.95, 1.7)), 1.0),
    "dome": Shape(_dome, tuple(_ARC), 1.0),
    "cross": Shape(_cross, ((math.hypot(1, 0.28), -0.28), (math.hypot(1, 0.28), 0.28), (0.4, -1.0), (0.4, 1.0)), 1.0),
    "frame": Shape(_frame, ((math.hypot(1, 0.35), -1.0), (math.hypot(1, 0.35), 1.0)), 1.0),
    "eight": Shape(_eight, _EIGHT, 0.88, 0.26),
    "arch": Shape(_arch, ((math.hypot(1, 0.45), -0.9), (math.hypot(1, 0.45), 0.9)), 1.0),
    "star": Shape(_star, ((1.0, -0.35), (1.0, 0.35)), math.cos(0.1 * math.pi)),
}
