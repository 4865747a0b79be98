"""Triton kernels of a field read from six planes: lookup, both networks, and the gradient of the distance, as one.

What `scenes.planes.PlaneField` computes step by step: x = sum of three bilinear lookups, sdf = w3 relu(W2 relu(W1 x)),
its derivative along the point, and colours V3 relu(V2 relu(V1 [y_xy, y_xz, y_yz])). Only points and results are in
memory; the backward pass reads the planes again and computes all layers again. With masks m, a2 = m2 w3,
a1 = m1 (a2 W2), g = a1 W1 (the derivative by x), and the incoming gradients v of the value and e of du, dv, the planes'
texels get g (v weight + e . d weight), W1 gets a1^T (gbar + v x), W2 a2^T (u + v h1), w3 m2 (u W2^T) + v h2, where
gbar = sum of e . (du, dv) of the lookups and u = m1 (gbar W1^T).

Products run on the matrix units: what decides which neurons are on as float32 in three products of shorter numbers
(tf32x3), the other ones of the backward pass with factors of 10 bits (tf32), three times as fast and off by a few 1e-4.
Gradients of planes are summed with atomics: equal to rounding from run to run. `no_type_check` keeps run-time type
checkers away.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_POINTS = 64
_COLORS = 16  # rows of a product, at least
_WAVES = 2  # programs on a multiprocessor, in the backward pass
_WARPS_FORWARD, _WARPS_BACKWARD = 4, 8


class QueryPlanes(torch.autograd.Function):
    """value [B, N, 1], its gradient [B, N, 3] and features [B, N, F] at points [B, N, 3] in [-1, 1]^3.

    planes [B, 6, C, H, W]; axes [3, 2, 3]; weights of the two networks, F at most 16. Differentiable once in planes and
    weights, not in points.
    """

    @staticmethod
    def forward(ctx, planes, points, axes, *weights):
        table = _table(planes)
        ctx.save_for_backward(table, points, axes, *weights)
        ctx.set_materialize_grads(False)
        return _forward(table, points, axes, weights, with_gradient=True, with_color=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value, grad_gradient, grad_features):
        table, points, axes, *weights = ctx.saved_tensors
        grad_table = torch.zeros_like(table)
        of_shape: list[Tensor | None] = [None] * 3
        of_color: list[Tensor | None] = [None] * 3
        if grad_value is not None or grad_gradient is not None:
            given = (
                points.new_zeros(*points.shape[:2], 1) if grad_value is None else grad_value.contiguous(),
                torch.zeros_like(points) if grad_gradient is None else grad_gradient.contiguous(),
            )
            of_shape = list(_backward_shape(table, points, axes, weights[:3], given, grad_table))
        if grad_features is not None:
            of_color = list(_backward_color(table, points, axes, weights[3:], grad_features.contiguous(), grad_table))
        return grad_table.permute(0, 1, 4, 2, 3), None, None, *of_shape, *of_color


def value_at(planes: Tensor, points: Tensor, axes: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """The value alone, without gradient: [B, N, 1]."""
    return _forward(_table(planes), points, axes, (*weights, *weights), with_gradient=False, with_color=False)[0]


def grid_values(parts: Sequence[Tensor], second: Tensor, third: Tensor) -> Tensor:
    """third relu(second relu(xy[i, j] + xz[i, k] + yz[j, k])) on a grid, without gradient: [B, R, R, R, O].

    parts: three, [B, R, R, H] each, what planes add to the first layer. second [H, H], third [O, H], O at most 16.
    """
    xy, xz, yz = (part.contiguous() for part in parts)
    batch, size = xy.shape[:2]
    values = xy.new_empty(batch, size, size, size, len(third))
    _grid_kernel[(triton.cdiv(size**3, _POINTS), batch)](
        xy, xz, yz, second.contiguous(), third.contiguous(), values, size, len(third),
        HIDDEN=len(second), POINTS=_POINTS, COLORS=_COLORS, num_warps=_WARPS_FORWARD,
    )  # fmt: skip
    return values


def _table(planes: Tensor) -> Tensor:
    """Channels last: [B, 6, H, W, C]."""
    return planes.permute(0, 1, 3, 4, 2).contiguous()


def _sizes(table: Tensor, weights: tuple[Tensor, ...] | list[Tensor]) -> dict[str, int]:
    return {"CHANNELS": table.shape[-1], "HIDDEN": len(weights[0]), "POINTS": _POINTS, "PLANES": table.shape[1]}


def _forward(
    table: Tensor, points: Tensor, axes: Tensor, weights: tuple[Tensor, ...], *, with_gradient: bool, with_color: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count = points.shape[:2]
    height, width = table.shape[2:4]
    points, weights = points.contiguous(), tuple(w.contiguous() for w in weights)
    n_colors = len(weights[5])
    value = points.new_empty(batch, count, 1)
    gradient = torch.empty_like(points) if with_gradient else value
    features = points.new_empty(batch, count, n_colors) if with_color else value
    if value.numel():
        _forward_kernel[(triton.cdiv(count, _POINTS), batch)](
            table, points, axes, *weights, value, gradient, features, count, height, width, n_colors,
            **_sizes(table, weights), COLORS=_COLORS, WITH_GRADIENT=with_gradient, WITH_COLOR=with_color,
            num_warps=_WARPS_FORWARD, num_stages=1,
        )  # fmt: skip
    return value, gradient, features


def _backward_shape(
    table: Tensor,
    points: Tensor,
    axes: Tensor,
    weights: list[Tensor],
    given: tuple[Tensor, Tensor],
    grad_table: Tensor,
) -> tuple[Tensor, ...]:
    batch, count = points.shape[:2]
    height, width = table.shape[2:4]
    programs = _programs(points)
    parts = [w.new_zeros(batch * programs, *w.shape) for w in weights]
    if points.numel():
        _backward_shape_kernel[(programs, batch)](
            table, points.contiguous(), axes, *(w.contiguous() for w in weights), *given, grad_table, *parts, count,
            height, width, **_sizes(table, weights), num_warps=_WARPS_BACKWARD, num_stages=1,
        )  # fmt: skip
    return tuple(part.sum(0) for part in parts)


def _backward_color(
    table: Tensor, points: Tensor, axes: Tensor, weights: list[Tensor], given: Tensor, grad_table: Tensor
) -> tuple[Tensor, ...]:
    batch, count = points.shape[:2]
    height, width = table.shape[2:4]
    programs, n_colors = _programs(points), len(weights[2])
    parts = [w.new_zeros(batch * programs, *w.shape) for w in weights]
    if points.numel():
        _backward_color_kernel[(programs, batch)](
            table, points.contiguous(), axes, *(w.contiguous() for w in weights), given, grad_table, *parts, count,
            height, width, n_colors, **_sizes(table, weights), COLORS=_COLORS, num_warps=_WARPS_BACKWARD, num_stages=1,
        )  # fmt: skip
    return tuple(part.sum(0) for part in parts)


def _programs(points: Tensor) -> int:
    if not points.is_cuda:
        return 2
    return _WAVES * torch.cuda.get_device_properties(points.device).multi_processor_count


@triton.jit
@no_type_check
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
@no_type_check
def _rough_dot(a, b):
    return tl.dot(a, b, input_precision="tf32")


@triton.jit
@no_type_check
def _matrix(start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, stride):
    """A row-major matrix [ROWS, COLUMNS]."""
    return tl.load(start + tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, COLUMNS)[None, :])


@triton.jit
@no_type_check
def _transposed(start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, stride):
    """The transpose [COLUMNS, ROWS] of such a matrix."""
    return tl.load(start + tl.arange(0, ROWS)[None, :] * stride + tl.arange(0, COLUMNS)[:, None])


@triton.jit
@no_type_check
def _points(points, first, count, POINTS: tl.constexpr):
    """Numbers of a block's points, which of them exist, and their coordinates."""
    index = first + tl.arange(0, POINTS)
    valid = index < count
    px = tl.load(points + 3 * index, mask=valid, other=0.0)
    py = tl.load(points + 3 * index + 1, mask=valid, other=0.0)
    pz = tl.load(points + 3 * index + 2, mask=valid, other=0.0)
    return index, valid, px, py, pz


@triton.jit
@no_type_check
def _along(axes, plane, px, py, pz):
    """Coordinates (u, v) on a plane; of a covector in its place, the components along them."""
    row = axes + 6 * plane
    u = px * tl.load(row) + py * tl.load(row + 1) + pz * tl.load(row + 2)
    v = px * tl.load(row + 3) + py * tl.load(row + 4) + pz * tl.load(row + 5)
    return u, v


@triton.jit
@no_type_check
def _cell(u, v, height, width):
    """First corner of the cell (row, column), clamped to just outside, and the fractions (x, y)."""
    column, row = ((u + 1) * width - 1) / 2, ((v + 1) * height - 1) / 2
    left, top = tl.floor(column), tl.floor(row)
    x, y = column - left, row - top
    left = tl.minimum(tl.maximum(left, -2), width).to(tl.int32)
    top = tl.minimum(tl.maximum(top, -2), height).to(tl.int32)
    return top, left, x, y


@triton.jit
@no_type_check
def _texels(row, column, valid, height, width, CHANNELS: tl.constexpr):
    """Offsets [points, channels] into a channels-last plane, and which of them exist."""
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offsets = ((row * width + column) * CHANNELS)[:, None] + tl.arange(0, CHANNELS)[None, :]
    return offsets, inside[:, None] & (tl.arange(0, CHANNELS) >= 0)[None, :]


@triton.jit
@no_type_check
def _corners(plane, row, column, valid, height, width, CHANNELS: tl.constexpr):
    at, has = _texels(row, column, valid, height, width, CHANNELS)
    t00 = tl.load(plane + at, mask=has, other=0.0)
    at, has = _texels(row, column + 1, valid, height, width, CHANNELS)
    t01 = tl.load(plane + at, mask=has, other=0.0)
    at, has = _texels(row + 1, column, valid, height, width, CHANNELS)
    t10 = tl.load(plane + at, mask=has, other=0.0)
    at, has = _texels(row + 1, column + 1, valid, height, width, CHANNELS)
    t11 = tl.load(plane + at, mask=has, other=0.0)
    return t00, t01, t10, t11


@triton.jit
@no_type_check
def _lookup(plane, row, column, x, y, valid, height, width, CHANNELS: tl.constexpr):
    """Value, d/du and d/dv, [points, channels] each."""
    t00, t01, t10, t11 = _corners(plane, row, column, valid, height, width, CHANNELS)
    x, y = x[:, None], y[:, None]
    top, bottom = (1 - x) * t00 + x * t01, (1 - x) * t10 + x * t11
    du = ((1 - y) * (t01 - t00) + y * (t11 - t10)) * (width * 0.5)
    return (1 - y) * top + y * bottom, du, (bottom - top) * (height * 0.5)


@triton.jit
@no_type_check
def _forward_kernel(
    table, points, axes, w1, w2, w3, v1, v2, v3, value, gradient, features, count, height, width, n_colors,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, POINTS: tl.constexpr, PLANES: tl.constexpr, COLORS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, WITH_COLOR: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(1).to(tl.int64)
    size = (height * width * CHANNELS).to(tl.int64)
    table += prompt * PLANES * size
    points += prompt * count * 3
    value += prompt * count
    index, valid, px, py, pz = _points(points, tl.program_id(0) * POINTS, count, POINTS)
    hidden = tl.arange(0, HIDDEN)

    x = tl.zeros((POINTS, CHANNELS), tl.float32)
    for plane in tl.static_range(3):
        u, v = _along(axes, plane, px, py, pz)
        row, column, fx, fy = _cell(u, v, height, width)
        found, _, _ = _lookup(table + plane * size, row, column, fx, fy, valid, height, width, CHANNELS)
        x += found
    z1 = _dot(x, _transposed(w1, HIDDEN, CHANNELS, CHANNELS))
    z2 = _dot(tl.maximum(z1, 0.0), _transposed(w2, HIDDEN, HIDDEN, HIDDEN))
    last = tl.load(w3 + hidden)[None, :]
    tl.store(value + index, tl.sum(tl.maximum(z2, 0.0) * last, 1), mask=valid)

    if WITH_GRADIENT:
        gradient += prompt * count * 3
        a2 = tl.where(z2 > 0, last, 0.0)
        a1 = tl.where(z1 > 0, _dot(a2, _matrix(w2, HIDDEN, HIDDEN, HIDDEN)), 0.0)
        g = _dot(a1, _matrix(w1, HIDDEN, CHANNELS, CHANNELS))
        gx, gy, gz = tl.zeros_like(px), tl.zeros_like(px), tl.zeros_like(px)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            row, column, fx, fy = _cell(u, v, height, width)
            _, du, dv = _lookup(table + plane * size, row, column, fx, fy, valid, height, width, CHANNELS)
            along_u, along_v = tl.sum(du * g, 1), tl.sum(dv * g, 1)
            axis = axes + 6 * plane
            gx += along_u * tl.load(axis) + along_v * tl.load(axis + 3)
            gy += along_u * tl.load(axis + 1) + along_v * tl.load(axis + 4)
            gz += along_u * tl.load(axis + 2) + along_v * tl.load(axis + 5)
        tl.store(gradient + 3 * index, gx, mask=valid)
        tl.store(gradient + 3 * index + 1, gy, mask=valid)
        tl.store(gradient + 3 * index + 2, gz, mask=valid)

    if WITH_COLOR:
        features += prompt * count * n_colors
        z = tl.zeros((POINTS, HIDDEN), tl.float32)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            row, column, fx, fy = _cell(u, v, height, width)
            found, _, _ = _lookup(table + (3 + plane) * size, row, column, fx, fy, valid, height, width, CHANNELS)
            z += _dot(found, _transposed(v1 + plane * CHANNELS, HIDDEN, CHANNELS, 3 * CHANNELS))
        z = _dot(tl.maximum(z, 0.0), _transposed(v2, HIDDEN, HIDDEN, HIDDEN))
        color = tl.arange(0, COLORS)
        outputs = tl.load(
            v3 + color[None, :] * HIDDEN + hidden[:, None], mask=(color < n_colors)[None, :] & (hidden >= 0)[:, None],
            other=0.0,
        )  # fmt: skip
        result = _dot(tl.maximum(z, 0.0), outputs)
        at = features + index[:, None] * n_colors + color[None, :]
        tl.store(at, result, mask=valid[:, None] & (color < n_colors)[None, :])


@triton.jit
@no_type_check
def _grid_kernel(
    xy, xz, yz, w2, w3, values, size, n_out,
    HIDDEN: tl.constexpr, POINTS: tl.constexpr, COLORS: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(1).to(tl.int64)
    count = size * size * size
    index = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    valid = index < count
    i, j, k = index // (size * size), index // size % size, index % size
    hidden, output = tl.arange(0, HIDDEN), tl.arange(0, COLORS)
    mask = valid[:, None] & (hidden >= 0)[None, :]
    start = prompt * size * size * HIDDEN + hidden[None, :]
    z = tl.load(xy + start + (i * size + j)[:, None] * HIDDEN, mask=mask, other=0.0)
    z += tl.load(xz + start + (i * size + k)[:, None] * HIDDEN, mask=mask, other=0.0)
    z += tl.load(yz + start + (j * size + k)[:, None] * HIDDEN, mask=mask, other=0.0)
    z = _dot(tl.maximum(z, 0.0), _transposed(w2, HIDDEN, HIDDEN, HIDDEN))
    last = tl.load(
        w3 + output[None, :] * HIDDEN + hidden[:, None], mask=(output < n_out)[None, :] & (hidden >= 0)[:, None],
        other=0.0,
    )  # fmt: skip
    result = _dot(tl.maximum(z, 0.0), last)
    at = values + (prompt * count + index)[:, None] * n_out + output[None, :]
    tl.store(at, result, mask=valid[:, None] & (output < n_out)[None, :])


@triton.jit
@no_type_check
def _add_to_corners(plane, row, column, valid, amount, s00, s01, s10, s11, height, width, CHANNELS: tl.constexpr):
    """Add amount [points, channels] times a number for each corner [points] to the texels."""
    at, has = _texels(row, column, valid, height, width, CHANNELS)
    tl.atomic_add(plane + at, amount * s00[:, None], mask=has, sem="relaxed")
    at, has = _texels(row, column + 1, valid, height, width, CHANNELS)
    tl.atomic_add(plane + at, amount * s01[:, None], mask=has, sem="relaxed")
    at, has = _texels(row + 1, column, valid, height, width, CHANNELS)
    tl.atomic_add(plane + at, amount * s10[:, None], mask=has, sem="relaxed")
    at, has = _texels(row + 1, column + 1, valid, height, width, CHANNELS)
    tl.atomic_add(plane + at, amount * s11[:, None], mask=has, sem="relaxed")


@triton.jit
@no_type_check
def _backward_shape_kernel(
    table, points, axes, w1, w2, w3, grad_value, grad_gradient, grad_table, grad_w1, grad_w2, grad_w3, count, height,
    width, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, POINTS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(1).to(tl.int64)
    size = (height * width * CHANNELS).to(tl.int64)
    table += prompt * PLANES * size
    grad_table += prompt * PLANES * size
    points += prompt * count * 3
    grad_value += prompt * count
    grad_gradient += prompt * count * 3
    hidden = tl.arange(0, HIDDEN)
    last = tl.load(w3 + hidden)[None, :]
    sum1 = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    sum2 = tl.zeros((HIDDEN, HIDDEN), tl.float32)
    sum3 = tl.zeros((HIDDEN,), tl.float32)
    for first in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        index, valid, px, py, pz = _points(points, first, count, POINTS)
        _, _, ex, ey, ez = _points(grad_gradient, first, count, POINTS)
        given = tl.load(grad_value + index, mask=valid, other=0.0)[:, None]
        x = tl.zeros((POINTS, CHANNELS), tl.float32)
        bar = tl.zeros((POINTS, CHANNELS), tl.float32)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            eu, ev = _along(axes, plane, ex, ey, ez)
            row, column, fx, fy = _cell(u, v, height, width)
            found, du, dv = _lookup(table + plane * size, row, column, fx, fy, valid, height, width, CHANNELS)
            x += found
            bar += eu[:, None] * du + ev[:, None] * dv

        w1_t = _transposed(w1, HIDDEN, CHANNELS, CHANNELS)
        w2_t = _transposed(w2, HIDDEN, HIDDEN, HIDDEN)
        z1 = _dot(x, w1_t)
        h1 = tl.maximum(z1, 0.0)
        z2 = _dot(h1, w2_t)
        a2 = tl.where(z2 > 0, last, 0.0)
        a1 = tl.where(z1 > 0, _rough_dot(a2, _matrix(w2, HIDDEN, HIDDEN, HIDDEN)), 0.0)
        g = _rough_dot(a1, _matrix(w1, HIDDEN, CHANNELS, CHANNELS))
        up = tl.where(z1 > 0, _rough_dot(bar, w1_t), 0.0)
        sum3 += tl.sum(tl.where(z2 > 0, _rough_dot(up, w2_t), 0.0) + given * tl.maximum(z2, 0.0), 0)
        sum2 += _rough_dot(tl.trans(a2), up + given * h1)
        sum1 += _rough_dot(tl.trans(a1), bar + given * x)

        given = tl.load(grad_value + index, mask=valid, other=0.0)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            eu, ev = _along(axes, plane, ex, ey, ez)
            eu, ev = eu * (width * 0.5), ev * (height * 0.5)
            row, column, fx, fy = _cell(u, v, height, width)
            _add_to_corners(
                grad_table + plane * size, row, column, valid, g,
                (1 - fy) * ((1 - fx) * given - eu) - (1 - fx) * ev,
                (1 - fy) * (fx * given + eu) - fx * ev,
                fy * ((1 - fx) * given - eu) + (1 - fx) * ev,
                fy * (fx * given + eu) + fx * ev,
                height, width, CHANNELS,
            )  # fmt: skip
    part = prompt * tl.num_programs(0) + tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    tl.store(grad_w1 + (part * HIDDEN + hidden)[:, None] * CHANNELS + channel[None, :], sum1)
    tl.store(grad_w2 + (part * HIDDEN + hidden)[:, None] * HIDDEN + hidden[None, :], sum2)
    tl.store(grad_w3 + part * HIDDEN + hidden, sum3)


@triton.jit
@no_type_check
def _backward_color_kernel(
    table, points, axes, v1, v2, v3, grad_features, grad_table, grad_v1, grad_v2, grad_v3, count, height, width,
    n_colors, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, POINTS: tl.constexpr, PLANES: tl.constexpr,
    COLORS: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(1).to(tl.int64)
    size = (height * width * CHANNELS).to(tl.int64)
    table += (prompt * PLANES + 3) * size
    grad_table += (prompt * PLANES + 3) * size
    points += prompt * count * 3
    grad_features += prompt * count * n_colors
    hidden, color = tl.arange(0, HIDDEN), tl.arange(0, COLORS)
    outputs = tl.load(v3 + color[:, None] * HIDDEN + hidden[None, :], mask=(color < n_colors)[:, None], other=0.0)
    sum_xy = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    sum_xz = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    sum_yz = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    sum2 = tl.zeros((HIDDEN, HIDDEN), tl.float32)
    sum3 = tl.zeros((COLORS, HIDDEN), tl.float32)
    for first in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        index, valid, px, py, pz = _points(points, first, count, POINTS)
        at = grad_features + index[:, None] * n_colors + color[None, :]
        given = tl.load(at, mask=valid[:, None] & (color < n_colors)[None, :], other=0.0)
        z1 = tl.zeros((POINTS, HIDDEN), tl.float32)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            row, column, fx, fy = _cell(u, v, height, width)
            found, _, _ = _lookup(table + plane * size, row, column, fx, fy, valid, height, width, CHANNELS)
            z1 += _dot(found, _transposed(v1 + plane * CHANNELS, HIDDEN, CHANNELS, 3 * CHANNELS))
        h1 = tl.maximum(z1, 0.0)
        z2 = _dot(h1, _transposed(v2, HIDDEN, HIDDEN, HIDDEN))
        sum3 += _rough_dot(tl.trans(given), tl.maximum(z2, 0.0))
        bar2 = tl.where(z2 > 0, _rough_dot(given, outputs), 0.0)
        sum2 += _rough_dot(tl.trans(bar2), h1)
        bar1 = tl.where(z1 > 0, _rough_dot(bar2, _matrix(v2, HIDDEN, HIDDEN, HIDDEN)), 0.0)
        bar1_t = tl.trans(bar1)
        for plane in tl.static_range(3):
            u, v = _along(axes, plane, px, py, pz)
            row, column, fx, fy = _cell(u, v, height, width)
            found, _, _ = _lookup(table + plane * size, row, column, fx, fy, valid, height, width, CHANNELS)
            if plane == 0:
                sum_xy += _rough_dot(bar1_t, found)
            elif plane == 1:
                sum_xz += _rough_dot(bar1_t, found)
            else:
                sum_yz += _rough_dot(bar1_t, found)
            amount = _rough_dot(bar1, _matrix(v1 + plane * CHANNELS, HIDDEN, CHANNELS, 3 * CHANNELS))
            _add_to_corners(
                grad_table + plane * size, row, column, valid, amount,
                (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx, height, width, CHANNELS,
            )  # fmt: skip
    part = prompt * tl.num_programs(0) + tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    at = grad_v1 + (part * HIDDEN + hidden)[:, None] * (3 * CHANNELS) + channel[None, :]
    tl.store(at, sum_xy)
    tl.store(at + CHANNELS, sum_xz)
    tl.store(at + 2 * CHANNELS, sum_yz)
    tl.store(grad_v2 + (part * HIDDEN + hidden)[:, None] * HIDDEN + hidden[None, :], sum2)
    at = grad_v3 + (part * n_colors + color)[:, None] * HIDDEN + hidden[None, :]
    tl.store(at, sum3, mask=(color < n_colors)[:, None] & (hidden >= 0)[None, :])
