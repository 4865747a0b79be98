"""A field in a multi-resolution hash grid: a signed distance or a density, and colours, of one scene."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import Length, Range, Weight, Width
from triplaneturbo.nn.mlp import Mlp, MlpConfig
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.registry import register
from triplaneturbo.scenes.base import Field, Tensors
from triplaneturbo.scenes.bias import SdfBias
from triplaneturbo.types import FieldSample


@dataclass(kw_only=True)
class EncodingConfig:
    """Size of a hash grid; the defaults are those of instant-ngp's finest 4096."""

    n_levels: Annotated[int, Range(1, 32)] = 16
    """Grids of growing resolution."""
    n_features_per_level: Annotated[int, Range(1, 64)] = 2
    """Features each of them gives."""
    log2_hashmap_size: Annotated[int, Range(1, 30)] = 19
    """Entries of a grid that is too fine to be stored densely, as a power of two."""
    base_resolution: Annotated[int, Range(2, 2048)] = 16
    """Points along an edge of the coarsest grid."""
    per_level_scale: Annotated[float, Range(1, 8)] = 1.447269237440378
    """Ratio of neighbouring resolutions."""


@register("hash-grid")
class HashGridField(Field):
    """One scene in parameters of its own: `tensors` is empty, and there is one prompt.

    sdf(p) = network(h(p)) + bias(p), or density(p) = softplus(network(h(p)) + blob(p)), with the hash grid h over the
    cube and blob(p) = density_blob (1 - |p| / bias_size), which is positive within that radius (Magic3D).
    """

    @dataclass(kw_only=True)
    class Config(Module.Config):
        kind: Literal["sdf", "density"] = "sdf"
        """What the values are."""
        radius: Length = 1.0
        """Half the edge of the cube that the grid covers, world units."""
        encoding: EncodingConfig = field(default_factory=EncodingConfig)
        """The grid."""
        network: MlpConfig = field(default_factory=lambda: MlpConfig(n_hidden_layers=1))
        """The networks that read values and colours from it."""
        n_feature_dims: Width = 3
        """Colour channels before their activation."""
        bias: Literal["sphere", "ellipsoid"] | float = "sphere"
        """Start shape of a signed distance, or a constant."""
        bias_size: Length | tuple[Length, Length, Length] | None = 0.5
        """Radius of the sphere, or of the blob; the three semi-axes of the ellipsoid; world units."""
        density_blob: Weight = 10.0
        """Height of the blob that a density starts as."""
        level: float | None = None
        """The value on the surface; None: 0 of a signed distance, 25 of a density."""
        normals: Literal["analytic", "finite_difference"] = "finite_difference"
        """How d value / d point is computed: by autograd, whose own derivative is then of second order, or by central
        differences."""
        finite_difference_step: Length = 0.01
        """Step of the central differences, world units."""

    def configure(self) -> None:
        cfg = self.cfg
        self.kind, self.radius = cfg.kind, cfg.radius
        self.level = cfg.level if cfg.level is not None else (0.0 if cfg.kind == "sdf" else 25.0)
        self.encoding = HashGrid(**vars(cfg.encoding))
        hidden = cfg.network.n_neurons, cfg.network.n_hidden_layers
        self.value_network = Mlp(self.encoding.n_output_dims, 1, *hidden)
        self.feature_network = Mlp(self.encoding.n_output_dims, cfg.n_feature_dims, *hidden)
        self.bias = SdfBias.parse(cfg.bias, cfg.bias_size)

    def query(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False
    ) -> FieldSample:
        encoded = self._encode(points)
        color = self.feature_network(encoded) if features else None
        if not normals:
            return FieldSample(self._value(encoded, points), color)
        if self.cfg.normals == "analytic":
            value, gradient = self._autograd(points)
        else:
            value = self._value(encoded, points)
            gradient = self.central_differences(tensors, points, self.cfg.finite_difference_step)
        outwards = gradient if self.kind == "sdf" else -gradient
        return FieldSample(value, color, gradient, F.normalize(outwards, dim=-1))

    def value(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        return self._value(self._encode(points), points)

    def features(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        return self.feature_network(self._encode(points))

    def _encode(self, points: Tensor) -> Float[Tensor, "B N D"]:
        """Beyond the cube is what is on its side."""
        unit = ((points / self.radius + 1) / 2).clamp(0, 1)
        return self.encoding(unit.flatten(0, 1)).unflatten(0, points.shape[:2])

    def _value(self, encoded: Tensor, points: Tensor) -> Tensor:
        raw = self.value_network(encoded)
        if self.kind == "sdf":
            return raw + self.bias.value(points)
        blob = 1 - torch.linalg.vector_norm(points, dim=-1, keepdim=True) / self.cfg.bias_size
        return F.softplus(raw + self.cfg.density_blob * blob)

    def _autograd(self, points: Tensor) -> tuple[Tensor, Tensor]:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            inner = points if points.requires_grad else points.detach().requires_grad_()
            value = self.value({}, inner)
            (gradient,) = torch.autograd.grad(value.sum(), inner, create_graph=wanted)
        return value, gradient
