"""Properties of indexed triangle meshes."""

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
