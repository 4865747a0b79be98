"""From noise to planes, and from planes to the field."""

from collections.abc import Iterable

import pytest
import torch
from golden_case import Case
from torch import Tensor
from workbench import Workbench

from families.networks import unet_epsilons, vae_epsilons
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.state_dicts import to_original
from triplaneturbo.ops.planes import sample_planes
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.planes import combine, plane_coordinates
from triplaneturbo.types import TextStates


def _generator(case: Case, workbench: Workbench) -> FewStepTriplanes:
    meta = case.meta
    base = workbench.sd_folder(meta["sd"], meta["scheduler"])
    geometry = workbench.geometry(meta["geometry"], base)
    generator = geometry.space_generator
    case.require("epsilons of the U-Net", unet_epsilons(generator.unet, meta["sd"]["unet"].get("norm_eps", 1e-5)))
    case.require("epsilons of the decoder", vae_epsilons(generator.decoder))
    names = to_original(geometry.state_dict())
    if "n_state_keys" in meta:
        case.require("n_state_keys", len(names) == meta["n_state_keys"])
    if "peft_layers" in meta:
        case.require("peft_layers", n_adapted_layers(names) == len(meta["peft_layers"]))
    return geometry


def n_adapted_layers(names: Iterable[str]) -> int:
    """How many layers the original numbers in these names of its geometry's tensors."""
    return len({name.split(".")[3] for name in names if name.startswith("space_generator.peft_layers.layers.")})


def generator(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = _generator(case, workbench)
    noisy, text = case["noisy"], case["text_embed"]
    times = {name: torch.full((len(noisy),), int(name)) for name in case.with_prefix("eps_t") if name.isdigit()}
    with torch.no_grad():
        for name, t in times.items():
            case.close(f"eps_t{name}", geometry.space_generator.denoise(noisy, t, text), 1e-4)
        if "tvec" in case:
            case.close("eps_tvec", geometry.space_generator.denoise(noisy, case["tvec"], text), 5e-4)


@torch.no_grad()
def generator_decode(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = _generator(case, workbench).decode(case["latents"]).tensors["planes"]
    stride = case.meta.get("stride", 1)
    case.close("planes", planes[..., ::stride, ::stride], 5e-5)
    case.close("planes_mean", planes.mean((-2, -1)), 5e-5)
    case.close("planes_std", planes.std((-2, -1)), 5e-5)


def field_query(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = workbench.geometry(case.meta["geometry"])
    planes, points = case["planes"].clone().requires_grad_(), case["points"]
    field, scene = geometry.field, FieldScene(geometry.field, {"planes": planes})
    found = scene.query(points, features=True, normals=True)
    raw = found.value - field.bias.value(points)
    coords = plane_coordinates(points, field.plane_axes)  # encodings are recorded for points in units of the radius
    sdf, deformation = scene.level_set(points, resolution=2)
    flat = {"sdf": found.value, "sdf_orig": raw, "features": found.features, "sdf_grad": found.gradient}
    for name, value in flat.items():
        case.close(name, value.flatten(0, 1), 2e-5)
    case.close("normal", found.normal.flatten(0, 1), 1e-4)
    case.close("forward_sdf", scene.value(points), 2e-5)
    case.close("field_sdf", sdf, 2e-5)
    if deformation is not None:
        case.close("deformation", deformation, 2e-5)
    if "export_features" in case:
        n_export = len(case["export_features"])
        case.close("export_features", scene.features(points)[:n_export], 2e-5)
    for name, part, how in (
        ("enc_geo", planes[:, :3], field.cfg.shape_features),
        ("enc_tex", planes[:, 3:], field.cfg.color_features),
    ):
        case.close(name, combine(sample_planes(part, coords), how), 2e-5)

    weights = {"sdf": "w_sdf", "features": "w_feat", "sdf_grad": "w_grad"}
    terms = [(flat[name].flatten(0, 1) * case[weight]).sum() for name, weight in weights.items() if weight in case]
    if terms:
        sum(terms).backward()
        case.close("planes_grad", planes.grad, 2e-5)
        network_gradients(case, geometry, 2e-5)


def network_gradients(case: Case, geometry: FewStepTriplanes, tolerance: float) -> None:
    """The recorded gradients of the field's networks."""
    for name in case.with_prefix("gradmlp:"):
        case.close(f"gradmlp:{name}", _gradient(geometry, name), tolerance)


def _gradient(geometry: FewStepTriplanes, name: str) -> Tensor:
    parameter = geometry.field.get_parameter(name)
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@torch.no_grad()
def inference_end_to_end(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = _generator(case, workbench)
    text = case["text_embed"]
    condition = TextStates(text, text[:, -1], text[:1], text[:1])
    scene = geometry.generate(condition, case["noise"], case.meta["num_steps"])
    stride = case.meta.get("stride", 1)
    case.close("planes", scene.tensors["planes"][..., ::stride, ::stride], 2e-4)
    found = scene.query(case["points"], features=True, normals=True)
    case.close("sdf", found.value.flatten(0, 1), 2e-4)
    case.close("features", found.features.flatten(0, 1), 2e-4)
    case.close("normal", found.normal.flatten(0, 1), 1e-3)
    deformation = scene.level_set(case["points"], resolution=2)[1]
    if deformation is not None:
        case.close("deformation", deformation, 2e-4)
