"""The Triton kernels of `gated.py`. `no_type_check` keeps run-time type checkers away from them."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

_BLOCK = 1024


class Geglu(torch.autograd.Function):
    """See `gated.geglu`; x is contiguous."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        result = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        if result.numel():
            grid = triton.cdiv(result.numel(), _BLOCK)
            _forward_kernel[(grid,)](x, result, result.numel(), result.shape[-1], BLOCK=_BLOCK)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        if grad.numel():
            grid = triton.cdiv(grad.numel(), _BLOCK)
            _backward_kernel[(grid,)](x, grad, grad_x, grad.numel(), grad.shape[-1], BLOCK=_BLOCK)
        return grad_x


@triton.jit
@no_type_check
def _values_and_gates(x, count, width, BLOCK: tl.constexpr):
    """Numbers of results, where their values lie, which results exist, values, gates, and the normal distribution's
    integral at the gates."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    of_value = at // width * (2 * width) + at % width
    value = tl.load(x + of_value, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + of_value + width, mask=mask, other=0.0).to(tl.float32)
    return at, of_value, mask, value, gate, 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)


@triton.jit
@no_type_check
def _forward_kernel(x, result, count, width, BLOCK: tl.constexpr):
    at, _, mask, value, gate, share = _values_and_gates(x, count, width, BLOCK)
    tl.store(result + at, (value * gate * share).to(result.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _backward_kernel(x, grad, grad_x, count, width, BLOCK: tl.constexpr):
    at, of_value, mask, value, gate, share = _values_and_gates(x, count, width, BLOCK)
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    element = grad_x.dtype.element_ty
    tl.store(grad_x + of_value, (g * gate * share).to(element), mask=mask)
    tl.store(grad_x + of_value + width, (g * value * (share + gate * density)).to(element), mask=mask)
