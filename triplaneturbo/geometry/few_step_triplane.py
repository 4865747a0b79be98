"""The geometry component: text and noise to planes, planes and points to signed distance, colour and normals."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import NO_OWN_WEIGHTS, Module
from triplaneturbo.bounds import GridPoints, Length, Range, Share, Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.geometry.field import (
    PLANE_AXES,
    Mlp,
    MlpConfig,
    SdfBias,
    combine,
    plane_coordinates,
    split_cotangent,
)
from triplaneturbo.geometry.generator import TriplaneGenerator
from triplaneturbo.geometry.graph import GraphReplay
from triplaneturbo.ops.planes import sample_planes, sample_planes_with_jacobian
from triplaneturbo.registry import register
from triplaneturbo.types import FieldSample


@register("few-step-triplane-dual-stable-diffusion")
class FewStepTriplaneDualStableDiffusion(Module):
    """Six planes (xy, xz, yz for shape, the same for colour) from a few-step diffusion generator, and their field.

    `space_generator` is the generator, with its latents and its denoising; from latents on, planes are this class's.
    sdf(p) = network(sum or concatenation of the shape features at p) + bias(p), negative inside. A plane covers
    [-radius, radius]^2 and is 0 outside; beyond all three planes the sdf is the bias. The field is float32.
    """

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {
            "weights": NO_OWN_WEIGHTS,
            "isosurface": "the surface is extracted when a mesh is asked for; there is nothing to switch",
        }

        backbone: Literal["few_step_triplane_dual_stable_diffusion"] = "few_step_triplane_dual_stable_diffusion"
        """The only generator there is."""
        space_generator_config: TriplaneGenerator.Config = field(default_factory=TriplaneGenerator.Config)
        """The diffusion network."""
        radius: Length = 1.0
        """Half the edge of the box that the planes cover, world units."""
        n_feature_dims: Width = 3
        """Colour channels before their activation."""
        mlp_network_config: MlpConfig = field(default_factory=MlpConfig)
        """The networks that read sdf, colour and deformation from the planes."""
        normal_type: Literal["analytic", "finite_difference"] = "analytic"
        """How d sdf / d point is computed: exactly, or by central differences."""
        finite_difference_normal_eps: Length = 0.01
        """Step of the central differences, world units."""
        sdf_bias: Literal["sphere", "ellipsoid"] | Annotated[float, Range(-1000, 1000)] = 0.0
        """Start shape, or a constant."""
        sdf_bias_params: Length | tuple[Length, Length, Length] | None = None
        """Radius of the sphere; the three semi-axes of the ellipsoid; world units."""
        rotate_planes: Literal["v1", "v2"] = "v1"
        """How planes are laid on the axes (see field.PLANE_AXES)."""
        split_channels: Literal["v1"] | None = None
        """v1: shape planes keep the first half of the decoder's channels, colour planes the second."""
        geo_interpolate: Literal["v1", "v2"] = "v1"
        """Shape features of the three planes are summed (v1) or concatenated (v2)."""
        tex_interpolate: Literal["v1", "v2"] = "v1"
        """The same for colour."""
        isosurface_method: Literal["mt", "diffmc"] = "diffmc"
        """Accepted for old configurations: marching cubes is the only method."""
        isosurface_resolution: GridPoints = 128
        """Grid points along an edge in training; the unit of the deformation."""
        isosurface_threshold: Annotated[float, Range(-1000, 1000)] = 0.0
        """Level of the surface."""
        isosurface_chunk: Annotated[int, Range(0)] = 0
        """Accepted for old configurations: grids are evaluated in slabs of a size that suits the networks."""
        isosurface_coarse_to_fine: bool = True
        """Accepted for old configurations: the dense grid costs less than the search."""
        isosurface_deformable_grid: bool = False
        """Whether a network moves the grid points before the surface is extracted."""
        isosurface_remove_outliers: bool = False
        """Drop small components of exported meshes."""
        isosurface_outlier_n_faces_threshold: Share = 0.01
        """Smallest share of the largest component's faces that is kept."""
        compat: Literal["right", "original"] = "right"
        """original: the deformation is in cells of the grid in use, not of the training grid (docs/compat.md row 12).
        A checkpoint of the original sets this for itself."""

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        line = "the deformation is in cells of the training grid, whatever grid a mesh is exported with"
        return {12: line} if cfg.isosurface_deformable_grid else {}

    def configure(self) -> None:
        cfg = self.cfg
        self.space_generator = TriplaneGenerator(cfg.space_generator_config)
        channels = cfg.space_generator_config.output_dim // (2 if cfg.split_channels == "v1" else 1)
        geo = channels * (3 if cfg.geo_interpolate == "v2" else 1)
        tex = channels * (3 if cfg.tex_interpolate == "v2" else 1)
        shape = cfg.mlp_network_config.n_neurons, cfg.mlp_network_config.n_hidden_layers
        self.sdf_network = Mlp(geo, 1, *shape)
        self.feature_network = Mlp(tex, cfg.n_feature_dims, *shape)
        if cfg.isosurface_deformable_grid:
            self.deformation_network = Mlp(geo, 3, *shape)
        self.bias = _parse_bias(cfg.sdf_bias, cfg.sdf_bias_params)
        self.merged = False
        self._replay = GraphReplay()
        self.register_buffer("bbox", torch.tensor([[-cfg.radius] * 3, [cfg.radius] * 3]))
        axes = torch.tensor(PLANE_AXES[cfg.rotate_planes], dtype=torch.float32)
        self.register_buffer("plane_axes", axes, persistent=False)

    # From latents to planes

    def decode(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "B 6 C H W"]:
        """See `TriplaneGenerator.decode`."""
        return self.space_generator.decode(latents, split=self.cfg.split_channels == "v1")

    @torch.no_grad()
    def generate(
        self,
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
        noise: Float[Tensor, "N c h w"],
        n_steps: int = 4,
    ) -> Float[Tensor, "B 6 C H W"]:
        """Planes after `n_steps` of DDIM from `noise`, without gradients.

        Merged and on CUDA the whole computation is recorded as a graph on the first call of a shape and replayed by
        the next: the generator launches 10 000 kernels, more than the host can issue while the device runs them.
        """

        def planes(text: Tensor, noise: Tensor) -> Tensor:
            return self.decode(self.space_generator.sample(text, noise, n_steps))

        if not (self.merged and noise.is_cuda):
            return planes(text, noise)
        return self._replay(planes, (text, noise), key=n_steps)

    def merge(self) -> None:
        """Fold the adapters into the weights for inference; see `TriplaneGenerator.merge`."""
        self.space_generator.merge()
        self.merged = True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moving weights leaves a recording with their old addresses."""
        self._replay = GraphReplay()
        return super()._apply(fn, recurse)

    # The field

    def query(
        self,
        planes: Float[Tensor, "B 6 C H W"],
        points: Float[Tensor, "B N 3"],
        *,
        features: bool = True,
        normals: bool = False,
    ) -> FieldSample:
        """The field at points in world units, differentiable once in planes, points and parameters.

        features: also the colours before their activation; only then are the colour planes read.
        normals: also d sdf / d point and its unit vector. They are computed by forward operations, so that a loss
        on them needs first-order reverse mode only.
        """
        coords = self._coordinates(points)
        colour = self._features(planes, coords) if features else None
        if not normals:
            return FieldSample(sdf=self._sdf(planes, points, coords), features=colour)
        if self.cfg.normal_type == "analytic":
            sdf, gradient = self._sdf_and_gradient(planes, points, coords)
        else:
            sdf, gradient = self._sdf(planes, points, coords), self._central_differences(planes, points)
        return FieldSample(sdf, colour, gradient, F.normalize(gradient, dim=-1))

    def sdf(self, planes: Float[Tensor, "B 6 C H W"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        """Signed distance alone, negative inside."""
        return self._sdf(planes, points, self._coordinates(points))

    def features(self, planes: Float[Tensor, "B 6 C H W"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N F"]:
        """Colours before their activation alone."""
        return self._features(planes, self._coordinates(points))

    def sdf_and_deformation(
        self, planes: Float[Tensor, "B 6 C H W"], points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 3"] | None]:
        """Signed distance, and how far the grid point there moves, in cells of the training grid (None: grids do
        not deform)."""
        shape = self._shape_features(planes, self._coordinates(points))
        deformation = self.deformation_network(shape) if self.cfg.isosurface_deformable_grid else None
        return self.sdf_network(shape) + self.bias.value(points), deformation

    def _coordinates(self, points: Tensor) -> Tensor:
        return plane_coordinates(points / self.cfg.radius, self.plane_axes)

    def _features(self, planes: Tensor, coords: Tensor) -> Tensor:
        return self.feature_network(combine(sample_planes(planes[:, 3:], coords), self.cfg.tex_interpolate))

    def _shape_features(self, planes: Tensor, coords: Tensor) -> Tensor:
        return combine(sample_planes(planes[:, :3], coords), self.cfg.geo_interpolate)

    def _sdf(self, planes: Tensor, points: Tensor, coords: Tensor) -> Tensor:
        return self.sdf_network(self._shape_features(planes, coords)) + self.bias.value(points)

    def _sdf_and_gradient(self, planes: Tensor, points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        values, jacobian = sample_planes_with_jacobian(planes[:, :3], coords)
        raw, d_features = self.sdf_network.value_and_gradient(combine(values, self.cfg.geo_interpolate))
        d_features = split_cotangent(d_features, self.cfg.geo_interpolate)
        d_coords = (jacobian @ d_features.unsqueeze(-1)).squeeze(-1)
        d_points = torch.einsum("bpnk,pkd->bnd", d_coords, self.plane_axes) / self.cfg.radius
        return raw + self.bias.value(points), d_points + self.bias.gradient(points)

    def _central_differences(self, planes: Tensor, points: Tensor) -> Tensor:
        eps = self.cfg.finite_difference_normal_eps
        steps = eps * torch.eye(3, dtype=points.dtype, device=points.device)
        around = torch.cat((points.unsqueeze(2) + steps, points.unsqueeze(2) - steps), dim=2)
        ahead, behind = self.sdf(planes, around.flatten(1, 2)).view(*points.shape[:2], 2, 3).unbind(2)
        return (ahead - behind) / (2 * eps)


def _parse_bias(kind: str | float, params: Any) -> SdfBias:
    if kind == "sphere":
        size = (params,)
    elif kind == "ellipsoid":
        size = tuple(params) if isinstance(params, (list, tuple)) and len(params) == 3 else (params,) * 3
    else:
        return SdfBias(None, kind)
    if not all(isinstance(s, (int, float)) and s > 0 for s in size):
        wanted = "a positive radius" if kind == "sphere" else "three positive semi-axes"
        raise ConfigError(f"sdf_bias: {kind} needs {wanted} in sdf_bias_params, not {params!r}")
    return SdfBias(tuple(map(float, size)))
