"""The field read from feature planes: coordinates, small networks and their exact input gradients."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Range, Width

# d(u, v) / d(x, y, z) of the planes xy, xz, yz: where a point lies in the picture that the decoder painted.
# Column u points right and row v points down; xz and yz are upright views with z up.
PLANE_AXES = {
    "v1": (
        ((0, 1, 0), (1, 0, 0)),
        ((-1, 0, 0), (0, 0, -1)),
        ((0, 1, 0), (0, 0, -1)),
    ),
    "v2": (
        ((-1, 0, 0), (0, 1, 0)),
        ((-1, 0, 0), (0, 0, -1)),
        ((0, 1, 0), (0, 0, -1)),
    ),
}


def plane_coordinates(unit_points: Float[Tensor, "B N 3"], axes: Float[Tensor, "3 2 3"]) -> Float[Tensor, "B 3 N 2"]:
    """(u, v) of points in [-1, 1]^3 on each of the three planes. No plane is ever rotated or copied."""
    return torch.einsum("bnd,pkd->bpnk", unit_points, axes)


def combine(per_plane: Float[Tensor, "B 3 N C"], how: str) -> Float[Tensor, "B N F"]:
    """One feature vector a point: the sum over planes ("v1", F = C) or their concatenation ("v2", F = 3C)."""
    if how == "v1":
        return per_plane.sum(1)
    return per_plane.transpose(1, 2).flatten(2)


def split_cotangent(cotangent: Float[Tensor, "B N F"], how: str) -> Float[Tensor, "B P N C"]:
    """The adjoint of `combine`: P = 1 (the same for all planes) for the sum, 3 for the concatenation."""
    if how == "v1":
        return cotangent.unsqueeze(1)
    return cotangent.unflatten(2, (3, -1)).transpose(1, 2)


@dataclass(kw_only=True)
class MlpConfig:
    """Shape of the small networks that read the planes."""

    otype: Literal["VanillaMLP"] = "VanillaMLP"
    activation: Literal["ReLU"] = "ReLU"
    output_activation: Literal["none"] | None = "none"
    n_neurons: Width = 64
    n_hidden_layers: Annotated[int, Range(1, 64)] = 2


class Mlp(nn.Module):
    """Linear layers without biases, ReLU between them."""

    def __init__(self, n_input: int, n_output: int, n_neurons: int, n_hidden_layers: int):
        super().__init__()
        widths = [n_input, *[n_neurons] * n_hidden_layers, n_output]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return self.layers(x)

    def value_and_gradient(self, x: Float[Tensor, "*N I"]) -> tuple[Float[Tensor, "*N 1"], Float[Tensor, "*N I"]]:
        """y and dy/dx of a network with one output.

        With m_l = [pre-activation of layer l > 0], dy/dx = W_1^T m_1 W_2^T m_2 ... W_n^T: the backward pass written
        out as ordinary operations. Its own derivative needs first-order reverse mode only (ReLU has no curvature).
        """
        linears = self.layers[::2]
        masks = []
        for linear in linears[:-1]:
            x = F.relu(linear(x))
            masks.append(x > 0)
        gradient = linears[-1].weight[0]
        for linear, mask in zip(reversed(linears[:-1]), reversed(masks), strict=True):
            gradient = (mask * gradient) @ linear.weight
        return linears[-1](x), gradient

    def from_first_layer(self, pre_activation: Float[Tensor, "*N H"]) -> Float[Tensor, "*N O"]:
        """The output, given the first layer's."""
        return self.layers[1:](pre_activation)


@dataclass(frozen=True)
class SdfBias:
    """What is added to the network's output: the distance to a start shape, or a constant.

    size: None for a constant; (r,) for a sphere; semi-axes for an ellipsoid (a pseudo distance, |p / size| - 1).
    """

    size: tuple[float, ...] | None
    constant: float = 0.0

    def value(self, points: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 1"]:
        """The bias at points in world units."""
        if self.size is None:
            return points.new_full((*points.shape[:-1], 1), self.constant)
        if len(self.size) == 1:
            return torch.linalg.vector_norm(points, dim=-1, keepdim=True) - self.size[0]
        return torch.linalg.vector_norm(points / points.new_tensor(self.size), dim=-1, keepdim=True) - 1

    def gradient(self, points: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
        """Its derivative with respect to the points; 0 at the centre, where it has none."""
        if self.size is None:
            return torch.zeros_like(points)
        size = points.new_tensor(self.size) if len(self.size) == 3 else 1.0
        return F.normalize(points / size, dim=-1) / size
