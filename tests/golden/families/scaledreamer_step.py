"""A step of training generators of many prompts, with given gradients of the pictures in the place of teachers."""

from collections.abc import Sequence

import pytest
import torch
from golden_case import Case
from torch import Tensor, nn
from workbench import Workbench, cameras

from custom.scaledreamer.losses import translate_losses
from custom.scaledreamer.renderers import translate_renderer
from families.scaledreamer_rays import normal_picture
from families.scaledreamer_scenes import RecordedEncoder, built, compare_trained, set_widths, texts, with_encoder
from triplaneturbo.background import Background
from triplaneturbo.cameras import ray_directions
from triplaneturbo.geometry import Geometry
from triplaneturbo.losses.base import LossConfig, Objective
from triplaneturbo.materials import Unlit
from triplaneturbo.renderers.sampling import Jitter
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Cameras, TextStates, Views

_GENERATORS = {"hyper": "Hyper-iNGP", "conv": "3DConv-net", "triplane": "Triplane-transformer-sdf"}
_BACKGROUNDS = {
    "hyper": "multiprompt-neural-hashgrid-environment-map-background",
    "sh": "neural-environment-map-background",
}
_VOLSDF = "generative-space-volsdf-volume-renderer"
_MIN_OPACITY = 0.01


def amortised_training_step(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, background = _geometry(case, monkeypatch), _background(case)
    condition, _ = texts(case)
    scene = _scene(case, geometry, condition)
    case.require("n_prompts", len(scene) == case.meta["n_prompts"])
    options = translate_renderer(_VOLSDF, case.meta["renderer"], "renderer")
    del options["type"]
    material = Unlit({"color_activation": case.meta["background"]["color_activation"]})  # recorded as one for both
    renderer = VolumeRenderer(options, material=material, background=background).train()
    made = cameras(case["c2w"], case.meta["n_view"], distance=case["camera_distances"], fovy=case["fovy"])
    case.close("rays_d", ray_directions(made, *case["rays_d"].shape[1:3]), 5e-6)
    views = _render(case, renderer, scene, made, condition)
    total = _total(case, views)
    _compare_gradients(case, total, {"geometry": geometry, "background": background})


def _geometry(case: Case, monkeypatch: pytest.MonkeyPatch) -> Geometry:
    kind, options = case.option("generator", *_GENERATORS), case.meta["geometry"]
    set_widths(case, monkeypatch)
    if kind != "hyper":
        case.told_by_arrays("encoding_dims")  # of encoders that are not there
        return built(case, "geometry", _GENERATORS[kind], options)
    geometry = built(case, "geometry", _GENERATORS[kind], with_encoder(case, options))
    geometry.field.encoding = RecordedEncoder(case)
    return geometry


def _background(case: Case) -> Background:
    kind, options = case.option("background_kind", *_BACKGROUNDS), case.meta["background"]
    if kind != "hyper":
        return built(case, "background", _BACKGROUNDS[kind], options)
    background = built(case, "background", _BACKGROUNDS[kind], with_encoder(case, options))
    background.encoding = RecordedEncoder(case, "bg_encoder")
    return background


def _scene(case: Case, geometry: Geometry, condition: TextStates) -> FieldScene:
    if case.meta["generator"] != "conv":
        return geometry.scene(condition)
    generator = geometry.space_generator
    noises = [case[f"noise_{i}"] for i in range(len(generator.cfg.noise_sizes))]
    return FieldScene(geometry.field, {"voxels": generator(case["z"], condition.pooled, noises)})


def _render(case: Case, renderer: VolumeRenderer, scene: FieldScene, made: Cameras, condition: TextStates) -> Views:
    jitter = Jitter(*(case[f"jitter_{name}"].view(len(scene), -1) for name in ("prop", "fine")))
    rays, text = case["rays_d"], condition.pooled
    views = renderer.render_rays(scene, made, text, rays, jitter=jitter, progress=case.progress)
    for name, picture in (
        ("comp_rgb", views.rgb),
        ("comp_rgb_bg", renderer.background(rays, text)),
        ("depth", views.depth),
        ("opacity", views.opacity),
        ("z_variance", views.extras["z_variance"]),
    ):
        case.close(name, picture, 1e-3)
    seen = case.get("opacity", views.opacity) > _MIN_OPACITY
    case.close("comp_normal", normal_picture(views, detached=True), 1e-3, where=seen)
    return views


def _total(case: Case, views: Views) -> Tensor:
    config = LossConfig.parse(translate_losses(case.meta["lambdas"], "loss"), "losses")
    weights = {f"lambda_{name}": term.cfg.weight(case.progress) for name, term in config.terms.items()}
    weights["lambda_asd"] = config.score(case.progress)
    now = case.meta["weights_now"]
    case.require("weights_now", weights == pytest.approx(now, rel=1e-9, abs=1e-9))
    terms, values = Objective(config)(views, case.progress)
    distilled = (case["w_rgb"] * views.rgb).sum()
    case.close("term_asd", distilled[None], 1e-3)
    for name, value in values.items():
        if name != "orient":
            case.close(f"term_{name}", value[None], 1e-3)
    if {"term_orient", "orient_pixels"} <= case.arrays.keys():
        # Rounding decides in how many pixels the opacity is not quite 0: sums over pixels are compared.
        ratio = values["orient"] * (views.opacity > 0).sum() / (case["term_orient"] * case["orient_pixels"])
        case.within("term_orient", float((ratio - 1).abs()), 1e-3)
    case.ignore("term_orient", "orient_pixels")  # one without the other tells nothing
    total = weights["lambda_asd"] * distilled + terms
    case.close("total", total[None], 1e-3)
    return total


def _compare_gradients(case: Case, total: Tensor, modules: dict[str, nn.Module]) -> None:
    keys, untouched = case.meta["grad_keys"], case.meta["no_grad_keys"]
    tensors = [_tensor(modules, key) for key in [*keys, *untouched]]
    found: Sequence[Tensor | None] = torch.autograd.grad(total, tensors, allow_unused=True)
    compare_trained(case, keys, found[: len(keys)], found[len(keys) :], 5e-3)


def _tensor(modules: dict[str, nn.Module], key: str) -> Tensor:
    part, _, name = key.partition(".")
    return modules[part].original[name]
