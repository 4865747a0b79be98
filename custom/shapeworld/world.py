"""The miniature world shapeworld-1: captions, and the solids that they fix exactly.

`a red cube`, `a tall striped blue cone`, `a red cube on a dotted blue cylinder`, `a small green star beside a white
arch`, and three parts: a tower (`on` or `under` twice), or a stack and a third part beside it. World: right-handed,
z up. Every solid is scaled to fill a ball of radius `BALL_RADIUS` around the origin.

The first part of `beside` stands at smaller x; both stand on one floor. `A under B` is the solid of `B on A`.
"""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from custom.shapeworld.shapes import SHAPES, Shape
from triplaneturbo.errors import UnknownNameError, nearest

BALL_RADIUS = 0.65
OVERLAP = 0.06  # how deep stacked parts sink into each other, as a share of their radius
GAP = 0.3  # between parts that stand beside each other, the same
SMALL = 0.6  # radius of a small part, the same
MAX_PARTS = 3
NO_PART = 9.0  # the distance to a part that a solid does not have

PALETTE = {
    "red": (0.90, 0.08, 0.08),
    "green": (0.08, 0.65, 0.12),
    "blue": (0.08, 0.18, 0.95),
    "yellow": (0.95, 0.85, 0.05),
    "orange": (1.00, 0.45, 0.02),
    "purple": (0.50, 0.08, 0.70),
    "cyan": (0.05, 0.80, 0.85),
    "white": (0.97, 0.97, 0.97),
    "pink": (1.00, 0.55, 0.75),
    "brown": (0.45, 0.25, 0.10),
}
INK = (0.07, 0.07, 0.09)  # of patterns
PATTERNS = ("striped", "dotted")
PROPORTIONS = {"tall": (0.6, 1.0), "flat": (1.0, 0.5)}  # what widths and heights are multiplied by
RELATIONS = ("on", "under", "beside")
_BAND = 0.3  # width of a stripe, as a share of the part's radius
_DOT = math.cos(math.radians(15))  # of a dot's radius, seen from the middle of the part's box, which is made a cube


def _spread(n: int) -> Float[Tensor, "n 3"]:
    """Directions evenly over the sphere, on a spiral."""
    k = torch.arange(n, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / n, k * math.pi * (3 - math.sqrt(5))
    width = (1 - z.square()).sqrt()
    return torch.stack([width * angle.cos(), width * angle.sin(), z], dim=1)


_DOTS = _spread(24)


@dataclass(frozen=True)
class Part:
    """A coloured primitive. small: beside a part that is not."""

    shape: str
    color: str
    pattern: str = ""
    proportion: str = ""
    small: bool = False

    def __str__(self) -> str:
        words = ["small"] * self.small + [self.proportion, self.pattern, self.color, self.shape]
        text = " ".join(filter(None, words))
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


@dataclass(frozen=True)
class Solid:
    """One to three parts. `str(solid)` is its caption: the parts as they are named, with the relations between them.

    relations: of RELATIONS, one fewer than parts; if none are given, every part is on the next.
    """

    parts: tuple[Part, ...]
    relations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.relations:
            object.__setattr__(self, "relations", ("on",) * (len(self.parts) - 1))

    def __str__(self) -> str:
        text = str(self.parts[0])
        for relation, part in zip(self.relations, self.parts[1:], strict=True):
            text += f" {relation} {part}"
        return text

    @property
    def shapes(self) -> tuple[str, ...]:
        """As they are named."""
        return tuple(part.shape for part in self.parts)

    @property
    def columns(self) -> tuple[tuple[Part, ...], ...]:
        """What stands beside each other, by growing x; each from the top down."""
        beside = len(self.parts) - 1 if "beside" in self.relations else len(self.parts)
        stack = self.parts[:beside]
        stack = stack[::-1] if "under" in self.relations else stack
        return (stack, self.parts[beside:]) if beside < len(self.parts) else (stack,)

    @property
    def placed_parts(self) -> tuple[Part, ...]:
        """In the order of `columns`."""
        return tuple(part for column in self.columns for part in column)

    @property
    def form(self) -> tuple[tuple[tuple[str, str, bool], ...], ...]:
        """What decides the geometry."""
        return tuple(tuple((part.shape, part.proportion, part.small) for part in column) for column in self.columns)

    @property
    def canonical(self) -> "Solid":
        """The same solid in the one wording that the lists of the benchmark have.

        A stack is worded with `on` or with `under`: which of them is drawn once for each solid, by a checksum of the
        wording with `on`.
        """
        stacked = [relation for relation in self.relations if relation != "beside"]
        if not stacked:
            return self
        plain = self.rephrased("on")
        return plain if zlib.crc32(str(plain).encode()) % 2 else plain.rephrased("under")

    def rephrased(self, word: str) -> "Solid":
        """The same solid, its stack worded with `on` or `under`."""
        stack, *rest = self.columns
        stack = stack[::-1] if word == "under" else stack
        relations = (word,) * (len(stack) - 1) + ("beside",) * len(rest)
        return Solid((*stack, *(part for column in rest for part in column)), relations)


_FORM = (
    "'a COLOUR SHAPE', with small, tall or flat, striped or dotted before them if wanted, and up to three of these "
    "joined by on, under or beside"
)
_WORDS = re.compile(r"\b(on|under|beside)\b")
_PART = re.compile(r"an? (?:(small) )?(?:(tall|flat) )?(?:(striped|dotted) )?(\w+) (\w+)")


def parse_caption(caption: str) -> Solid:
    """The solid that `caption` describes, worded as it is.

    Raises:
        ValueError: the caption has another form than the module says.
        UnknownNameError: a colour or shape that the world does not have.
    """
    texts = [text.strip() for text in _WORDS.split(" ".join(caption.lower().split()))]
    parts, relations = [_parse_part(text, caption) for text in texts[::2]], tuple(texts[1::2])
    stack = relations[:-1] if relations[-1:] == ("beside",) else relations
    if len(parts) > MAX_PARTS or "beside" in stack or len(set(stack)) > 1:
        raise ValueError(
            f"cannot build {caption!r}: three parts are a tower ('on' twice or 'under' twice), or a stack and then, "
            "behind 'beside', a third part"
        )
    small = [part.small for part in parts]
    if any(small) and ("beside" not in relations or all(small) or len(parts) > 2):
        raise ValueError(f"cannot build {caption!r}: one part of two can be small, beside the other one")
    solid = Solid(tuple(parts), relations)
    if not stands(solid):
        raise ValueError(f"cannot build {caption!r}: of two stacked parts one fits through the hole of the other")
    return solid


def _parse_part(text: str, caption: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read {caption!r}; write {_FORM}, for example 'a red cube on a striped blue cylinder'")
    small, proportion, pattern, color, shape = match.groups()
    for word, allowed, kind in ((color, PALETTE, "colour"), (shape, SHAPES, "shape")):
        if word not in allowed:
            raise UnknownNameError(f"{caption!r}: the miniature world has no {kind} {word!r}; {nearest(word, allowed)}")
    return Part(shape, color, pattern or "", proportion or "", bool(small))


@dataclass(frozen=True)
class Placement:
    """Where a part stands: point = centre + radius * point in its own ball, which the part fills.

    offset, stretch: point in its ball = (0, 0, offset) + stretch * point in the shape's own units; stretch along x and
    y, and along z.
    """

    center: tuple[float, float, float]
    radius: float
    offset: float
    stretch: tuple[float, float]

    def box(self, shape: Shape) -> tuple[float, float, float]:
        """Of the part: half its width, height of its middle, half its height; the width is that of the outline."""
        rings = self.outline(shape)
        low, high = min(z for _, _, z in rings), max(z for _, _, z in rings)
        return max(rho for rho, _, _ in rings), (low + high) / 2, (high - low) / 2

    def outline(self, shape: Shape) -> list[tuple[float, float, float]]:
        """Rings around the part's own axis, by radius, x of the axis and height, that every ball with the part in it
        must hold."""
        wide, high = self.stretch
        rings = []
        for rho, z in shape.rim:
            steps = 32 if shape.rounding else 1
            for k in range(steps):
                angle, grown = 2 * math.pi * k / steps, shape.rounding / math.cos(math.pi / steps)
                ring = abs(rho + grown * math.cos(angle)) * wide, (z + grown * math.sin(angle)) * high + self.offset
                rings.append((self.radius * ring[0], self.center[0], self.radius * ring[1] + self.center[2]))
        return rings


def _smallest_ball(rings: Sequence[tuple[float, float, float]], x: float) -> tuple[float, float]:
    """Height and radius of the smallest ball with its centre above x: a convex function, searched by thirds."""
    points = [(max(abs(axis + rho - x), abs(axis - rho - x)), z) for rho, axis, z in rings]

    def radius(height: float) -> float:
        return max(math.hypot(rho, z - height) for rho, z in points)

    low, high = min(z for _, z in points), max(z for _, z in points)
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if radius(a) < radius(b) else (a, high)
    return low, radius(low)


@lru_cache
def _in_its_ball(name: str, proportion: str) -> Placement:
    """The shape in the unit ball around the origin."""
    wide, high = PROPORTIONS.get(proportion, (1.0, 1.0))
    height, radius = _smallest_ball(Placement((0.0, 0.0, 0.0), 1.0, 0.0, (wide, high)).outline(SHAPES[name]), 0.0)
    return Placement((0.0, 0.0, 0.0), 1.0, -height / radius, (wide / radius, high / radius))


def _distance(name: str, placement: Placement, points: Tensor) -> Tensor:
    wide, high = (placement.radius * s for s in placement.stretch)
    x, y, z = (points - points.new_tensor(placement.center)).unbind(-1)
    local = x / wide, y / wide, (z - placement.radius * placement.offset) / high
    return SHAPES[name].sdf(*local) * min(wide, high)


@lru_cache
def _faces(name: str, proportion: str) -> tuple[Tensor, Tensor]:
    """Heights where vertical lines enter the shape in the unit ball from above and from below, on a 65 x 65 grid.

    Lines that miss it meet it at -inf from above, +inf from below.
    """
    placement = _in_its_ball(name, proportion)
    axis, levels = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (65, 129))
    grid = torch.stack(torch.meshgrid(axis, axis, levels, indexing="ij"), dim=-1)
    inside = _distance(name, placement, grid) < 0
    heights = []
    for sign in (1, -1):
        ordered = inside.flip(-1) if sign > 0 else inside
        first = ordered.int().argmax(dim=-1)
        within = levels.flip(0)[first] if sign > 0 else levels[first]
        outside = within + sign * (levels[1] - levels[0])
        for _ in range(30):
            middle = (within + outside) / 2
            is_in = _distance(name, placement, torch.cat([grid[:, :, 0, :2], middle[..., None]], dim=-1)) < 0
            within, outside = torch.where(is_in, middle, within), torch.where(is_in, outside, middle)
        heights.append(torch.where(inside.any(dim=-1), within, torch.full_like(within, -math.inf * sign)))
    return heights[0], heights[1]


@lru_cache(maxsize=2**16)
def _stack(column: tuple[tuple[str, str, bool], ...]) -> tuple[Placement, ...]:
    """Placements around the z axis, top down: each rests on what is below, wherever they first touch.

    What finds nothing to rest on is infinitely far below.
    """
    placed: list[Placement] = []
    surface: Tensor | None = None
    for name, proportion, small in reversed(column):
        own = _in_its_ball(name, proportion)
        lift = 0.0
        if len(column) > 1:
            top, bottom = _faces(name, proportion)
            lift = 0.0 if surface is None else float((surface - bottom).max()) - OVERLAP
            surface = top + lift if surface is None else torch.maximum(surface, top + lift)
        placed.insert(0, replace(own, center=(0.0, 0.0, lift), radius=SMALL if small else 1.0))
    return tuple(placed)


@lru_cache(maxsize=2**16)
def placements(form: tuple[tuple[tuple[str, str, bool], ...], ...]) -> tuple[Placement, ...]:
    """Where the parts of a `Solid.form` stand, in its order. The whole fills the ball of radius BALL_RADIUS."""
    placed: list[Placement] = []
    names: list[str] = []
    right = -GAP
    for column in form:
        stack = _stack(column)
        shapes = [SHAPES[name] for name, _, _ in column]
        half = max(p.radius * p.stretch[0] * s.width for p, s in zip(stack, shapes, strict=True))
        floor = min(z for p, s in zip(stack, shapes, strict=True) for _, _, z in p.outline(s))
        axis, right = right + GAP + half, right + GAP + 2 * half
        placed += [replace(p, center=(axis, 0.0, p.center[2] - floor)) for p in stack]
        names += [name for name, _, _ in column]
    rings = [ring for p, name in zip(placed, names, strict=True) for ring in p.outline(SHAPES[name])]
    height, radius = _smallest_ball(rings, right / 2)
    k = BALL_RADIUS / radius
    return tuple(
        replace(p, center=((p.center[0] - right / 2) * k, 0.0, (p.center[2] - height) * k), radius=p.radius * k)
        for p in placed
    )


def stands(solid: Solid) -> bool:
    """Whether every part rests on the one below it: some pass through a torus."""
    return all(math.isfinite(placed.center[2]) for column in solid.form for placed in _stack(column))


class Layout:
    """The parts of N solids as tensors, made once for all points that are asked about.

    Slot s of a solid is the s-th of its `placed_parts`.
    """

    def __init__(self, solids: Sequence[Solid], like: Tensor) -> None:
        placed = [placements(solid.form) for solid in solids]
        parts = [solid.placed_parts for solid in solids]

        def table(values: Sequence[Sequence[Sequence[float]]]) -> Tensor:
            filled = [(list(row) * MAX_PARTS)[:MAX_PARTS] for row in values]
            return torch.tensor(filled, device=like.device, dtype=like.dtype)

        self.center = table([[p.center for p in row] for row in placed])
        self.radius = table([[(p.radius,) for p in row] for row in placed])
        self.colors = table([[PALETTE[part.color] for part in row] for row in parts])
        of_patterns = [[[float(part.pattern == name) for name in PATTERNS] for part in row] for row in parts]
        self.pattern = table(of_patterns).bool()
        self.patterned = any(part.pattern for row in parts for part in row)
        wide = table([[(p.radius * p.stretch[0],) * 2 + (p.radius * p.stretch[1],) for p in row] for row in placed])
        boxes = [
            [(p, *p.box(SHAPES[part.shape])) for p, part in zip(row, own, strict=True)]
            for row, own in zip(placed, parts, strict=True)
        ]
        self._middle = table([[(*p.center[:2], middle) for p, _, middle, _ in row] for row in boxes])
        self._half = table([[(wide, wide, high) for _, wide, _, high in row] for row in boxes])
        offset = table([[(0.0, 0.0, p.radius * p.offset) for p in row] for row in placed])
        self._origin = self.center + offset
        # All parts of all solids, those of a shape together.
        there = [(part.shape, row, slot) for row, own in enumerate(parts) for slot, part in enumerate(own)]
        there.sort()
        self._row, slots = torch.tensor([(row, slot) for _, row, slot in there], device=like.device).unbind(1)
        self._runs = [(name, len(list(run))) for name, run in groupby(name for name, _, _ in there)]
        self._origin, self._inverse, self._slope = (
            values[self._row, slots][:, None]
            for values in (self.center + offset, 1 / wide, wide.amin(dim=-1, keepdim=True))
        )
        numbers = torch.full((len(parts), max(map(len, parts))), len(there), device=like.device)
        self._number = numbers.index_put((self._row, slots), torch.arange(len(there), device=like.device))

    def part_sdf(self, points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N S P"]:
        """See the function of this name; S: the most parts that a solid has."""
        local = ((points[self._row] - self._origin) * self._inverse).split([n for _, n in self._runs])
        distances = [SHAPES[name].sdf(*own.unbind(-1)) for (name, _), own in zip(self._runs, local, strict=True)]
        no_part = points.new_full((1, points.shape[1]), NO_PART)
        return torch.cat([torch.cat(distances) * self._slope[:, 0], no_part])[self._number]

    def albedo(self, points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N P 3"]:
        """The colour of the nearest part, or INK where its pattern is."""
        part = self.part_sdf(points).argmin(dim=1)

        def pick(values: Tensor) -> Tensor:
            return values.gather(1, part[..., None].expand(-1, -1, values.shape[-1]))

        color = pick(self.colors)
        if not self.patterned:
            return color
        own = (points - pick(self.center)) / pick(self.radius)
        bands = ((own[..., 0] + own[..., 2]) / (math.sqrt(2) * _BAND)).floor() % 2 == 1
        boxed = (points - pick(self._middle)) / pick(self._half)
        facing = torch.full_like(own[..., 0], -1.0)
        for dot in _DOTS.to(own).unbind(0):
            facing = torch.maximum(facing, boxed @ dot)
        dots = facing > _DOT * boxed.norm(dim=-1)
        striped, dotted = pick(self.pattern).unbind(-1)
        inked = (striped & bands) | (dotted & dots)
        return torch.where(inked[..., None], points.new_tensor(INK), color)


def part_sdf(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N S P"]:
    """Signed distances to the parts of each solid in the order of `placed_parts`, NO_PART where it has fewer.

    Differentiable with respect to `points`. Where a shape is stretched, a lower bound of the distance.
    """
    return Layout(solids, points).part_sdf(points)


def sdf(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N P"]:
    """Signed distance to each solid, negative inside; exact zero set, slope at most 1."""
    return part_sdf(solids, points).amin(dim=1)


def occupancy(solids: Sequence[Solid], points: Float[Tensor, "N P 3"]) -> Bool[Tensor, "N P"]:
    """Whether the points lie inside."""
    return sdf(solids, points) < 0
