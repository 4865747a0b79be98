"""From numbers of any size to colours."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

ColorActivation = Literal["sigmoid", "sigmoid-mipnerf"]


def colors_of(x: Float[Tensor, "*N D"], activation: ColorActivation) -> Float[Tensor, "*N D"]:
    """sigmoid(x), or for sigmoid-mipnerf 1.002 sigmoid(x) - 0.001: from -0.001 to 1.001, so that pure black and white
    are reached at finite x (mip-NeRF, Barron et al. 2021). Differentiable."""
    colors = x.sigmoid()
    return colors * 1.002 - 0.001 if activation == "sigmoid-mipnerf" else colors
