"""Colours of a surface as a texture: fewer faces, charts, and the field's colour at every texel."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triplaneturbo.exporters.unwrap import simplify, unwrap
from triplaneturbo.ops.rasterize import rasterize
from triplaneturbo.types import ColoredSurface, Mesh, Texture

# Texels whose points are alive at a time.
_TEXELS = 1 << 18


@torch.no_grad()
def add_texture(
    mesh: Mesh,
    *,
    size: int = 1024,
    max_faces: int = 5000,
    chart_options: dict[str, Any] | None = None,
    pack_options: dict[str, Any] | None = None,
) -> Mesh:
    """`mesh` with fewer faces, and the colours of its surface as a texture in place of those of its vertices.

    size: height and width, texels. max_faces: 0 keeps all; xatlas needs more than 4 times as long for twice as many.
    chart_options, pack_options: of xatlas.

    Raises:
        ValueError: it is not known which surface the mesh approximates.
        ConfigError: xatlas or fast-simplification is not installed.
    """
    if mesh.surface is None:
        raise ValueError(
            "a texture is painted from the field that a mesh was extracted from, and this mesh has none; write its "
            "colours per vertex"
        )
    vertices, faces = simplify(mesh.vertices.float(), mesh.faces, max_faces)
    coordinates, origin, triangles = unwrap(vertices, faces, size, chart_options, pack_options)
    image = bake(mesh.surface, vertices, faces, coordinates[triangles], size)
    texture = Texture(image, coordinates, origin, triangles)
    return replace(mesh, vertices=vertices, faces=faces, colors=None, texture=texture)


@torch.no_grad()
def bake(
    surface: ColoredSurface,
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    corners: Float[Tensor, "F 3 2"],
    size: int,
) -> Float[Tensor, "size size 3"]:
    """The colours of `surface` in a texture where the faces of a mesh near it lie at `corners` (see types.Texture).

    The colour of a texel is not that of the point on its flat face but of the curved face through the face's corners
    and edge midpoints, projected to the surface (`curved_faces`). Texels outside all charts: see `fill`.
    """
    clip = F.pad(corners.flatten(0, 1) * 2 - 1, (0, 2))
    clip[:, 3] = 1
    raster = rasterize(clip[None], torch.arange(len(clip), device=clip.device).view(-1, 3), size, size)
    owners = raster.face_index.flatten()
    covered = (owners >= 0).nonzero().squeeze(1)
    nodes = curved_faces(surface, vertices, faces)
    image = nodes.new_zeros(size * size, 3)
    for texels in covered.split(_TEXELS):
        weights = quadratic_weights(raster.barycentric.view(-1, 3)[texels])
        points = (weights.unsqueeze(1) @ nodes[owners[texels]]).squeeze(1)
        image[texels] = surface.colors(points)

    # Tips of charts, and charts thinner than a texel, cover no centre: their nodes say the colour.
    places = torch.cat([corners, (corners + corners.roll(-1, 1)) / 2], dim=1)
    columns, rows = (places * size).long().clamp(0, size - 1).unbind(2)
    uncovered = owners[rows * size + columns] < 0
    tips = (rows * size + columns)[uncovered]
    image[tips] = surface.colors(nodes[uncovered])
    known = (owners >= 0).index_fill(0, tips, True)
    return fill(image.view(size, size, 3), known.view(size, size))


def fill(image: Float[Tensor, "H W 3"], known: Bool[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """`image` with colours of known texels in the place of unknown ones.

    Lookups at seams mix a chart's edge with texels beyond it: those next to known texels take the mean of these. Coarse
    mip levels mix in more: the others take the mean of the known texels in the smallest cell of 2^k x 2^k that has any.
    """
    colors = torch.where(known.unsqueeze(2), image, 0).permute(2, 0, 1)
    level = torch.cat([colors, known.to(image).unsqueeze(0)])
    level = torch.where(known, level, F.avg_pool2d(level, 3, stride=1, padding=1))
    levels = [level]
    while max(levels[-1].shape[1:]) > 1:
        levels.append(F.avg_pool2d(levels[-1][None], 2, ceil_mode=True)[0])
    filled = levels[-1]
    for level in reversed(levels[:-1]):
        wider = filled.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : level.shape[1], : level.shape[2]]
        filled = torch.where(level[3] > 0, level, wider)
    return (filled[:3] / filled[3]).permute(1, 2, 0)


def curved_faces(
    surface: ColoredSurface, vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "F 6 3"]:
    """Corners a, b, c and midpoints of ab, bc, ca of every face, all projected to the surface: nodes of quadratic
    faces, which have no gaps because neighbours share them."""
    ends = torch.stack([faces, faces.roll(-1, 1)]).sort(0).values
    keys, edge_of_side = (ends[0] * len(vertices) + ends[1]).unique(return_inverse=True)
    midpoints = (vertices[keys // len(vertices)] + vertices[keys % len(vertices)]) / 2
    nodes = surface.project(torch.cat([vertices, midpoints]))
    return nodes[torch.cat([faces, len(vertices) + edge_of_side], dim=1)]


def quadratic_weights(barycentric: Float[Tensor, "N 3"]) -> Float[Tensor, "N 6"]:
    """Quadratic Lagrange polynomials of the corners, L (2 L - 1), and of the midpoints of ab, bc, ca, 4 L_a L_b."""
    at_corners = barycentric * (2 * barycentric - 1)
    at_midpoints = 4 * barycentric * barycentric.roll(-1, 1)
    return torch.cat([at_corners, at_midpoints], dim=1)
