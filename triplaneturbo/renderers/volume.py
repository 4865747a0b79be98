"""Volume rendering of a signed distance (NeuS or VolSDF) or of a density, samples placed by importance or evenly."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Literal, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triplaneturbo.base import option
from triplaneturbo.bounds import Range, ScheduledShare, Share
from triplaneturbo.cameras import ray_directions
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.ops.volume import compositing_weights, density_alpha, neus_alpha, volsdf_alpha, volsdf_density
from triplaneturbo.registry import register
from triplaneturbo.renderers.base import (
    START,
    Background,
    MakesFields,
    MakesScenes,
    Material,
    NormalDirection,
    Renderer,
    check_views,
)
from triplaneturbo.renderers.occupancy import OccupancyGrid
from triplaneturbo.renderers.sampling import Intervals, Jitter, box_range, even_steps, place_samples, visible
from triplaneturbo.renderers.shading import (
    NORMAL_BACKGROUND,
    WHITE,
    disparity,
    normals_as_colors,
    over,
    shrink_gradient,
)
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.base import FieldKind
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.types import Cameras, FieldSample, Views

# Diagonal of the cube of half side 1, rounded as the original rounds it. Over the number of samples it is the step
# whose NeuS opacity gives the density of the even intervals.
_BOX_DIAGONAL = 2 * 1.732
# Keeps what is divided by an opacity finite where that is 0.
_MIN_OPACITY = 1e-5


class LearnedVariance(nn.Module):
    """Sharpness s = exp(10 x) of the logistic density around the surface; x is the parameter."""

    def __init__(self, init: float, trainable: bool) -> None:
        super().__init__()
        self._inv_std = nn.Parameter(torch.tensor(float(init)), requires_grad=trainable)

    def forward(self) -> Float[Tensor, ""]:
        return torch.exp(10 * self._inv_std).clamp(1e-6, 1e6)


@dataclass(frozen=True)
class _Rays:
    """R rays of every prompt. directions: of any length. jitter: of their samples; None: in the middle."""

    origins: Float[Tensor, "B R 3"]
    directions: Float[Tensor, "B R 3"]
    jitter: Jitter | None

    def part(self, rays: slice) -> "_Rays":
        jitter = None if self.jitter is None else self.jitter.rays(rays)
        return _Rays(self.origins[:, rays], self.directions[:, rays], jitter)

    def points(self, t: Float[Tensor, "B R S"]) -> Float[Tensor, "B RS 3"]:
        """The points at ray parameters t, as a field is asked for them."""
        return (self.origins.unsqueeze(2) + self.directions.unsqueeze(2) * t.unsqueeze(3)).flatten(1, 2)


@dataclass(frozen=True)
class _Pixels:
    """Sums along rays of the weights w times colour, normal, 1, t and (t - depth)^2."""

    rgb: Float[Tensor, "B R 3"]
    normal: Float[Tensor, "B R 3"]
    opacity: Float[Tensor, "B R 1"]
    depth: Float[Tensor, "B R 1"]
    z_variance: Float[Tensor, "B R 1"]


@register("volume")
class VolumeRenderer(Renderer[FieldScene]):
    """Sums colour, normal and depth along rays with weights w_i = alpha_i prod_{j<i} (1 - alpha_j).

    Each ray is cut into even intervals, whose opacity decides where finer ones go (`sampling.place_samples`), or it
    takes even steps through the cells of the cube that hold matter (`occupancy`); the field is then evaluated once in
    the middle of every interval. One scene serves all its views: rays fold into the point axis. `Views.extras` holds,
    in training, K = all samples of all rays, prompt-major: sdf, sdf_grad, normal, weights, t_dirs, t_points,
    t_intervals [K, .]; always: inv_std, z_variance [M, H, W, 1] and comp_normal [M, H, W, 3], the weighted sum of
    normals at unit length.
    """

    @dataclass(kw_only=True)
    class Config(Renderer.Config):
        estimator: Literal["importance", "occupancy", "even"] = "importance"
        """How intervals are placed: some evenly, which tell where the others go; or, for a single scene, steps of equal
        length in the cube, all (even) or those in cells that hold matter (occupancy)."""
        num_samples_per_ray: Annotated[int, Range(2, 65536)] = 512
        """Fine intervals, placed where light is absorbed; or steps along the diagonal of the cube."""
        num_samples_per_ray_importance: Annotated[int, Range(2, 65536)] = 64
        """Even intervals, which find out where that is."""
        least_alpha: Share = 0.01
        """occupancy: steps less opaque than this, or than the mean of all cells, are left out, and those that less than
        1e-4 of the light reaches; 0: none are."""
        near_plane: Annotated[float, Range(0, 1e12)] = 0.1
        """Start of the stretch of each ray that is looked at, with ray_range planes."""
        far_plane: Annotated[float, Range(0, 1e12, above=True)] = 4.0
        """Its end."""
        ray_range: Literal["planes", "box"] = "planes"
        """box: look at each ray only where it is inside the cube of half side `radius`, as even steps always do."""
        law: Literal["neus", "volsdf", "density"] | None = None
        """How the field absorbs light: as NeuS or VolSDF say of a signed distance, or as the density that it is. None:
        a density as one, a signed distance by NeuS."""
        learned_variance_init: Annotated[float, Range(-2, 2)] = 0.3
        """Sharpness s = exp(10 x) of the surface: the first x."""
        trainable_variance: bool = True
        """Whether x is learned."""
        inv_std: Annotated[Schedule, Range(0, 1e6, above=True)] | None = None
        """The sharpness s itself; replaces the learned one."""
        cos_anneal_end_steps: Annotated[int, Range(0)] = 0
        """Until this step NeuS opacity blends from half the slope plus 1/2, which lights all sides, to the slope."""
        normalize_z_variance: bool = False
        """Take the variance of the depth about its mean, with weights that sum to 1, and 0 where the opacity is at most
        1/2; otherwise weights and mean are those of the depth picture."""
        rgb_grad_shrink: ScheduledShare = option(1.0)
        """Share of the gradient that colours pass on to the field."""
        randomized: bool = True
        """Jitter the samples in training."""
        train_chunk_size: Annotated[int, Range(0)] = 0
        """Points evaluated together in training, 0 for all; chunks are computed again in the backward pass."""
        eval_chunk_size: Annotated[int, Range(0)] = 320000
        """Points evaluated together in evaluation mode, 0 for all."""
        normal_direction: NormalDirection = "camera"
        """Axes of the normal picture, see `shading.normals_as_colors`."""

        def __post_init__(self) -> None:
            if not self.near_plane < self.far_plane:
                raise ConfigError(f"near_plane ({self.near_plane}) must be less than far_plane ({self.far_plane})")

    def configure(self, *, material: Material, background: Background) -> None:
        super().configure(material=material, background=background)
        self.variance = LearnedVariance(self.cfg.learned_variance_init, self.cfg.trainable_variance)
        if self.cfg.estimator == "occupancy":
            self.occupancy = OccupancyGrid()

    def check_geometry(self, geometry: MakesScenes) -> None:
        """See `Renderer.check_geometry`; the law must be one for the geometry's kind of field."""
        super().check_geometry(geometry)
        field = cast(MakesFields, geometry).field  # it makes what this renderer draws: fields
        kind = field.kind
        if self.cfg.estimator != "importance" and not field.free:
            raise ConfigError(
                f"estimator is {self.cfg.estimator!r}, which is for a single scene; those of {type(geometry).__name__} "
                "change with the prompt: use 'importance'"
            )
        if (self._law(kind) == "density") != (kind == "density"):
            allowed = "density" if kind == "density" else "neus or volsdf"
            raise ConfigError(
                f"law is {self.cfg.law!r}, but the field of {type(geometry).__name__} is of the kind {kind!r}; "
                f"allowed: {allowed}"
            )

    def _law(self, kind: FieldKind) -> str:
        if self.cfg.law is not None:
            return self.cfg.law
        return "density" if kind == "density" else "neus"

    def forward(
        self,
        scene: FieldScene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
        progress: Progress = START,
    ) -> Views:
        """See `Renderer.forward`."""
        self.follow(scene, draws, progress)
        directions = ray_directions(cameras, *size)
        jitter = self.draw_jitter(draws, cameras.n_view * size[0] * size[1])
        background = self.background_in(draws, cameras.n_view)
        return self.render_rays(
            scene, cameras, pooled_text, directions, jitter=jitter, background=background, progress=progress
        )

    def follow(self, scene: FieldScene, draws: Draws | None, progress: Progress) -> None:
        """In training, have the occupancy grid look at the scene, if there is one; to be called before its pictures."""
        if self.cfg.estimator != "occupancy" or not self.training:
            return
        if draws is None:
            raise ValueError("an occupancy grid looks at random points in training: give draws")
        self.occupancy.follow(self.opacity_of_steps(scene, progress), self.radius_of(scene), draws, progress)

    def draw_jitter(self, draws: Draws | None, n_rays: int) -> Jitter | None:
        """The random numbers of one call with `n_rays` rays a prompt; None where samples lie in the middle."""
        if not (self.training and self.cfg.randomized):
            return None
        if draws is None:
            raise ValueError("training with randomized=true needs draws; give them, or set randomized=false")
        return Jitter.draw(draws, n_rays)

    def render_rays(
        self,
        scene: FieldScene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        directions: Float[Tensor, "M H W 3"],
        *,
        jitter: Jitter | None = None,
        background: Background | None = None,
        progress: Progress = START,
    ) -> Views:
        """Pictures along given rays, which start at the cameras; directions need not have unit length.

        A pure function of its arguments. jitter: [B, V * H * W], rays of a prompt's views one after the other.
        background: None: the sibling.
        """
        check_views(scene, cameras)
        rows, height, width = directions.shape[:3]
        batch = len(scene)
        origins = cameras.positions[:, None, None].expand_as(directions).reshape(batch, -1, 3)
        inv_std = self._sharpness(progress, origins)
        rays = _Rays(origins, directions.reshape(batch, -1, 3), jitter)
        pixels, samples = self._march_in_chunks(scene, rays, inv_std, progress)
        image = {f.name: getattr(pixels, f.name).reshape(rows, height, width, -1) for f in fields(pixels)}
        opacity, depth = image["opacity"], image["depth"]
        comp_normal = F.normalize(image["normal"], dim=-1)
        normal_colors = normals_as_colors(comp_normal, cameras, self.cfg.normal_direction)
        rgb_bg = (background or self.background)(directions, pooled_text)
        extras = {name: value.flatten(0, -2) for name, value in samples.items()}
        extras |= {"inv_std": inv_std, "z_variance": image["z_variance"], "comp_normal": comp_normal}
        return Views(
            rgb=image["rgb"] + (1 - opacity) * rgb_bg,
            normal=over(normal_colors, opacity, NORMAL_BACKGROUND),
            normal_white=over(normal_colors, opacity, WHITE),
            disparity=disparity(depth, opacity, cameras.distance),
            opacity=opacity,
            depth=depth,
            extras=extras,
        )

    def _march_in_chunks(
        self, scene: FieldScene, rays: _Rays, inv_std: Tensor, progress: Progress
    ) -> tuple[_Pixels, dict[str, Tensor]]:
        """`_march` along as many rays at a time as the options allow; joined along the rays."""
        batch, n_rays = rays.origins.shape[:2]
        n_samples = self.cfg.num_samples_per_ray + self.cfg.num_samples_per_ray_importance + 1
        chunk_size = self.cfg.train_chunk_size if self.training else self.cfg.eval_chunk_size
        step = max(chunk_size // (batch * n_samples), 1) if chunk_size else n_rays
        if step >= n_rays:
            return self._march(scene, rays, inv_std, progress)
        pieces = []
        for start in range(0, n_rays, step):
            arguments = (scene, rays.part(slice(start, start + step)), inv_std, progress)
            if self.training:
                piece = checkpoint(self._march, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                piece = self._march(*arguments)
            pieces.append(piece)
        pixels = [p for p, _ in pieces]
        joined = {f.name: torch.cat([getattr(p, f.name) for p in pixels], 1) for f in fields(_Pixels)}
        samples = {name: torch.cat([s[name] for _, s in pieces], 1) for name in pieces[0][1]}
        return _Pixels(**joined), samples

    def _march(
        self, scene: FieldScene, rays: _Rays, inv_std: Tensor, progress: Progress
    ) -> tuple[_Pixels, dict[str, Tensor]]:
        """Sums along rays, and in training what was found at the samples [B, R, S, .]."""
        intervals = self._place(scene, rays, inv_std)
        t_points = intervals.middles
        found = scene.query(intervals.pick(rays.points(t_points)), features=True, normals=True)
        assert found.normal is not None
        assert found.features is not None
        alpha = self._alpha(scene, intervals, found, rays.directions, inv_std, progress)
        if intervals.wanted is not None:
            alpha = alpha * intervals.wanted
        weights, opacity = compositing_weights(alpha)
        color = shrink_gradient(self.material(found.features), self.cfg.rgb_grad_shrink(progress))
        depth = (weights * t_points).sum(-1, keepdim=True)
        pixels = _Pixels(
            rgb=intervals.sum(weights, color),
            normal=intervals.sum(weights, found.normal),
            opacity=opacity.unsqueeze(-1),
            depth=depth,
            z_variance=self._z_variance(weights, opacity.unsqueeze(-1), depth, t_points),
        )
        if not self.training:
            return pixels, {}
        assert found.gradient is not None
        found_along_rays = {
            "weights": weights.unsqueeze(-1),
            "t_dirs": rays.directions.unsqueeze(2).expand(*t_points.shape, 3),
            "t_points": t_points.unsqueeze(-1),
            "t_intervals": intervals.lengths.unsqueeze(-1),
        }
        samples = {name: intervals.pick(x.flatten(1, 2)) for name, x in found_along_rays.items()}
        return pixels, {"sdf": found.value, "sdf_grad": found.gradient, "normal": found.normal, **samples}

    def _z_variance(
        self, weights: Tensor, opacity: Tensor, depth: Tensor, t_points: Float[Tensor, "B R S"]
    ) -> Float[Tensor, "B R 1"]:
        if not self.cfg.normalize_z_variance:
            return (weights * (t_points - depth).square()).sum(-1, keepdim=True)
        total = opacity.clamp_min(_MIN_OPACITY)
        variance = (weights * (t_points - depth / total).square()).sum(-1, keepdim=True) / total
        return variance * (opacity > 0.5)

    def _place(self, scene: FieldScene, rays: _Rays, inv_std: Tensor) -> Intervals:
        """The intervals of the rays; only the value is evaluated, without gradient."""
        density = self._density(scene, inv_std)
        if self.cfg.estimator != "importance":
            return self._even_steps(scene, rays, density)
        if self.cfg.ray_range == "box":
            near, far = box_range(rays.origins, rays.directions, self.radius_of(scene))
        else:
            near = torch.full_like(rays.origins[..., 0], self.cfg.near_plane)
            far = torch.full_like(near, self.cfg.far_plane)
        edges = place_samples(
            near,
            far,
            lambda t: density(rays.points(t)).view_as(t),
            n_proposal=self.cfg.num_samples_per_ray_importance,
            n_fine=self.cfg.num_samples_per_ray,
            jitter=rays.jitter,
        )
        return Intervals.between(edges)

    def _even_steps(self, scene: FieldScene, rays: _Rays, density: Callable[[Tensor], Tensor]) -> Intervals:
        """Steps of equal length inside the cube, less those that can be seen to matter little."""
        if len(scene) != 1:
            raise ValueError(f"estimator {self.cfg.estimator!r} renders one scene at a time, not {len(scene)}")
        radius = self.radius_of(scene)
        near, far = box_range(rays.origins, rays.directions, radius)
        near, far = near.clamp_min(self.cfg.near_plane), far.clamp_max(self.cfg.far_plane)
        steps, wanted = even_steps(
            near,
            far,
            step=self._step(scene),
            start=self.cfg.near_plane,
            longest=2 * math.sqrt(3) * radius,
            jitter=None if rays.jitter is None else rays.jitter.proposal,
        )
        if self.cfg.estimator == "even":
            return steps.only(wanted)
        points = rays.points(steps.middles)
        wanted &= self.occupancy.holds(points, radius).view_as(wanted)
        if self.cfg.least_alpha:
            marched = steps.only(wanted)
            with torch.no_grad():
                found = marched.spread(density(marched.pick(points))).squeeze(-1)
            wanted &= visible(found, steps.lengths, self.occupancy.threshold(self.cfg.least_alpha))
        return steps.only(wanted)

    def opacity_of_steps(self, scene: FieldScene, progress: Progress = START) -> Callable[[Tensor], Tensor]:
        """What one even step meets, density times length [B, N, 1], as a function of points [B, N, 3]."""
        step = self._step(scene)
        return lambda points: self._density(scene, self._sharpness(progress, points))(points) * step

    def _sharpness(self, progress: Progress, like: Tensor) -> Float[Tensor, ""]:
        return self.variance() if self.cfg.inv_std is None else like.new_tensor(self.cfg.inv_std(progress))

    def _step(self, scene: FieldScene) -> float:
        return _BOX_DIAGONAL * self.radius_of(scene) / self.cfg.num_samples_per_ray

    def _density(self, scene: FieldScene, inv_std: Tensor) -> Callable[[Tensor], Tensor]:
        """Opacity per unit length [B, N, 1] as a function of points [B, N, 3]."""
        law, step = self._law(scene.field.kind), self._step(scene)

        def density(points: Tensor) -> Tensor:
            value = scene.value(points)
            if law == "density":
                return value
            return volsdf_density(value, inv_std) if law == "volsdf" else neus_alpha(value, -1.0, step, inv_std) / step

        return density

    def _alpha(
        self,
        scene: FieldScene,
        intervals: Intervals,
        found: FieldSample,
        directions: Float[Tensor, "B R 3"],
        inv_std: Tensor,
        progress: Progress,
    ) -> Float[Tensor, "B R S"]:
        """Opacity of the samples."""
        law, value = self._law(scene.field.kind), intervals.spread(found.value).squeeze(-1)
        if law == "density":
            return density_alpha(value, intervals.lengths)
        if law == "volsdf":
            return volsdf_alpha(value, intervals.lengths, inv_std)
        assert found.normal is not None
        cosine = (directions.unsqueeze(2) * intervals.spread(found.normal)).sum(-1)
        end = self.cfg.cos_anneal_end_steps
        share = min(progress.step / end, 1.0) if end else 1.0
        if share < 1.0:
            cosine = -torch.lerp(F.relu(0.5 - 0.5 * cosine), F.relu(-cosine), share)
        return neus_alpha(value, cosine, intervals.lengths, inv_std)
