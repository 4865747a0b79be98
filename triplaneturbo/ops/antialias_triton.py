"""Triton kernels of `rasterize.antialias`: fixed launches over all edges and all pixels, no host reads.

Every pair of neighbouring pixels has two slots, one for each side that may be covered. A silhouette edge that crosses
between the two leaves (sortable reach << 32 | edge) there, of which the maximum stays: the farthest. Then every pixel
gathers from its four pairs, so pictures and their gradients are the same from run to run. Gradients of the edges'
ends are summed with atomics, and in `sum_rows` under `torch.use_deterministic_algorithms`. `no_type_check` keeps
run-time type checkers away from the kernels.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.interpolate_triton import channel_launch
from triplaneturbo.ops.rasterize_triton import divide, sortable
from triplaneturbo.ops.rows_triton import check_device, sum_rows

_EDGES_PER_PROGRAM = 64


def farthest_crossings(
    screen: Tensor,
    depth: Tensor,
    positions: Tensor,
    faces: Tensor,
    opposite: Tensor,
    mesh_index: Tensor | None,
    face_index: Tensor,
    pixel_depth: Tensor,
) -> Tensor:
    """What crosses between pixels: [2 axes, P, 2], int64, P = M*H*W.

    [axis, first pixel of the pair, whether the second one is covered] holds the edge (3 * face + corner it starts at)
    in the lower 32 bits, and is -1 where nothing crosses. Axis 0: the pair is in a row, 1: in a column. screen, depth:
    pixel coordinates [V, N, 2] and z/w [V, N] of the vertices. opposite: see `rasterize._opposite_vertices`.
    """
    check_device(positions)
    views, count, _ = positions.shape
    _, height, width = face_index.shape
    slots = torch.full((2, face_index.numel(), 2), -1, device=positions.device)
    items = views * faces.numel()
    if items > 0 and slots.numel() > 0:
        _crossing_kernel[(triton.cdiv(items, _EDGES_PER_PROGRAM),)](
            screen.contiguous(), depth.contiguous(), positions.contiguous(), faces.contiguous(),
            opposite.contiguous(), faces if mesh_index is None else mesh_index.contiguous(), face_index.contiguous(),
            pixel_depth.contiguous(), slots, items, faces.numel(), count, views, height, width, face_index.numel(),
            HAS_MESHES=mesh_index is not None, EDGES=_EDGES_PER_PROGRAM, num_warps=2, enable_fp_fusion=False,
        )  # fmt: skip
    return slots


class BlendPixels(torch.autograd.Function):
    """Pixels [P, C] blended along the edges in `farthest_crossings`, vertices at [V, N, 2] on the screen."""

    @staticmethod
    def forward(ctx, pixels, screen, faces, slots, height, width):
        pixels, screen, faces = pixels.contiguous(), screen.contiguous(), faces.contiguous()
        ctx.save_for_backward(pixels, screen, faces, slots)
        ctx.sizes = (len(pixels), screen.shape[1], len(screen), height, width)
        blended = torch.empty_like(pixels)
        if pixels.numel() > 0:
            grid, options = channel_launch(*pixels.shape)
            _blend_kernel[grid](pixels, screen, faces, slots, blended, *ctx.sizes, **options, num_warps=2)
        return blended

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        pixels, screen, faces, slots = ctx.saved_tensors
        wants_pixels, wants_screen = ctx.needs_input_grad[:2]
        grad_pixels = torch.empty_like(pixels) if wants_pixels else pixels
        sums = torch.zeros_like(screen) if wants_screen else screen
        in_rows = wants_screen and torch.are_deterministic_algorithms_enabled() and len(faces) > 0
        target = screen.new_zeros(*slots.shape, 2, 2) if in_rows else sums
        if pixels.numel() > 0:
            grid, options = channel_launch(*pixels.shape)
            _blend_backward_kernel[grid](
                pixels, screen, faces, slots, grad.contiguous(), grad_pixels, target, *ctx.sizes,
                WANTS_PIXELS=wants_pixels, WANTS_SCREEN=wants_screen, IN_ROWS=in_rows, **options, num_warps=2,
            )  # fmt: skip
        if in_rows:
            index = _end_rows(slots, faces, *ctx.sizes[1:])
            sums = sum_rows(target.view(-1, 2), index, screen.numel() // 2).view_as(screen)
        return grad_pixels if wants_pixels else None, sums if wants_screen else None, *(None,) * 4


def _end_rows(slots: Tensor, faces: Tensor, count: int, views: int, height: int, width: int) -> Tensor:
    """Rows of the flattened vertices [V*N] of both ends of the edge in every slot, any where there is none."""
    edge = slots.clamp(min=0) & 0xFFFFFFFF
    ends = torch.stack([faces.flatten()[edge], faces.roll(-1, 1).flatten()[edge]], -1)
    view = torch.arange(slots.shape[1], device=slots.device) // (height * width) % views
    return (ends + (view * count).view(1, -1, 1, 1)).flatten()


@triton.jit
@no_type_check
def _crossing_kernel(
    screen, depth, positions, faces, opposite, mesh_index, face_index, pixel_depth, slots, items, n_edges, count,
    views, height, width, pixels, HAS_MESHES: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    valid = item < items
    view = item // n_edges
    edge = item - view * n_edges
    face = edge // 3
    corner = edge - 3 * face
    a = tl.load(faces + edge, mask=valid, other=0) + view * count
    b = tl.load(faces + 3 * face + (corner + 1) % 3, mask=valid, other=0) + view * count
    c = tl.load(faces + 3 * face + (corner + 2) % 3, mask=valid, other=0) + view * count
    beyond = tl.load(opposite + edge, mask=valid, other=-1)
    drawn = valid & (tl.load(positions + 4 * a + 3, mask=valid, other=0) > 0)
    drawn &= tl.load(positions + 4 * b + 3, mask=valid, other=0) > 0
    drawn &= tl.load(positions + 4 * c + 3, mask=valid, other=0) > 0

    # Silhouettes: edges with no face beyond, or one that lies on the same side on the screen.
    ax = tl.load(screen + 2 * a, mask=drawn, other=0)
    ay = tl.load(screen + 2 * a + 1, mask=drawn, other=0)
    bx = tl.load(screen + 2 * b, mask=drawn, other=0)
    by = tl.load(screen + 2 * b + 1, mask=drawn, other=0)
    dx, dy = bx - ax, by - ay
    side = dx * (tl.load(screen + 2 * c + 1, mask=drawn, other=0) - ay)
    side -= dy * (tl.load(screen + 2 * c, mask=drawn, other=0) - ax)
    shared = drawn & (beyond >= 0)
    d = beyond + view * count
    other_side = dx * (tl.load(screen + 2 * d + 1, mask=shared, other=0) - ay)
    other_side -= dy * (tl.load(screen + 2 * d, mask=shared, other=0) - ax)
    silhouette = drawn & ((beyond < 0) | (side * other_side > 0))

    # Steep edges cross rows of pixel centres, flat ones columns.
    in_row = tl.abs(dx) <= tl.abs(dy)
    along0, along1 = tl.where(in_row, ax, ay), tl.where(in_row, bx, by)
    across0, across1 = tl.where(in_row, ay, ax), tl.where(in_row, by, bx)
    lines = tl.where(in_row, height, width)
    cells = tl.where(in_row, width, height) - 1
    # Clamped where no pixel is any more, so that the numbers fit 32 bits.
    lowest = tl.floor(tl.minimum(tl.maximum(tl.minimum(across0, across1), -1), 1 << 20))
    highest = tl.floor(tl.minimum(tl.maximum(tl.maximum(across0, across1), -1), 1 << 20))
    first_line = lowest.to(tl.int32) + 1
    last_line = tl.minimum(highest.to(tl.int32), lines - 1)
    n_lines = tl.where(silhouette, last_line - first_line + 1, 0)

    image = view
    if HAS_MESHES:
        image += tl.load(mesh_index + face, mask=valid, other=0) * views
    za = tl.load(depth + a, mask=silhouette, other=0)
    zb = tl.load(depth + b, mask=silhouette, other=0)
    for step in range(0, tl.max(n_lines, 0)):
        line = first_line + step
        active = step < n_lines
        span = tl.where(active, across1 - across0, 1)
        fraction = divide(line.to(ax.dtype) - across0, span)
        position = along0 + fraction * (along1 - along0)
        cell = tl.floor(tl.minimum(tl.maximum(position, -1), 1 << 20))
        active &= (cell >= 0) & (cell < cells)
        place = cell.to(tl.int32)
        first = image * height * width + tl.where(in_row, line, place).to(tl.int64) * width
        first += tl.where(in_row, place, line)
        second = first + tl.where(in_row, 1, width)
        covers_second = side * tl.where(in_row, -dy, dx) > 0
        near, far = tl.where(covers_second, second, first), tl.where(covers_second, first, second)
        near_face = tl.load(face_index + near, mask=active, other=-1)
        far_face = tl.load(face_index + far, mask=active, other=-1)
        behind = tl.load(pixel_depth + far, mask=active, other=0)
        # As torch.lerp does.
        change = zb - za
        z = tl.where(fraction < 0.5, za + fraction * change, zb - change * (1 - fraction))
        active &= (near_face >= 0) & (near_face != far_face) & ((far_face < 0) | (z < behind))
        reach = tl.where(covers_second, cell + 1 - position, position - cell)
        slot = 2 * (first + tl.where(in_row, 0, pixels)) + covers_second.to(tl.int64)
        tl.atomic_max(slots + slot, (sortable(reach) << 32) | edge, mask=active, sem="relaxed")


@triton.jit
@no_type_check
def _place(pixel, count, views, height, width):
    """Column and row of pixels, and the first row of their view's vertices among the flattened ones."""
    line = pixel // width
    image = line // height
    return (pixel - line * width).to(tl.int32), (line - image * height).to(tl.int32), image % views * count


@triton.jit
@no_type_check
def _crossed(
    screen, faces, slots, pixel, column, row, first_row, pixels, height, width, valid, AXIS: tl.constexpr,
    IS_SECOND: tl.constexpr, COVERS_SECOND: tl.constexpr,
):  # fmt: skip
    """The crossing between each pixel and one of its neighbours, on the side that is covered: slot, whether there is
    one, the neighbour, whether the pixel takes from it, the share of it, whether the silhouette reaches past the
    middle, both ends' rows and the fraction of the edge there, and its extent along and across the line."""
    place, line = (column, row) if AXIS == 0 else (row, column)
    size, stride = (width, 1) if AXIS == 0 else (height, width)
    if IS_SECOND:
        other, first, cell, exists = pixel - stride, pixel - stride, place - 1, valid & (place > 0)
    else:
        other, first, cell, exists = pixel + stride, pixel, place, valid & (place + 1 < size)
    slot = 2 * (AXIS * pixels + first) + COVERS_SECOND
    key = tl.load(slots + slot, mask=exists, other=-1)
    crossed = key >= 0
    edge = tl.where(crossed, key & 0xFFFFFFFF, 0)
    face = edge // 3
    start = tl.load(faces + edge, mask=crossed, other=0) + first_row
    stop = tl.load(faces + 3 * face + (edge - 3 * face + 1) % 3, mask=crossed, other=0) + first_row
    along0 = tl.load(screen + 2 * start + AXIS, mask=crossed, other=0)
    along1 = tl.load(screen + 2 * stop + AXIS, mask=crossed, other=0)
    across0 = tl.load(screen + 2 * start + 1 - AXIS, mask=crossed, other=0)
    across1 = tl.load(screen + 2 * stop + 1 - AXIS, mask=crossed, other=0)
    along, across = along1 - along0, tl.where(crossed, across1 - across0, 1)
    fraction = divide(line.to(along0.dtype) - across0, across)
    position = along0 + fraction * along
    reach = cell + 1 - position if COVERS_SECOND else position - cell
    reaches = reach >= 0.5
    takes = crossed & ~reaches if IS_SECOND == COVERS_SECOND else crossed & reaches
    return slot, crossed, other, takes, tl.abs(reach - 0.5), reaches, start, stop, fraction, along, across


@triton.jit
@no_type_check
def _blend_kernel(
    image, screen, faces, slots, blended, pixels, count, views, height, width, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    exists = channel < CHANNELS
    own = tl.load(image + pixel[:, None] * CHANNELS + channel, mask=valid[:, None] & exists, other=0)
    total = own
    column, row, first_row = _place(pixel, count, views, height, width)
    for pair in tl.static_range(8):
        _, _, other, takes, share, _, _, _, _, _, _ = _crossed(
            screen, faces, slots, pixel, column, row, first_row, pixels, height, width, valid, AXIS=pair >> 2,
            IS_SECOND=pair >> 1 & 1, COVERS_SECOND=pair & 1,
        )  # fmt: skip
        there = tl.load(image + other[:, None] * CHANNELS + channel, mask=takes[:, None] & exists, other=0)
        total += tl.where(takes[:, None], share[:, None] * (there - own), 0)
    tl.store(blended + pixel[:, None] * CHANNELS + channel, total, mask=valid[:, None] & exists)


@triton.jit
@no_type_check
def _blend_backward_kernel(
    image, screen, faces, slots, grad, grad_image, target, pixels, count, views, height, width,
    WANTS_PIXELS: tl.constexpr, WANTS_SCREEN: tl.constexpr, IN_ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    exists = channel < CHANNELS
    own_grad = tl.load(grad + pixel[:, None] * CHANNELS + channel, mask=valid[:, None] & exists, other=0)
    own = tl.load(image + pixel[:, None] * CHANNELS + channel, mask=valid[:, None] & exists, other=0)
    total = own_grad
    column, row, first_row = _place(pixel, count, views, height, width)
    for pair in tl.static_range(8):
        slot, crossed, other, takes, share, reaches, start, stop, fraction, along, across = _crossed(
            screen, faces, slots, pixel, column, row, first_row, pixels, height, width, valid, AXIS=pair >> 2,
            IS_SECOND=pair >> 1 & 1, COVERS_SECOND=pair & 1,
        )  # fmt: skip
        there_at = other[:, None] * CHANNELS + channel
        there_grad = tl.load(grad + there_at, mask=crossed[:, None] & exists, other=0)
        if WANTS_PIXELS:
            given = tl.where(takes[:, None], -own_grad, there_grad)
            total += tl.where(crossed[:, None], share[:, None] * given, 0)
        if WANTS_SCREEN and not pair >> 1 & 1:  # once for each pair, by its first pixel
            there = tl.load(image + there_at, mask=crossed[:, None] & exists, other=0)
            slope = tl.sum(tl.where(takes[:, None], own_grad * (there - own), there_grad * (own - there)), 1)
            # From the share to the reach to the position along the line.
            slope = tl.where(reaches, slope, -slope) * (-1 if pair & 1 else 1)
            steepness = slope * along / across
            axis = pair >> 2
            if IN_ROWS:
                begin = target + slot * 4
                end = begin + 2
                tl.store(begin + axis, slope * (1 - fraction), mask=crossed)
                tl.store(begin + 1 - axis, steepness * (fraction - 1), mask=crossed)
                tl.store(end + axis, slope * fraction, mask=crossed)
                tl.store(end + 1 - axis, -steepness * fraction, mask=crossed)
            else:
                begin = target + start * 2
                end = target + stop * 2
                tl.atomic_add(begin + axis, slope * (1 - fraction), mask=crossed, sem="relaxed")
                tl.atomic_add(begin + 1 - axis, steepness * (fraction - 1), mask=crossed, sem="relaxed")
                tl.atomic_add(end + axis, slope * fraction, mask=crossed, sem="relaxed")
                tl.atomic_add(end + 1 - axis, -steepness * fraction, mask=crossed, sem="relaxed")
    if WANTS_PIXELS:
        tl.store(grad_image + pixel[:, None] * CHANNELS + channel, total, mask=valid[:, None] & exists)
