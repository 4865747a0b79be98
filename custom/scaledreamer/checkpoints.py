"""Checkpoints of the original: read by `system.weights`, and written back.

The original's tensors are called as here, but for those of `_NAMES`. It also has corners of boxes, and things that
nothing reads or that are computed anew: these are passed over, and written as they are at the start.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triplaneturbo.errors import WeightsError
from triplaneturbo.legacy.state_dicts import register_layout
from triplaneturbo.renderers.occupancy import RESOLUTION
from triplaneturbo.systems import SceneSystem
from triplaneturbo.weights.files import save_checkpoint

# Beginnings of names, ours and the original's; the first that fits holds.
_NAMES = (
    ("geometry.field.encoding.params", "geometry.encoding.encoding.encoding.params"),
    ("geometry.field.value_network.", "geometry.density_network."),
    ("geometry.field.", "geometry."),
    ("background.encoding.params", "background.encoding.encoding.encoding.params"),
)
_RENDERER = re.compile(r"renderers\.\w+\.(.+)")
_VARIANCE = "variance._inv_std"
# Of the renderer's occupancy grid, ours and the original's; a renderer that has none passes the latter over.
_OCCUPANCY = {"occupancy.opacity": "estimator.occs", "occupancy.occupied": "estimator.binaries"}
# Corners of boxes, the mean style that nothing reads.
_PASSED_OVER = re.compile(r".*\.bbox|geometry\.space_generator\.mapping\.w_avg|renderer\.estimator\.(aabbs|resolution)")
# What tells a file of the original, with one of its fields beside the generator.
_GENERATORS = ("geometry.hypernet.", "geometry.space_generator.mapping.", "geometry.space_generator.pos_embed")
_FIELDS = ("geometry.encoding.encoding.encoding.params", "geometry.sdf_network.", "geometry.density_network.")


def is_scaledreamer(names: Iterable[str]) -> bool:
    """Whether these are names of the original's tensors."""
    names = list(names)

    def any_in(beginnings: tuple[str, ...]) -> bool:
        return any(name.startswith(beginnings) for name in names)

    return any_in(_FIELDS) and (any_in(_GENERATORS) or any_in(("geometry.density_network.",)))


def original_name(name: str) -> str:
    """What the original calls a tensor of a system of ours."""
    renderer = _RENDERER.fullmatch(name)
    if renderer:
        return f"renderer.{_OCCUPANCY.get(renderer[1], renderer[1])}"
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def from_original(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of the original under the names of a system whose state is `own`.

    What the system has no place for keeps the name that it has in the file; what the file does not have is not there.
    """
    names = {original_name(name): name for name in own}
    kept = {name: x for name, x in tensors.items() if not _PASSED_OVER.fullmatch(name) and x.numel()}
    for grid in (f"renderer.{name}" for name in _OCCUPANCY.values()):
        if grid in kept and grid not in names:
            del kept[grid]
        elif grid in kept:
            kept[grid] = kept[grid].flatten()
    variance = f"renderer.{_VARIANCE}"
    if variance in names and any(name.startswith("geometry.density_network.") for name in kept):
        kept[variance] = own[names[variance]]  # the sharpness of a surface, which has no effect here
    return {names.get(name, name): x for name, x in kept.items()}


def to_original(system: SceneSystem) -> dict[str, Tensor]:
    """The original's tensors of a system with one renderer.

    Raises:
        WeightsError: the system has parts that the original's file has no place for.
    """
    if len(system.renderers) != 1:
        raise WeightsError(
            f"the original has one renderer, not {', '.join(system.renderers)}: no file holds this system"
        )
    box = system.geometry.field.radius * torch.tensor([[-1.0] * 3, [1.0] * 3])
    state = {original_name(name): x for name, x in system.state_dict().items()}
    state |= {"geometry.bbox": box, "renderer.bbox": box.clone()}
    if system.geometry.field.kind == "density":
        state.pop(f"renderer.{_VARIANCE}", None)  # the sharpness of a surface
    if "renderer.estimator.binaries" in state:
        state["renderer.estimator.binaries"] = state["renderer.estimator.binaries"].view(1, *[RESOLUTION] * 3)
        state["renderer.estimator.resolution"] = torch.full((3,), RESOLUTION, dtype=torch.int32)
        state["renderer.estimator.aabbs"] = box.view(1, 6).clone()
    style = state.get("geometry.space_generator.mapping.embed.bias")
    if style is not None:
        state["geometry.space_generator.mapping.w_avg"] = torch.zeros_like(style)
    if "background.network.layers.0.weight" in state:
        state.setdefault("background.encoding.encoding.encoding.params", torch.empty(0))
    return state


def write_original(system: SceneSystem, path: str | Path, step: int = 0) -> None:
    """Write a system as a checkpoint of the original, which its `system.weights` reads. step: of its training.

    Raises:
        WeightsError: see `to_original`.
    """
    content: dict[str, Any] = {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.0.0"}
    save_checkpoint(
        path, content | {"state_dict": {n: x.detach().cpu().clone() for n, x in to_original(system).items()}}
    )


register_layout("scaledreamer", is_scaledreamer, from_original)
