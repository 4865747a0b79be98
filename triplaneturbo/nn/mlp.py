"""Small networks that read colour, distance or density from features."""

import itertools
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Range, Width
from triplaneturbo.nn.tall import TallLinear


@dataclass(kw_only=True)
class MlpConfig:
    """Shape of small networks."""

    n_neurons: Width = 64
    """Width of a hidden layer."""
    n_hidden_layers: Annotated[int, Range(1, 64)] = 2
    """Hidden layers."""


@dataclass(kw_only=True)
class ShallowMlpConfig(MlpConfig):
    """Shape of small networks with one hidden layer, unless another number is given."""

    n_hidden_layers: Annotated[int, Range(1, 64)] = 1
    """Hidden layers."""


class Mlp(nn.Module):
    """Linear layers without biases, ReLU between them."""

    def __init__(self, n_input: int, n_output: int, n_neurons: int, n_hidden_layers: int):
        super().__init__()
        widths = [n_input, *[n_neurons] * n_hidden_layers, n_output]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [TallLinear(fan_in, fan_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers[:-1])

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, without what is between them."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return self.layers(x)

    def value_and_gradient(self, x: Float[Tensor, "*N I"]) -> tuple[Float[Tensor, "*N 1"], Float[Tensor, "*N I"]]:
        """y and dy/dx of a network with one output.

        With m_l = [pre-activation of layer l > 0], dy/dx = W_1^T m_1 W_2^T m_2 ... W_n^T: the backward pass written
        out as ordinary operations. Its own derivative needs first-order reverse mode only (ReLU has no curvature).
        """
        linears = self.linears
        masks = []
        for linear in linears[:-1]:
            x = F.relu_(linear(x))
            masks.append(x > 0)
        gradient = linears[-1].weight[0]
        for linear, mask in zip(reversed(linears[:-1]), reversed(masks), strict=True):
            gradient = torch.where(mask, gradient, 0.0) @ linear.weight  # a product would store the mask as floats
        return linears[-1](x), gradient

    def from_first_layer(self, pre_activation: Float[Tensor, "*N H"]) -> Float[Tensor, "*N O"]:
        """The output, given the first layer's, which is overwritten."""
        return self.layers[1:](pre_activation)
