"""The miniature world: captioned solids with exact geometry.

A caption fixes the solid exactly: `a red cube`, or a stack of two, `a red cube on a blue cylinder`. World:
right-handed, z up. Every solid is scaled to fill the ball of radius `BALL_RADIUS` around the origin.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triplaneturbo.errors import UnknownNameError, nearest

BALL_RADIUS = 0.65
OVERLAP = 0.06  # how deep stacked parts sink into each other, as a share of their radius
NO_PART = 9.0  # the distance to a part that a solid does not have
_FLOOR = 1e-12  # keeps square roots differentiable at 0

PALETTE = {
    "red": (0.90, 0.08, 0.08),
    "green": (0.08, 0.65, 0.12),
    "blue": (0.08, 0.18, 0.95),
    "yellow": (0.95, 0.85, 0.05),
    "orange": (1.00, 0.45, 0.02),
    "purple": (0.50, 0.08, 0.70),
    "cyan": (0.05, 0.80, 0.85),
    "white": (0.97, 0.97, 0.97),
}


def _box(x: Tensor, y: Tensor, z: Tensor, half: tuple[float, float, float]) -> Tensor:
    dx, dy, dz = x.abs() - half[0], y.abs() - half[1], z.abs() - half[2]
    outside = dx.clamp(min=0).square() + dy.clamp(min=0).square() + dz.clamp(min=0).square()
    inside = torch.maximum(torch.maximum(dx, dy), dz).clamp(max=0)
    return (outside + _FLOOR).sqrt() + inside


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square() + _FLOOR).sqrt()


def _sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.square() + y.square() + z.square() + _FLOOR).sqrt() - 1


def _cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _box(x, y, z, (1.0, 1.0, 1.0))


def _tube(x: Tensor, y: Tensor, z: Tensor, radius: float, half_height: float) -> Tensor:
    side, cap = _length(x, y) - radius, z.abs() - half_height
    return _length(side.clamp(min=0), cap.clamp(min=0)) + torch.maximum(side, cap).clamp(max=0)


def _cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _tube(x, y, z, 0.72, 1.0)


def _disk(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _tube(x, y, z, 1.0, 0.25)


def _taper(width: Tensor, z: Tensor, base: float, height: float) -> Tensor:
    """Between z = 0, where |width| may be `base`, and z = `height`, where it is 0."""
    slope = (width * height + (z - height) * base) / math.hypot(height, base)
    return torch.maximum(slope, -z)


def _cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _taper(_length(x, y), z, 1.0, 2.0)


def _pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _taper(torch.maximum(x.abs(), y.abs()), z, 1.0, 1.9)


def _wedge(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_taper(x.abs(), z, 1.0, 1.7), y.abs() - 0.95)


def _torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _length(_length(x, y) - 1, z) - 0.4


def _capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.square() + y.square() + (z.abs() - 1).clamp(min=0).square() + _FLOOR).sqrt() - 0.95


def _diamond(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.abs() + y.abs() + z.abs() - 1) / math.sqrt(3)


def _dome(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_sphere(x, y, z), -z)


def _cross(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    long, wide = 1.0, 0.28
    arms = torch.minimum(_box(x, y, z, (long, wide, wide)), _box(x, y, z, (wide, long, wide)))
    return torch.minimum(arms, _box(x, y, z, (wide, wide, long)))


@dataclass(frozen=True)
class Shape:
    """A primitive around the z axis, in units of its own.

    sdf: signed distance of x, y, z, negative inside. Its zero set is exact and its slope at most 1; beyond the edges
        of cone, pyramid, wedge, diamond and dome it is a lower bound of the distance.
    rim: (distance from the axis, height) of the points that decide every enclosing ball centred on the axis.
    rounding: the body lies within the convex hull of the rim, grown by this radius.
    """

    sdf: Callable[[Tensor, Tensor, Tensor], Tensor]
    rim: tuple[tuple[float, float], ...]
    rounding: float = 0.0


SHAPES = {
    "sphere": Shape(_sphere, ((0.0, 0.0),), 1.0),
    "cube": Shape(_cube, ((math.sqrt(2), -1.0), (math.sqrt(2), 1.0))),
    "cylinder": Shape(_cylinder, ((0.72, -1.0), (0.72, 1.0))),
    "cone": Shape(_cone, ((1.0, 0.0), (0.0, 2.0))),
    "torus": Shape(_torus, ((1.0, 0.0),), 0.4),
    "capsule": Shape(_capsule, ((0.0, -1.0), (0.0, 1.0)), 0.95),
    "pyramid": Shape(_pyramid, ((math.sqrt(2), 0.0), (0.0, 1.9))),
    "diamond": Shape(_diamond, ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0))),
    "disk": Shape(_disk, ((1.0, -0.25), (1.0, 0.25))),
    "wedge": Shape(_wedge, ((math.hypot(1, 0.95), 0.0), (0.95, 1.7))),
    "dome": Shape(_dome, ((1.0, 0.0), (0.0, 1.0))),
    "cross": Shape(_cross, ((math.hypot(1, 0.28), -0.28), (math.hypot(1, 0.28), 0.28), (0.4, -1.0), (0.4, 1.0))),
}


@dataclass(frozen=True)
class Part:
    """A coloured primitive."""

    shape: str
    color: str

    def __str__(self) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.shape}"


@dataclass(frozen=True)
class Solid:
    """One part, or two stacked ones, the upper first. `str(solid)` is its caption."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return " on ".join(map(str, self.parts))

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(part.shape for part in self.parts)


_CAPTION = re.compile(r"an? (\w+) (\w+)(?: on an? (\w+) (\w+))?")


def parse_caption(caption: str) -> Solid:
    """The solid that `caption` describes.

    Raises:
        ValueError: the caption has another form than `a COLOUR SHAPE` or `a COLOUR SHAPE on a COLOUR SHAPE`.
        UnknownNameError: a colour or shape that the world does not have.
    """
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        raise ValueError(
            f"cannot read {caption!r}; write 'a COLOUR SHAPE' or 'a COLOUR SHAPE on a COLOUR SHAPE', "
            "for example 'a red cube on a blue cylinder'"
        )
    words = [word for word in match.groups() if word]
    for word, allowed in zip(words, (PALETTE, SHAPES) * 2, strict=False):
        if word not in allowed:
            kind = "colour" if allowed is PALETTE else "shape"
            raise UnknownNameError(f"{caption!r}: the miniature world has no {kind} {word!r}; {nearest(word, allowed)}")
    return Solid(tuple(Part(shape, color) for color, shape in zip(words[::2], words[1::2], strict=True)))


@dataclass(frozen=True)
class Placement:
    """Where a primitive stands in a solid: point_world = scale * point + (0, 0, height)."""

    scale: float
    height: float

    def rim(self, shape: Shape) -> list[tuple[float, float, float]]:
        """Rim points and rounding of the placed shape."""
        return [(self.scale * rho, self.scale * z + self.height, self.scale * shape.rounding) for rho, z in shape.rim]


def _enclosing_ball(rim: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Height and radius of the smallest ball on the z axis: a convex function of the height, searched by thirds."""

    def radius(height: float) -> float:
        return max(math.hypot(rho, z - height) + rounding for rho, z, rounding in rim)

    low, high = min(z for _, z, _ in rim), max(z for _, z, _ in rim)
    for _ in range(100):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if radius(a) < radius(b) else (a, high)
    return low, radius(low)


@lru_cache
def _unit_placement(name: str) -> Placement:
    """The shape in the unit ball."""
    height, radius = _enclosing_ball(Placement(1.0, 0.0).rim(SHAPES[name]))
    return Placement(1 / radius, -height / radius)


@lru_cache
def _faces(name: str) -> tuple[Tensor, Tensor]:
    """Heights where vertical lines enter the shape in the unit ball from above and from below, on a 65 x 65 grid.

    Lines that miss it meet it at -inf from above, +inf from below.
    """
    placement, sdf = _unit_placement(name), SHAPES[name].sdf
    axis = torch.linspace(-1, 1, 65, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    heights = []
    for sign in (1, -1):
        z = torch.full_like(x, 1.01 * sign)
        for _ in range(300):
            local = [c / placement.scale for c in (x, y, z - placement.height)]
            distance = sdf(*local) * placement.scale
            z = z - sign * distance
        heights.append(torch.where(distance < 1e-4, z, torch.full_like(z, -math.inf * sign)))
    return heights[0], heights[1]


@lru_cache(maxsize=1024)
def placements(shapes: tuple[str, ...]) -> tuple[Placement, ...]:
    """Where the parts of a solid stand, upper first. The upper part rests on the lower one, wherever they first touch.

    Both parts have the same enclosing radius. The whole fills the ball of radius BALL_RADIUS around the origin.
    """
    units = [_unit_placement(name) for name in shapes]
    if len(shapes) == 2:
        top, bottom = _faces(shapes[1])[0], _faces(shapes[0])[1]
        lift = float((top - bottom).max()) - OVERLAP
        units[0] = Placement(units[0].scale, units[0].height + lift)
    rim = [point for unit, name in zip(units, shapes, strict=True) for point in unit.rim(SHAPES[name])]
    height, radius = _enclosing_ball(rim)
    scale = BALL_RADIUS / radius
    return tuple(Placement(unit.scale * scale, (unit.height - height) * scale) for unit in units)


def _groups(solids: Sequence[Solid], slot: int) -> Iterator[tuple[slice | list[int], str, tuple[Placement, ...]]]:
    """Rows that have the same part in the same place, so that each primitive is evaluated once for all of them."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, solid in enumerate(solids):
        if slot < len(solid.parts):
            rows.setdefault(solid.shapes, []).append(row)
    for shapes, members in rows.items():
        everything = len(members) == len(solids)
        yield slice(None) if everything else members, shapes[slot], placements(shapes)


def part_sdf(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N 2 P"]:
    """Signed distances to the two parts of each solid (upper first), NO_PART where there is no second part.

    Differentiable with respect to `points`. Fastest when all solids have the same shapes.
    """
    slots = []
    for slot in range(2):
        result = points.new_full(points.shape[:2], NO_PART)
        for rows, name, placed in _groups(solids, slot):
            place = placed[slot]
            x, y, z = (points[rows] / place.scale).unbind(-1)
            distance = SHAPES[name].sdf(x, y, z - place.height / place.scale) * place.scale
            if isinstance(rows, slice):
                result = distance
            else:
                result = result.index_copy(0, torch.tensor(rows, device=points.device), distance)
        slots.append(result)
    return torch.stack(slots, dim=1)


def sdf(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N P"]:
    """Signed distance to each solid, negative inside; exact zero set, slope at most 1."""
    return part_sdf(solids, points).amin(dim=1)


def occupancy(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Bool[Tensor, "N P"]:
    """Whether the points lie inside."""
    return sdf(solids, points) < 0


def palette_rows(solids: Sequence[Solid], like: Tensor) -> Float[Tensor, "N 2 3"]:
    """The colours of both parts of each solid; a missing part repeats the first."""
    colors = [[PALETTE[part.color] for part in (solid.parts * 2)[:2]] for solid in solids]
    return torch.tensor(colors, device=like.device, dtype=like.dtype)
