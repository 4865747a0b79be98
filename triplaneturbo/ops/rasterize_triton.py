"""Triton kernels of `rasterize.rasterize`: visibility, and what pixels see of the faces. Same rules, no host reads.

Visibility is the same bit for bit: coverage is decided in integers, depths are rounded operation by operation as torch
does (`enable_fp_fusion=False`, `divide`), and the nearest face is the minimum of (depth, face) as one 64 bit integer,
whatever the order. A face with a small bounding box is a lane of a program; a larger one is cut into tiles, which
a fixed number of programs share out among themselves.

Gradients of vertices are summed with atomics: equal to rounding, not bit for bit, from run to run. Under
`torch.use_deterministic_algorithms` every pixel's contributions are written down and then added by `sum_rows`, whose
result does not depend on the order. `no_type_check` keeps run-time type checkers away from the kernels.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.rows_triton import check_device, sum_rows

_FACES_PER_PROGRAM = 64
_PIXELS_PER_PROGRAM = 128
# Faces whose bounding box has more pixels are drawn in tiles with this edge.
_LARGE_BOX = 64
_TILE = 16
_TILE_PROGRAMS, _TILE_PROGRAMS_INTERPRETED = 1024, 4
_EMPTY = torch.iinfo(torch.int64).max


def nearest_keys(
    positions: Tensor,
    screen: Tensor,
    depth: Tensor,
    faces: Tensor,
    mesh_index: Tensor | None,
    shape: tuple[int, int, int],
    subpixel_bits: int,
) -> Tensor:
    """(sortable depth << 32 | face) of the nearest face at every pixel of `shape`, the largest integer where there is
    none: [M*H*W]. screen, depth: of the vertices of all views, see `rasterize._screen_vertices`."""
    check_device(positions)
    images, height, width = shape
    views, count, _ = positions.shape
    items = views * len(faces)
    nearest = torch.full((images * height * width,), _EMPTY, device=positions.device)
    if items == 0 or len(nearest) == 0:
        return nearest
    tiles = torch.empty(items, dtype=torch.int64, device=positions.device)
    mesh = (
        positions.contiguous(),
        screen.contiguous(),
        depth.contiguous(),
        faces.contiguous(),
        faces if mesh_index is None else mesh_index.contiguous(),
        nearest,
        tiles,
    )
    sizes = (items, len(faces), count, views, height, width)
    options = {"HAS_MESHES": mesh_index is not None, "BITS": subpixel_bits, "TILE": _TILE, "enable_fp_fusion": False}
    _small_faces_kernel[(triton.cdiv(items, _FACES_PER_PROGRAM),)](
        *mesh, *sizes, LARGE=_LARGE_BOX, FACES=_FACES_PER_PROGRAM, num_warps=2, **options
    )
    _large_faces_kernel[(_TILE_PROGRAMS if positions.is_cuda else _TILE_PROGRAMS_INTERPRETED,)](
        *mesh, tiles.cumsum(0), *sizes, SEARCH_STEPS=items.bit_length(), **options
    )
    return nearest


class SeePixels(torch.autograd.Function):
    """Face index [P], barycentrics [P, 3] and z/w [P] of P = M*H*W pixels from `nearest_keys`."""

    @staticmethod
    def forward(ctx, positions, faces, nearest, height, width):
        positions, faces = positions.contiguous(), faces.contiguous()
        face_index = torch.empty_like(nearest)
        barycentric = positions.new_empty(len(nearest), 3)
        depth = positions.new_empty(len(nearest))
        ctx.mark_non_differentiable(face_index)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, faces, face_index)
        ctx.sizes = (len(nearest), positions.shape[1], len(positions), height, width)
        if len(nearest) > 0:
            _see_kernel[_pixel_grid(len(nearest))](
                positions, faces, nearest, face_index, barycentric, depth, *ctx.sizes, EMPTY=_EMPTY,
                PIXELS=_PIXELS_PER_PROGRAM, enable_fp_fusion=False,
            )  # fmt: skip
        return face_index, barycentric, depth

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad_barycentric, grad_depth):
        positions, faces, face_index = ctx.saved_tensors
        sums = torch.zeros_like(positions)
        if len(faces) == 0 or len(face_index) == 0 or (grad_barycentric is None and grad_depth is None):
            return sums, *(None,) * 4
        in_rows = torch.are_deterministic_algorithms_enabled()
        target = positions.new_empty(len(face_index), 3, 4) if in_rows else sums
        _see_backward_kernel[_pixel_grid(len(face_index))](
            positions, faces, face_index, target if grad_barycentric is None else grad_barycentric.contiguous(),
            target if grad_depth is None else grad_depth.contiguous(), target, *ctx.sizes,
            WITH_BARYCENTRIC=grad_barycentric is not None, WITH_DEPTH=grad_depth is not None, IN_ROWS=in_rows,
            PIXELS=_PIXELS_PER_PROGRAM,
        )  # fmt: skip
        if in_rows:
            index = corner_rows(faces, face_index, *ctx.sizes[1:])
            sums = sum_rows(target.view(-1, 4), index, sums[..., 0].numel()).view_as(positions)
        return sums, *(None,) * 4


def _pixel_grid(pixels: int) -> tuple[int]:
    return (triton.cdiv(pixels, _PIXELS_PER_PROGRAM),)


def corner_rows(faces: Tensor, face_index: Tensor, count: int, views: int, height: int, width: int) -> Tensor:
    """Rows of the flattened vertices [V*N] of the corners of every pixel's face, any where it sees none: [P*3]."""
    view = torch.arange(len(face_index), device=faces.device) // (height * width) % views
    return (faces[face_index.clamp(min=0)] + (view * count).unsqueeze(1)).flatten()


@triton.jit
@no_type_check
def divide(a, b):
    """a / b, rounded as IEEE demands; Triton's own division of float32 is not."""
    if a.dtype == tl.float32:
        quotient = tl.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
@no_type_check
def sortable(value):
    """Integers, 64 bits, in the order of float32 values."""
    bits = value.to(tl.float32).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
@no_type_check
def _face(positions, screen, depth, faces, view, face, count, height, width, valid, BITS: tl.constexpr):
    """Corners (column and row in subpixels, z/w) of faces as a view sees them, and their boxes: first and last column
    and row. A face that is not drawn has an empty box."""
    a = tl.load(faces + 3 * face, mask=valid, other=0) + view * count
    b = tl.load(faces + 3 * face + 1, mask=valid, other=0) + view * count
    c = tl.load(faces + 3 * face + 2, mask=valid, other=0) + view * count
    drawn = valid & (tl.load(positions + 4 * a + 3, mask=valid, other=0) > 0)
    drawn &= tl.load(positions + 4 * b + 3, mask=valid, other=0) > 0
    drawn &= tl.load(positions + 4 * c + 3, mask=valid, other=0) > 0
    ax = tl.load(screen + 2 * a, mask=drawn, other=0)
    ay = tl.load(screen + 2 * a + 1, mask=drawn, other=0)
    bx = tl.load(screen + 2 * b, mask=drawn, other=0)
    by = tl.load(screen + 2 * b + 1, mask=drawn, other=0)
    cx = tl.load(screen + 2 * c, mask=drawn, other=0)
    cy = tl.load(screen + 2 * c + 1, mask=drawn, other=0)
    az = tl.load(depth + a, mask=drawn, other=0)
    bz = tl.load(depth + b, mask=drawn, other=0)
    cz = tl.load(depth + c, mask=drawn, other=0)
    left = tl.maximum((tl.minimum(tl.minimum(ax, bx), cx) + ((1 << BITS) - 1)) >> BITS, 0)
    top = tl.maximum((tl.minimum(tl.minimum(ay, by), cy) + ((1 << BITS) - 1)) >> BITS, 0)
    right = tl.minimum(tl.maximum(tl.maximum(ax, bx), cx) >> BITS, width - 1)
    bottom = tl.minimum(tl.maximum(tl.maximum(ay, by), cy) >> BITS, height - 1)
    right = tl.where(drawn, right, left - 1)
    return ax, ay, az, bx, by, bz, cx, cy, cz, left, top, right, bottom


@triton.jit
@no_type_check
def _offer(nearest, first_pixel, face, x, y, width, active, ax, ay, az, bx, by, bz, cx, cy, cz, BITS: tl.constexpr):
    """Let a face be seen at pixels (x, y) if it covers their centres and nothing nearer does."""
    ux, uy = (ax - (x << BITS)).to(tl.int64), (ay - (y << BITS)).to(tl.int64)
    vx, vy = (bx - (x << BITS)).to(tl.int64), (by - (y << BITS)).to(tl.int64)
    wx, wy = (cx - (x << BITS)).to(tl.int64), (cy - (y << BITS)).to(tl.int64)
    edge_a = vx * wy - wx * vy
    edge_b = wx * uy - ux * wy
    edge_c = ux * vy - vx * uy
    area = edge_a + edge_b + edge_c
    low = tl.minimum(tl.minimum(edge_a, edge_b), edge_c)
    high = tl.maximum(tl.maximum(edge_a, edge_b), edge_c)
    active &= ((low >= 0) | (high <= 0)) & (area != 0)
    kind = az.dtype
    summed = edge_a.to(kind) * az + edge_b.to(kind) * bz + edge_c.to(kind) * cz
    z = divide(summed, tl.where(area != 0, area, 1).to(kind))
    active &= tl.abs(z) <= 1
    key = (sortable(z) << 32) | face
    tl.atomic_min(nearest + first_pixel + y.to(tl.int64) * width + x, key, mask=active, sem="relaxed")


@triton.jit
@no_type_check
def _first_pixel(mesh_index, face, view, views, height, width, valid, HAS_MESHES: tl.constexpr):
    """Number of the first pixel of the image that shows a face in a view."""
    image = view
    if HAS_MESHES:
        image += tl.load(mesh_index + face, mask=valid, other=0) * views
    return image * height * width


@triton.jit
@no_type_check
def _small_faces_kernel(
    positions, screen, depth, faces, mesh_index, nearest, tiles, items, n_faces, count, views, height, width,
    HAS_MESHES: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, LARGE: tl.constexpr, FACES: tl.constexpr,
):  # fmt: skip
    """Draw the faces with small boxes, one a lane; write down how many tiles the others have."""
    item = tl.program_id(0).to(tl.int64) * FACES + tl.arange(0, FACES)
    valid = item < items
    view = item // n_faces
    face = item - view * n_faces
    ax, ay, az, bx, by, bz, cx, cy, cz, left, top, right, bottom = _face(
        positions, screen, depth, faces, view, face, count, height, width, valid, BITS
    )
    first_pixel = _first_pixel(mesh_index, face, view, views, height, width, valid, HAS_MESHES)
    columns = tl.maximum(right - left + 1, 0).to(tl.int64)
    rows = tl.maximum(bottom - top + 1, 0).to(tl.int64)
    large = columns * rows > LARGE
    n_tiles = ((columns + (TILE - 1)) // TILE) * ((rows + (TILE - 1)) // TILE)
    tl.store(tiles + item, tl.where(large, n_tiles, 0), mask=valid)

    steps = tl.where(large, 0, columns * rows).to(tl.int32)
    x, y = left, top
    for step in range(0, tl.max(steps, 0)):
        _offer(nearest, first_pixel, face, x, y, width, step < steps, ax, ay, az, bx, by, bz, cx, cy, cz, BITS)
        at_end = x >= right
        x = tl.where(at_end, left, x + 1)
        y = tl.where(at_end, y + 1, y)


@triton.jit
@no_type_check
def _large_faces_kernel(
    positions, screen, depth, faces, mesh_index, nearest, tiles, ends, items, n_faces, count, views, height, width,
    HAS_MESHES: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, SEARCH_STEPS: tl.constexpr,
):  # fmt: skip
    """Draw the tiles of the other faces. ends: running sum of the tiles."""
    lane = tl.arange(0, TILE * TILE)
    total = tl.load(ends + items - 1)
    for number in range(tl.program_id(0).to(tl.int64), total, tl.num_programs(0)):
        # The first item whose running sum is above the number.
        item = number * 0
        beyond = item + items
        for _ in range(SEARCH_STEPS):
            middle = (item + beyond) // 2
            above = tl.load(ends + middle) > number
            beyond = tl.where(above, middle, beyond)
            item = tl.where(above, item, middle + 1)
        view = item // n_faces
        face = item - view * n_faces
        drawn = item < items
        ax, ay, az, bx, by, bz, cx, cy, cz, left, top, right, bottom = _face(
            positions, screen, depth, faces, view, face, count, height, width, drawn, BITS
        )
        first_pixel = _first_pixel(mesh_index, face, view, views, height, width, drawn, HAS_MESHES)
        tile = (number - tl.load(ends + item) + tl.load(tiles + item)).to(tl.int32)
        tile_columns = (right - left + TILE) // TILE
        x = left + tile % tile_columns * TILE + lane % TILE
        y = top + tile // tile_columns * TILE + lane // TILE
        active = (x <= right) & (y <= bottom)
        _offer(nearest, first_pixel, face, x, y, width, active, ax, ay, az, bx, by, bz, cx, cy, cz, BITS)


@triton.jit
@no_type_check
def face_corners(faces, face, pixel, count, views, height, width, seen):
    """Rows of the flattened vertices of each pixel's face."""
    first = pixel // (height * width) % views * count
    a = tl.load(faces + 3 * face, mask=seen, other=0) + first
    b = tl.load(faces + 3 * face + 1, mask=seen, other=0) + first
    c = tl.load(faces + 3 * face + 2, mask=seen, other=0) + first
    return a, b, c


@triton.jit
@no_type_check
def _centre(pixel, height, width, kind: tl.constexpr):
    """Normalised device coordinates of pixel centres."""
    column, row = pixel % width, pixel // width % height
    x = divide((2 * column + 1).to(kind), (column * 0 + width).to(kind)) - 1
    y = divide((2 * row + 1).to(kind), (row * 0 + height).to(kind)) - 1
    return x, y


@triton.jit
@no_type_check
def _relative(positions, row, x, y, seen):
    """A vertex relative to the ray through (x, y): X - x w and Y - y w, and its z and w."""
    w = tl.load(positions + 4 * row + 3, mask=seen, other=0)
    dx = tl.load(positions + 4 * row, mask=seen, other=0) - x * w
    dy = tl.load(positions + 4 * row + 1, mask=seen, other=0) - y * w
    return dx, dy, tl.load(positions + 4 * row + 2, mask=seen, other=0), w


@triton.jit
@no_type_check
def _weights(ax, ay, bx, by, cx, cy, seen):
    """Barycentrics, and the sum that they were divided by."""
    a = bx * cy - cx * by
    b = cx * ay - ax * cy
    c = ax * by - bx * ay
    total = tl.where(seen, a + b + c, 1)
    return divide(a, total), divide(b, total), divide(c, total), total


@triton.jit
@no_type_check
def _see_kernel(
    positions, faces, nearest, face_index, barycentric, depth, pixels, count, views, height, width,
    EMPTY: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    key = tl.load(nearest + pixel, mask=valid, other=EMPTY)
    seen = key != EMPTY
    face = tl.where(seen, key & 0xFFFFFFFF, -1)
    tl.store(face_index + pixel, face, mask=valid)
    a, b, c = face_corners(faces, face, pixel, count, views, height, width, seen)
    x, y = _centre(pixel, height, width, positions.dtype.element_ty)
    ax, ay, az, aw = _relative(positions, a, x, y, seen)
    bx, by, bz, bw = _relative(positions, b, x, y, seen)
    cx, cy, cz, cw = _relative(positions, c, x, y, seen)
    wa, wb, wc, _ = _weights(ax, ay, bx, by, cx, cy, seen)
    z = divide(wa * az + wb * bz + wc * cz, tl.where(seen, wa * aw + wb * bw + wc * cw, 1))
    tl.store(barycentric + 3 * pixel, tl.where(seen, wa, 0), mask=valid)
    tl.store(barycentric + 3 * pixel + 1, tl.where(seen, wb, 0), mask=valid)
    tl.store(barycentric + 3 * pixel + 2, tl.where(seen, wc, 0), mask=valid)
    tl.store(depth + pixel, tl.where(seen, z, 0), mask=valid)


@triton.jit
@no_type_check
def _give_vertex(target, row, pixel, dx, dy, dz, dw, seen, valid, CORNER: tl.constexpr, IN_ROWS: tl.constexpr):
    """Add to the gradient of a vertex, or write down what is to be added."""
    if IN_ROWS:
        place = target + (3 * pixel + CORNER) * 4
        tl.store(place, tl.where(seen, dx, 0), mask=valid)
        tl.store(place + 1, tl.where(seen, dy, 0), mask=valid)
        tl.store(place + 2, tl.where(seen, dz, 0), mask=valid)
        tl.store(place + 3, tl.where(seen, dw, 0), mask=valid)
    else:
        vertex = target + 4 * row
        tl.atomic_add(vertex, dx, mask=seen, sem="relaxed")
        tl.atomic_add(vertex + 1, dy, mask=seen, sem="relaxed")
        tl.atomic_add(vertex + 2, dz, mask=seen, sem="relaxed")
        tl.atomic_add(vertex + 3, dw, mask=seen, sem="relaxed")


@triton.jit
@no_type_check
def _see_backward_kernel(
    positions, faces, face_index, grad_barycentric, grad_depth, target, pixels, count, views, height, width,
    WITH_BARYCENTRIC: tl.constexpr, WITH_DEPTH: tl.constexpr, IN_ROWS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    face = tl.load(face_index + pixel, mask=valid, other=-1)
    seen = face >= 0
    a, b, c = face_corners(faces, face, pixel, count, views, height, width, seen)
    x, y = _centre(pixel, height, width, positions.dtype.element_ty)
    ax, ay, az, aw = _relative(positions, a, x, y, seen)
    bx, by, bz, bw = _relative(positions, b, x, y, seen)
    cx, cy, cz, cw = _relative(positions, c, x, y, seen)
    wa, wb, wc, total = _weights(ax, ay, bx, by, cx, cy, seen)
    ga, gb, gc = tl.zeros_like(wa), tl.zeros_like(wa), tl.zeros_like(wa)
    if WITH_BARYCENTRIC:
        ga = tl.load(grad_barycentric + 3 * pixel, mask=seen, other=0)
        gb = tl.load(grad_barycentric + 3 * pixel + 1, mask=seen, other=0)
        gc = tl.load(grad_barycentric + 3 * pixel + 2, mask=seen, other=0)
    per_z = tl.zeros_like(wa)
    per_w = tl.zeros_like(wa)
    if WITH_DEPTH:
        # Depth is sum(weight z) / sum(weight w).
        w = tl.where(seen, wa * aw + wb * bw + wc * cw, 1)
        z = (wa * az + wb * bz + wc * cz) / w
        per_z = tl.load(grad_depth + pixel, mask=seen, other=0) / w
        per_w = -z * per_z
        ga += per_z * az + per_w * aw
        gb += per_z * bz + per_w * bw
        gc += per_z * cz + per_w * cw
    # From the weights to the determinants that they are shares of, to the corners relative to the ray.
    mean = ga * wa + gb * wb + gc * wc
    ga, gb, gc = (ga - mean) / total, (gb - mean) / total, (gc - mean) / total
    dx, dy = gc * by - gb * cy, gb * cx - gc * bx
    _give_vertex(target, a, pixel, dx, dy, per_z * wa, per_w * wa - x * dx - y * dy, seen, valid, 0, IN_ROWS)
    dx, dy = ga * cy - gc * ay, gc * ax - ga * cx
    _give_vertex(target, b, pixel, dx, dy, per_z * wb, per_w * wb - x * dx - y * dy, seen, valid, 1, IN_ROWS)
    dx, dy = gb * ay - ga * by, ga * bx - gb * ax
    _give_vertex(target, c, pixel, dx, dy, per_z * wc, per_w * wc - x * dx - y * dy, seen, valid, 2, IN_ROWS)
