"""Properties of indexed triangle meshes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.ops.rows import add_rows, gather_rows

# Below this squared length a summed face normal has no direction.
_MIN_SQUARED_NORMAL = 1e-20


def vertex_normals(vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "N 3"]:
    """Unit normals, faces weighted by area; (0, 0, 1) for vertices without area. Differentiable in `vertices`."""
    a, b, c = gather_rows(vertices, faces.flatten()).view(-1, 3, 3).unbind(1)
    doubled_area = torch.linalg.cross(b - a, c - a)
    summed = add_rows(torch.zeros_like(vertices), faces.flatten(), doubled_area.repeat_interleave(3, 0))
    up = F.pad(vertices.new_ones(1), (2, 0))  # made on the device: the host does not wait
    has_area = summed.square().sum(1, keepdim=True) > _MIN_SQUARED_NORMAL
    return F.normalize(torch.where(has_area, summed, up), dim=1)


def signed_volume(vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, ""]:
    """Enclosed volume of a closed mesh, positive if its faces are counter-clockwise seen from outside."""
    a, b, c = vertices[faces].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum() / 6


def keep_large_components(
    vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"], min_ratio: float
) -> tuple[Float[Tensor, "M 3"], Int[Tensor, "K 3"]]:
    """The mesh without its small pieces and without the vertices that no face uses.

    A piece is a set of faces connected by common vertices; it stays if it has at least `min_ratio` (0 to 1) times
    as many faces as the largest piece. The order of the rest is kept.
    """
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio is a share of the largest component, from 0 to 1; got {min_ratio}.")
    if len(faces) == 0:
        return vertices[:0], faces
    labels = _component_labels(len(vertices), faces)[faces[:, 0]]
    sizes = torch.bincount(labels)
    faces = faces[sizes[labels] >= min_ratio * sizes.max()]
    used, renumbered = faces.unique(return_inverse=True)
    return vertices[used], renumbered.view_as(faces)


@dataclass(frozen=True)
class Topology:
    """How the faces of a mesh hang together.

    watertight: there are faces, and every edge lies between exactly two, which run along it in opposite directions.
    n_components: pieces that are connected by edges. genus: handles of all pieces together; None if not watertight.
    """

    watertight: bool
    n_components: int
    genus: int | None


def topology(vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"]) -> Topology:
    """Watertightness, pieces and genus. Vertices at exactly the same place count as one, faces without three don't.

    Genus by Euler's formula V - E + F = 2 (pieces - genus). Surfaces that touch in a single point are not joined by it.
    """
    _, same = vertices.unique(dim=0, return_inverse=True)
    faces = same[faces.long()]
    faces = faces[(faces != faces.roll(1, dims=1)).all(dim=1)]
    n = len(faces)
    if n == 0:
        return Topology(False, 0, None)
    corner = torch.arange(3 * n, device=faces.device).view(n, 3)
    start, end = faces.flatten(), faces.roll(-1, dims=1).flatten()  # half-edge k begins in corner k
    following = corner.roll(-1, dims=1).flatten()
    key = start.minimum(end) * len(vertices) + start.maximum(end)
    _, edge, count = key.unique(return_inverse=True, return_counts=True)
    first = torch.full_like(count, 3 * n).scatter_reduce(0, edge, corner.flatten(), "amin")
    last = torch.zeros_like(count).scatter_reduce(0, edge, corner.flatten(), "amax")
    pieces = int(_component_labels(n, torch.stack([first[edge], corner.flatten()], 1) // 3).unique().numel())
    if not bool(((count == 2) & (start[first] == end[last])).all()):
        return Topology(False, pieces, None)
    # Corners around a vertex, joined across the edges that meet in it: where surfaces touch in a point there are two.
    around = torch.cat([torch.stack([first, following[last]], 1), torch.stack([following[first], last], 1)])
    n_vertices = _component_labels(3 * n, around).unique().numel()
    return Topology(True, pieces, pieces - (n_vertices - len(count) + n) // 2)


def _component_labels(count: int, faces: Tensor) -> Tensor:
    """For every vertex the smallest vertex number of its component, by label propagation with shortcuts."""
    labels = torch.arange(count, device=faces.device)
    while True:
        smallest = labels[faces].amin(1, keepdim=True).expand_as(faces)
        lowered = labels.scatter_reduce(0, faces.flatten(), smallest.flatten(), "amin")
        # A label is a vertex of the same component: its own label is at most as large.
        lowered = lowered[lowered]
        if torch.equal(lowered, labels):
            return labels
        labels = lowered
