"""Differentiable marching cubes on a dense grid.

`backend` chooses the implementation: "torch" (any device), "triton" (CUDA kernels of `marching_cubes_triton.py`, one
host read), or "auto", which is triton for CUDA tensors where Triton is installed and `performance` allows it, else
torch. Faces and their order are the same, vertices and gradients agree to rounding. On CUDA with Triton, gradients are
the same from run to run under `torch.use_deterministic_algorithms`.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], list[tuple[int, int]]]:
    """`marching_cubes` of B grids at once: vertices and faces of all meshes one after the other, and how many of both
    each mesh has. Faces hold rows of the joint vertices."""
    if _use_diso(backend, sdf, pad):
        from triplaneturbo.ops.marching_cubes_diso import extract

        return extract(sdf, deformation, level)
    if choose("isosurface", sdf.device, sdf.dtype, asked=backend).name == "triton":
        return _in_kernels(sdf, deformation, level, pad)
    if pad:
        sdf = F.pad(sdf, [1] * 6, value=level + 1)
        if deformation is not None:
            deformation = F.pad(deformation, [0, 0] + [1] * 6)
    inside = sdf.detach() < level
    edges = _crossed_edges(inside)
    vertices = _vertices(sdf, deformation, edges, level)
    if pad:
        vertices = vertices - 1
    faces = _triangles(inside, edges)
    return vertices, faces, _sizes(edges, faces, inside)


def _in_kernels(
    sdf: Tensor, deformation: Tensor | None, level: float, pad: bool
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    from triplaneturbo.ops.marching_cubes_triton import PlaceVertices, crossed_edges_and_faces

    with torch.no_grad():
        tables = _triangle_table(sdf.device), _edge_table(sdf.device)
        edges, faces, sizes = crossed_edges_and_faces(sdf, level, pad, *tables)
    return PlaceVertices.apply(sdf, deformation, edges, level, pad), faces, sizes


def _sizes(edges: Tensor, faces: Tensor, inside: Tensor) -> list[tuple[int, int]]:
    """How many vertices and faces each grid has."""
    owners = edges // (3 * inside[0].numel())
    number = torch.arange(len(inside) + 1, device=edges.device)
    first = [torch.searchsorted(owner, number) for owner in (owners, owners[faces[:, 0]])]
    return [(vertices, faces) for vertices, faces in torch.stack(first, 1).diff(dim=0).tolist()]


def touched_points(sdf: Float[Tensor, "*B X Y Z"]) -> Bool[Tensor, "*B X Y Z"]:
    """The grid points at either end of a grid edge that crosses the surface; beyond the grid is outside."""
    inside = F.pad(sdf < 0, [1] * 6)
    touched = torch.zeros_like(inside)
    for axis in (-3, -2, -1):
        size = inside.shape[axis] - 1
        crossed = inside.narrow(axis, 0, size) ^ inside.narrow(axis, 1, size)
        touched.narrow(axis, 0, size).logical_or_(crossed)
        touched.narrow(axis, 1, size).logical_or_(crossed)
    return touched[..., 1:-1, 1:-1, 1:-1]


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

    i, j, k, axis = _edge_table(inside.device).unbind(1)
    offsets = ((i * rows + j) * columns + k) * 3 + axis
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


@functools.cache
def _edge_table(device: torch.device) -> Tensor:
    """The point of a cell at which each of its edges starts, and the edge's axis: [12, 4]."""
    table = []
    for first, second in EDGES:
        low, high = sorted((CORNERS[first], CORNERS[second]))
        table.append((*low, next(axis for axis in range(3) if low[axis] != high[axis])))
    return torch.tensor(table, device=device)
