"""Gated linear units with GELU (Shazeer 2020), behind their linear layer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.performance import kernels_run_on


def geglu(x: Float[Tensor, "*N W"]) -> Float[Tensor, "*N H"]:
    """values * gelu(gates), the exact GELU, of rows that hold first H values and then H gates; differentiable once.

    On CUDA one kernel (`gated_triton`), computed in float32 and rounded once.
    """
    if kernels_run_on(x.device) and x.is_contiguous():
        from triplaneturbo.ops.gated_triton import Geglu

        return Geglu.apply(x)
    values, gates = x.chunk(2, dim=-1)
    return values * F.gelu(gates)
