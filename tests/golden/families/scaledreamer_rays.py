"""Volume rendering of cached scenes (VolSDF) and of a density (NeRF)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_case import Case
from torch import Tensor
from workbench import Workbench, cameras

from custom.scaledreamer.renderers import translate_renderer
from families.scene import LinearBackground, colors, wave, wave_gradient
from triplaneturbo.background.base import Background
from triplaneturbo.cameras import ray_directions
from triplaneturbo.losses import LossTerm
from triplaneturbo.losses.terms import Eikonal, Opaque, Orient, Sparsity, ZVariance
from triplaneturbo.materials import Unlit
from triplaneturbo.renderers.occupancy import WARM_UP
from triplaneturbo.renderers.sampling import Jitter
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import Field, FieldScene
from triplaneturbo.scenes.base import Tensors
from triplaneturbo.types import Cameras, FieldSample, Views

_VOLSDF = "generative-space-volsdf-volume-renderer"
_SCALAR = "sum(w_comp_rgb*comp_rgb)+sum(w_comp_normal*comp_normal)+sum(w_depth*depth)+sum(lambdas*terms)"
_TERMS: dict[str, type[LossTerm]] = {
    "eikonal": Eikonal,
    "opaque": Opaque,
    "orient": Orient,
    "sparsity": Sparsity,
    "z_variance": ZVariance,
}
# Of the cube of half side 1, as the original rounds it.
_BOX_DIAGONAL = 2 * 1.732
# Normals of pixels that show less than this mean nothing.
_MIN_OPACITY = 0.01


class CachedField(Field):
    """A row c of `cache` for each prompt: sdf = |p| - c0 + c1 sin 5x sin 4y sin 3z, colours shifted by c2, c3, c4."""

    def configure(self) -> None:
        self.radius = 1.0

    def value(self, tensors: Tensors, points: Tensor) -> Tensor:
        radius, amplitude = tensors["cache"][:, None, :2].split(1, dim=2)
        return points.norm(dim=-1, keepdim=True) - radius + amplitude * wave(points)

    def features(self, tensors: Tensors, points: Tensor) -> Tensor:
        return colors(points) + tensors["cache"][:, None, 2:]

    def query(self, tensors: Tensors, points: Tensor, *, features: bool = True, normals: bool = False) -> FieldSample:
        gradient = F.normalize(points, dim=-1) + tensors["cache"][:, None, 1:2] * wave_gradient(points)
        return FieldSample(
            self.value(tensors, points), self.features(tensors, points), gradient, F.normalize(gradient, dim=-1)
        )


def volsdf_cached(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("field", "|x|-c0+c1*sin5x*sin4y*sin3z; features 2*sin(3x,2y+1,4z+2)+c[2:5]")
    n_prompts = case.meta["n_prompts"]
    cache = case["cache"].clone().requires_grad_()
    scene = FieldScene(CachedField(None), {"cache": cache})
    renderer = _renderer(case, _VOLSDF)
    made = _cameras(case, case.meta["n_view"])
    case.require("prompts", len(made) == n_prompts * case.meta["n_view"] == len(scene) * made.n_view)
    jitter = _jitter(case, n_prompts)
    case.require("jitter where it is drawn", (jitter is not None) == renderer.cfg.randomized)
    views = renderer.train().render_rays(scene, made, torch.zeros(n_prompts, 1), case["rays_d"], jitter=jitter)
    _compare(case, views, renderer, detached_normal=True)
    case.close("inv_std", views.extras["inv_std"], 1e-4)
    rays = case.get("sample_ray_index", torch.zeros(0, dtype=torch.long))
    for name in case.with_prefix("samples_"):
        ours = views.extras[name].unflatten(0, (views.opacity.numel(), -1))[rays]
        case.close(f"samples_{name}", ours.flatten(1), 5e-3)
    _backward(case, views, detached_normal=True)
    case.close("grad_cache", cache.grad, 1e-3)
    first = made.select(slice(made.n_view), made.n_view)
    _compare_evaluation(case, renderer, scene.prompt(0), first)


class DensityField(Field):
    """q0 exp(-|p|^2 / q1^2) (1 + q2 sin 5x sin 4y sin 3z), colours shifted by q3, q4, q5; q a row for each scene."""

    kind = "density"

    def configure(self) -> None:
        self.radius = 1.0

    def value(self, tensors: Tensors, points: Tensor) -> Tensor:
        height, width, amplitude = tensors["q"][:, None, :3].split(1, dim=2)
        return self._blob(height, width, points) * (1 + amplitude * wave(points))

    def features(self, tensors: Tensors, points: Tensor) -> Tensor:
        return colors(points) + tensors["q"][:, None, 3:]

    def query(self, tensors: Tensors, points: Tensor, *, features: bool = True, normals: bool = False) -> FieldSample:
        height, width, amplitude = tensors["q"][:, None, :3].split(1, dim=2)
        value = self.value(tensors, points)
        outer = self._blob(height, width, points) * amplitude * wave_gradient(points)
        gradient = outer - 2 * points / width.square() * value
        return FieldSample(value, self.features(tensors, points), gradient, F.normalize(-gradient, dim=-1))

    def _blob(self, height: Tensor, width: Tensor, points: Tensor) -> Tensor:
        return height * torch.exp(-points.square().sum(-1, keepdim=True) / width.square())


def nerf_render(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option(
        "field",
        "density = q0 exp(-|x|^2/q1^2) (1 + q2 sin5x sin4y sin3z), features = 2 sin((3x, 2y+1, 4z+2)) + q[3:6]",
    )
    q = case["q"].clone().requires_grad_()
    scene = FieldScene(DensityField(None), {"q": q[None]})
    renderer = _renderer(case, "nerf-volume-renderer").train()
    made = _cameras(case, len(case["c2w"]))
    jitter = _jitter(case, 1)
    if renderer.cfg.estimator == "importance":
        case.told_by_arrays("cell_jitter")
        case.require("update_steps", not case.meta["update_steps"])
    else:
        step = _BOX_DIAGONAL * renderer.radius_of(scene) / renderer.cfg.num_samples_per_ray
        case.within("render_step_size", abs(step - case.meta["render_step_size"]), 1e-6)
        _update_occupancy(case, renderer, scene)
        if "near_jitter" in case:
            shift = case["near_jitter"][None]
            jitter = Jitter(shift, shift)
    case.require("jitter where it is drawn", (jitter is not None) == renderer.cfg.randomized)
    views = renderer.render_rays(scene, made, torch.zeros(1, 1), case["rays_d"], jitter=jitter)
    _compare_placed(case, views)
    _compare(case, views, renderer, detached_normal=False)
    _backward(case, views, detached_normal=False)
    case.close("grad_q", q.grad, 2e-3)
    _compare_evaluation(case, renderer, scene, made)


def _compare_placed(case: Case, views: Views) -> None:
    """Which samples there are: the same on the same rays, one after the other, or for each ray as many."""
    found = {name: views.extras[name] for name in ("t_points", "t_intervals", "weights", "t_dirs")}
    for name, value in (
        ("t_starts", found["t_points"] - found["t_intervals"] / 2),
        ("t_ends", found["t_points"] + found["t_intervals"] / 2),
    ):
        recorded = case.get(name, value)
        case.close(name, value.view_as(recorded) if value.numel() == recorded.numel() else value, 1e-5)
    case.close("weights", found["weights"].flatten(), 1e-4)
    if "ray_indices" in case:
        rays = case["rays_d"].flatten(0, 2)[case["ray_indices"].long()]
        same = rays.shape == found["t_dirs"].shape and bool((rays == found["t_dirs"]).all())
        case.require("ray_indices", same)


def _update_occupancy(case: Case, renderer: VolumeRenderer, scene: FieldScene) -> None:
    """The recorded updates, with points at the same place in all cells; the density is scaled in each."""
    grid, steps = renderer.occupancy, case.meta["update_steps"]
    opacity = renderer.opacity_of_steps(scene)
    everywhere = torch.arange(len(grid.opacity))
    for step, scale in zip(steps, case["update_scale"], strict=True):
        cells = everywhere
        if step >= WARM_UP:
            occupied = grid.occupied.nonzero().squeeze(1)
            if "occupied_pick" in case:
                occupied = occupied[case["occupied_pick"].long()]
            cells = torch.cat([case["uniform_cells"].long(), occupied])
        offsets = torch.full((len(cells), 3), case.meta["cell_jitter"])
        grid.update(lambda points, scale=scale: scale * opacity(points), scene.radius, cells, offsets)
    case.close("occs_mean", grid.opacity.mean(), 1e-5)
    case.close("occs_sub", grid.opacity[::29], 1e-5)
    case.equal("n_occupied", grid.occupied.sum()[None])
    if "binaries" in case:
        bits = (case["binaries"][:, None] >> torch.arange(7, -1, -1)) & 1
        case.require("binaries", bool((bits.flatten().bool() == grid.occupied).all()))


def _renderer(case: Case, kind: str) -> VolumeRenderer:
    case.option("background", "0.5+0.4*dirs")
    options = translate_renderer(kind, case.meta["renderer"], "renderer")
    del options["type"]
    material = Unlit({"color_activation": case.meta["color_activation"]})
    background = ColorOfView(None, case["bg_color"]) if "bg_color" in case else LinearBackground()
    return VolumeRenderer(options, material=material, background=background)


class ColorOfView(Background):
    """Given colours, one for each view."""

    def configure(self, color: Tensor) -> None:
        self.color = color

    def forward(self, directions: Tensor, pooled_text: Tensor) -> Tensor:
        return self.color[:, None, None].expand_as(directions)


def _cameras(case: Case, n_view: int) -> Cameras:
    case.ignore("light_positions")  # materials are not lit
    made = cameras(case["c2w"], n_view, distance=case["camera_distances"], fovy=case["fovy"])
    case.close("rays_o", made.positions, 1e-6)
    case.close("rays_d", ray_directions(made, *case["rays_d"].shape[1:3]), 5e-6)
    return made


def _jitter(case: Case, n_prompts: int) -> Jitter | None:
    if "jitter_prop" not in case:
        return None
    return Jitter(*(case[f"jitter_{name}"].view(n_prompts, -1) for name in ("prop", "fine")))


def normal_picture(views: Views, *, detached: bool) -> Tensor:
    """World normals as colours (n + 1) / 2, times opacity."""
    normal = views.extras["comp_normal"]
    return views.opacity * ((normal.detach() if detached else normal) + 1) / 2


def _compare(case: Case, views: Views, renderer: VolumeRenderer, *, detached_normal: bool) -> None:
    """Pictures and terms of a training call."""
    behind = renderer.background(case["rays_d"], torch.zeros(1, 1))
    for name, value in (
        ("comp_rgb", views.rgb),
        ("comp_rgb_bg", LinearBackground()(case["rays_d"], torch.zeros(1, 1))),
        ("comp_rgb_fg", views.rgb - (1 - views.opacity) * behind),
        ("depth", views.depth),
        ("opacity", views.opacity),
        ("z_variance", views.extras["z_variance"]),
    ):
        case.close(name, value, 1e-4)
    seen = case.get("opacity", views.opacity) > _MIN_OPACITY
    case.close("comp_normal", normal_picture(views, detached=detached_normal), 1e-4, where=seen)
    for name, term in _TERMS.items():
        if f"term_{name}" in case and name != "orient":
            case.close(f"term_{name}", term()(views), 2e-4)
    # In how many pixels the opacity is not quite 0 is decided by rounding.
    pixels = (views.opacity > 0).sum()
    recorded = case.get("orient_pixels", pixels[None])
    case.close("term_orient", Orient()(views) * pixels / recorded.squeeze(), 2e-4)


def _backward(case: Case, views: Views, *, detached_normal: bool) -> None:
    case.option("scalar", _SCALAR)
    pictures = {"comp_rgb": views.rgb, "depth": views.depth}
    pictures["comp_normal"] = normal_picture(views, detached=detached_normal)
    loss = sum((case[f"w_{name}"] * picture).sum() for name, picture in pictures.items())
    loss = loss + sum(weight * _TERMS[name]()(views) for name, weight in case.meta["lambdas"].items())
    loss.backward()
    case.close("loss", loss, 2e-4)


def _compare_evaluation(case: Case, renderer: VolumeRenderer, scene: FieldScene, made: Cameras) -> None:
    views = renderer.eval().render_rays(scene, made, torch.zeros(1, 1), case["rays_d"][: len(made)])
    pictures: dict[str, Any] = {"comp_rgb": views.rgb, "depth": views.depth, "opacity": views.opacity}
    for name, picture in pictures.items():
        case.close(f"eval_{name}", picture, 1e-4)
    seen = case.get("eval_opacity", views.opacity) > _MIN_OPACITY
    case.close("eval_comp_normal", normal_picture(views, detached=True), 1e-4, where=seen)
