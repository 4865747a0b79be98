"""Triton kernels of the plane lookup in `planes.py`: same formulas, one program per block of points.

Nothing but planes, coordinates and results ever exists in memory, forward or backward. Texels are read and their
gradients accumulated channels last, so a point touches four short contiguous runs. The plane gradient is summed
with atomics: equal to rounding, not bit for bit, from run to run. Under `torch.use_deterministic_algorithms` the sums
are of 64 bit integers, whose order does not matter. `no_type_check` keeps run-time type checkers, which wrap every
function, away from the kernels.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.rows import fixed_point_unit
from triplaneturbo.ops.rows_triton import check_device

_POINTS_PER_PROGRAM = 32


class SamplePlanes(torch.autograd.Function):
    """Value [B, P, N, C] of [B, P, C, H, W] planes at [B, P, N, 2] coordinates, and if `with_jacobian` its derivative
    [B, P, N, 2, C] with respect to them."""

    @staticmethod
    def forward(ctx, planes, coords, with_jacobian):
        ctx.save_for_backward(planes, coords)
        value, jacobian = _forward(planes, coords, with_jacobian)
        return (value, jacobian) if with_jacobian else value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value, grad_jacobian=None):
        planes, coords = ctx.saved_tensors
        return *_backward(planes, coords, grad_value, grad_jacobian, ctx.needs_input_grad[:2]), None


def _forward(planes: Tensor, coords: Tensor, with_jacobian: bool) -> tuple[Tensor, Tensor]:
    batch, count, channels, height, width = planes.shape
    points = coords.shape[2]
    check_device(planes)
    value = planes.new_empty(batch, count, points, channels)
    jacobian = planes.new_empty(batch, count, points, 2, channels) if with_jacobian else value
    if value.numel() > 0:
        _forward_kernel[_grid(batch * count, points)](
            planes.permute(0, 1, 3, 4, 2).contiguous(),
            coords.contiguous(),
            value,
            jacobian,
            points,
            height,
            width,
            CHANNELS=channels,
            CHANNEL_BLOCK=triton.next_power_of_2(channels),
            POINTS=_POINTS_PER_PROGRAM,
            WITH_JACOBIAN=with_jacobian,
        )
    return value, jacobian


def _backward(
    planes: Tensor, coords: Tensor, grad_value: Tensor, grad_jacobian: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    batch, count, channels, height, width = planes.shape
    points = coords.shape[2]
    table = planes.permute(0, 1, 3, 4, 2).contiguous()
    in_fixed_point = wanted[0] and torch.are_deterministic_algorithms_enabled()
    grad_table = torch.zeros_like(table, dtype=torch.int64 if in_fixed_point else None) if wanted[0] else table
    scale = fixed_point_unit(_largest(planes, grad_value, grad_jacobian), points) if in_fixed_point else table
    grad_coords = torch.zeros_like(coords, memory_format=torch.contiguous_format) if wanted[1] else coords
    grad_value = grad_value.contiguous()
    if grad_value.numel() > 0:
        _backward_kernel[_grid(batch * count, points)](
            table,
            coords.contiguous(),
            grad_value,
            grad_value if grad_jacobian is None else grad_jacobian.contiguous(),
            grad_table,
            grad_coords,
            scale,
            points,
            height,
            width,
            CHANNELS=channels,
            CHANNEL_BLOCK=triton.next_power_of_2(channels),
            POINTS=_POINTS_PER_PROGRAM,
            WITH_JACOBIAN=grad_jacobian is not None,
            WANTS_PLANES=wanted[0],
            WANTS_COORDS=wanted[1],
            IN_FIXED_POINT=in_fixed_point,
        )
    if in_fixed_point:
        grad_table = (grad_table / scale).to(table.dtype)
    grad_planes = grad_table.permute(0, 1, 4, 2, 3).contiguous() if wanted[0] else None
    return grad_planes, grad_coords if wanted[1] else None


def _largest(planes: Tensor, grad_value: Tensor, grad_jacobian: Tensor | None) -> Tensor:
    """A bound for what one point adds to a texel."""
    largest = grad_value.abs().amax().double()
    if grad_jacobian is not None:
        largest = largest + grad_jacobian.abs().amax().double() * sum(planes.shape[-2:]) / 2
    return largest


def _grid(planes: int, points: int) -> tuple[int, int]:
    return triton.cdiv(points, _POINTS_PER_PROGRAM), planes


@triton.jit
@no_type_check
def _cell(coords, point, valid, height, width):
    """First corner of each point's cell (row, column), clamped to just outside, and the fractions (x, y)."""
    column = ((tl.load(coords + 2 * point, mask=valid, other=0) + 1) * width - 1) / 2
    row = ((tl.load(coords + 2 * point + 1, mask=valid, other=0) + 1) * height - 1) / 2
    left, top = tl.floor(column), tl.floor(row)
    x, y = column - left, row - top
    left = tl.minimum(tl.maximum(left, -2), width).to(tl.int32)
    top = tl.minimum(tl.maximum(top, -2), height).to(tl.int32)
    return top, left, x[:, None], y[:, None]


@triton.jit
@no_type_check
def _texels(row, column, valid, height, width, CHANNELS: tl.constexpr, CHANNEL_BLOCK: tl.constexpr):
    """Offsets [points, channels] into a channels-last plane, and which of them exist."""
    channel = tl.arange(0, CHANNEL_BLOCK)
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offsets = ((row * width + column) * CHANNELS)[:, None] + channel[None, :]
    return offsets, inside[:, None] & (channel < CHANNELS)[None, :]


@triton.jit
@no_type_check
def _forward_kernel(
    table,
    coords,
    value,
    jacobian,
    points,
    height,
    width,
    CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    POINTS: tl.constexpr,
    WITH_JACOBIAN: tl.constexpr,
):
    plane = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    valid = index < points
    point = plane * points + index
    table += plane * height * width * CHANNELS
    row, column, x, y = _cell(coords, point, valid, height, width)
    at00, has00 = _texels(row, column, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at01, has01 = _texels(row, column + 1, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at10, has10 = _texels(row + 1, column, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at11, has11 = _texels(row + 1, column + 1, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    t00 = tl.load(table + at00, mask=has00, other=0)
    t01 = tl.load(table + at01, mask=has01, other=0)
    t10 = tl.load(table + at10, mask=has10, other=0)
    t11 = tl.load(table + at11, mask=has11, other=0)

    channel = tl.arange(0, CHANNEL_BLOCK)
    stored = valid[:, None] & (channel < CHANNELS)[None, :]
    top = (1 - x) * t00 + x * t01
    bottom = (1 - x) * t10 + x * t11
    tl.store(value + point[:, None] * CHANNELS + channel[None, :], (1 - y) * top + y * bottom, mask=stored)
    if WITH_JACOBIAN:
        du = ((1 - y) * (t01 - t00) + y * (t11 - t10)) * width / 2
        dv = (bottom - top) * height / 2
        target = jacobian + point[:, None] * (2 * CHANNELS) + channel[None, :]
        tl.store(target, du, mask=stored)
        tl.store(target + CHANNELS, dv, mask=stored)


@triton.jit
@no_type_check
def _backward_kernel(
    table,
    coords,
    grad_value,
    grad_jacobian,
    grad_table,
    grad_coords,
    scale,
    points,
    height,
    width,
    CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    POINTS: tl.constexpr,
    WITH_JACOBIAN: tl.constexpr,
    WANTS_PLANES: tl.constexpr,
    WANTS_COORDS: tl.constexpr,
    IN_FIXED_POINT: tl.constexpr,
):
    plane = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    valid = index < points
    point = plane * points + index
    table += plane * height * width * CHANNELS
    grad_table += plane * height * width * CHANNELS
    row, column, x, y = _cell(coords, point, valid, height, width)
    at00, has00 = _texels(row, column, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at01, has01 = _texels(row, column + 1, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at10, has10 = _texels(row + 1, column, valid, height, width, CHANNELS, CHANNEL_BLOCK)
    at11, has11 = _texels(row + 1, column + 1, valid, height, width, CHANNELS, CHANNEL_BLOCK)

    channel = tl.arange(0, CHANNEL_BLOCK)
    loaded = valid[:, None] & (channel < CHANNELS)[None, :]
    g = tl.load(grad_value + point[:, None] * CHANNELS + channel[None, :], mask=loaded, other=0)
    if WITH_JACOBIAN:
        source = grad_jacobian + point[:, None] * (2 * CHANNELS) + channel[None, :]
        gu = tl.load(source, mask=loaded, other=0) * width / 2
        gv = tl.load(source + CHANNELS, mask=loaded, other=0) * height / 2
    else:
        gu = tl.zeros_like(g)
        gv = tl.zeros_like(g)

    if WANTS_PLANES:
        # Gradients of the two rows' interpolated values, then of their texels.
        top = (1 - y) * g - gv
        bottom = y * g + gv
        g00, g01 = (1 - x) * top - (1 - y) * gu, x * top + (1 - y) * gu
        g10, g11 = (1 - x) * bottom - y * gu, x * bottom + y * gu
        if IN_FIXED_POINT:
            unit = tl.load(scale)
            g00, g01 = (g00 * unit).to(tl.int64), (g01 * unit).to(tl.int64)
            g10, g11 = (g10 * unit).to(tl.int64), (g11 * unit).to(tl.int64)
        tl.atomic_add(grad_table + at00, g00, mask=has00, sem="relaxed")
        tl.atomic_add(grad_table + at01, g01, mask=has01, sem="relaxed")
        tl.atomic_add(grad_table + at10, g10, mask=has10, sem="relaxed")
        tl.atomic_add(grad_table + at11, g11, mask=has11, sem="relaxed")
    if WANTS_COORDS:
        t00 = tl.load(table + at00, mask=has00, other=0)
        t01 = tl.load(table + at01, mask=has01, other=0)
        t10 = tl.load(table + at10, mask=has10, other=0)
        t11 = tl.load(table + at11, mask=has11, other=0)
        cross = t00 - t01 - t10 + t11
        along_u = g * ((1 - y) * (t01 - t00) + y * (t11 - t10)) + gv * cross
        along_v = g * ((1 - x) * (t10 - t00) + x * (t11 - t01)) + gu * cross
        tl.store(grad_coords + 2 * point, tl.sum(along_u, 1) * width / 2, mask=valid)
        tl.store(grad_coords + 2 * point + 1, tl.sum(along_v, 1) * height / 2, mask=valid)
