"""Sums of pictures and a bias of each channel, in one pass."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.performance import kernels_run_on


def add_with_bias(
    parts: Sequence[Float[Tensor, "N C H W"]], bias: Float[Tensor, " C"] | None
) -> Float[Tensor, "N C H W"]:
    """The sum of one to three tensors and a bias; differentiable in all of them.

    On CUDA, where channels are stored last, one kernel (`sums_triton`), added in float32 and rounded once.
    """
    if bias is None and len(parts) == 1:
        return parts[0]
    fits = all(part.is_contiguous(memory_format=torch.channels_last) for part in parts)
    if kernels_run_on(parts[0].device) and fits:
        from triplaneturbo.ops.sums_triton import AddWithBias

        return AddWithBias.apply(bias, *parts)
    total = parts[0] if bias is None else parts[0] + bias[:, None, None]
    for part in parts[1:]:
        total = total + part
    return total


def convolve(layer: nn.Conv2d, x: Float[Tensor, "N I H W"]) -> tuple[list[Float[Tensor, "N O h w"]], Tensor | None]:
    """Tensors and a bias whose sum is `layer(x)`, to be added together with something else.

    On CUDA torch adds the bias of a convolution in a pass of its own, which is saved so.
    """
    if not kernels_run_on(x.device):
        return [layer(x)], None
    return [F.conv2d(x, layer.weight, None, layer.stride, layer.padding)], layer.bias
