"""A network that writes the weights of small ones from a text."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Range, Width
from triplaneturbo.nn.tall import multiply_rows


@dataclass(kw_only=True)
class HypernetConfig:
    """Shape of a hyper-network."""

    text_width: Width = 1024
    """Width of the pooled text state."""
    n_neurons: Width = 64
    """Width of its hidden layers."""
    n_hidden_layers: Annotated[int, Range(1, 64)] = 1
    """Hidden layers, each linear, layer norm, SiLU."""


class Hypernet(nn.Module):
    """Pooled text -> matrices of small networks (ATT3D, Lorraine et al. 2023): hidden layers, then a linear layer.

    Xavier-normal at the start. The first layer has no bias, the others' are 0.

    Args:
        networks: by name, the widths of a network it writes, from the input to the output.
    """

    def __init__(self, cfg: HypernetConfig, networks: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.shapes = {
            f"{name}_{i}": shape
            for name, widths in networks.items()
            for i, shape in enumerate(itertools.pairwise(widths))
        }
        layers: list[nn.Module] = []
        width = cfg.text_width
        for i in range(cfg.n_hidden_layers):
            layers += [nn.Linear(width, cfg.n_neurons, bias=i > 0), nn.LayerNorm(cfg.n_neurons), nn.SiLU()]
            width = cfg.n_neurons
        self.layers = nn.Sequential(*layers, nn.Linear(width, sum(map(math.prod, self.shapes.values()))))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pooled_text: Float[Tensor, "B T"]) -> dict[str, Tensor]:
        """Matrices [B, in, out], called by the network's name, _ and the number of the layer; differentiable."""
        flat = self.layers(pooled_text).split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.shapes.items(), flat, strict=True)}


def apply_written(weights: Sequence[Float[Tensor, "B _ _"]], x: Float[Tensor, "B N I"]) -> Float[Tensor, "B N O"]:
    """What a written network, of matrices [B, in, out] without biases, with ReLU between, makes of x."""
    for i, weight in enumerate(weights):
        x = multiply_rows(F.relu(x) if i else x, weight)
    return x
