"""Triton kernel of `rows.py`: sums of rows in fixed point. And what all kernels ask of the tensors they are given."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from triplaneturbo.ops.rows import fixed_point_unit

_ELEMENTS_PER_PROGRAM = 1024


def check_device(tensor: Tensor) -> None:
    """Make sure that kernels can read `tensor`.

    Raises:
        ValueError: it is not on a CUDA device, and Triton does not interpret kernels here.
    """
    if not tensor.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"backend='triton' was asked for, but the tensors are on {tensor.device}. Triton kernels run on CUDA "
            "tensors (or on the CPU with TRITON_INTERPRET=1 set before start); use backend='auto' or 'torch'."
        )


def sum_rows(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Table [count, ...] whose row r is the sum of the rows [n, ...] with index r: the same bits in any order."""
    rows, index = rows.contiguous(), index.contiguous()
    sums = torch.zeros((count, *rows.shape[1:]), dtype=torch.int64, device=rows.device)
    if rows.numel() == 0:
        return sums.to(rows.dtype)
    unit = fixed_point_unit(rows.abs().amax(), len(index))
    programs = triton.cdiv(rows.numel(), _ELEMENTS_PER_PROGRAM)
    width = rows.numel() // len(rows)
    _sum_kernel[(programs,)](rows, index, sums, unit, rows.numel(), WIDTH=width, BLOCK=_ELEMENTS_PER_PROGRAM)
    return (sums / unit).to(rows.dtype)


@triton.jit
@no_type_check
def _sum_kernel(rows, index, sums, unit, elements, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = element < elements
    place = tl.load(index + element // WIDTH, mask=valid, other=0) * WIDTH + element % WIDTH
    value = tl.load(rows + element, mask=valid, other=0) * tl.load(unit)
    tl.atomic_add(sums + place, value.to(tl.int64), mask=valid, sem="relaxed")
