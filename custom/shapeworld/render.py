"""Exact pictures of the miniature world, sphere traced.

Colours are unlit as the generator's are: one fixed soft light is baked into the surface, so that a colour field of
position alone can represent them exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from custom.shapeworld.world import BALL_RADIUS, Layout, Solid
from triplaneturbo.cameras import ray_directions
from triplaneturbo.types import Cameras, Views

LIGHT = (0.45, 0.30, 0.84)
AMBIENT = 0.5  # share of the colour that does not depend on the light
NORMAL_BACKGROUND = (0.5, 0.5, 1.0)
_STEPS_TOGETHER = 8  # of all rays that go, before those that have arrived are left alone


@dataclass(frozen=True)
class Precision:
    """steps: of a ray. hit: how near to the surface it has to come, world units."""

    steps: int
    hit: float


PICTURES = Precision(72, 2e-3)  # what comes as near as 0.14 of 64 pixels counts as seen
MEASURES = Precision(300, 2e-4)


def _layout(solids: Sequence[Solid] | Layout, like: Tensor) -> Layout:
    return solids if isinstance(solids, Layout) else Layout(solids, like)


def surface_color(
    solids: Sequence[Solid] | Layout, points: Float[Tensor, "N P 3"], normals: Float[Tensor, "N P 3"]
) -> Float[Tensor, "N P 3"]:
    """The colour of the nearest part, or of its pattern, times AMBIENT + (1 - AMBIENT) (1 + n . light) / 2."""
    light = F.normalize(points.new_tensor(LIGHT), dim=0)
    shade = AMBIENT + (1 - AMBIENT) * (0.5 + 0.5 * normals @ light)
    return _layout(solids, points).albedo(points) * shade[..., None]


def surface_normal(solids: Sequence[Solid] | Layout, points: Float[Tensor, "N P 3"]) -> Float[Tensor, "N P 3"]:
    """Unit gradients of the signed distance."""
    layout = _layout(solids, points)
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(layout.part_sdf(points).amin(dim=1).sum(), points)
    return F.normalize(gradient, dim=-1)


def _front(chosen: Bool[Tensor, "N P"]) -> Int[Tensor, "N Q"]:
    """The numbers of the chosen rays of each solid, filled up with others to the most that a solid has."""
    most = int(chosen.sum(dim=1).amax()) if chosen.numel() else 0
    return chosen.byte().argsort(dim=1, descending=True, stable=True)[:, :most]


def _pick(values: Shaped[Tensor, "N P *C"], rays: Int[Tensor, "N Q"]) -> Shaped[Tensor, "N Q *C"]:
    return values[torch.arange(len(rays), device=rays.device)[:, None], rays]


def _trace(
    layout: Layout, origin: Float[Tensor, "N P 3"], direction: Float[Tensor, "N P 3"], precision: Precision
) -> tuple[Float[Tensor, "N P"], Bool[Tensor, "N P"]]:
    """Distance along each ray to the surface, and whether there is one. Rays start where they enter the ball.

    Every few steps those that have left the ball, or come to a hundredth of `precision.hit`, are left alone: what a ray
    gives does not depend on the others.
    """
    middle = -(origin * direction).sum(-1)
    half_squared = BALL_RADIUS**2 - (origin + middle[..., None] * direction).square().sum(-1)
    half = half_squared.clamp(min=0).sqrt()
    travelled, end = middle - half, middle + half
    distance = torch.full_like(travelled, torch.inf)
    going = half_squared > 0
    for start in range(0, precision.steps, _STEPS_TOGETHER):
        rays = _front(going)
        if rays.shape[1] == 0:
            break
        own_origin, own_direction, before, last = (
            _pick(values, rays) for values in (origin, direction, travelled, end)
        )
        after = before
        for _ in range(min(_STEPS_TOGETHER, precision.steps - start)):
            after = torch.minimum(after + _distance(layout, own_origin, own_direction, after), last)
        away, moved = _distance(layout, own_origin, own_direction, after), _pick(going, rays)
        travelled = travelled.scatter(1, rays, torch.where(moved, after, before))
        distance = distance.scatter(1, rays, torch.where(moved, away, _pick(distance, rays)))
        going = going & (distance > 0.01 * precision.hit) & (travelled < end)
    return travelled, distance < precision.hit


def _distance(layout: Layout, origin: Tensor, direction: Tensor, travelled: Tensor) -> Float[Tensor, "N Q"]:
    return layout.part_sdf(origin + direction * travelled[..., None]).amin(dim=1)


@torch.no_grad()
def render(
    solids: Sequence[Solid],
    cameras: Cameras,
    size: int,
    *,
    supersample: int = 2,
    background: float = 0.5,
    precision: Precision = PICTURES,
) -> Views:
    """Pictures of N solids, `cameras.n_view` each, size x size pixels, without gradient.

    Channels follow `Views`: normals in the camera frame with x flipped, disparity (far - d) / (far - near) with
    near, far = camera distance -+ sqrt(3), depth and disparity 0 on the background. `extras["comp_normal"]`: normals in
    world axes, 0 on the background.

    Args:
        supersample: rays a pixel and axis; pictures are their average.
        background: grey level behind the rgb picture.

    Raises:
        ValueError: the number of cameras does not fit the number of solids.
    """
    if len(cameras) != len(solids) * cameras.n_view:
        raise ValueError(
            f"{len(solids)} solids with {cameras.n_view} views each need as many cameras, not {len(cameras)}"
        )
    n, v, fine = len(solids), cameras.n_view, size * supersample
    direction = ray_directions(cameras, fine, fine).reshape(n, v * fine * fine, 3)
    origin = cameras.positions.reshape(n, v, 1, 3).expand(-1, -1, fine * fine, -1).reshape(n, -1, 3)
    layout = Layout(solids, origin)
    travelled, hit = _trace(layout, origin, direction, precision)
    rays = _front(hit)
    points = _pick(origin, rays) + _pick(direction, rays) * _pick(travelled, rays)[..., None]
    seen_normals = surface_normal(layout, points)
    seen_colors = surface_color(layout, points, seen_normals)
    normals, colors = (
        torch.zeros_like(origin).scatter(1, rays[..., None].expand(-1, -1, 3), seen)
        for seen in (seen_normals, seen_colors)
    )

    def pictures(flat: Tensor) -> Tensor:
        channels_first = flat.reshape(n * v, fine, fine, -1).permute(0, 3, 1, 2)
        return F.avg_pool2d(channels_first, supersample).permute(0, 2, 3, 1)

    rotation = cameras.w2c_rotation.reshape(n, v, 1, 3, 3)
    camera_normals = (rotation @ normals.reshape(n, v, -1, 3, 1)).reshape(n, -1, 3)
    camera_normals = camera_normals * normals.new_tensor((-1, 1, 1)) * 0.5 + 0.5
    far = (cameras.distance + math.sqrt(3)).reshape(n, v, 1).expand(-1, -1, fine * fine).reshape(n, -1)
    disparity = ((far - travelled) / (2 * math.sqrt(3))).clamp(0, 1)
    hit = hit.to(origin.dtype)
    cover = hit[..., None]
    return Views(
        rgb=pictures(colors * cover + background * (1 - cover)),
        normal=pictures(camera_normals * cover + normals.new_tensor(NORMAL_BACKGROUND) * (1 - cover)),
        disparity=pictures(disparity * hit),
        opacity=pictures(hit),
        depth=pictures(travelled * hit),
        extras={"comp_normal": pictures(normals * cover)},
    )
