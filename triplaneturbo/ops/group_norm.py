"""Group normalisation with what stands around it in diffusion networks: a shift before, SiLU after."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.ops.backends import choose


def group_norm_silu(
    x: Float[Tensor, "N C *S"],
    groups: int,
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
    *,
    shift: Float[Tensor, "N C"] | None = None,
    silu: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "N C *S"]:
    """silu(norm(x + shift) * weight + bias), in the type of x; statistics and arithmetic are float32.

    Differentiable once in all tensors. backend: auto, torch, triton; see `backends.choose`. That of Triton reads
    channels-last memory as it is, copies other memory, and keeps x alone for the backward pass.
    """
    if choose("norm", x.device, x.dtype, asked=backend).name == "triton":
        from triplaneturbo.ops.group_norm_triton import GroupNormSilu

        return GroupNormSilu.apply(x, groups, weight, bias, eps, shift, silu)
    if shift is not None:
        x = x + shift.reshape(*shift.shape, *[1] * (x.dim() - 2)).to(x.dtype)
    exact = torch.promote_types(x.dtype, torch.float32)
    y = F.group_norm(x.to(exact), groups, weight.to(exact), bias.to(exact), eps)
    return (F.silu(y) if silu else y).to(x.dtype)
