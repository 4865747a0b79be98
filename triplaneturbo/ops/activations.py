"""From numbers of any size to colours and densities."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ColorActivation = Literal["sigmoid", "sigmoid-mipnerf"]
DensityActivation = Literal["softplus", "shifted_softplus", "exp", "shifted_exp", "trunc_exp", "shifted_trunc_exp"]
# Where the derivative of trunc_exp stops to grow (torch-ngp).
_STEEPEST = 15.0


def colors_of(x: Float[Tensor, "*N D"], activation: ColorActivation) -> Float[Tensor, "*N D"]:
    """sigmoid(x), or for sigmoid-mipnerf 1.002 sigmoid(x) - 0.001: from -0.001 to 1.001, so that pure black and white
    are reached at finite x (mip-NeRF, Barron et al. 2021). Differentiable."""
    colors = x.sigmoid()
    return colors * 1.002 - 0.001 if activation == "sigmoid-mipnerf" else colors


def densities_of(x: Float[Tensor, "*N D"], activation: DensityActivation) -> Float[Tensor, "*N D"]:
    """softplus(x), exp(x), or exp(x) with the derivative exp(min(x, 15)) for trunc_exp; shifted: of x - 1.
    Differentiable any number of times."""
    x = x - 1 if activation.startswith("shifted") else x
    if activation.endswith("softplus"):
        return F.softplus(x)
    if not activation.endswith("trunc_exp"):
        return x.exp()
    # Has the derivative that is wanted; one term at a time, of sums small derivatives would be lost beside exp(15).
    straight = torch.where(x < _STEEPEST, x.clamp(max=_STEEPEST).exp(), math.exp(_STEEPEST) * (x - _STEEPEST + 1))
    return straight + (x.exp() - straight).detach()
