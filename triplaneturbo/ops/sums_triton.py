"""The Triton kernel of `sums.py`. `no_type_check` keeps run-time type checkers away from it."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

_BLOCK = 2048


class AddWithBias(torch.autograd.Function):
    """See `sums.add_with_bias`; tensors are stored channels last."""

    @staticmethod
    def forward(ctx, bias, *parts):
        ctx.n_parts, ctx.bias_type = len(parts), None if bias is None else bias.dtype
        total = torch.empty_like(parts[0])
        count, channels = total.numel(), total.shape[1]
        given = (*parts, *[parts[0]] * (3 - len(parts)))
        _add_kernel[(triton.cdiv(count, _BLOCK),)](
            *given, parts[0] if bias is None else bias, total, count, channels,
            PARTS=len(parts), HAS_BIAS=bias is not None, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type) if ctx.needs_input_grad[0] else None
        return of_bias, *[grad] * ctx.n_parts


@triton.jit
@no_type_check
def _add_kernel(
    a, b, c, bias, total, count, channels, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = tl.load(a + at, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 1:
        value += tl.load(b + at, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 2:
        value += tl.load(c + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + at % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + at, value.to(total.dtype.element_ty), mask=mask)
