"""Rasterised pictures of surfaces: every prompt's field becomes a mesh, drawn from its views."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import option
from triplaneturbo.bounds import Pixels, Range, ScheduledShare, Share
from triplaneturbo.cameras import ray_directions, world_to_clip
from triplaneturbo.draws import Draws
from triplaneturbo.ops.mesh import keep_large_components, vertex_normals
from triplaneturbo.ops.rasterize import Raster, antialias, interpolate, rasterize
from triplaneturbo.ops.rows import gather_rows
from triplaneturbo.registry import register
from triplaneturbo.renderers.base import START, Background, NormalDirection, Renderer, check_views
from triplaneturbo.renderers.packing import PackedMeshes, PromptTable
from triplaneturbo.renderers.shading import NORMAL_BACKGROUND, WHITE, disparity, normals_as_colors, over
from triplaneturbo.renderers.surface import surface_meshes
from triplaneturbo.scenes import FieldScene, MeshScene, Scene
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, Extra, Mesh, Views


@register("mesh")
class MeshRenderer(Renderer[Scene]):
    """Marching cubes, rasterisation, antialiasing; differentiable from the pictures to the scene.

    The surface of a field is searched on a grid; scenes of meshes are drawn as they are. Colours are the field's at the
    visible surface points. All views of a call are held at once: in evaluation give
    a few cameras at a time. `Views.extras`: comp_normal [M, H, W, 3], the unit world normal that a pixel sees, 0 where
    it sees nothing; lists with one entry a prompt: meshes (differentiable vertices) and, with `surface_samples`,
    sdf [K, 1] and sdf_grad [K, 3] at the points visible from any view.
    """

    @dataclass(kw_only=True)
    class Config(Renderer.Config):
        isosurface_resolution: Annotated[int, Range(6, 2048)] = 128
        """Grid points along an edge."""
        smallest_component: Share = 0.0
        """Components with less than this share of the largest one's faces are dropped."""
        enable_bg_rays: bool = False
        """Whether the background is that along each pixel's ray, or of one colour, that along the view's axis."""
        background_focal_height: Pixels | None = None
        """Height of the pictures whose focal length, in pixels, the background's rays have; None: their own."""
        normal_direction: NormalDirection = "camera"
        """Axes of the normal picture, see `shading.normals_as_colors`."""
        sdf_grad_shrink: ScheduledShare = option(1.0)
        """Share of the gradient that vertices pass on to the signed distance."""
        def_grad_shrink: ScheduledShare = option(1.0)
        """Share of the gradient that vertices pass on to the deformation of the grid."""
        detach_if_empty: bool = True
        """Whether the stand-in drawn for a field without a surface passes no gradient on to the geometry."""
        surface_samples: bool = False
        """Whether to give sdf and sdf_grad at the visible points, for losses on them."""
        quirks: list[Literal["clip-depth", "mixed-backgrounds", "smoothed-normals"]] = option([])
        """clip-depth: clip-space z as depth. mixed-backgrounds: weights of prompts mixed across views.
        smoothed-normals: comp_normal as colours (n + 1) / 2 on black, smoothed at edges."""

    draws_scenes = (FieldScene, MeshScene)
    draws_triangles = True

    def forward(
        self,
        scene: Scene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
        progress: Progress = START,
    ) -> Views:
        """See `Renderer.forward`; nothing here is random but the background."""
        directions = self._background_rays(cameras, size)
        background = self.background_in(draws, cameras.n_view)
        meshes = self.surfaces(scene, progress)
        return self.render_meshes(meshes, scene, cameras, pooled_text, directions, background)

    def _background_rays(self, cameras: Cameras, size: tuple[int, int]) -> Tensor:
        if not self.cfg.enable_bg_rays:
            return F.normalize(-cameras.positions, dim=-1)[:, None, None].expand(-1, *size, -1)
        return ray_directions(cameras, *size, focal_height=self.cfg.background_focal_height)

    def surfaces(self, scene: Scene, progress: Progress = START) -> list[Mesh]:
        """The mesh of every prompt; where a field was searched, without colours."""
        if isinstance(scene, MeshScene):
            return scene.meshes
        meshes = surface_meshes(
            scene,
            self.cfg.isosurface_resolution,
            radius=self.radius_of(scene),
            value_share=self.cfg.sdf_grad_shrink(progress),
            offset_share=self.cfg.def_grad_shrink(progress),
            detach_if_empty=self.cfg.detach_if_empty,
        )
        threshold = self.cfg.smallest_component
        if not threshold:
            return meshes
        return [Mesh(*keep_large_components(mesh.vertices, mesh.faces, threshold)) for mesh in meshes]

    def render_meshes(
        self,
        meshes: list[Mesh],
        scene: Scene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        directions: Float[Tensor, "M H W 3"],
        background: Background | None = None,
    ) -> Views:
        """Pictures of given meshes, one for each prompt, coloured by the planes; `directions` of the background.

        background: None: the sibling.
        """
        check_views(scene, cameras)
        height, width = directions.shape[1:3]
        packed = PackedMeshes.join(meshes)
        clip = _clip_positions(meshes, world_to_clip(cameras, width / height))
        raster = rasterize(clip, packed.faces, height, width, packed.face_mesh, packed.count)
        behind = self._behind(background or self.background, directions, pooled_text, cameras.n_view)
        views = self.shade(packed, raster, clip, scene, cameras, behind)
        views.extras["meshes"] = meshes
        return views

    def _behind(self, background: Background, directions: Tensor, pooled_text: Tensor, n_view: int) -> Tensor:
        if "mixed-backgrounds" not in self.cfg.quirks:
            return background(directions, pooled_text)
        return torch.cat([background(part, pooled_text) for part in directions.split(n_view)])

    def shade(
        self,
        meshes: PackedMeshes,
        raster: Raster,
        clip: Float[Tensor, "V N 4"],
        scene: Scene,
        cameras: Cameras,
        background: Float[Tensor, "M H W 3"],
    ) -> Views:
        """Pictures of the meshes from what each pixel sees."""
        visible = raster.face_index >= 0
        mask = visible.unsqueeze(-1).to(meshes.vertices.dtype)
        attributes = torch.cat([meshes.vertices, vertex_normals(meshes.vertices, meshes.faces)], -1)
        points, normal = interpolate(attributes, raster, meshes.faces).split(3, -1)
        normal = F.normalize(normal, dim=-1)
        if "clip-depth" in self.cfg.quirks:
            depth = interpolate(clip, raster, meshes.faces)[..., 2:3]
        else:
            depth = torch.linalg.vector_norm(points - cameras.positions[:, None, None], dim=-1, keepdim=True) * mask
        extras: dict[str, Extra] = {}
        if isinstance(scene, MeshScene) and scene.texture is None:
            colors = torch.cat([mesh.colors for mesh in scene.meshes if mesh.colors is not None])
            color = interpolate(colors, raster, meshes.faces)
        else:
            color, extras = self._surface_colors(scene, points, visible)
        normal_colors = normals_as_colors(normal, cameras, self.cfg.normal_direction)
        layers = {
            "opacity": mask,
            "disparity": disparity(depth, mask, cameras.distance),
            "normal": over(normal_colors, mask, NORMAL_BACKGROUND),
            "normal_white": over(normal_colors, mask, WHITE),
            "rgb": over(color, mask, background),
        }
        if "smoothed-normals" in self.cfg.quirks:
            layers["comp_normal"] = (normal + 1) / 2 * mask
        smooth = antialias(torch.cat(list(layers.values()), -1), raster, clip, meshes.faces, meshes.face_mesh)
        widths = [layer.shape[-1] for layer in layers.values()]
        pictures = dict(zip(layers, smooth.split(widths, -1), strict=True))
        extras["comp_normal"] = pictures.pop("comp_normal", normal)
        return Views(**pictures, depth=depth, extras=extras)

    def _surface_colors(
        self, scene: Scene, points: Float[Tensor, "M H W 3"], visible: Tensor
    ) -> tuple[Float[Tensor, "M H W 3"], dict[str, Extra]]:
        """Colours at the visible points, 0 elsewhere, and with `surface_samples` what a field has there."""
        counts = visible.view(len(scene), -1).sum(1).tolist()
        pixels = torch.nonzero_static(visible.flatten(), size=sum(counts)).squeeze(1)
        table = PromptTable(counts, pixels.device)
        seen = table.fill(gather_rows(points.reshape(-1, 3), pixels))
        extras: dict[str, Extra] = {}
        if self.cfg.surface_samples and isinstance(scene, FieldScene):
            found = scene.query(seen, features=True, normals=True)
            assert found.features is not None
            assert found.gradient is not None
            features, extras = found.features, {"sdf": table.rows(found.value), "sdf_grad": table.rows(found.gradient)}
        else:
            features = scene.features(seen)
        colors = table.read(self.material(features))
        canvas = colors.new_zeros(visible.numel(), 3).index_copy(0, pixels, colors)
        return canvas.view(*visible.shape, 3), extras


def _clip_positions(meshes: list[Mesh], matrices: Float[Tensor, "M 4 4"]) -> Float[Tensor, "V N 4"]:
    """Every vertex as the cameras of its own mesh see it."""
    parts = []
    for mesh, views in zip(meshes, matrices.unflatten(0, (len(meshes), -1)), strict=True):
        parts.append(F.pad(mesh.vertices, (0, 1), value=1.0) @ views.transpose(1, 2))
    return torch.cat(parts, 1)
