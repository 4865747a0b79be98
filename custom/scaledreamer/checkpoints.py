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

_DIRECTIONS = "background.encoding.encoding.encoding.params"
# Beginnings of names, ours and the original's; the first that fits holds.
_NAMES = (
    ("geometry.field.encoding.params", "geometry.encoding.encoding.encoding.params"),
    ("geometry.field.value_network.", "geometry.density_network."),
    ("geometry.field.", "geometry."),
    ("background.encoding.params", _DIRECTIONS),
)
_RENDERER = re.compile(r"renderers\.\w+\.(.+)")
_SHARPNESS = "renderer.variance._inv_std"
_OCCUPANCY = {"occupancy.opacity": "estimator.occs", "occupancy.occupied": "estimator.binaries"}
# Corners of boxes, the mean style that nothing reads, the numbers of an occupancy grid's cells.
_PASSED_OVER = re.compile(r".*\.(bbox|w_avg|estimator\.resolution|estimator\.aabbs)")
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
    Two exceptions: an occupancy grid is passed over where nothing uses one, and the sharpness of a surface, which a
    file with an occupancy grid does not have, stays what it is.
    """
    names = {original_name(name): name for name in own}
    has_grid = "renderer.estimator.occs" in tensors and "renderer.estimator.occs" in names
    kept = {name: x for name, x in tensors.items() if not _PASSED_OVER.fullmatch(name) and x.numel()}
    if not has_grid:
        kept = {name: x for name, x in kept.items() if not name.startswith("renderer.estimator.")}
    renamed = {names.get(name, name): x for name, x in kept.items()}
    if has_grid:
        occupied = names["renderer.estimator.binaries"]
        renamed[occupied] = renamed[occupied].flatten()
        renamed.setdefault(names[_SHARPNESS], own[names[_SHARPNESS]])
    return renamed


def to_original(system: SceneSystem) -> dict[str, Tensor]:
    """The original's tensors of a system with one renderer.

    Raises:
        WeightsError: the system has parts that the original's file has no place for.
    """
    if len(system.renderers) != 1:
        raise WeightsError(
            f"the original has one renderer, not {', '.join(system.renderers)}: no file holds this system"
        )
    state = {original_name(name): x for name, x in system.state_dict().items()}
    if system.geometry.field.kind == "density":
        state.pop(_SHARPNESS, None)
    return state | _beside(state, system.geometry.field.radius)


def _beside(state: Mapping[str, Tensor], radius: float) -> dict[str, Tensor]:
    """What the original has, and writes otherwise, beside a system's tensors."""
    box = torch.tensor([[-radius] * 3, [radius] * 3])
    others = {"geometry.bbox": box, "renderer.bbox": box.clone()}
    occupied = state.get("renderer.estimator.binaries")
    if occupied is not None:
        others["renderer.estimator.binaries"] = occupied.view(1, *[RESOLUTION] * 3)
        others["renderer.estimator.resolution"] = torch.full((3,), RESOLUTION, dtype=torch.int32)
        others["renderer.estimator.aabbs"] = box.view(1, 6).clone()
    style = state.get("geometry.space_generator.mapping.embed.bias")
    if style is not None:
        others["geometry.space_generator.mapping.w_avg"] = torch.zeros_like(style)
    if "background.network.layers.0.weight" in state:  # of spherical harmonics
        others[_DIRECTIONS] = state.get(_DIRECTIONS, torch.empty(0))
    return others


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
