"""Triton kernels of the hash encoding in `hashgrid.py`: same formulas, one program per block of points and level.

The gradient of the table is summed with atomics: equal to rounding, not bit for bit, from run to run. Under
`torch.use_deterministic_algorithms` the sums are of 64 bit integers, whose order does not matter. Neighbouring pixels
lie in one cell, of a coarse level many of them, and would wait for its entries: what a run of points of one cell adds
to an entry is summed up first. `no_type_check` keeps run-time type checkers away from the kernels.
"""

import functools
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.rows import fixed_point_unit
from triplaneturbo.ops.rows_triton import check_device

_POINTS_PER_PROGRAM = 64


class Levels(NamedTuple):
    """Scale, resolution and number of entries of every level."""

    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    sizes: tuple[int, ...]


class EncodePoints(torch.autograd.Function):
    """Features [N, L * C] of points [N, 3] from the entries [sum of sizes, C] of L levels, one after the other."""

    @staticmethod
    def forward(ctx, points, table, levels):
        check_device(points)
        points, table = points.contiguous(), table.contiguous()
        ctx.save_for_backward(points, table)
        ctx.levels = levels
        channels = table.shape[1]
        features = points.new_empty(len(points), len(levels.sizes) * channels)
        if features.numel() > 0:
            _forward_kernel[_grid(points, levels)](
                points, table, features, _level_table(levels, points.device), len(points), len(levels.sizes),
                CHANNELS=channels, CHANNEL_BLOCK=triton.next_power_of_2(channels), POINTS=_POINTS_PER_PROGRAM,
                num_warps=2,
            )  # fmt: skip
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        points, table = ctx.saved_tensors
        return *_backward(points, table, ctx.levels, grad, ctx.needs_input_grad[:2]), None


def _backward(
    points: Tensor, table: Tensor, levels: Levels, grad: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    wants_points, wants_table = wanted
    count, channels = len(levels.sizes), table.shape[1]
    in_fixed_point = wants_table and torch.are_deterministic_algorithms_enabled() and len(points) > 0
    grad_table = torch.zeros_like(table, dtype=torch.int64 if in_fixed_point else None) if wants_table else table
    # The weights of a point are a share of 1, so this is the most that it adds to an entry.
    unit = fixed_point_unit(grad.abs().amax(), len(points)) if in_fixed_point else table
    grad_points = points.new_empty(count, len(points), 3) if wants_points else points
    if grad.numel() > 0:
        _backward_kernel[_grid(points, levels)](
            points, table, grad.contiguous(), grad_points, grad_table, unit, _level_table(levels, points.device),
            len(points), count, CHANNELS=channels, CHANNEL_BLOCK=triton.next_power_of_2(channels),
            POINTS=_POINTS_PER_PROGRAM, WANTS_POINTS=wants_points, WANTS_TABLE=wants_table,
            IN_FIXED_POINT=in_fixed_point, num_warps=2,
        )  # fmt: skip
    if in_fixed_point:
        grad_table = (grad_table / unit).to(table.dtype)
    return grad_points.sum(0) if wants_points else None, grad_table if wants_table else None


def _grid(points: Tensor, levels: Levels) -> tuple[int, int]:
    return triton.cdiv(len(points), _POINTS_PER_PROGRAM), len(levels.sizes)


@functools.cache
def _level_table(levels: Levels, device: torch.device) -> Tensor:
    """Scale, resolution, size and first entry of every level: [L, 4], float64, which holds such integers exactly."""
    first = [sum(levels.sizes[:level]) for level in range(len(levels.sizes))]
    return torch.tensor(list(zip(*levels, first, strict=True)), dtype=torch.float64, device=device)


@triton.jit
@no_type_check
def _level(levels, level):
    """Scale, resolution, size and first entry of a level."""
    resolution = tl.load(levels + 4 * level + 1).to(tl.int64)
    size = tl.load(levels + 4 * level + 2).to(tl.int64)
    first = tl.load(levels + 4 * level + 3).to(tl.int64)
    return tl.load(levels + 4 * level), resolution, size, first


@triton.jit
@no_type_check
def _place(points, point, valid, scale):
    """Lower grid line and fraction of the cell of each point along one axis."""
    coordinate = tl.load(points + point * 3, mask=valid, other=0)
    position = coordinate * scale.to(coordinate.dtype) + 0.5
    lowest = tl.floor(position)
    return lowest.to(tl.int64), position - lowest


@triton.jit
@no_type_check
def _entry(x, y, z, resolution, size):
    """Number of a corner's entry in its level."""
    if resolution * resolution * resolution <= size:
        entry = (x + resolution * (y + resolution * z)) % size
        # The sign of a remainder is the dividend's; points outside the unit cube have negative ones.
        entry = tl.where(entry < 0, entry + size, entry)
    else:  # the size is a power of two
        entry = (x ^ (y * 2654435761) ^ (z * 805459861)) & (size - 1)
    return entry


@triton.jit
@no_type_check
def _forward_kernel(
    points,
    table,
    features,
    levels,
    count,
    n_levels,
    CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    POINTS: tl.constexpr,
):
    level = tl.program_id(1)
    scale, resolution, size, first = _level(levels, level)
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = point < count
    x, fx = _place(points, point, valid, scale)
    y, fy = _place(points + 1, point, valid, scale)
    z, fz = _place(points + 2, point, valid, scale)
    channel = tl.arange(0, CHANNEL_BLOCK)
    stored = valid[:, None] & (channel < CHANNELS)[None, :]
    total = tl.zeros((POINTS, CHANNEL_BLOCK), dtype=features.dtype.element_ty)
    for corner in tl.static_range(8):
        wx = fx if corner & 1 else 1 - fx
        wy = fy if corner & 2 else 1 - fy
        wz = fz if corner & 4 else 1 - fz
        entry = first + _entry(x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2), resolution, size)
        found = tl.load(table + entry[:, None] * CHANNELS + channel[None, :], mask=stored, other=0)
        total += (wx * wy * wz)[:, None] * found
    place = (point * n_levels + level)[:, None] * CHANNELS + channel[None, :]
    tl.store(features + place, total, mask=stored)


@triton.jit
@no_type_check
def _is_other(points, other, valid, scale, x, y, z):
    """Whether points lie in another cell than those with numbers `other`."""
    x_other, _ = _place(points, other, valid, scale)
    y_other, _ = _place(points + 1, other, valid, scale)
    z_other, _ = _place(points + 2, other, valid, scale)
    return (x != x_other) | (y != y_other) | (z != z_other)


@triton.jit
@no_type_check
def _add_in_run(value, starts, next_value, next_starts):
    """Of neighbouring stretches: their sum, or that of the second if a run starts in it."""
    return tl.where(next_starts != 0, next_value, value + next_value), starts | next_starts


@triton.jit
@no_type_check
def _backward_kernel(
    points, table, grad, grad_points, grad_table, unit, levels, count, n_levels, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, POINTS: tl.constexpr, WANTS_POINTS: tl.constexpr, WANTS_TABLE: tl.constexpr,
    IN_FIXED_POINT: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    scale, resolution, size, first = _level(levels, level)
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = point < count
    x, fx = _place(points, point, valid, scale)
    y, fy = _place(points + 1, point, valid, scale)
    z, fz = _place(points + 2, point, valid, scale)
    channel = tl.arange(0, CHANNEL_BLOCK)
    stored = valid[:, None] & (channel < CHANNELS)[None, :]
    g = tl.load(grad + (point * n_levels + level)[:, None] * CHANNELS + channel[None, :], mask=stored, other=0)
    if WANTS_TABLE:
        lane = tl.arange(0, POINTS)
        starts = (lane == 0) | _is_other(points, point - 1, valid & (lane > 0), scale, x, y, z)
        last = (lane == POINTS - 1) | (point == count - 1)
        ends = valid & (last | _is_other(points, point + 1, valid & (~last), scale, x, y, z))
        starts = tl.broadcast_to(starts[:, None], (POINTS, CHANNEL_BLOCK)).to(tl.int32)
    along_x = tl.zeros_like(fx)
    along_y = tl.zeros_like(fx)
    along_z = tl.zeros_like(fx)
    for corner in tl.static_range(8):
        wx = fx if corner & 1 else 1 - fx
        wy = fy if corner & 2 else 1 - fy
        wz = fz if corner & 4 else 1 - fz
        entry = first + _entry(x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2), resolution, size)
        if WANTS_TABLE:
            share = (wx * wy * wz)[:, None] * g
            if IN_FIXED_POINT:
                share = (share * tl.load(unit)).to(tl.int64)
            total, _ = tl.associative_scan((share, starts), 0, _add_in_run)
            rows = grad_table + entry[:, None] * CHANNELS + channel[None, :]
            tl.atomic_add(rows, total, mask=stored & ends[:, None] & (total != 0), sem="relaxed")
        if WANTS_POINTS:
            found = tl.load(table + entry[:, None] * CHANNELS + channel[None, :], mask=stored, other=0)
            slope = tl.sum(g * found, 1)
            along_x += slope * wy * wz * (1 if corner & 1 else -1)
            along_y += slope * wx * wz * (1 if corner & 2 else -1)
            along_z += slope * wx * wy * (1 if corner & 4 else -1)
    if WANTS_POINTS:
        target = grad_points + (level.to(tl.int64) * count + point) * 3
        scale = scale.to(fx.dtype)
        tl.store(target, along_x * scale, mask=valid)
        tl.store(target + 1, along_y * scale, mask=valid)
        tl.store(target + 2, along_z * scale, mask=valid)
