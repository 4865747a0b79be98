"""ScaleDreamer's generators, fields and backgrounds.

Hash grids were replaced by sin(A x + b) when the cases were recorded, with the A and b of the case.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from formula_weights import formula
from golden_case import Case
from torch import Tensor, nn
from workbench import Workbench

from custom.scaledreamer.checkpoints import original_name
from custom.scaledreamer.conv3d_net import Conv3dNet
from custom.scaledreamer.environment import harmonics
from custom.scaledreamer.options import component
from triplaneturbo.background import Background
from triplaneturbo.background.base import RandomColors
from triplaneturbo.base import build
from triplaneturbo.geometry import Geometry
from triplaneturbo.ops.planes import sample_planes
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.planes import combine, plane_coordinates
from triplaneturbo.types import FieldSample, TextStates

_ENCODER = "sin(x A^T + b)"
_FIELD_LOSS = "sum(sdf*w_sdf)+sum(features*w_feat)+sum(sdf_grad*w_grad)"
_VOLUME_LOSS = "sum(density*w_density)+sum(features*w_feat)+sum(normal*w_normal)"
_COLOR_LOSS = "sum(color*w_color)"
# Normals of shorter gradients are not determined by the recorded numbers.
_MIN_GRADIENT = 0.1


class RecordedEncoder(nn.Module):
    """In the place of a hash grid."""

    def __init__(self, case: Case, name: str = "encoder") -> None:
        super().__init__()
        self.matrix, self.shift = case[f"{name}_A"], case[f"{name}_b"]
        self.seen: list[Tensor] = []

    @property
    def n_output_dims(self) -> int:
        return len(self.matrix)

    def forward(self, points: Tensor) -> Tensor:
        self.seen.append(points)
        return torch.sin(points @ self.matrix.T + self.shift)


def with_encoder(case: Case, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with any hash grid of as many features as the recorded encoder has: it is not used."""
    if "encoder" in case.meta:
        case.option("encoder", _ENCODER)
    width = case.meta["encoding_dims"]
    return {**options, "pos_encoding_config": {"n_levels": width, "n_features_per_level": 1, "log2_hashmap_size": 4}}


def built(case: Case, role: str, name: str, options: Mapping[str, Any]) -> Any:
    """A component with formula weights, whose tensors are called and shaped as the original's."""
    module = build(role, component(role, name, options, f"system.{role}")).to(torch.get_default_device())
    names = {original_name(f"{role}.{key}").removeprefix(f"{role}."): key for key, _ in module.named_parameters()}
    shapes = {name: list(module.get_parameter(key).shape) for name, key in names.items() if "encoding" not in name}
    if "state_keys" in case.meta:
        case.require("state_keys", shapes == case.meta["state_keys"])
    with torch.no_grad():
        for original in shapes:
            module.get_parameter(names[original]).copy_(formula(original, shapes[original]))
    module.original = {name: module.get_parameter(key) for name, key in names.items()}
    return module


def texts(case: Case) -> TextStates:
    """Token states where the case has those, else the pooled one."""
    text = case["text_embed"].clone().requires_grad_()
    tokens, pooled = (text, text[:, -1]) if text.dim() == 3 else (text[:, None], text)
    return TextStates(tokens, pooled, tokens[:1], tokens[:1]), text


def _compare_field(
    case: Case, found: FieldSample, scene: FieldScene, points: Tensor, tolerance: float
) -> Tensor | None:
    """The field at the points; returns the recorded loss, or None if the case does not say how it is made."""
    flat = {"sdf": found.value, "features": found.features, "sdf_grad": found.gradient}
    flat = {name: value.flatten(0, 1) for name, value in flat.items()}
    for name, value in flat.items():
        case.close(name, value, 10 * tolerance if name == "sdf_grad" else tolerance)
    long = flat["sdf_grad"].norm(dim=-1, keepdim=True) > _MIN_GRADIENT
    case.close("normal", found.normal.flatten(0, 1), 1e-3, where=long)
    value = scene.value(points)
    case.close("forward_sdf", value, tolerance)
    case.close("forward_field", value, tolerance)
    if "export_features" in case:
        case.close("export_features", scene.features(points), tolerance)
    case.option("scalar", _FIELD_LOSS)
    return _loss(case, flat, {"sdf": "w_sdf", "features": "w_feat", "sdf_grad": "w_grad"})


def _loss(case: Case, values: Mapping[str, Tensor], weights: Mapping[str, str]) -> Tensor | None:
    """The weighted sum of the values, if the case carries their weights."""
    terms = [(values[name] * case[weight]).sum() for name, weight in weights.items() if weight in case]
    return sum(terms) if terms else None


def _compare_gradients(
    case: Case, module: Any, loss: Tensor | None, inputs: Mapping[str, Tensor], tolerance: float
) -> None:
    """The loss, and its gradients with respect to inputs and, as norms and projections, to the trained tensors of meta
    grad_keys."""
    keys, untouched = case.meta["grad_keys"], case.meta.get("no_grad_keys", [])
    if loss is None:
        return
    case.close("loss", loss[None], tolerance)
    tensors = [module.original[key] for key in [*keys, *untouched]]
    found = torch.autograd.grad(loss, [*tensors, *inputs.values()], allow_unused=True)
    for name, gradient in zip(inputs, found[len(tensors) :], strict=True):
        case.close(name, gradient, tolerance)
    compare_trained(case, keys, found[: len(keys)], found[len(keys) : len(tensors)], tolerance)


def compare_trained(
    case: Case,
    keys: Sequence[str],
    gradients: Sequence[Tensor],
    others: Sequence[Tensor | None],
    tolerance: float,
) -> None:
    """Norms of the gradients of trained tensors and their projections on formula tensors. others: those that are 0."""
    case.require("no_grad_keys", all(x is None or not x.any() for x in others))
    flat = [x.flatten() for x in gradients]
    case.close("grad_norms", torch.stack([x.norm() for x in flat]), tolerance)
    projections = [x @ formula(f"proj:{key}.w", (1, len(x)))[0] for key, x in zip(keys, flat, strict=True)]
    case.close("grad_proj", torch.stack(projections), tolerance)


def hyper_ingp(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    options = with_encoder(case, case.meta["geometry"])
    geometry: Geometry = built(case, "geometry", "Hyper-iNGP", options)
    encoder = geometry.field.encoding = RecordedEncoder(case)
    condition, text = texts(case)
    scene, points = geometry.scene(condition), case["points"]
    for ours, theirs in (("value", "sdf_weights"), ("color", "feature_weights")):
        for name in case.with_prefix(f"{theirs}_"):
            case.close(f"{theirs}_{name}", scene.tensors[f"{ours}_{name}"], 2e-5)
    found = scene.query(points, normals=True)
    case.close("encoder_input", encoder.seen[0].view_as(points), 2e-5)
    loss = _compare_field(case, found, scene, points, 2e-5)
    _compare_gradients(case, geometry, loss, {"grad_text": text}, 2e-4)


def set_widths(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the original's table of channels was replaced, so is the one here."""
    table = case.meta["channels"]
    if table is not None:
        widths = tuple(table[key] for key in sorted(table, key=int))
        monkeypatch.setattr("custom.scaledreamer.options._TABLE_OF_WIDTHS", widths)


def conv3d_net(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    set_widths(case, monkeypatch)
    geometry: Conv3dNet = built(case, "geometry", "3DConv-net", case.meta["geometry"])
    generator = geometry.space_generator
    case.require("num_ws", case.meta["num_ws"] == len(generator.cfg.noise_sizes) + len(generator.cfg.widths))
    condition, text = texts(case)
    noises = [case[f"noise_{i}"] for i in range(len(generator.cfg.noise_sizes))]
    case.close("w", generator.mapping(case["z"], condition.pooled), 5e-5)
    voxels = generator(case["z"], condition.pooled, noises)
    case.close("voxel", voxels, 1e-4)
    scene, points = FieldScene(geometry.field, {"voxels": voxels}), case["points"]
    loss = _compare_field(case, scene.query(points, normals=True), scene, points, 5e-5)
    if loss is not None:
        (gradient,) = torch.autograd.grad(loss, voxels, retain_graph=True)
        case.close("grad_voxel_norm", gradient.flatten(1).norm(dim=1), 5e-4)
    _compare_gradients(case, geometry, loss, {"grad_text": text}, 5e-4)


def triplane_transformer(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry: Geometry = built(case, "geometry", "Triplane-transformer-sdf", case.meta["geometry"])
    case.require("epsilons", {m.eps for m in geometry.modules() if isinstance(m, nn.LayerNorm)} == {1e-6})
    condition, text = texts(case)
    scene, points = geometry.scene(condition), case["points"]
    planes = scene.tensors["planes"]
    case.close("planes", planes, 5e-5)
    coordinates = plane_coordinates(points / geometry.field.radius, geometry.field.plane_axes)
    case.close("enc", combine(sample_planes(planes, coordinates), "concat"), 5e-5)
    loss = _compare_field(case, scene.query(points, normals=True), scene, points, 5e-5)
    _compare_gradients(case, geometry, loss, {"grad_text": text, "grad_planes": planes}, 5e-4)


def implicit_volume(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {
        "radius": case.meta["radius"],
        "mlp_network_config": {"n_neurons": case.meta["n_neurons"], "n_hidden_layers": 1},
    }
    case.option("scalar", _VOLUME_LOSS)
    for i, variant in enumerate(case.meta["variants"]):
        if not case.with_prefix(f"v{i}_"):
            continue
        geometry: Geometry = built(case, "geometry", "implicit-volume", with_encoder(case, common | variant))
        geometry.field.encoding = RecordedEncoder(case)
        found = FieldScene(geometry.field).query(case["points"][None], normals=True)
        values = {"density": found.value[0], "features": found.features[0], "normal": found.normal[0]}
        for name, value in values.items():
            case.close(f"v{i}_{name}", value, 5e-4 if name == "normal" else 2e-5)
        loss = _loss(case, values, {"density": "w_density", "features": "w_feat", "normal": "w_normal"})
        _recorded_gradients(case, geometry, loss, f"v{i}_")


def _recorded_gradients(case: Case, module: Any, loss: Tensor | None, prefix: str = "") -> None:
    """The loss, and its gradients with respect to single tensors, called grad: and the original's name."""
    if loss is None:
        return
    case.close(f"{prefix}loss", loss[None], 5e-4)
    names = case.with_prefix(f"{prefix}grad:")
    if names:
        gradients = torch.autograd.grad(loss, [module.original[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            case.close(f"{prefix}grad:{name}", gradient, 5e-4 if prefix else 2e-5)


def multiprompt_background(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    options = with_encoder(case, case.meta["background"])
    name = "multiprompt-neural-hashgrid-environment-map-background"
    background = built(case, "background", name, options)
    background.encoding = RecordedEncoder(case)
    directions, text = case["dirs"], case["text_embed"]
    for i, weight in enumerate(background.layer_weights(text)):
        case.close(f"bg_weights_{i}", weight, 2e-5)
    color = background(directions, text)
    case.close("color", color, 2e-5)
    _random_colors(case, background, color)
    case.option("scalar", _COLOR_LOSS)
    _compare_gradients(case, background, _loss(case, {"color": color}, {"color": "w_color"}), {}, 2e-5)


def _random_colors(case: Case, background: Background, color: Tensor) -> None:
    """The original draws one number for all prompts of a call."""
    if "aug_uniform" not in case:
        return
    for name, number in zip(("aug_hit", "aug_miss"), case["aug_uniform"], strict=True):
        chosen = (number < background.cfg.random_color).expand(len(color))
        case.close(name, RandomColors(chosen, case["aug_color"].flatten(1)).over(color), 2e-5)


def environment_map(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    network = {key: case.meta[key] for key in ("n_neurons", "n_hidden_layers")}
    options = {"color_activation": case.meta["color_activation"], "mlp_network_config": network}
    background = built(case, "background", "neural-environment-map-background", options)
    directions = case["dirs"]
    case.close("encoding", harmonics(directions.flatten(0, -2)), 2e-5)
    color = background(directions, directions.new_zeros(len(directions), 1))
    case.close("color", color, 2e-5)
    case.option("scalar", _COLOR_LOSS)
    _recorded_gradients(case, background, _loss(case, {"color": color}, {"color": "w_color"}))
