"""Fields that read values and colours from the same features of a point."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import Length, Width
from triplaneturbo.scenes.base import Field, Normals, Tensors
from triplaneturbo.scenes.bias import SdfBias, StartDensity
from triplaneturbo.types import FieldSample


class EncodedField(Field):
    """value(p) = raw(h(p)) + bias(p), with features h of the point from which colours are read, too.

    A subclass gives `encode`, `raw_value` and `raw_features`.
    """

    @dataclass(kw_only=True)
    class Config(Module.Config):
        radius: Length = 1.0
        """Half the edge of the cube that is encoded, world units."""
        n_feature_dims: Width = 3
        """Colour channels before their activation."""
        bias: Literal["sphere", "ellipsoid"] | float = "sphere"
        """Start shape of a signed distance, or a constant."""
        bias_size: Length | tuple[Length, Length, Length] | None = 0.5
        """Radius of the sphere; the three semi-axes of the ellipsoid; world units."""
        normals: Normals = "finite_difference"
        """How d value / d point is computed, see `scenes.base.Normals`; analytic: by autograd, whose own derivative is
        then of second order."""
        finite_difference_step: Length = 0.01
        """Step of the differences, world units."""

    bias: SdfBias | StartDensity

    def configure(self) -> None:
        self.radius = self.cfg.radius
        self.bias = SdfBias.parse(self.cfg.bias, self.cfg.bias_size)

    @abstractmethod
    def encode(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N D"]:
        """Features of points in world units."""

    @abstractmethod
    def raw_value(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 1"]:
        """What is read for the value, before the bias."""

    @abstractmethod
    def raw_features(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N F"]:
        """Colours before their activation."""

    def finish(self, raw: Float[Tensor, "B N 1"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        """The value, of what was read at the points."""
        return raw + self.bias.value(points)

    def value(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        return self.finish(self.raw_value(tensors, self.encode(tensors, points)), points)

    def features(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        return self.raw_features(tensors, self.encode(tensors, points))

    def query(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False
    ) -> FieldSample:
        """See `Field.query`."""
        cfg, encoded = self.cfg, self.encode(tensors, points)
        color = self.raw_features(tensors, encoded) if features else None
        if normals and cfg.normals == "analytic":
            value, gradient = self._autograd(tensors, points)
        else:
            value = self.finish(self.raw_value(tensors, encoded), points)
            if not normals:
                return FieldSample(value, color)
            gradient = self.differences(tensors, points, value, cfg.normals, cfg.finite_difference_step)
        outwards = gradient if self.kind == "sdf" else -gradient
        return FieldSample(value, color, gradient, F.normalize(outwards, dim=-1))

    def _autograd(self, tensors: Tensors, points: Tensor) -> tuple[Tensor, Tensor]:
        """The value and its derivative, which can be differentiated where gradients are wanted."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            inner = points if points.requires_grad else points.detach().requires_grad_()
            value = self.value(tensors, inner)
            (gradient,) = torch.autograd.grad(value.sum(), inner, create_graph=wanted)
        return value, gradient
