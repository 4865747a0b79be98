"""Names of the original's adapter state, where layers are numbered, and names of ours, where they are paths.

The original numbers its adapted layers: attention of the U-Net (down, up, middle), attention of the decoder,
convolutions of the U-Net, convolutions of the decoder (up, middle), last convolution. Its plane-wise adapters are
six tensors each, ours are one with a leading axis of six.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triplaneturbo.errors import WeightsError

PREFIX = "geometry."
_GENERATOR = "space_generator."
_FIELD = "field."
_ORIGINAL = "space_generator.peft_layers.layers."
# Stacked plane p of ours, as the original calls it.
_PLANES = ("xy_geo", "xz_geo", "yz_geo", "xy_tex", "xz_tex", "yz_tex")
_ATTENTION = re.compile(r"(?P<layer>.+)\.(?P<part>to_q|to_k|to_v|to_out\.0)\.(?P<factor>down|up|bias)")
_CONVOLUTION = re.compile(r"(?P<layer>.+\.conv\w*)\.(?P<factor>down|up|bias)")
_HEAD = "decoder.conv_out"


class Layout(NamedTuple):
    """Whether a file's tensors, by their names, are laid out so, and what they are called in a system of ours, whose
    state is the second argument."""

    speaks: Callable[[Iterable[str]], bool]
    translate: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


_LAYOUTS: dict[str, Layout] = {}


def register_layout(
    name: str,
    speaks: Callable[[Iterable[str]], bool],
    translate: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Make checkpoints of another layout readable, where weights are named (`system.weights`).

    Raises:
        ValueError: the name is taken.
    """
    if name in _LAYOUTS:
        raise ValueError(f"there is a layout {name!r} already; choose another name")
    _LAYOUTS[name] = Layout(speaks, translate)


def to_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's names and shapes for a state dict of the geometry."""
    numbers = {layer: i for i, layer in enumerate(_layers(state))}
    result = {}
    for name, value in state.items():
        for original, part in _original_parts(name, value, numbers):
            result[original] = part
    return result


def from_original(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The geometry's names and shapes for a state dict of the original.

    like: the state dict of a geometry of the same configuration; only names and shapes matter.

    Raises:
        WeightsError: tensors are missing, left over or of another shape.
    """
    numbers = {layer: i for i, layer in enumerate(_layers(like))}
    left = dict(state)
    result = {}
    for name, value in like.items():
        wanted = list(_original_parts(name, value, numbers))
        missing = [original for original, _ in wanted if original not in left]
        if missing:
            raise WeightsError(f"the checkpoint has no {missing[0]} ({name} here): another configuration?")
        parts = [left.pop(original) for original, _ in wanted]
        for (original, shaped), part in zip(wanted, parts, strict=True):
            if part.shape != shaped.shape:
                raise WeightsError(f"{original} has shape {list(part.shape)}, this model needs {list(shaped.shape)}")
        stacked = len(parts) > 1
        result[name] = torch.stack([p.reshape(value.shape[1:]) for p in parts]) if stacked else parts[0].view_as(value)
    if left:
        raise WeightsError(f"the checkpoint has {len(left)} tensors this model has no place for, first {min(left)}")
    return result


def is_original(names: Iterable[str]) -> bool:
    """Whether these tensors of a whole system hold a generator under the original's names."""
    return any(name.startswith(PREFIX + _ORIGINAL) for name in names)


def translate_state(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of ours, of the original or of a registered layout under the names of a system whose
    state is `own`.

    Raises:
        WeightsError: a checkpoint of the original does not fit.
    """
    for layout in _LAYOUTS.values():
        if layout.speaks(tensors):
            return layout.translate(tensors, own)
    if not is_original(tensors):
        return translate_names(tensors, own)
    geometry = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    like = {name.removeprefix(PREFIX): tensor for name, tensor in own.items() if name.startswith(PREFIX)}
    try:
        adapters = from_original(geometry, like)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    return translate_names(others, own) | {PREFIX + name: tensor for name, tensor in adapters.items()}


_FIRST_FIELD = re.compile(r"geometry\.(?=(?:sdf|feature|deformation)_network\b)")
_FIRST_RENDERER = re.compile(r"(renderer|renderer_2nd)\.(.+)")
_RENDERER = re.compile(r"renderers\.(\w+)\.")


def translate_names(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`state`, in whose names the field's networks may be in the geometry and renderers may be called renderer and
    renderer_2nd, as the original and this project's first version called them.

    own: the state of a system with our names; its renderers with tensors are taken in their order.
    """
    given = dict.fromkeys(match[1] for name in state if (match := _FIRST_RENDERER.fullmatch(name)))
    wanted = dict.fromkeys(match[1] for name in own if (match := _RENDERER.match(name)))
    slots = dict(zip(sorted(given), wanted, strict=False))

    def ours(name: str) -> str:
        match = _FIRST_RENDERER.fullmatch(name)
        if match and match[1] in slots:
            return f"renderers.{slots[match[1]]}.{match[2]}"
        return _FIRST_FIELD.sub("geometry.field.", name)

    return {ours(name): value for name, value in state.items()}


def translate_checkpoint(checkpoint: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Give the content of a training's checkpoint our names, in place. own: see `translate_names`."""
    for part in ("state_dict", "ema"):
        if part in checkpoint:
            checkpoint[part] = translate_names(checkpoint[part], own)
    if "MultipromptDataModule" in checkpoint:  # where the first version's data module keeps its position
        checkpoint["PromptsAndCameras"] = checkpoint.pop("MultipromptDataModule")


def _layers(names: Iterable[str]) -> list[str]:
    """Adapted layers in the original's order."""
    paths = [name.removeprefix(_GENERATOR) for name in names if name.startswith(_GENERATOR)]
    layers = {match["layer"] for path in paths if (match := _match(path))}
    if any(path.startswith(_HEAD) for path in paths):
        layers.add(_HEAD)
    return sorted(layers, key=_rank)


def _rank(layer: str) -> tuple:
    """Sorting key: network part, then down, up, middle, then numbers in the path, ResNets before resampling."""
    if layer == _HEAD:
        return (4,)
    convolution = "conv" in layer.rsplit(".", 1)[-1]
    network = 2 * convolution + layer.startswith("decoder")
    block = next(i for i, kind in enumerate(("down_blocks", "up_blocks", "mid_block")) if kind in layer)
    numbers = [int(n) for n in re.findall(r"\.(\d+)(?=\.|$)", layer)]
    if block == 2:
        numbers.insert(0, 0)
    return network, block, numbers[0], "samplers" in layer, numbers[1:], layer.rsplit(".", 1)[-1]


def _match(path: str) -> re.Match | None:
    return _ATTENTION.fullmatch(path) or _CONVOLUTION.fullmatch(path)


def _original_parts(name: str, value: Tensor, numbers: dict[str, int]) -> Iterable[tuple[str, Tensor]]:
    """(original name, tensor in its shape) of each tensor that `name` stands for."""
    if name.startswith(_FIELD):
        return [(name.removeprefix(_FIELD), value)]
    path = name.removeprefix(_GENERATOR)
    if path.startswith(_HEAD):
        return [(f"{_ORIGINAL}{numbers[_HEAD]}{path.removeprefix(_HEAD)}", value)]
    match = _match(path) if path != name else None
    if match is None:
        return [(name, value)]
    start = f"{_ORIGINAL}{numbers[match['layer']]}."
    linear, bias = "part" in match.groupdict(), match["factor"] == "bias"
    stacked = value.dim() == (2 if bias else 3 if linear else 5)
    if linear:
        part = match["part"].removesuffix(".0")
        tail = "bias" if bias else f"{match['factor']}.weight"
        stems = [f"{part}_{p[:2]}_lora_{p[3:]}" for p in _PLANES] if stacked else [f"{part}_lora"]
    else:
        part, tail = ("up", "bias") if bias else (match["factor"], "weight")
        stems = [f"{part}_{p}" for p in _PLANES] if stacked else [part]
    values = value.unbind(0) if stacked else [value]
    if linear and bias:
        values = [v.view(1, 1, -1) for v in values]
    return [(f"{start}{stem}.{tail}", v) for stem, v in zip(stems, values, strict=True)]
