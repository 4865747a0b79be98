"""The original's two volume renderers, as options of the one here."""

from collections.abc import Mapping

from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.options import VOLUME, Option, decided, ignored, named, only, same, to
from triplaneturbo.legacy.translate import in_our_names
from triplaneturbo.storage import Json, Tree

_OF_RAYS = {
    name: VOLUME[name]
    for name in ("radius", "num_samples_per_ray", "num_samples_per_ray_importance", "near_plane", "far_plane")
}
_VOLSDF = {
    **_OF_RAYS,
    **same("learned_variance_init", "trainable_variance", "randomized", "train_chunk_size", "eval_chunk_size"),
    "cos_anneal_end_steps": to("cos_anneal_end_steps"),
    "use_volsdf": named("law", {True: "volsdf", False: "neus"}, default=False),
    "estimator": only("importance", why="samples of cached scenes are placed by importance"),
}
_NERF = {
    **_OF_RAYS,
    **same("randomized", "eval_chunk_size"),
    "num_samples_per_ray_importance": decided("the same with `estimator: importance`"),
    "train_chunk_size": to("train_chunk_size"),
    "near_plane": to("near_plane", default=0.0),
    "far_plane": to("far_plane", default=1e10),
    "estimator": named("estimator", {"occgrid": "occupancy", "importance": "importance"}, default="occgrid"),
    "grid_prune": decided("`estimator: even`, if false"),
    "prune_alpha_threshold": named("least_alpha", {True: 0.01, False: 0.0}),
    "return_comp_normal": ignored(bool, why="normals are always there"),
    "return_normal_perturb": only(False, why="no loss here needs it"),
}
RENDERERS: Mapping[str, Mapping[str, Option]] = {
    "generative-space-volsdf-volume-renderer": _VOLSDF,
    "nerf-volume-renderer": _NERF,
}


def translate_renderer(kind: Json, given: Mapping[str, Json], place: str) -> Tree:
    """The volume renderer that published options describe.

    Raises:
        ConfigError: there is no such renderer, or an option cannot have its value.
    """
    if kind not in RENDERERS:
        raise ConfigError(f"{place}_type is {kind!r}; allowed: {', '.join(map(repr, RENDERERS))}")
    ours: Tree = {"type": "volume", **in_our_names(given, RENDERERS[kind], place)}
    if kind == "nerf-volume-renderer":
        ours |= {"law": "density", "normalize_z_variance": True}
        if ours["estimator"] == "importance":
            ours["num_samples_per_ray_importance"] = given.get("num_samples_per_ray_importance", 64)
        elif not given.get("grid_prune", True):
            ours["estimator"] = "even"
    return ours
