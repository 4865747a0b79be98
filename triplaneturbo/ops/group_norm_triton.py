"""Triton kernels of `group_norm.py`, for tensors stored channels last.

Forward: mean and squared deviation of every channel over stretches of rows, joined exactly (Chan et al. 1983) to those
of the groups, then one pass that normalises. Backward: sums of dz and dz * xhat of every channel over stretches, then
one pass; z and xhat are computed again from x. No atomics: equal from run to run. `no_type_check` keeps run-time type
checkers away from the kernels.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS, _CHANNELS = 64, 64  # of a tile
_PROGRAMS = 1024  # about so many work on a tensor


class GroupNormSilu(torch.autograd.Function):
    """See `group_norm.group_norm_silu`."""

    @staticmethod
    def forward(ctx, x, groups, weight, bias, eps, shift, silu):
        rows = _rows(x)
        moved = rows.new_zeros(1) if shift is None else shift.to(rows.dtype).contiguous()
        mean, rstd = _statistics(rows, moved, shift is not None, groups, eps)
        y = torch.empty_like(rows)
        call = _Call(rows, groups)
        _apply_kernel[call.grid](
            rows, moved, mean, rstd, weight, bias, y, *call.sizes, **call.tile, HAS_SHIFT=shift is not None, SILU=silu
        )
        ctx.save_for_backward(rows, moved, mean, rstd, weight, bias)
        ctx.groups, ctx.silu, ctx.has_shift, ctx.shape = groups, silu, shift is not None, x.shape
        return _unrows(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, moved, mean, rstd, weight, bias = ctx.saved_tensors
        grad = _rows(grad)
        call = _Call(rows, ctx.groups)
        options = {**call.tile, "HAS_SHIFT": ctx.has_shift, "SILU": ctx.silu}
        inputs = (grad, rows, moved, mean, rstd, weight, bias)
        n, channels = rows.shape[0], rows.shape[2]
        parts = rows.new_empty(2, n, call.stretches, channels, dtype=torch.float32)
        _sums_kernel[call.grid](*inputs, parts, *call.sizes, **options)
        of_z, of_product = parts.sum(2)
        per_group = torch.stack([of_z, of_product]) * weight.float()
        per_group = per_group.view(2, n, ctx.groups, -1).sum(-1) / (rows.shape[1] * (channels // ctx.groups))
        grad_x = torch.empty_like(rows)
        _backward_kernel[call.grid](*inputs, per_group, grad_x, *call.sizes, **options)
        wants = ctx.needs_input_grad
        grad_shift = grad_x.sum(1, dtype=torch.float32).to(moved.dtype) if ctx.has_shift and wants[5] else None
        grad_weight = of_product.sum(0).to(weight.dtype) if wants[2] else None
        grad_bias = of_z.sum(0).to(bias.dtype) if wants[3] else None
        return _unrows(grad_x, ctx.shape), None, grad_weight, grad_bias, None, grad_shift, None


def _rows(x: Tensor) -> Tensor:
    """[N, L, C], contiguous; x itself if it is stored channels last."""
    return x.flatten(2).transpose(1, 2).contiguous() if x.dim() == 3 else x.movedim(1, -1).flatten(1, -2).contiguous()


def _unrows(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.unflatten(1, shape[2:]).movedim(-1, 1)


class _Call:
    """How a tensor [N, L, C] is divided among programs: along N, stretches of L, and blocks of channels."""

    def __init__(self, rows: Tensor, groups: int) -> None:
        n, length, channels = rows.shape
        blocks = triton.cdiv(channels, _CHANNELS)
        tiles = triton.cdiv(length, _ROWS)
        # A power of two, so that few kernels are compiled.
        self.turns = triton.next_power_of_2(max(1, n * tiles * blocks // _PROGRAMS))
        self.stretches = triton.cdiv(tiles, self.turns)
        self.grid = (self.stretches, blocks, n)
        self.sizes = (length, channels, groups, channels // groups, self.stretches)
        self.tile = {"ROWS": _ROWS, "CHANNELS": _CHANNELS, "TURNS": self.turns}


def _statistics(rows: Tensor, shift: Tensor, has_shift: bool, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of every group: [N, G] each."""
    n, length, channels = rows.shape
    call = _Call(rows, groups)
    parts = rows.new_empty(2, n, call.stretches, channels, dtype=torch.float32)
    _moments_kernel[call.grid](rows, shift, parts, *call.sizes, **call.tile, HAS_SHIFT=has_shift)
    mean, rstd = rows.new_empty(2, n, groups, dtype=torch.float32)
    width = channels // groups
    _join_kernel[(n * groups,)](
        parts, mean, rstd, length, channels, groups, width, call.stretches, n, eps,
        WIDTH=triton.next_power_of_2(width), BLOCK=max(1, min(256, triton.next_power_of_2(call.stretches))),
        STRETCH=_ROWS * call.turns,
    )  # fmt: skip
    return mean, rstd


@triton.jit
@no_type_check
def _place(length, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr):
    """Sample, first row, channels of this program, and which of these exist."""
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return sample, tl.program_id(0) * (ROWS * TURNS), channel, channel < channels


@triton.jit
@no_type_check
def _load(x, shift, sample, row, channel, length, channels, exists, HAS_SHIFT: tl.constexpr):
    """A tile in float32, and where it is."""
    at = (sample * length + row)[:, None] * channels + channel[None, :]
    mask = (row < length)[:, None] & exists[None, :]
    tile = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        moved = tl.load(shift + sample * channels + channel, mask=exists, other=0.0).to(tl.float32)
        tile += moved[None, :]
    return tile, at, mask


@triton.jit
@no_type_check
def _moments_kernel(
    x, shift, parts, length, channels, groups, width, stretches,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr, HAS_SHIFT: tl.constexpr,
):  # fmt: skip
    sample, first, channel, exists = _place(length, channels, ROWS, CHANNELS, TURNS)
    mean = tl.zeros((CHANNELS,), tl.float32)
    squares = tl.zeros((CHANNELS,), tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        row = first + turn * ROWS + tl.arange(0, ROWS)
        tile, _, mask = _load(x, shift, sample, row, channel, length, channels, exists, HAS_SHIFT)
        count = tl.minimum(tl.maximum(length - first - turn * ROWS, 0), ROWS).to(tl.float32)
        own = tl.sum(tl.where(mask, tile, 0.0), 0) / tl.maximum(count, 1.0)
        off = tl.where(mask, tile - own[None, :], 0.0)
        total = tl.maximum(seen + count, 1.0)
        delta = own - mean
        squares += tl.sum(off * off, 0) + delta * delta * (seen * count / total)
        mean += delta * (count / total)
        seen += count
    at = parts + (sample * stretches + tl.program_id(0)) * channels + channel
    tl.store(at, mean, mask=exists)
    tl.store(at + tl.num_programs(2).to(tl.int64) * stretches * channels, squares, mask=exists)


@triton.jit
@no_type_check
def _join_kernel(
    parts, mean, rstd, length, channels, groups, width, stretches, samples, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """The statistics of one group: first the mean of all stretches and channels, then the squares about it."""
    number = tl.program_id(0).to(tl.int64)
    sample, group = number // groups, number % groups
    channel = tl.arange(0, WIDTH)
    start = parts + sample * stretches * channels + group * width + channel[None, :]
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, stretches, BLOCK):
        stretch = first + tl.arange(0, BLOCK)
        count = tl.minimum(length - stretch * STRETCH, STRETCH).to(tl.float32)
        mask = (stretch < stretches)[:, None] & (channel < width)[None, :]
        total += tl.load(start + stretch[:, None] * channels, mask=mask, other=0.0) * count[:, None]
    size = length * width * 1.0
    middle = tl.sum(tl.sum(total, 1), 0) / size
    squares = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, stretches, BLOCK):
        stretch = first + tl.arange(0, BLOCK)
        count = tl.minimum(length - stretch * STRETCH, STRETCH).to(tl.float32)
        mask = (stretch < stretches)[:, None] & (channel < width)[None, :]
        own = tl.load(start + stretch[:, None] * channels, mask=mask, other=0.0)
        inner = tl.load(start + (samples * stretches + stretch)[:, None] * channels, mask=mask, other=0.0)
        squares += tl.where(mask, inner + count[:, None] * (own - middle) * (own - middle), 0.0)
    variance = tl.sum(tl.sum(squares, 1), 0) / size
    tl.store(mean + number, middle)
    tl.store(rstd + number, 1 / tl.sqrt(variance + eps))


@triton.jit
@no_type_check
def _of_groups(table, sample, channel, groups, width, exists):
    """A number of every channel's group."""
    return tl.load(table + sample * groups + channel // width, mask=exists, other=0.0)[None, :]


@triton.jit
@no_type_check
def _of_channels(table, channel, exists):
    return tl.load(table + channel, mask=exists, other=0.0).to(tl.float32)[None, :]


@triton.jit
@no_type_check
def _apply_kernel(
    x, shift, mean, rstd, weight, bias, y, length, channels, groups, width, stretches,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    sample, first, channel, exists = _place(length, channels, ROWS, CHANNELS, TURNS)
    scale = _of_groups(rstd, sample, channel, groups, width, exists) * _of_channels(weight, channel, exists)
    middle = _of_groups(mean, sample, channel, groups, width, exists)
    offset = _of_channels(bias, channel, exists)
    for turn in range(TURNS):
        row = first + turn * ROWS + tl.arange(0, ROWS)
        tile, at, mask = _load(x, shift, sample, row, channel, length, channels, exists, HAS_SHIFT)
        z = (tile - middle) * scale + offset
        if SILU:
            z = z * tl.sigmoid(z)
        tl.store(y + at, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _through_silu(grad, at, mask, z, SILU: tl.constexpr):
    """The gradient of z, given that of the result."""
    dz = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        share = tl.sigmoid(z)
        dz = dz * share * (1 + z * (1 - share))
    return tl.where(mask, dz, 0.0)


@triton.jit
@no_type_check
def _sums_kernel(
    grad, x, shift, mean, rstd, weight, bias, parts, length, channels, groups, width, stretches,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    sample, first, channel, exists = _place(length, channels, ROWS, CHANNELS, TURNS)
    inverse = _of_groups(rstd, sample, channel, groups, width, exists)
    middle = _of_groups(mean, sample, channel, groups, width, exists)
    gain, offset = _of_channels(weight, channel, exists), _of_channels(bias, channel, exists)
    of_z = tl.zeros((CHANNELS,), tl.float32)
    of_product = tl.zeros((CHANNELS,), tl.float32)
    for turn in range(TURNS):
        row = first + turn * ROWS + tl.arange(0, ROWS)
        tile, at, mask = _load(x, shift, sample, row, channel, length, channels, exists, HAS_SHIFT)
        normal = (tile - middle) * inverse
        dz = _through_silu(grad, at, mask, normal * gain + offset, SILU)
        of_z += tl.sum(dz, 0)
        of_product += tl.sum(dz * normal, 0)
    at = parts + (sample * stretches + tl.program_id(0)) * channels + channel
    tl.store(at, of_z, mask=exists)
    tl.store(at + tl.num_programs(2).to(tl.int64) * stretches * channels, of_product, mask=exists)


@triton.jit
@no_type_check
def _backward_kernel(
    grad, x, shift, mean, rstd, weight, bias, per_group, grad_x, length, channels, groups, width, stretches,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    sample, first, channel, exists = _place(length, channels, ROWS, CHANNELS, TURNS)
    inverse = _of_groups(rstd, sample, channel, groups, width, exists)
    middle = _of_groups(mean, sample, channel, groups, width, exists)
    gain, offset = _of_channels(weight, channel, exists), _of_channels(bias, channel, exists)
    m1 = _of_groups(per_group, sample, channel, groups, width, exists)
    m2 = _of_groups(per_group + tl.num_programs(2) * groups, sample, channel, groups, width, exists)
    for turn in range(TURNS):
        row = first + turn * ROWS + tl.arange(0, ROWS)
        tile, at, mask = _load(x, shift, sample, row, channel, length, channels, exists, HAS_SHIFT)
        normal = (tile - middle) * inverse
        dz = _through_silu(grad, at, mask, normal * gain + offset, SILU)
        dx = inverse * (gain * dz - m1 - normal * m2)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=mask)
