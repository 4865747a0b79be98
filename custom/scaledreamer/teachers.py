"""The original's two guidances and its text processor, as a teacher and an encoder."""

from collections.abc import Mapping

from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.options import Option, decided, ignored, only, same, to
from triplaneturbo.legacy.translate import in_our_names
from triplaneturbo.storage import Json, Tree


def _strength(value: Json, where: str) -> Json:
    if not isinstance(value, (int, float)) or value > 0:
        raise ConfigError(f"{where} must be 0 or less, not {value!r}: negatives lower the estimate")
    return -value


_GUIDANCE = {
    "guidance_scale": to("guidance_scale"),
    "min_step_percent": to("min_timestep"),
    "max_step_percent": to("max_timestep"),
    **dict.fromkeys(("plus_ratio", "plus_random"), decided("`rule`: asd with that `ratio`; 0: `csd`")),
    "weighting_strategy": to("rule.weighting"),
    "view_dependent_prompting": to("text_by_view"),
}
STABLE_DIFFUSION = {
    **_GUIDANCE,
    "pretrained_model_name_or_path": to("path", default="stabilityai/stable-diffusion-2-1-base"),
    "guidance_perp_neg": Option("perp_neg.strength", _strength),
    "grad_clip": to("latent_clip"),
    "view_dependent_prompting": to("text_by_view", default=True),
    "half_precision_weights": Option(
        "network_dtype", lambda half, where: "auto" if half else "float32", note="float32 without it"
    ),
    **dict.fromkeys(
        ("enable_memory_efficient_attention", "enable_attention_slicing", "enable_channels_last_format"),
        ignored(bool, why="how the networks are computed follows from the device"),
    ),
    "enable_sequential_cpu_offload": to("offload"),
}
MVDREAM = {
    **_GUIDANCE,
    "ckpt_path": decided("`path`"),
    "model_name": decided("`path`, without a `ckpt_path`"),
    "n_view": to("n_view"),
    "image_size": to("image_size"),
    "camera_condition_type": only("rotation", why="the camera is told as a matrix, the only way there is"),
    "grad_clip": ignored(Json, why="the original accepts it and does not apply it"),
    "half_precision_weights": ignored(bool, why="the original accepts it and computes in float32"),
}
GUIDANCES = {
    "stable-diffusion-asynchronous-score-distillation-guidance": ("stable-diffusion", STABLE_DIFFUSION),
    "mvdream-asynchronous-score-distillation-guidance": ("mvdream", MVDREAM),
}
_DECAYS = {"fs": "front_in_front", "sf": "side_in_front", "sb": "side_behind", "fsb": "front_behind"}
_LIMITS = {"front_threshold": 0, "back_threshold": 1, "overhead_threshold": 2}
PROCESSOR = {
    "pretrained_model_name_or_path": to(
        "pretrained_model_name_or_path", default="pretrained/stable-diffusion-2-1-base"
    ),
    **same("negative_prompt", "use_cache", "cache_dir"),
    "view_dependent_prompt_front": to("side_first"),
    **dict.fromkeys(_LIMITS, decided("`view_limits`")),
    **{f"perp_neg_f_{name}": decided(f"`teachers.NAME.perp_neg.{ours}`") for name, ours in _DECAYS.items()},
    "use_perp_neg": ignored(bool, why="guidance_perp_neg decides it"),
    "use_prompt_debiasing": only(False, why="prompts are used as they are"),
    "spawn": ignored(bool, why="nothing is encoded in another process"),
    "use_local_text_embeddings": ignored(bool, why="token and pooled states are always both there"),
    **dict.fromkeys(
        ("prompt", "prompt_library", "eval_prompt", "target_prompt"), decided("the same option of the data")
    ),
}


def translate_teacher(kind: Json, given: Mapping[str, Json], processor: Mapping[str, Json], place: str) -> Tree:
    """The teacher that a published guidance and the text processor beside it describe.

    Raises:
        ConfigError: there is no such guidance, or an option cannot have its value.
    """
    if kind not in GUIDANCES:
        raise ConfigError(f"{place}_type is {kind!r}; allowed: {', '.join(map(repr, GUIDANCES))}")
    ours, table = GUIDANCES[kind]
    teacher: Tree = {"type": ours, "max_timestep_included": True, "unconditional": "negative"}
    teacher |= in_our_names(given, table, place)
    if ours == "stable-diffusion":
        teacher["all_views"] = True
    else:
        teacher["path"] = given.get("ckpt_path") or given.get("model_name", "sd-v2.1-base-4view")
        teacher["network_dtype"] = "float32"
    ratio, rule = given.get("plus_ratio", 0.1), teacher.get("rule", {})
    shift = {"type": "asd", "ratio": ratio, "random": given.get("plus_random", False)} if ratio else {"type": "csd"}
    teacher["rule"] = shift | rule
    if teacher.get("perp_neg", {}).get("strength"):
        for name, option in _DECAYS.items():
            if f"perp_neg_f_{name}" in processor:
                teacher["perp_neg"][option] = processor[f"perp_neg_f_{name}"]
    return teacher


def translate_processor(given: Mapping[str, Json], place: str, *, by_view: bool) -> Tree:
    """The encoder that a published text processor describes. by_view: whether a teacher is told the texts of sides."""
    encoder = {"type": "clip-text", **in_our_names(given, PROCESSOR, place), "by_view": by_view}
    limits = [45.0, 45.0, 60.0]
    for name, number in _LIMITS.items():
        limits[number] = given.get(name, limits[number])
    return {**encoder, "view_limits": limits}
