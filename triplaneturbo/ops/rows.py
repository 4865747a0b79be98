"""Rows of a table by their numbers, and sums of rows: lookups whose gradient repeats bit for bit if that is asked for.

Where many rows are added to one place, a GPU adds them in any order, and floating-point sums depend on it. Under
`torch.use_deterministic_algorithms` torch sorts them first, which takes many times longer; here they are then added
as 64 bit integers, whose sum has no order (with Triton, see `backends.choose`; without it, torch sorts).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.backends import choose

# Of a bound: its unit, and so 0 times it, stays finite.
_SMALLEST = 1e-200


def gather_rows(table: Float[Tensor, "R *C"], index: Int[Tensor, " n"]) -> Float[Tensor, "n *C"]:
    """`table.index_select(0, index)`; differentiable, on CUDA in a fixed order once only."""
    if _in_fixed_point(table):
        return _GatherRows.apply(table, index)
    return table.index_select(0, index)


def add_rows(
    table: Float[Tensor, "R *C"], index: Int[Tensor, " n"], rows: Float[Tensor, "n *C"]
) -> Float[Tensor, "R *C"]:
    """`table.index_add(0, index, rows)`; differentiable, on CUDA in a fixed order once only."""
    if _in_fixed_point(table):
        return table + _SumRows.apply(rows, index, len(table))
    return table.index_add(0, index, rows)


def fixed_point_unit(bound: Tensor, count: int) -> Float[Tensor, ""]:
    """What to multiply contributions of at most `bound` by, so that no sum of `count` of them leaves 64 bits: a power
    of two, float64. NaN if the bound is not finite, which makes all sums NaN."""
    bound = torch.where(bound.isfinite(), bound.double().clamp(min=_SMALLEST), torch.nan)
    return torch.exp2(torch.floor(61 - torch.log2(bound * count)))


def _in_fixed_point(table: Tensor) -> bool:
    return torch.are_deterministic_algorithms_enabled() and choose("rows", table.device, table.dtype).name == "triton"


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.count = len(table)
        return table.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        from triplaneturbo.ops.rows_triton import sum_rows

        (index,) = ctx.saved_tensors
        return sum_rows(grad, index, ctx.count), None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, index, count):
        from triplaneturbo.ops.rows_triton import sum_rows

        ctx.save_for_backward(index)
        return sum_rows(rows, index, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.index_select(0, *ctx.saved_tensors), None, None
