"""How much of a solid the training cameras can know: `python -m custom.shapeworld.visibility --limit 100`.

A solid that hides a part of its surface from all of them cannot be learned from pictures, whatever the method is.
"""

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from custom.shapeworld.bank import shuffled
from custom.shapeworld.data import ELEVATION
from custom.shapeworld.measure import grid_points, sample_solid
from custom.shapeworld.render import surface_normal
from custom.shapeworld.splits import retrieval_bank
from custom.shapeworld.world import BALL_RADIUS, Layout, Solid, parse_caption
from triplaneturbo.cameras import orbit_cameras

STEP_DEG, DISTANCE = 15.0, 1.6  # between the cameras, in azimuth and elevation; their distance
GRAZING_DEG = 75.0  # a point counts as seen from no more than this beside its normal
N_POINTS = 2000
_LIFT, _HIT, _STEPS = 2e-3, 2e-4, 400  # above the surface where a ray starts; how near a ray comes that is blocked
_AT_ONCE = 8
_STRIDE = 37  # cameras that follow each other are far apart, so that most points are settled by the first few


def camera_positions() -> Float[Tensor, "M 3"]:
    """Of cameras around the solid, over the elevations of the training."""
    elevations = torch.arange(ELEVATION[0], ELEVATION[1] + 1, STEP_DEG)
    azimuths = torch.arange(0, 360, STEP_DEG)
    elevation, azimuth = (x.flatten() for x in torch.meshgrid(elevations, azimuths, indexing="ij"))
    full = torch.ones_like(azimuth)
    cameras = orbit_cameras(elevation, azimuth, DISTANCE * full, 60 * full, n_view=len(full), relative=False)
    n = len(full)
    assert math.gcd(n, _STRIDE) == 1
    return cameras.positions[torch.arange(n) * _STRIDE % n]


def _blocked(layout: Layout, start: Float[Tensor, "P 3"], direction: Float[Tensor, "P 3"]) -> Bool[Tensor, " P"]:
    """Whether the ray from each point, along its unit direction, meets the solid before it leaves the ball."""
    blocked = torch.zeros(len(start), dtype=torch.bool)
    along = (start * direction).sum(-1)
    leaves = (along.square() - start.square().sum(-1) + BALL_RADIUS**2).clamp(min=0).sqrt() - along
    rows, travelled = torch.arange(len(start)), torch.zeros(len(start))
    for _ in range(_STEPS):
        points = start[rows] + travelled[:, None] * direction[rows]
        distance = layout.part_sdf(points[None])[0].amin(dim=0)
        blocked[rows[distance < _HIT]] = True
        travelled = travelled + distance
        on_its_way = (distance >= _HIT) & (travelled < leaves[rows])
        rows, travelled = rows[on_its_way], travelled[on_its_way]
        if not len(rows):
            break
    return blocked


@torch.no_grad()
def seen_share(solid: Solid, n_points: int = N_POINTS, *, grazing_deg: float = GRAZING_DEG, seed: int = 0) -> float:
    """Share of the surface that some training camera sees, no more than `grazing_deg` beside its normal."""
    with torch.enable_grad():
        surface = sample_solid(solid, n_points, torch.Generator().manual_seed(seed))
    layout = Layout([solid], surface)
    normals = surface_normal(layout, surface[None])[0]
    points, limit = surface + _LIFT * normals, math.cos(math.radians(grazing_deg))
    hidden = torch.ones(len(points), dtype=torch.bool)
    for cameras in camera_positions().split(_AT_ONCE):
        (rows,) = torch.where(hidden)
        direction = torch.nn.functional.normalize(cameras[:, None] - points[rows], dim=-1)
        camera, row = torch.where((direction * normals[rows]).sum(-1) > limit)
        seen = ~_blocked(layout, points[rows[row]], direction[camera, row])
        hidden[rows[row[seen]]] = False
    return 1 - hidden.float().mean().item()


@torch.no_grad()
def hull_iou(solid: Solid, n: int = 96) -> float:
    """IoU of the solid with its visual hull: what lies, from every training camera, within the silhouette.

    On the cells of an n^3 grid over [-1, 1]^3.
    """
    cells = grid_points(n)
    cells = cells[cells.norm(dim=-1) < BALL_RADIUS]
    layout = Layout([solid], cells)
    outside = layout.part_sdf(cells[None])[0].amin(dim=0) >= 0
    n_inside, cells = int((~outside).sum()), cells[outside]
    for camera in camera_positions():
        direction = torch.nn.functional.normalize(cells - camera, dim=-1)
        along = (camera * direction).sum(-1)
        enters = -along - (along.square() - camera.square().sum() + BALL_RADIUS**2).clamp(min=0).sqrt()
        cells = cells[_blocked(layout, camera + enters[:, None] * direction, direction)]
    return n_inside / (n_inside + len(cells))


def forms(limit: int | None = None) -> list[Solid]:
    """One solid of every form in the bank, single solids first, the others in an order that is drawn."""
    solids = [parse_caption(caption) for caption in retrieval_bank()]
    first = {solid.form: solid for solid in solids[::-1]}
    singles = [solid for solid in first.values() if len(solid.parts) == 1][::-1]
    others = shuffled([solid for solid in first.values() if len(solid.parts) > 1], "visibility")
    return (singles + others)[:limit]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="solids of different form, the 48 single ones first; default: all")
    parser.add_argument("--points", type=int, default=N_POINTS, help="of a surface")
    parser.add_argument("--lowest", type=int, default=20, help="how many to print")
    given = parser.parse_args(arguments)
    found = sorted((seen_share(solid, given.points), str(solid)) for solid in forms(given.limit))
    for share, caption in found[: given.lowest]:
        sys.stdout.write(f"{100 * share:6.2f} %  {caption}\n")
    enough = sum(share >= 0.99 for share, _ in found)
    sys.stdout.write(f"{enough} of {len(found)} solids show 99 % of their surface\n")


if __name__ == "__main__":
    main()
