"""Mistakes of the original that `compat: original` repeats, by name (docs/compat.md).

`compat` is an option of the original's dialect: of a whole configuration, or of one of its components. In ours each
mistake is an option of the component that can make it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from triplaneturbo.legacy.trees import put, take
from triplaneturbo.storage import Json, Tree


@dataclass(frozen=True)
class Quirk:
    """One mistake.

    line: in what results differ without it. places: dotted places of the components of a tree whose results do.
    repeat: makes the component at a place repeat it.
    """

    name: str
    line: str
    places: Callable[[Tree], Iterator[str]]
    repeat: Callable[[Tree, str], None]


def concerned(tree: Tree) -> list[Quirk]:
    """The mistakes that the original would make with this configuration."""
    return [quirk for quirk in QUIRKS if any(quirk.places(tree))]


def repeat(tree: Tree, compat: Mapping[str, str]) -> None:
    """Make those components of `tree` repeat the original's mistakes for which `compat` says `original`.

    compat: by dotted place; what holds for a place holds for what is inside, unless it says otherwise.
    """
    for quirk in QUIRKS:
        for place in list(quirk.places(tree)):
            if _said_for(place, compat) == "original":
                quirk.repeat(tree, place)


def _said_for(place: str, compat: Mapping[str, str]) -> str:
    while place:
        if place in compat:
            return compat[place]
        place = place.rpartition(".")[0]
    return compat.get("", "right")


def _quirk(name: str) -> Callable[[Tree, str], None]:
    def add(tree: Tree, place: str) -> None:
        present = list(take(tree, f"{place}.quirks") or [])
        if name not in present:
            put(tree, f"{place}.quirks", [*present, name])

    return add


def _set(option: str, value: Json) -> Callable[[Tree, str], None]:
    return lambda tree, place: put(tree, f"{place}.{option}", value)


def _named(tree: Tree, place: str, kind: str | None = None) -> Iterator[str]:
    """Places of the components in a mapping; of one kind."""
    components = take(tree, place)
    for name, component in components.items() if isinstance(components, Mapping) else ():
        if component is not None and (kind is None or _type(component) == kind):
            yield f"{place}.{name}"


def _type(component: Json) -> Json:
    return component.get("type") if isinstance(component, Mapping) else component


def _guidance(tree: Tree) -> Iterator[str]:
    if _type(take(tree, "system.guidance") or {}) == "score-distillation":
        yield "system.guidance"


def _teachers(tree: Tree, kind: str | None = None) -> Iterator[str]:
    for place in _named(tree, "system.guidance.teachers", kind):
        if take(tree, f"{place}.weight", 1.0) != 0:
            yield place


def _meshes(tree: Tree) -> Iterator[str]:
    yield from _named(tree, "system.renderers", "mesh")


def _dmd(tree: Tree) -> Iterator[str]:
    for place in _teachers(tree):
        if take(tree, f"{place}.rule.weighting") == "dmd":
            yield f"{place}.rule"


def _unequal_shares(tree: Tree) -> Iterator[str]:
    for place in _meshes(tree):
        shares = [take(tree, f"{place}.{name}", 1.0) for name in ("sdf_grad_shrink", "def_grad_shrink")]
        if shares[0] != shares[1] and shares[1] != 0:
            yield place


def _share_of_sdf(tree: Tree, place: str) -> None:
    put(tree, f"{place}.def_grad_shrink", take(tree, f"{place}.sdf_grad_shrink", 1.0))


def _ray_focal(tree: Tree) -> Iterator[str]:
    yield from (place for place in _meshes(tree) if take(tree, f"{place}.enable_bg_rays", False))


def _focal_of_rays(tree: Tree, place: str) -> None:
    put(tree, f"{place}.background_focal_height", take(tree, "data.ray_height", 64))


def _smoothness(tree: Tree) -> Iterator[str]:
    for place in _meshes(tree):
        if take(tree, f"system.losses.{place.rpartition('.')[2]}.normal_smoothness_2d", 0):
            yield place


def _opposite_alone(tree: Tree) -> Iterator[str]:
    for place in _guidance(tree):
        if take(tree, f"{place}.opposite_views", False) and not take(tree, f"{place}.parallel", False):
            yield place


def _one_by_one(tree: Tree) -> Iterator[str]:
    yield from (place for place in _guidance(tree) if not take(tree, f"{place}.parallel", False))


def _data(tree: Tree) -> Iterator[str]:
    if _type(take(tree, "data") or {}) == "prompts-and-cameras":
        yield "data"


def _deforming(tree: Tree) -> Iterator[str]:
    if _type(take(tree, "system.geometry") or {}) == "few-step-triplanes" and take(
        tree, "system.geometry.field.deformable", False
    ):
        yield "system.geometry"


def _by_round(tree: Tree) -> Iterator[str]:
    if take(tree, "system.guidance_timesteps", "teacher") == "round":
        yield "system"


QUIRKS = (
    Quirk(
        "gap-from-clean",
        "dmd weightings estimate the clean latent from the noisy one, not from the clean one itself",
        _dmd,
        _quirk("gap-from-clean"),
    ),
    Quirk(
        "unit-range",
        "RichDreamer looks at normals and disparity in [-1, 1], as in its training, not in [0, 1]",
        lambda tree: _teachers(tree, "richdreamer"),
        _quirk("unit-range"),
    ),
    Quirk(
        "sum-over-prompts",
        "the loss is the mean over all prompts of a step, not the sum over those of a process",
        _guidance,
        _quirk("sum-over-prompts"),
    ),
    Quirk(
        "sdf-share",
        "rasteriser: def_grad_shrink is applied, not sdf_grad_shrink in its place",
        _unequal_shares,
        _share_of_sdf,
    ),
    Quirk(
        "ray-focal",
        "rasteriser: rays of the background have the focal length of its own pictures",
        _ray_focal,
        _focal_of_rays,
    ),
    Quirk(
        "mixed-backgrounds",
        "rasteriser: of several prompts, each picture has the background of its own prompt",
        _meshes,
        _quirk("mixed-backgrounds"),
    ),
    Quirk(
        "clip-depth",
        "rasteriser: depth is the distance along the ray, as in the volume renderer, not clip-space z",
        _meshes,
        _quirk("clip-depth"),
    ),
    Quirk(
        "smoothed-normals",
        "rasteriser: normal_smoothness_2d compares unit normals, as for the volume renderer, not their colours",
        _smoothness,
        _quirk("smoothed-normals"),
    ),
    Quirk(
        "opposite-in-parallel",
        "opposite views are looked at without parallel guidance, too",
        _opposite_alone,
        _set("opposite_views", False),
    ),
    Quirk(
        "view-per-renderer",
        "the single view of Stable Diffusion is drawn once a step, not anew for each renderer",
        _one_by_one,
        _quirk("view-per-renderer"),
    ),
    Quirk(
        "lost-end-token",
        "a prompt longer than the text encoder reads is cut before its end token, which stays",
        lambda tree: _named(tree, "data.conditions", "clip-text"),
        _quirk("lost-end-token"),
    ),
    Quirk(
        "repeated-first-view",
        "a turntable has n distinct views, its last one does not repeat the first; its noise has a seed",
        _data,
        _quirk("repeated-first-view"),
    ),
    Quirk(
        "deformation-in-cells",
        "the deformation is in cells of the training grid, whatever grid a mesh is exported with",
        _deforming,
        _set("field.deformation_unit", "cell"),
    ),
    Quirk(
        "teachers-choose",
        "specifiy_guidance_timestep is followed, not only computed",
        _by_round,
        _set("guidance_timesteps", "teacher"),
    ),
)
