"""Volume rendering."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from golden_case import Case
from torch import Tensor
from workbench import Workbench, cameras, translated

from families.planes import network_gradients
from families.scene import analytic_scene, surroundings
from triplaneturbo.losses.terms import Eikonal, Sparsity
from triplaneturbo.renderers.patch import PatchDraws, PatchRenderer
from triplaneturbo.renderers.sampling import Jitter, place_samples
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Cameras, Views

_VOLUME = "generative-space-sdf-volume-renderer"
# Of the cube of half side 1, as the original rounds it.
_BOX_DIAGONAL = 2 * 1.732
_LOSS = "sum(w*comp_rgb)+sum(w*comp_normal_cam_vis)+sum(w*disparity)+3*eikonal+2*sparsity"
# Name in a case, name in Views.
_PICTURES = {
    "comp_rgb": "rgb",
    "comp_normal_cam_vis": "normal",
    "comp_normal_cam_vis_white": "normal_white",
    "disparity": "disparity",
    "opacity": "opacity",
    "depth": "depth",
}
# The unit sum of normals means nothing where nothing was summed.
_MIN_OPACITY = 0.01


def importance_sampler(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("sigma", "a*exp(-(((t0+t1)/2-c)/w)^2)")
    meta, (height, centre, width) = case.meta, (case[name] for name in "acw")
    near, far = (torch.full((1, len(height)), meta[name]) for name in ("near", "far"))

    def density(t: Tensor) -> Tensor:
        return height * torch.exp(-(((t - centre) / width) ** 2))

    for prefix, tolerance in (("", 1e-5), ("strat_", 1e-4)):
        if prefix and "jitter_prop" not in case:
            continue
        draws = Jitter(case["jitter_prop"][None], case["jitter_fine"][None]) if prefix else None
        (edges,) = place_samples(near, far, density, n_proposal=meta["n_prop"], n_fine=meta["n"], jitter=draws)
        case.close(f"{prefix}t_starts", edges[:, :-1], tolerance)
        case.close(f"{prefix}t_ends", edges[:, 1:], tolerance)


def volume_render_analytic(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("loss", _LOSS)
    renderer = _volume_renderer(case.meta["renderer"], case)
    scene = analytic_scene(case.meta["geometry"])
    views = _render(case, renderer, scene, 1e-4)
    names = case.with_prefix("eval_")
    if names:
        renderer.eval()
        evaluated = renderer.render_rays(scene, _cameras(case, 1), _no_text(1), case["rays_d"], progress=case.progress)
        for name in names:
            case.close(f"eval_{name}", getattr(evaluated, _PICTURES[name]), 1e-4)
    case.require("the field passes no gradient on", not views.rgb.requires_grad)


def volume_render_triplane(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("loss", _LOSS)
    geometry = workbench.geometry(case.meta["geometry"])
    renderer = _volume_renderer(case.meta["renderer"], case)
    planes = case["planes"].clone().requires_grad_()
    views = _render(case, renderer, FieldScene(geometry.field, {"planes": planes}), 5e-4)
    pictures = ("comp_rgb", "comp_normal_cam_vis", "disparity")
    loss = sum((case[f"w_{name}"] * getattr(views, _PICTURES[name])).sum() for name in pictures if f"w_{name}" in case)
    loss = loss + 3 * Eikonal()(views) + 2 * Sparsity()(views)
    loss.backward()
    case.close("loss", loss, 5e-4)
    case.close("grad_planes", planes.grad, 2e-3)
    network_gradients(case, geometry, 2e-3)


def patch_renderer(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dict(case.meta["renderer"])
    options = {"base_renderer_type": _VOLUME, **base.pop("patch"), "base_renderer": base}
    block = translated({"renderer_2nd_type": "patch-renderer", "renderer_2nd": options})["system"]["renderers"][
        "volume"
    ]
    del block["type"]
    renderer = PatchRenderer(block, **surroundings(case)).train()
    case.close("rays_o", case["c2w"][:, None, None, :3, 3].expand_as(case["rays_d"]), 1e-6)
    draws = PatchDraws(((int(case["patch_y"]), int(case["patch_x"])),))
    scene = analytic_scene(case.meta["geometry"])
    views = renderer.render(scene, _cameras(case, 1), _no_text(1), case["rays_d"], draws, progress=case.progress)
    for name in _PICTURES.keys() & case.arrays.keys():
        case.close(name, getattr(views, _PICTURES[name]), 1e-4)
    case.close("comp_normal", views.extras["comp_normal"], 1e-3)


def _volume_renderer(options: Mapping[str, Any], case: Case) -> VolumeRenderer:
    """With published options."""
    block = translated({"renderer_type": _VOLUME, "renderer": options})["system"]["renderers"]["volume"]
    del block["type"]
    return VolumeRenderer(block, **surroundings(case))


def _render(case: Case, renderer: VolumeRenderer, scene: FieldScene, tolerance: float) -> Views:
    """Pictures and samples of a training call, compared."""
    case.ignore("light_positions")  # materials are not lit
    case.told_by_arrays("views", "ray_size")
    meta, directions, n_prompts = case.meta, case["rays_d"], len(scene)
    jitter = None
    if "jitter_prop" in case:
        jitter = Jitter(*(case[f"jitter_{name}"].view(n_prompts, -1) for name in ("prop", "fine")))
    case.require("jitter where it is drawn", (jitter is not None) == renderer.cfg.randomized)
    step = _BOX_DIAGONAL * renderer.radius_of(scene) / renderer.cfg.num_samples_per_ray
    case.within("render_step_size", abs(step - meta["render_step_size"]), 1e-6)
    case.require(
        "rgb_grad_shrink_now", abs(renderer.cfg.rgb_grad_shrink(case.progress) - meta["rgb_grad_shrink_now"]) < 1e-12
    )
    made = _cameras(case, n_prompts)
    case.close("rays_o", made.positions[:, None, None].expand_as(directions), 1e-6)
    views = renderer.train().render_rays(
        scene, made, _no_text(n_prompts), directions, jitter=jitter, progress=case.progress
    )
    for name, ours in _PICTURES.items():
        case.close(name, getattr(views, ours), tolerance)
    background = renderer.background(directions, _no_text(n_prompts))
    case.close("comp_rgb_bg", background, tolerance)
    case.close("comp_rgb_fg", views.rgb - (1 - views.opacity) * background, tolerance)
    case.close("z_variance", views.extras["z_variance"], tolerance)
    opacity = case.get("opacity", views.opacity)
    case.close("comp_normal", views.extras["comp_normal"], tolerance, where=opacity > _MIN_OPACITY)
    case.close("inv_std", views.extras["inv_std"], tolerance)
    case.close("eikonal", Eikonal()(views), tolerance)
    case.close("sparsity", Sparsity()(views), tolerance)
    _compare_samples(case, views)
    return views


def _compare_samples(case: Case, views: Views) -> None:
    if "sample_ray_index" not in case:
        return
    rays = case["sample_ray_index"]
    n_rays = views.opacity.numel()
    for name in case.with_prefix("samples_"):
        recorded = case[f"samples_{name}"]
        ours = views.extras[name].unflatten(0, (n_rays, -1))[rays[: len(recorded)]]
        case.close(f"samples_{name}", ours.view_as(recorded), 2e-3)


def _cameras(case: Case, n_prompts: int) -> Cameras:
    c2w = case["c2w"]
    return cameras(c2w, len(c2w) // n_prompts, distance=case["camera_distances"])


def _no_text(n_prompts: int) -> Tensor:
    return torch.zeros(n_prompts, 1)
