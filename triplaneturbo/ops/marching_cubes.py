"""Differentiable marching cubes on a dense grid."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import ConfigError
from triplaneturbo.ops.backends import choose
from triplaneturbo.ops.marching_cubes_tables import CORNERS, EDGES, MAX_TRIANGLES, triangles_of_cases
from triplaneturbo.ops.rows import gather_rows


def marching_cubes(
    sdf: Float[Tensor, "X Y Z"],
    deformation: Float[Tensor, "X Y Z 3"] | None = None,
    *,
    level: float = 0.0,
    pad: bool = True,
    backend: str = "auto",
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Triangle mesh of the surface sdf = level; inside is sdf < level.

    Vertices are in grid units: grid point (i, j, k) lies at (i, j, k) + deformation[i, j, k]. The vertex on an
    edge with end points p0, p1 and values s0, s1 is p0 + t (p1 - p0) with t = (level - s0) / (s1 - s0);
    differentiable in `sdf` and `deformation`. Neighbouring triangles share vertices, faces point outwards
    (positive signed volume), and both are ordered by grid position. With `pad` the grid is surrounded by points
    of value level + 1, so the mesh is closed. A field without a sign change gives no vertices and no faces.

    backend: auto, torch, diso; see `backends.choose`, and for its errors. Diso has another order, and closes all: what
    is not padded is torch's.

    Raises:
        ConfigError: backend="diso" without `pad`.
    """
    deformation = None if deformation is None else deformation[None]
    vertices, faces, _ = marching_cubes_packed(sdf[None], deformation, level=level, pad=pad, backend=backend)
    return vertices, faces


def marching_cubes_packed(
    sdf: Float[Tensor, "B X Y Z"],
    deformation: Float[Tensor, "B X Y Z 3"] | None = None,
    *,
    level: float = 0.0,
    pad: bool = True,
    backend: str = "auto",
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], Int[Tensor, " V"]]:
    """`marching_cubes` of B grids at once: vertices and faces of all meshes one after the other, and the grid that
    each vertex belongs to, ascending. Faces hold rows of the joint vertices."""
    if _use_diso(backend, sdf, pad):
        from triplaneturbo.ops.marching_cubes_diso import extract

        return extract(sdf, deformation, level)
    if pad:
        sdf = F.pad(sdf, [1] * 6, value=level + 1)
        if deformation is not None:
            deformation = F.pad(deformation, [0, 0] + [1] * 6)
    inside = sdf.detach() < level
    edges = _crossed_edges(inside)
    vertices = _vertices(sdf, deformation, edges, level)
    if pad:
        vertices = vertices - 1
    return vertices, _triangles(inside, edges), edges // (3 * inside[0].numel())


def _use_diso(backend: str, sdf: Tensor, pad: bool) -> bool:
    if not pad and backend == "diso":
        raise ConfigError("backend='diso' closes every mesh; without pad use backend='auto' or 'torch'")
    return pad and choose("isosurface", sdf.device, sdf.dtype, asked=backend).name == "diso"


def _crossed_edges(inside: Tensor) -> Tensor:
    """Sorted ids (grid point * 3 + axis) of the grid edges with one end inside: [V]."""
    crossed = inside.new_zeros(*inside.shape, 3)
    for axis in range(3):
        size = inside.shape[1 + axis] - 1
        change = inside.narrow(1 + axis, 0, size) ^ inside.narrow(1 + axis, 1, size)
        crossed[..., axis].narrow(1 + axis, 0, size).copy_(change)
    return crossed.view(-1).nonzero().squeeze(1)


def _vertices(sdf: Tensor, deformation: Tensor | None, edges: Tensor, level: float) -> Tensor:
    _, layers, rows, columns = sdf.shape
    axis = edges % 3
    start = edges // 3
    strides = torch.tensor([rows * columns, columns, 1], device=sdf.device)
    stop = start + strides[axis]
    place = [start // (rows * columns) % layers, start // columns % rows, start % columns]
    position0 = torch.stack(place, 1).to(sdf.dtype)
    position1 = position0 + F.one_hot(axis, 3)
    if deformation is not None:
        deformation = deformation.reshape(-1, 3)
        position0 = position0 + gather_rows(deformation, start)
        position1 = position1 + gather_rows(deformation, stop)
    values = sdf.reshape(-1)
    value0, value1 = gather_rows(values, start), gather_rows(values, stop)
    fraction = (level - value0) / (value1 - value0)
    return torch.lerp(position0, position1, fraction.unsqueeze(1))


def _triangles(inside: Tensor, edges: Tensor) -> Tensor:
    _, layers, rows, columns = inside.shape
    cases = _cases(inside)
    grid, x, y, z = cells = ((cases != 0) & (cases != 255)).nonzero().unbind(1)
    case = cases[cells].long()
    corner = ((grid * layers + x) * rows + y) * columns + z

    offsets = _edge_offsets(rows, columns, inside.device)
    candidates = _triangle_table(inside.device)[case]
    present = candidates[..., 0] >= 0
    ids = (corner.view(-1, 1, 1) * 3 + offsets[candidates])[present]
    return torch.searchsorted(edges, ids)


def _cases(inside: Tensor) -> Tensor:
    """Case of every cell: bit k is set where corner k is outside."""
    outside = (~inside).to(torch.uint8)
    grids, x, y, z = inside.shape[0], *(size - 1 for size in inside.shape[1:])
    cases = outside.new_zeros(grids, x, y, z)
    for bit, (i, j, k) in enumerate(CORNERS):
        cases |= outside[:, i : i + x, j : j + y, k : k + z] << bit
    return cases


@functools.cache
def _triangle_table(device: torch.device) -> Tensor:
    """Triangles per case as edge numbers, -1 where absent: [256, 5, 3]."""
    absent = (-1, -1, -1)
    rows = [case + [absent] * (MAX_TRIANGLES - len(case)) for case in triangles_of_cases()]
    return torch.tensor(rows, device=device)


def _edge_offsets(rows: int, columns: int, device: torch.device) -> Tensor:
    """What to add to 3 * (first corner of a cell) to get the ids of its edges: [12]."""
    offsets = []
    for first, second in EDGES:
        low, high = sorted((CORNERS[first], CORNERS[second]))
        axis = next(axis for axis in range(3) if low[axis] != high[axis])
        offsets.append(((low[0] * rows + low[1]) * columns + low[2]) * 3 + axis)
    return torch.tensor(offsets, device=device)
