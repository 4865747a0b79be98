"""A field read from feature planes: coordinates, lookups, small networks, and exact normals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import GridPoints, Length, Width
from triplaneturbo.nn.mlp import Mlp, MlpConfig
from triplaneturbo.ops.planes import sample_planes, sample_planes_with_jacobian
from triplaneturbo.performance import kernels_run_on
from triplaneturbo.registry import register
from triplaneturbo.scenes.base import Field, Normals, Tensors, in_slabs
from triplaneturbo.scenes.bias import SdfBias
from triplaneturbo.types import FieldSample

Combination = Literal["sum", "mean", "concat"]

# d(u, v) / d(x, y, z) of the three planes: where a point lies in the picture that a decoder painted. Column u points
# right and row v points down.
PLANE_AXES = {
    # xy, xz, yz; the latter two are upright views with z up.
    "yx": (((0, 1, 0), (1, 0, 0)), ((-1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1))),
    "xy": (((-1, 0, 0), (0, 1, 0)), ((-1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1))),
    # xy, xz, zy along the axes themselves.
    "plain": (((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, 1)), ((0, 0, 1), (0, 1, 0))),
}


def plane_coordinates(unit_points: Float[Tensor, "B N 3"], axes: Float[Tensor, "3 2 3"]) -> Float[Tensor, "B 3 N 2"]:
    """(u, v) of points in [-1, 1]^3 on each of the three planes. No plane is ever rotated or copied."""
    return torch.einsum("bnd,pkd->bpnk", unit_points, axes)


def combine(per_plane: Float[Tensor, "B 3 N C"], how: Combination) -> Float[Tensor, "B N F"]:
    """One feature vector a point: the sum or mean over planes (F = C), or their concatenation (F = 3C)."""
    if how == "concat":
        return per_plane.transpose(1, 2).flatten(2)
    return per_plane.sum(1) if how == "sum" else per_plane.mean(1)


def split_cotangent(cotangent: Float[Tensor, "B N F"], how: Combination) -> Float[Tensor, "B P N C"]:
    """The adjoint of `combine`: P = 1 (the same for all planes) for sum and mean, 3 for the concatenation."""
    if how == "concat":
        return cotangent.unflatten(2, (3, -1)).transpose(1, 2)
    return (cotangent if how == "sum" else cotangent / 3).unsqueeze(1)


@register("planes")
class PlaneField(Field):
    """A signed distance and colours from three feature planes for both, or from three for each.

    sdf(p) = network(combined shape features at p) + bias(p). `tensors["planes"]`, [B, 6, C, H, W] with the shape planes
    first, or [B, 3, C, H, W]; a plane covers [-radius, radius]^2 and is 0 outside; beyond all three planes the sdf is
    the bias. The field is float32.
    """

    @dataclass(kw_only=True)
    class Config(Module.Config):
        dual: bool = True
        """Six planes, three for shape and three for colour; else three for both."""
        axes: Literal["yx", "xy", "plain"] = "yx"
        """How planes are laid on the axes, see `PLANE_AXES`."""
        shape_features: Combination = "sum"
        """What is made of the features that the three planes have for shape."""
        color_features: Combination = "concat"
        """What is made of those for colour."""
        radius: Length = 1.0
        """Half the edge of the box that the planes cover, world units."""
        n_feature_dims: Width = 3
        """Colour channels before their activation."""
        network: MlpConfig = field(default_factory=MlpConfig)
        """The networks that read sdf, colour and deformation from the planes."""
        normals: Normals = "analytic"
        """How d sdf / d point is computed, see `scenes.base.Normals`."""
        finite_difference_step: Length = 0.01
        """Step of the differences, world units."""
        bias: Literal["sphere", "ellipsoid"] | float = 0.0
        """Start shape, or a constant."""
        bias_size: Length | tuple[Length, Length, Length] | None = None
        """Radius of the sphere; the three semi-axes of the ellipsoid; world units."""
        level: float = 0.0
        """The signed distance on the surface."""
        deformable: bool = False
        """Whether a network moves the grid points before a surface is extracted."""
        deformation_unit: Literal["training cell", "cell"] = "training cell"
        """What that network's numbers count: cells of the training grid, or of whatever grid is in use."""
        training_resolution: GridPoints = 128
        """Grid points along an edge of the training grid."""

    free = False
    plane_axes: Tensor

    def configure(self, channels: int) -> None:
        """channels: of a plane."""
        cfg = self.cfg
        self.radius, self.level = cfg.radius, cfg.level
        shape = channels * (3 if cfg.shape_features == "concat" else 1)
        color = channels * (3 if cfg.color_features == "concat" else 1)
        hidden = cfg.network.n_neurons, cfg.network.n_hidden_layers
        self.sdf_network = Mlp(shape, 1, *hidden)
        self.feature_network = Mlp(color, cfg.n_feature_dims, *hidden)
        if cfg.deformable:
            self.deformation_network = Mlp(shape, 3, *hidden)
        self.bias = SdfBias.parse(cfg.bias, cfg.bias_size)
        axes = torch.tensor(PLANE_AXES[cfg.axes], dtype=torch.float32)
        self.register_buffer("plane_axes", axes, persistent=False)

    # At points

    def query(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False
    ) -> FieldSample:
        """See `Field.query`. The colour planes are read only with `features`."""
        if features and normals and self._has_kernel(tensors, points):
            from triplaneturbo.ops.plane_field_triton import QueryPlanes

            given = tensors["planes"], points / self.radius, self.plane_axes
            value, gradient, color = QueryPlanes.apply(*given, *self._weights(self.sdf_network, self.feature_network))
            gradient = gradient / self.radius + self.bias.gradient(points)
            return FieldSample(value + self.bias.value(points), color, gradient, F.normalize(gradient, dim=-1))
        coords = self._coordinates(points)
        color = self._features(tensors, coords) if features else None
        if not normals:
            return FieldSample(self._value(tensors, points, coords), color)
        if self.cfg.normals == "analytic":
            value, gradient = self._value_and_gradient(tensors, points, coords)
        else:
            value = self._value(tensors, points, coords)
            gradient = self.differences(tensors, points, value, self.cfg.normals, self.cfg.finite_difference_step)
        return FieldSample(value, color, gradient, F.normalize(gradient, dim=-1))

    def value(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        if not torch.is_grad_enabled() and self._has_kernel(tensors, points):
            from triplaneturbo.ops.plane_field_triton import value_at

            given = tensors["planes"], points / self.radius, self.plane_axes
            return value_at(*given, self._weights(self.sdf_network)) + self.bias.value(points)
        return self._value(tensors, points, self._coordinates(points))

    def features(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        return self._features(tensors, self._coordinates(points))

    def level_set(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, resolution: int
    ) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 3"] | None]:
        shape = self._shape_features(tensors, self._coordinates(points))
        offset = self.deformation_network(shape) * self._cells(resolution) if self.cfg.deformable else None
        return self.inside(self.sdf_network(shape) + self.bias.value(points)), offset

    def _has_kernel(self, tensors: Tensors, points: Tensor) -> bool:
        """Whether one kernel does the whole lookup: for the layout of all published recipes, without gradient to the
        points, where its sums need not be the same from run to run."""
        cfg = self.cfg
        usual = cfg.dual and (cfg.shape_features, cfg.color_features) == ("sum", "concat")
        usual = usual and cfg.normals == "analytic" and cfg.network.n_hidden_layers == 2 and cfg.n_feature_dims <= 16
        widths = {tensors["planes"].shape[2], cfg.network.n_neurons}
        return (
            usual
            and widths <= {16, 32, 64}
            and points.dtype == tensors["planes"].dtype == torch.float32
            and not (points.requires_grad and torch.is_grad_enabled())
            and not torch.are_deterministic_algorithms_enabled()
            and kernels_run_on(points.device)
        )

    @staticmethod
    def _weights(*networks: Mlp) -> tuple[Tensor, ...]:
        return tuple(linear.weight for network in networks for linear in network.linears)

    def _cells(self, resolution: int) -> float:
        """Cells of a grid with `resolution` points along an edge in one unit of the deformation network."""
        if self.cfg.deformation_unit == "cell":
            return 1.0
        return (resolution - 1) / (self.cfg.training_resolution - 1)

    def _planes(self, tensors: Tensors, part: Literal["shape", "color"]) -> Float[Tensor, "B 3 C H W"]:
        planes = tensors["planes"]
        if not self.cfg.dual:
            return planes
        return planes[:, :3] if part == "shape" else planes[:, 3:]

    def _coordinates(self, points: Tensor) -> Tensor:
        return plane_coordinates(points / self.radius, self.plane_axes)

    def _features(self, tensors: Tensors, coords: Tensor) -> Tensor:
        values = sample_planes(self._planes(tensors, "color"), coords)
        return self.feature_network(combine(values, self.cfg.color_features))

    def _shape_features(self, tensors: Tensors, coords: Tensor) -> Tensor:
        return combine(sample_planes(self._planes(tensors, "shape"), coords), self.cfg.shape_features)

    def _value(self, tensors: Tensors, points: Tensor, coords: Tensor) -> Tensor:
        return self.sdf_network(self._shape_features(tensors, coords)) + self.bias.value(points)

    def _value_and_gradient(self, tensors: Tensors, points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        values, jacobian = sample_planes_with_jacobian(self._planes(tensors, "shape"), coords)
        raw, d_features = self.sdf_network.value_and_gradient(combine(values, self.cfg.shape_features))
        d_features = split_cotangent(d_features, self.cfg.shape_features)
        d_coords = (jacobian @ d_features.unsqueeze(-1)).squeeze(-1)
        d_points = torch.einsum("bpnk,pkd->bnd", d_coords, self.plane_axes) / self.radius
        return raw + self.bias.value(points), d_points + self.bias.gradient(points)

    # On a grid

    @torch.no_grad()
    def grid(
        self, tensors: Tensors, resolution: int, prompts: int, radius: float | None = None
    ) -> Float[Tensor, "B R R R"]:
        """See `Field.grid`.

        A plane's feature at a grid point depends on two coordinates only and the first layer of the network is linear:
        planes are read, and that layer is applied, at 3 R^2 points; their sums at R^3 points are what a point-wise
        query computes.
        """
        line = self.grid_line(resolution, tensors, radius)
        parts = self._first_layer(self._plane_grids(self._planes(tensors, "shape"), line))
        points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
        if self._has_kernel(tensors, points):
            from triplaneturbo.ops.plane_field_triton import grid_values

            raw = grid_values(parts, *self._weights(self.sdf_network)[1:])
        else:
            xy, xz, yz = parts

            def slab(start: int, stop: int) -> Tensor:
                first = xy[:, start:stop, :, None] + xz[:, start:stop, None, :] + yz[:, None, :, :]
                return self.sdf_network.from_first_layer(first)

            raw = in_slabs(slab, resolution, prompts, line.device)
        return self.inside((raw + self.bias.value(points)).squeeze(-1))

    def _plane_grids(self, planes: Tensor, line: Tensor) -> Float[Tensor, "B 3 R R C"]:
        """Features of the three shape planes on the grids they span, indexed by the two world axes in their order."""
        points = line.new_zeros(3, len(line), len(line), 3)
        for plane, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
            points[plane, :, :, first] = line[:, None]
            points[plane, :, :, second] = line[None, :]
        on_planes = plane_coordinates((points / self.radius).flatten(1, 2), self.plane_axes)
        coords = torch.stack([on_planes[plane, plane] for plane in range(3)])
        values = sample_planes(planes, coords.expand(len(planes), -1, -1, -1))
        return values.unflatten(2, (len(line), len(line)))

    def _first_layer(self, features: Tensor) -> Sequence[Tensor]:
        """What each plane adds to the pre-activation of the first layer, 3 x [B, R, R, H]."""
        weight = self.sdf_network.linears[0].weight
        if self.cfg.shape_features == "concat":
            weights: Sequence[Tensor] = weight.chunk(3, dim=1)
        else:
            weights = [weight if self.cfg.shape_features == "sum" else weight / 3] * 3
        return [x @ w.T for x, w in zip(features.unbind(1), weights, strict=True)]
