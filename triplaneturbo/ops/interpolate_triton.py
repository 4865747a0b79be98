"""Triton kernels of `rasterize.interpolate`: every pixel reads, or gives gradients to, the corners of its face.

Gradients of the attributes are summed with atomics, and in `sum_rows` under `torch.use_deterministic_algorithms`.
`no_type_check` keeps run-time type checkers away from the kernels.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.rasterize_triton import corner_rows, face_corners
from triplaneturbo.ops.rows_triton import check_device, sum_rows

# Values [pixels, channels] that a program holds at a time.
_VALUES_PER_PROGRAM = 1024


class Interpolate(torch.autograd.Function):
    """Values [P, C] of vertex attributes [V, N, C], or [N, C] for all views, at P pixels with barycentrics [P, 3]."""

    @staticmethod
    def forward(ctx, attributes, barycentric, face_index, faces, height, width):
        check_device(attributes)
        attributes, barycentric, faces = attributes.contiguous(), barycentric.contiguous(), faces.contiguous()
        ctx.save_for_backward(attributes, barycentric, face_index, faces)
        views = len(attributes) if attributes.dim() == 3 else 1
        count, channels = attributes.shape[-2:]
        ctx.sizes = (len(face_index), count, views, height, width)
        values = attributes.new_empty(len(face_index), channels)
        if values.numel() > 0:
            grid, options = channel_launch(len(face_index), channels)
            _interpolate_kernel[grid](attributes, barycentric, face_index, faces, values, *ctx.sizes, **options)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        attributes, barycentric, face_index, faces = ctx.saved_tensors
        wants_attributes, wants_barycentric = ctx.needs_input_grad[:2]
        sums = torch.zeros_like(attributes) if wants_attributes else attributes
        grad_barycentric = torch.zeros_like(barycentric) if wants_barycentric else barycentric
        in_rows = wants_attributes and torch.are_deterministic_algorithms_enabled() and len(faces) > 0
        channels = attributes.shape[-1]
        target = grad.new_empty(len(face_index), 3, channels) if in_rows else sums
        if grad.numel() > 0 and len(faces) > 0:
            grid, options = channel_launch(len(face_index), channels)
            _interpolate_backward_kernel[grid](
                attributes, barycentric, face_index, faces, grad.contiguous(), target, grad_barycentric, *ctx.sizes,
                WANTS_ATTRIBUTES=wants_attributes, WANTS_BARYCENTRIC=wants_barycentric, IN_ROWS=in_rows, **options,
            )  # fmt: skip
        if in_rows:
            index = corner_rows(faces, face_index, *ctx.sizes[1:])
            sums = sum_rows(target.view(-1, channels), index, attributes.numel() // channels).view_as(attributes)
        return (
            sums if wants_attributes else None,
            grad_barycentric if wants_barycentric else None,
            *(None,) * 4,
        )


def channel_launch(pixels: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and what kernels over values [pixels, channels] are told."""
    block = triton.next_power_of_2(channels)
    at_once = max(16, _VALUES_PER_PROGRAM // block)
    return (triton.cdiv(pixels, at_once),), {"CHANNELS": channels, "CHANNEL_BLOCK": block, "PIXELS": at_once}


@triton.jit
@no_type_check
def _interpolate_kernel(
    attributes, barycentric, face_index, faces, values, pixels, count, views, height, width, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    face = tl.load(face_index + pixel, mask=valid, other=-1)
    seen = face >= 0
    a, b, c = face_corners(faces, face, pixel, count, views, height, width, seen)
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    loaded = seen[:, None] & (channel < CHANNELS)
    wa = tl.load(barycentric + 3 * pixel, mask=seen, other=0)[:, None]
    wb = tl.load(barycentric + 3 * pixel + 1, mask=seen, other=0)[:, None]
    wc = tl.load(barycentric + 3 * pixel + 2, mask=seen, other=0)[:, None]
    total = wa * tl.load(attributes + a[:, None] * CHANNELS + channel, mask=loaded, other=0)
    total += wb * tl.load(attributes + b[:, None] * CHANNELS + channel, mask=loaded, other=0)
    total += wc * tl.load(attributes + c[:, None] * CHANNELS + channel, mask=loaded, other=0)
    tl.store(values + pixel[:, None] * CHANNELS + channel, total, mask=valid[:, None] & (channel < CHANNELS))


@triton.jit
@no_type_check
def _interpolate_backward_kernel(
    attributes, barycentric, face_index, faces, grad, target, grad_barycentric, pixels, count, views, height, width,
    WANTS_ATTRIBUTES: tl.constexpr, WANTS_BARYCENTRIC: tl.constexpr, IN_ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    valid = pixel < pixels
    face = tl.load(face_index + pixel, mask=valid, other=-1)
    seen = face >= 0
    first = pixel // (height * width) % views * count
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    exists = channel < CHANNELS
    g = tl.load(grad + pixel[:, None] * CHANNELS + channel, mask=seen[:, None] & exists, other=0)
    for corner in tl.static_range(3):
        row = (tl.load(faces + 3 * face + corner, mask=seen, other=0) + first)[:, None] * CHANNELS + channel
        if WANTS_ATTRIBUTES:
            share = g * tl.load(barycentric + 3 * pixel + corner, mask=seen, other=0)[:, None]
            if IN_ROWS:
                tl.store(
                    target + (3 * pixel + corner)[:, None] * CHANNELS + channel, share, mask=valid[:, None] & exists
                )
            else:
                tl.atomic_add(target + row, share, mask=seen[:, None] & exists, sem="relaxed")
        if WANTS_BARYCENTRIC:
            value = tl.load(attributes + row, mask=seen[:, None] & exists, other=0)
            tl.store(grad_barycentric + 3 * pixel + corner, tl.sum(g * value, 1), mask=valid)
