"""The geometry component: text and noise to six feature planes, and the scene they make."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import NO_OWN_WEIGHTS, Module
from triplaneturbo.bounds import GridPoints, Length, Range, Share, Width
from triplaneturbo.geometry.generator import TriplaneGenerator
from triplaneturbo.geometry.graph import GraphReplay
from triplaneturbo.nn.mlp import MlpConfig
from triplaneturbo.registry import register
from triplaneturbo.scenes.base import FieldScene
from triplaneturbo.scenes.planes import PlaneField


@register("few-step-triplane-dual-stable-diffusion")
class FewStepTriplaneDualStableDiffusion(Module):
    """Six planes (xy, xz, yz for shape, the same for colour) from a few-step diffusion generator, and their field.

    `space_generator` is the generator, with its latents and its denoising; `field` reads the planes.
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

    makes = FieldScene

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        line = "the deformation is in cells of the training grid, whatever grid a mesh is exported with"
        return {12: line} if cfg.isosurface_deformable_grid else {}

    def configure(self) -> None:
        cfg = self.cfg
        self.space_generator = TriplaneGenerator(cfg.space_generator_config)
        self.field = PlaneField(self._field_options())
        self.merged = False
        self._replay = GraphReplay()
        self.register_buffer("bbox", torch.tensor([[-cfg.radius] * 3, [cfg.radius] * 3]))

    def _field_options(self) -> PlaneField.Config:
        cfg = self.cfg
        how = {"v1": "sum", "v2": "concat"}
        return PlaneField.Config(
            channels=cfg.space_generator_config.output_dim // (2 if cfg.split_channels == "v1" else 1),
            axes={"v1": "yx", "v2": "xy"}[cfg.rotate_planes],
            shape_features=how[cfg.geo_interpolate],
            color_features=how[cfg.tex_interpolate],
            radius=cfg.radius,
            n_feature_dims=cfg.n_feature_dims,
            network=cfg.mlp_network_config,
            normals=cfg.normal_type,
            finite_difference_step=cfg.finite_difference_normal_eps,
            bias=cfg.sdf_bias,
            bias_size=cfg.sdf_bias_params,
            level=cfg.isosurface_threshold,
            deformable=cfg.isosurface_deformable_grid,
            deformation_unit="cell" if cfg.compat == "original" else "training cell",
            training_resolution=cfg.isosurface_resolution,
        )

    @property
    def smallest_component(self) -> float:
        """Components of exported meshes with less than this share of the largest one's faces are dropped."""
        return self.cfg.isosurface_outlier_n_faces_threshold if self.cfg.isosurface_remove_outliers else 0.0

    # From latents to scenes

    def decode(self, latents: Float[Tensor, "N c h w"]) -> FieldScene:
        """The scene that the decoder makes of clean latents; differentiable."""
        return self._scene(self._planes(latents))

    @torch.no_grad()
    def generate(
        self,
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
        noise: Float[Tensor, "N c h w"],
        n_steps: int = 4,
    ) -> FieldScene:
        """The scene after `n_steps` of DDIM from `noise`, without gradients.

        Merged and on CUDA the whole computation is recorded as a graph on the first call of a shape and replayed by
        the next: the generator launches 10 000 kernels, more than the host can issue while the device runs them.
        """

        def planes(text: Tensor, noise: Tensor) -> Tensor:
            return self._planes(self.space_generator.sample(text, noise, n_steps))

        if not (self.merged and noise.is_cuda):
            return self._scene(planes(text, noise))
        return self._scene(self._replay(planes, (text, noise), key=n_steps))

    def _planes(self, latents: Tensor) -> Float[Tensor, "B 6 C H W"]:
        return self.space_generator.decode(latents, split=self.cfg.split_channels == "v1")

    def _scene(self, planes: Tensor) -> FieldScene:
        return FieldScene(self.field, {"planes": planes})

    def merge(self) -> None:
        """Fold the adapters into the weights for inference; see `TriplaneGenerator.merge`."""
        self.space_generator.merge()
        self.merged = True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moving weights leaves a recording with their old addresses."""
        self._replay = GraphReplay()
        return super()._apply(fn, recurse)
