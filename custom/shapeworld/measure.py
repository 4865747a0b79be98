"""Distances between meshes and exact solids."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from custom.shapeworld.render import surface_color, surface_normal
from custom.shapeworld.world import BALL_RADIUS, Solid, occupancy, sdf
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.types import Mesh

GRID = 64


def grid_points(n: int = GRID, device: torch.device | str = "cpu") -> Float[Tensor, "P 3"]:
    """Cell centres of an n^3 grid over [-1, 1]^3, x slowest."""
    axis = (torch.arange(n, device=device) + 0.5) * (2 / n) - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)


def solid_occupancy(solids: Sequence[Solid], n: int = GRID, device: torch.device | str = "cpu") -> Bool[Tensor, "N P"]:
    """Which cell centres lie inside each solid."""
    points = grid_points(n, device)
    return torch.cat([occupancy([solid], points[None]) for solid in solids])


def exact_mesh(solid: Solid, n: int, device: torch.device | str = "cpu") -> Mesh:
    """The surface that marching cubes finds with n points an edge of [-1, 1]^3, with exact colours at its vertices."""
    axis = torch.linspace(-1, 1, n, device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    vertices, faces = marching_cubes(sdf([solid], grid.reshape(1, -1, 3))[0].view(n, n, n))
    vertices = vertices * (2 / (n - 1)) - 1
    colors = surface_color([solid], vertices[None], surface_normal([solid], vertices[None]))[0]
    return Mesh(vertices, faces, colors)


def iou(a: Bool[Tensor, "*N P"], b: Bool[Tensor, "*N P"]) -> Float[Tensor, "*N"]:
    """Intersection over union of two sets of cells; two empty sets are equal (1)."""
    union = (a | b).sum(dim=-1)
    return torch.where(union > 0, (a & b).sum(dim=-1) / union.clamp(min=1), 1.0)


def best_constant(occupied: Bool[Tensor, "N P"]) -> tuple[Bool[Tensor, " P"], float]:
    """The one set of cells with the highest mean IoU with all of `occupied`, and that mean.

    Searched among the level sets of the mean occupancy: what a method that ignores the caption can reach.
    """
    mean = occupied.float().mean(dim=0)
    candidates = [mean > level for level in torch.linspace(0, 1, 33).tolist()[:-1]]
    scores = [iou(occupied, candidate.expand_as(occupied)).mean().item() for candidate in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    return candidates[best], scores[best]


def _columns(low: Int[Tensor, "F 2"], high: Int[Tensor, "F 2"]) -> tuple[Int[Tensor, " K"], Int[Tensor, "K 2"]]:
    """All grid columns in the rectangles low..high of the faces: the face and the column of each."""
    count = (high - low + 1).clamp(min=0)
    total = count.prod(dim=1)
    face = torch.repeat_interleave(torch.arange(len(total), device=total.device), total)
    offset = torch.arange(len(face), device=total.device) - (total.cumsum(0) - total)[face]
    width = count[face, 1]
    return face, low[face] + torch.stack([offset // width, offset % width], dim=1)


def _contains(triangle: Float[Tensor, "K 3 2"], point: Float[Tensor, "K 2"]) -> Bool[Tensor, " K"]:
    """Even-odd test. Edges are taken from their lower end, so that two faces agree exactly on a shared edge."""
    inside = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        swap = (triangle[:, a, 1] > triangle[:, b, 1])[:, None]
        lower, upper = (
            torch.where(swap, triangle[:, b], triangle[:, a]),
            torch.where(swap, triangle[:, a], triangle[:, b]),
        )
        spans = (lower[:, 1] > point[:, 1]) != (upper[:, 1] > point[:, 1])
        rise = torch.where(spans, upper[:, 1] - lower[:, 1], 1.0)
        crossing = lower[:, 0] + (point[:, 1] - lower[:, 1]) / rise * (upper[:, 0] - lower[:, 0])
        inside ^= spans & (point[:, 0] < crossing)
    return inside


def _parity_along_last(corners: Float[Tensor, "F 3 3"], n: int) -> Bool[Tensor, "N N N"]:
    """Cells with an odd number of faces above them along the last axis."""
    flat = corners[:, :, :2]
    cells = (flat + 1) * (n / 2) - 0.5
    low, high = cells.amin(dim=1).ceil().clamp(min=0).long(), cells.amax(dim=1).floor().clamp(max=n - 1).long()
    face, column = _columns(low, high)
    point = (column + 0.5) * (2 / n) - 1
    point = point.to(corners)
    hit = _contains(flat[face], point)
    face, column, point = face[hit], column[hit], point[hit]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[face]
    start = corners[face, 0]
    height = start[:, 2] - ((point - start[:, :2]) * normal[:, :2]).sum(dim=1) / normal[:, 2]
    below = ((height + 1) * (n / 2) - 0.5).ceil().clamp(0, n).long()  # number of cells under the face
    index = (column[:, 0] * n + column[:, 1]) * (n + 1) + below
    count = torch.bincount(index, minlength=n * n * (n + 1)).reshape(n, n, n + 1)
    above = count.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]
    return above % 2 == 1


def mesh_occupancy(mesh: Mesh, n: int = GRID) -> Bool[Tensor, " P"]:
    """Which cell centres of `grid_points(n)` lie inside the mesh.

    Parity of the crossings along a line, for the three axes; the majority decides, so that a hole spoils a cell only
    if two of its lines pass through holes. Vertices need not be merged, orientation does not matter. float64.
    """
    if len(mesh.faces) == 0:
        return torch.zeros(n**3, dtype=torch.bool, device=mesh.vertices.device)
    corners = mesh.vertices.double()[mesh.faces.long()]
    votes = torch.zeros(n, n, n, dtype=torch.long, device=corners.device)
    for axis in range(3):
        order = [(axis + 1) % 3, (axis + 2) % 3, axis]
        inside = _parity_along_last(corners[:, :, order], n)
        votes += inside.permute([order.index(world) for world in range(3)])
    return (votes >= 2).flatten()


def sample_mesh(mesh: Mesh, n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """n points drawn uniformly from the surface of a mesh."""
    corners = mesh.vertices[mesh.faces.long()]
    a, b, c = corners.unbind(dim=1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    face = torch.multinomial(area, n, replacement=True, generator=generator)
    u, v = torch.rand(2, n, 1, generator=generator, device=area.device)
    root = u.sqrt()
    return (1 - root) * a[face] + root * (1 - v) * b[face] + root * v * c[face]


def sample_solid(solid: Solid, n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """n points on the exact surface: uniform points of a thin shell around it, moved along the gradient.

    The shell is equally thick where the signed distance rises slower than 1, as that of stretched shapes does.
    """
    shell, kept = 0.01, []
    while sum(map(len, kept)) < n:
        cube = torch.rand(64 * n, 3, generator=generator, device=generator.device) * 2 - 1
        points = cube * (BALL_RADIUS + shell)
        points = points[sdf([solid], points[None])[0].abs() < shell]
        points = points[_way_to_surface(solid, points).norm(dim=-1) < shell]
        for _ in range(12):
            points = points + _way_to_surface(solid, points)
        kept.append(points[sdf([solid], points[None])[0].abs() < 1e-4])  # a few go back and forth across an edge
    return torch.cat(kept)[:n]


def _way_to_surface(solid: Solid, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
    """A step of Newton's method along the gradient of the signed distance."""
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        distance = sdf([solid], points[None])[0]
        (gradient,) = torch.autograd.grad(distance.sum(), points)
    return -(distance[:, None] * gradient / gradient.square().sum(-1, keepdim=True).clamp(min=0.01)).detach()


def chamfer(a: Float[Tensor, "N 3"], b: Float[Tensor, "M 3"]) -> float:
    """Mean distance to the nearest point of the other sample, averaged over both directions.

    Two samples of one surface are not at distance 0: that is the floor of the measure.
    """
    distances = torch.cdist(a, b)
    return 0.5 * (distances.amin(dim=0).mean() + distances.amin(dim=1).mean()).item()
