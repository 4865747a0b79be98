"""The original's four data modules: one prompt or a library, single views or rings."""

from collections.abc import Mapping
from typing import Any

from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.options import Option, decided, ignored, only, same, to
from triplaneturbo.legacy.translate import in_our_names
from triplaneturbo.legacy.trees import put
from triplaneturbo.storage import Json, Tree

_NO_LIGHT = ignored(Any, why="materials are not lit")
_SINGLE_VIEWS = {
    **same("n_val_views", "n_test_views", "eval_elevation_deg", "eval_camera_distance", "eval_fovy_deg"),
    "n_test_views": to("n_test_views", default=120),
    **dict.fromkeys(("batch_size", "width", "height", "resolution_milestones"), decided("sizes, `cameras.n_view`")),
    **dict.fromkeys(("eval_width", "eval_height"), decided("`eval_size`")),
    "eval_batch_size": only(1, why="prompts are evaluated one by one"),
    "elevation_range": to("cameras.elevation"),
    "azimuth_range": to("cameras.azimuth"),
    "camera_distance_range": to("cameras.distance"),
    "fovy_range": to("cameras.fovy"),
    "camera_perturb": to("cameras.camera_jitter", default=0.1),
    "center_perturb": to("cameras.center_jitter", default=0.2),
    "up_perturb": to("cameras.up_jitter", default=0.02),
    "batch_uniform_azimuth": to("cameras.spread_azimuth"),
    "progressive_until": to("cameras.progressive_until"),
    "rays_d_normalize": only(True, why="directions have unit length"),
    **dict.fromkeys(("light_sample_strategy", "light_position_perturb", "light_distance_range"), _NO_LIGHT),
}
_RINGS = {
    **_SINGLE_VIEWS,
    "n_view": to("cameras.n_view"),
    "zoom_range": to("cameras.zoom"),
    "relative_radius": to("cameras.relative_distance", default=True),
    "batch_uniform_azimuth": ignored(bool, why="views of a ring are spread evenly"),
}
_LIBRARY = {
    **same("prompt_library", "prompt_library_dir", "prompts", "eval_prompt", "target_prompt"),
    "eval_fix_camera": to("test_view"),
    "prompt_library_format": only("json", why="the one format there is"),
    "dim_gaussian": decided("the width of the noise that the geometry draws"),
}
# By published name: whether it is about many prompts, its options.
MODULES: Mapping[str, tuple[bool, Mapping[str, Option]]] = {
    "random-camera-datamodule": (False, {**_SINGLE_VIEWS, "prompts": to("prompts")}),
    "mvdream-random-multiview-camera-datamodule": (False, {**_RINGS, "prompts": to("prompts")}),
    "multiprompt-camera-datamodule": (True, {**_SINGLE_VIEWS, **_LIBRARY}),
    "multiprompt-multiview-camera-datamodule": (True, {**_RINGS, **_LIBRARY}),
}


def translate_data(kind: Json, given: Mapping[str, Json], place: str) -> Tree:
    """The data block that a published data module describes.

    Raises:
        ConfigError: there is no such module, or an option cannot have its value.
    """
    if kind not in MODULES:
        raise ConfigError(f"{place}_type is {kind!r}; allowed: {', '.join(map(repr, MODULES))}")
    many, table = MODULES[kind]
    ours: Tree = {"type": "prompts-and-cameras", "cameras": {"type": "random-views", "ring": "n_view" in table}}
    for key, value in in_our_names(given, table, place).items():
        ours[key] = {**ours["cameras"], **value} if key == "cameras" else value
    ours["cameras"]["first_elevation"] = given.get("eval_elevation_deg", 15.0)
    milestones = list(given.get("resolution_milestones") or [])
    stages = {name: _stages(given, name, default, milestones, place) for name, default in _SIZES.items()}
    sizes = list(zip(stages["height"], stages["width"], strict=True))
    for name, value in zip(("height", "width"), sizes[0], strict=True):
        put(ours, name, value)
        put(ours, f"ray_{name}", value)
    if milestones:
        later = [list(size) for size in sizes[1:]]
        ours |= {"milestones": milestones, "later_sizes": later, "later_ray_sizes": later}
    ours["eval_size"] = [given.get("eval_height", 512), given.get("eval_width", 512)]
    _views(ours, stages["batch_size"], milestones, many, place)
    return ours


_SIZES = {"height": 64, "width": 64, "batch_size": 1}


def _stages(given: Mapping[str, Json], name: str, default: int, milestones: list[int], place: str) -> list[int]:
    """An option's value before the first milestone and from each of them on."""
    value = given.get(name, default)
    if not isinstance(value, list):
        return [value] * (len(milestones) + 1)
    if len(value) != len(milestones) + 1:
        raise ConfigError(
            f"{place}.{name} ({value}) must have one entry more than {place}.resolution_milestones ({milestones})"
        )
    return list(value)


def _views(ours: Tree, batch_sizes: list[int], milestones: list[int], many: bool, place: str) -> None:
    """Single views of one prompt are all its views; rings and prompts keep their number."""
    cameras = ours["cameras"]
    if not cameras["ring"] and not many:
        cameras["n_view"] = batch_sizes[0]
        if len(set(batch_sizes)) > 1:
            cameras |= {"milestones": milestones, "later_views": batch_sizes[1:]}
    else:
        cameras.setdefault("n_view", 4 if cameras["ring"] else 1)
        if len(set(batch_sizes)) > 1:
            raise ConfigError(f"{place}.batch_size is {batch_sizes}: the number of prompts in a batch cannot change")
    ours["batch_size"] = batch_sizes[0]
