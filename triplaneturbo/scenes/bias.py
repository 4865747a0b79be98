"""Start shapes: what is added to a field, so that a training begins with a solid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.errors import ConfigError

BlobShape = Literal["cone", "gaussian"]


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
    def parse(
        cls, kind: Literal["sphere", "ellipsoid"] | int | float, params: Sequence[float] | int | float | None
    ) -> "SdfBias":
        """From the options: `sphere` and its radius, `ellipsoid` and its three semi-axes, or a constant.

        Raises:
            ConfigError: the sizes are not positive numbers.
        """
        if kind != "sphere" and kind != "ellipsoid":
            return cls(None, kind)
        wanted_sizes = 1 if kind == "sphere" else 3
        given = params if kind == "ellipsoid" and isinstance(params, Sequence) else [params] * wanted_sizes
        size = tuple(float(s) for s in given if isinstance(s, (int, float)) and s > 0)
        if len(size) != wanted_sizes or len(given) != wanted_sizes:
            wanted = "a positive radius" if kind == "sphere" else "three positive semi-axes"
            raise ConfigError(f"sdf_bias: {kind} needs {wanted} in sdf_bias_params, not {params!r}")
        return cls(size)


@dataclass(frozen=True)
class StartDensity:
    """What is added to the network's output before it becomes a density: a blob around the centre.

    cone: height (1 - |p| / size), positive within the radius `size` (Magic3D, Lin et al. 2023). gaussian: height
    exp(-|p|^2 / (2 size^2)) (DreamFusion, Poole et al. 2022).
    """

    height: float
    size: float
    shape: BlobShape = "cone"

    def value(self, points: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 1"]:
        """The blob at points in world units."""
        distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True) / self.size
        if self.shape == "cone":
            return self.height * (1 - distance)
        return self.height * torch.exp(-distance.square() / 2)
