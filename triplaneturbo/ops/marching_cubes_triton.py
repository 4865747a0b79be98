"""Triton kernels of `marching_cubes.py`: count, add up, write. One host read, of how many vertices and faces there are.

Every grid point owns the three grid edges that start at it and the cell whose first corner it is. A first kernel counts
their vertices and triangles, a running sum over all points says where each point's begin, a second kernel writes:
the order is that of the reference. The points around a padded grid exist in these numbers only. Gradients are summed
with atomics, in `sum_rows` under `torch.use_deterministic_algorithms`. `no_type_check` keeps run-time type checkers
away from the kernels.
"""

import itertools
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.rasterize_triton import divide
from triplaneturbo.ops.rows_triton import check_device, sum_rows

_POINTS_PER_PROGRAM = 256
_VERTICES_PER_PROGRAM = 128


def crossed_edges_and_faces(
    sdf: Tensor, level: float, pad: bool, triangles: Tensor, cell_edges: Tensor
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Ids (grid point * 3 + axis) of the crossed grid edges [V], rows of these as faces [F, 3], and how many of both
    each grid has.

    triangles: [256, 5, 3], edges of a cell by case, -1 where absent. cell_edges: [12, 4], for each the point of the
    cell that it starts at and its axis.
    """
    check_device(sdf)
    grids, *shape = sdf.shape
    padded = [size + 2 * pad for size in shape]
    points = grids * padded[0] * padded[1] * padded[2]
    # Vertices in the lower 32 bits, triangles in the upper ones.
    counts = torch.empty(points, dtype=torch.int64, device=sdf.device)
    crossings, cases = torch.empty(2, points, dtype=torch.uint8, device=sdf.device)
    sdf, launch = sdf.contiguous(), (triton.cdiv(points, _POINTS_PER_PROGRAM),)
    if points == 0:
        return counts, counts.new_zeros(0, 3), [(0, 0)] * grids
    options = {"PAD": int(pad), "POINTS": _POINTS_PER_PROGRAM}
    levels = _levels(sdf, level)
    _count_kernel[launch](sdf, levels, triangles, counts, crossings, cases, points, *shape, **options)
    sums = counts.cumsum(0)
    ends = [0, *sums.view(grids, -1)[:, -1].tolist()]
    edges = sums.new_empty(ends[-1] & 0xFFFFFFFF)
    faces = sums.new_empty(ends[-1] >> 32, 3)
    if len(edges) > 0:
        _write_kernel[launch](
            counts, sums, crossings, cases, triangles, cell_edges, edges, faces, points, *padded[1:],
            POINTS=_POINTS_PER_PROGRAM,
        )  # fmt: skip
    sizes = [
        ((after & 0xFFFFFFFF) - (before & 0xFFFFFFFF), (after >> 32) - (before >> 32))
        for before, after in itertools.pairwise(ends)
    ]
    return edges, faces, sizes


class PlaceVertices(torch.autograd.Function):
    """Vertices [V, 3] on crossed edges [V], in units of the grid [B, X, Y, Z] without its padding."""

    @staticmethod
    def forward(ctx, sdf, deformation, edges, level, pad):
        sdf, levels = sdf.contiguous(), _levels(sdf, level)
        deformation = None if deformation is None else deformation.contiguous()
        ctx.save_for_backward(sdf, deformation, edges, levels)
        ctx.options = {"PAD": int(pad), "DEFORMED": deformation is not None, "VERTICES": _VERTICES_PER_PROGRAM}
        vertices = sdf.new_empty(len(edges), 3)
        if len(edges) > 0:
            _place_kernel[_vertex_grid(edges)](
                sdf,
                sdf if deformation is None else deformation,
                edges,
                levels,
                vertices,
                len(edges),
                *sdf.shape[1:],
                enable_fp_fusion=False,
                **ctx.options,
            )
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        sdf, deformation, edges, levels = ctx.saved_tensors
        wants_sdf, wants_deformation = ctx.needs_input_grad[:2]
        in_rows = torch.are_deterministic_algorithms_enabled()
        # In rows: for both ends of every edge a row of the grid, what its value gets and what its deformation gets.
        index = edges.new_empty(len(edges), 2) if in_rows else edges
        grad_sdf = sdf.new_empty(len(edges), 2) if in_rows else torch.zeros_like(sdf)
        grad_deformation = grad_sdf
        if wants_deformation:
            grad_deformation = sdf.new_empty(len(edges), 2, 3) if in_rows else torch.zeros_like(deformation)
        if len(edges) > 0:
            _place_backward_kernel[_vertex_grid(edges)](
                sdf, sdf if deformation is None else deformation, edges, levels, grad.contiguous(), grad_sdf,
                grad_deformation, index, len(edges), *sdf.shape[1:], WANTS_SDF=wants_sdf,
                WANTS_DEFORMATION=wants_deformation, IN_ROWS=in_rows, **ctx.options,
            )  # fmt: skip
        if in_rows:
            grad_sdf = sum_rows(grad_sdf.flatten(), index.flatten(), sdf.numel()).view_as(sdf)
            if wants_deformation:
                sums = sum_rows(grad_deformation.flatten(0, 1), index.flatten(), sdf.numel())
                grad_deformation = sums.view_as(deformation)
        return grad_sdf if wants_sdf else None, grad_deformation if wants_deformation else None, *(None,) * 3


def _vertex_grid(edges: Tensor) -> tuple[int]:
    return (triton.cdiv(len(edges), _VERTICES_PER_PROGRAM),)


def _levels(sdf: Tensor, level: float) -> Tensor:
    """The level, and the value around a padded grid; numbers that a kernel is given directly are of 32 bits."""
    levels = sdf.new_full((2,), level)
    levels[1] = level + 1
    return levels


@triton.jit
@no_type_check
def _index(grid, i, j, k, valid, layers, rows, columns, PAD: tl.constexpr):
    """Rows of the grid's points, counted without padding, and which of them exist."""
    x, y, z = i - PAD, j - PAD, k - PAD
    exists = valid & (x >= 0) & (x < layers) & (y >= 0) & (y < rows) & (z >= 0) & (z < columns)
    return ((grid * layers + x) * rows + y) * columns + z, exists


@triton.jit
@no_type_check
def _is_inside(sdf, level, grid, i, j, k, valid, layers, rows, columns, PAD: tl.constexpr):
    index, exists = _index(grid, i, j, k, valid, layers, rows, columns, PAD)
    return exists & (tl.load(sdf + index, mask=exists, other=0) < level)


@triton.jit
@no_type_check
def _places(point, layers, rows, columns, PAD: tl.constexpr):
    """Grid and (i, j, k), padding counted, of points."""
    line = point // (columns + 2 * PAD)
    layer = line // (rows + 2 * PAD)
    grid = layer // (layers + 2 * PAD)
    return grid, layer - grid * (layers + 2 * PAD), line - layer * (rows + 2 * PAD), point - line * (columns + 2 * PAD)


@triton.jit
@no_type_check
def _count_kernel(
    sdf, levels, triangles, counts, crossings, cases, points, layers, rows, columns, PAD: tl.constexpr,
    POINTS: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = point < points
    grid, i, j, k = _places(point, layers, rows, columns, PAD)
    level = tl.load(levels)
    own = _is_inside(sdf, level, grid, i, j, k, valid, layers, rows, columns, PAD)
    case = 1 - own.to(tl.int32)
    crossing = tl.zeros_like(case)
    for corner in tl.static_range(1, 8):
        di, dj, dk = corner & 1 ^ (corner >> 1 & 1), corner >> 1 & 1, corner >> 2
        other = _is_inside(sdf, level, grid, i + di, j + dj, k + dk, valid, layers, rows, columns, PAD)
        case += (1 - other.to(tl.int32)) << corner
        # Corners 1, 3 and 4 are the other ends of the point's own edges.
        if corner == 1:
            crossing += (own != other).to(tl.int32)
        if corner == 3:
            crossing += (own != other).to(tl.int32) << 1
        if corner == 4:
            crossing += (own != other).to(tl.int32) << 2
    last_i, last_j, last_k = i == layers + 2 * PAD - 1, j == rows + 2 * PAD - 1, k == columns + 2 * PAD - 1
    crossing &= 7 - last_i.to(tl.int32) - 2 * last_j.to(tl.int32) - 4 * last_k.to(tl.int32)
    has_cell = valid & ~(last_i | last_j | last_k)
    case = tl.where(has_cell, case, 0)
    n_triangles = tl.zeros_like(case)
    for number in tl.static_range(5):
        edge = tl.load(triangles + case * 15 + 3 * number, mask=has_cell, other=-1)
        n_triangles += (edge >= 0).to(tl.int32)
    n_vertices = (crossing & 1) + (crossing >> 1 & 1) + (crossing >> 2)
    tl.store(counts + point, n_vertices.to(tl.int64) + (n_triangles.to(tl.int64) << 32), mask=valid)
    tl.store(crossings + point, crossing.to(tl.uint8), mask=valid)
    tl.store(cases + point, case.to(tl.uint8), mask=valid)


@triton.jit
@no_type_check
def _before(crossing, axis):
    """How many of a point's edges before that along `axis` are crossed."""
    earlier = crossing & ((1 << axis) - 1)
    return (earlier & 1) + (earlier >> 1 & 1) + (earlier >> 2)


@triton.jit
@no_type_check
def _write_kernel(
    counts, sums, crossings, cases, triangles, cell_edges, edges, faces, points, rows, columns, POINTS: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = point < points
    count = tl.load(counts + point, mask=valid, other=0)
    if tl.max(count, 0) > 0:
        first = tl.load(sums + point, mask=valid, other=0) - count
        crossing = tl.load(crossings + point, mask=valid, other=0).to(tl.int32)
        for axis in tl.static_range(3):
            vertex = (first & 0xFFFFFFFF) + _before(crossing, axis)
            tl.store(edges + vertex, 3 * point + axis, mask=valid & ((crossing >> axis & 1) == 1))
        case = tl.load(cases + point, mask=valid, other=0).to(tl.int32)
        for corner in tl.static_range(15):
            present = corner // 3 < count >> 32
            edge = tl.load(triangles + case * 15 + corner, mask=present, other=0)
            di = tl.load(cell_edges + 4 * edge, mask=present, other=0)
            dj = tl.load(cell_edges + 4 * edge + 1, mask=present, other=0)
            dk = tl.load(cell_edges + 4 * edge + 2, mask=present, other=0)
            axis = tl.load(cell_edges + 4 * edge + 3, mask=present, other=0).to(tl.int32)
            start = point + (di * rows + dj) * columns + dk
            begin = tl.load(sums + start, mask=present, other=0) - tl.load(counts + start, mask=present, other=0)
            earlier = _before(tl.load(crossings + start, mask=present, other=0).to(tl.int32), axis)
            tl.store(faces + 3 * (first >> 32) + corner, (begin & 0xFFFFFFFF) + earlier, mask=present)


@triton.jit
@no_type_check
def _ends(sdf, edges, levels, vertex, valid, layers, rows, columns, PAD: tl.constexpr):
    """Both ends of edges: place of the first, axis, rows of the grid and whether they exist, and the values there."""
    edge = tl.load(edges + vertex, mask=valid, other=0)
    point = edge // 3
    axis = edge - 3 * point
    grid, i, j, k = _places(point, layers, rows, columns, PAD)
    start, has_start = _index(grid, i, j, k, valid, layers, rows, columns, PAD)
    di, dj, dk = (axis == 0).to(tl.int64), (axis == 1).to(tl.int64), (axis == 2).to(tl.int64)
    stop, has_stop = _index(grid, i + di, j + dj, k + dk, valid, layers, rows, columns, PAD)
    around = tl.load(levels + 1)
    value0 = tl.where(has_start, tl.load(sdf + start, mask=has_start, other=0), around)
    value1 = tl.where(has_stop, tl.load(sdf + stop, mask=has_stop, other=0), around)
    return i, j, k, axis, start, has_start, stop, has_stop, value0, value1


@triton.jit
@no_type_check
def _place_kernel(
    sdf, deformation, edges, levels, vertices, count, layers, rows, columns, PAD: tl.constexpr,
    DEFORMED: tl.constexpr, VERTICES: tl.constexpr,
):  # fmt: skip
    vertex = tl.program_id(0).to(tl.int64) * VERTICES + tl.arange(0, VERTICES)
    valid = vertex < count
    i, j, k, axis, start, has_start, stop, has_stop, value0, value1 = _ends(
        sdf, edges, levels, vertex, valid, layers, rows, columns, PAD
    )
    fraction = divide(tl.load(levels) - value0, tl.where(valid, value1 - value0, 1))
    for side in tl.static_range(3):
        place = i if side == 0 else (j if side == 1 else k)
        position0 = place.to(value0.dtype)
        position1 = (place + (axis == side).to(tl.int64)).to(value0.dtype)
        if DEFORMED:
            position0 += tl.load(deformation + 3 * start + side, mask=has_start, other=0)
            position1 += tl.load(deformation + 3 * stop + side, mask=has_stop, other=0)
        # As torch.lerp does.
        extent = position1 - position0
        position = tl.where(fraction < 0.5, position0 + fraction * extent, position1 - extent * (1 - fraction))
        tl.store(vertices + 3 * vertex + side, position - PAD, mask=valid)


@triton.jit
@no_type_check
def _give(target, vertex, index, value, valid, exists, WIDTH: tl.constexpr, END: tl.constexpr, IN_ROWS: tl.constexpr):
    """Add to the gradient of a grid point, or write down what is to be added."""
    if IN_ROWS:
        tl.store(target + (2 * vertex + END) * WIDTH, tl.where(exists, value, 0), mask=valid)
    else:
        tl.atomic_add(target + index * WIDTH, value, mask=exists, sem="relaxed")


@triton.jit
@no_type_check
def _place_backward_kernel(
    sdf, deformation, edges, levels, grad, grad_sdf, grad_deformation, rows_of_ends, count, layers, rows, columns,
    PAD: tl.constexpr, DEFORMED: tl.constexpr, WANTS_SDF: tl.constexpr, WANTS_DEFORMATION: tl.constexpr,
    IN_ROWS: tl.constexpr, VERTICES: tl.constexpr,
):  # fmt: skip
    vertex = tl.program_id(0).to(tl.int64) * VERTICES + tl.arange(0, VERTICES)
    valid = vertex < count
    _, _, _, axis, start, has_start, stop, has_stop, value0, value1 = _ends(
        sdf, edges, levels, vertex, valid, layers, rows, columns, PAD
    )
    rise = tl.where(valid, value1 - value0, 1)
    fraction = (tl.load(levels) - value0) / rise
    slope = tl.zeros_like(fraction)
    for side in tl.static_range(3):
        g = tl.load(grad + 3 * vertex + side, mask=valid, other=0)
        extent = (axis == side).to(fraction.dtype)
        if DEFORMED:
            extent -= tl.load(deformation + 3 * start + side, mask=has_start, other=0)
            extent += tl.load(deformation + 3 * stop + side, mask=has_stop, other=0)
        slope += g * extent
        if WANTS_DEFORMATION:
            target = grad_deformation + side
            _give(target, vertex, start, g * (1 - fraction), valid, has_start, 3, 0, IN_ROWS)
            _give(target, vertex, stop, g * fraction, valid, has_stop, 3, 1, IN_ROWS)
    if WANTS_SDF:
        _give(grad_sdf, vertex, start, slope * (fraction - 1) / rise, valid, has_start, 1, 0, IN_ROWS)
        _give(grad_sdf, vertex, stop, -slope * fraction / rise, valid, has_stop, 1, 1, IN_ROWS)
    if IN_ROWS:
        tl.store(rows_of_ends + 2 * vertex, tl.where(has_start, start, 0), mask=valid)
        tl.store(rows_of_ends + 2 * vertex + 1, tl.where(has_stop, stop, 0), mask=valid)
