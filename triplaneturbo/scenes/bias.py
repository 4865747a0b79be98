"""Start shapes: what is added to a field, so that a training begins with a solid."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.errors import ConfigError


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

    @classmethod
    def parse(cls, kind: str | float, params: Any) -> "SdfBias":
        """From the options: `sphere` and its radius, `ellipsoid` and its three semi-axes, or a constant.

        Raises:
            ConfigError: the sizes are not positive numbers.
        """
        if kind == "sphere":
            size = (params,)
        elif kind == "ellipsoid":
            size = tuple(params) if isinstance(params, (list, tuple)) and len(params) == 3 else (params,) * 3
        else:
            return cls(None, kind)
        if not all(isinstance(s, (int, float)) and s > 0 for s in size):
            wanted = "a positive radius" if kind == "sphere" else "three positive semi-axes"
            raise ConfigError(f"sdf_bias: {kind} needs {wanted} in sdf_bias_params, not {params!r}")
        return cls(tuple(map(float, size)))
