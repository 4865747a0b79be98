"""The original's guidance, one class with three sets of prefixed options, as named teachers."""

import re
from collections.abc import Mapping

from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.options import TEACHER_PREFIXES
from triplaneturbo.storage import Json, Tree

# Of the original's guidance, where the teachers of this project have another.
DEFAULTS: Tree = {
    **{f"{p}_plus_ratio": 0.1 for p in TEACHER_PREFIXES},
    **{f"{p}_weighting_strategy": "uniform" for p in TEACHER_PREFIXES},
    **{f"{p}_guidance_scale": 7.5 for p in TEACHER_PREFIXES},
    "rd_weight": 1.0,
    "mv_weight": 0.25,
    "sd_weight": 1.0,
    "mv_model_name_or_path": "sd-v2.1-base-4view",
    "rd_model_name_or_path": "nd-4view",
    "sd_model_name_or_path": "stabilityai/stable-diffusion-2-1-base",
    "eps": 0.01,
}
_TYPES = {"rd": "richdreamer", "mv": "mvdream", "sd": "stable-diffusion"}
_SHIFTS = {"v1": (False, False), "v2": (False, True), "v3": (True, False), "v4": (True, True)}
_WEIGHTINGS = ("dmd", "sds", "uniform", "fantasia3d", "sds_sqrt", "dmd_mv", "dmd+1", "dmd_mv+1")
_GROWTH = r"linear|sqrt(_\d+(\.\d+)?)?"
_PER_TEACHER = ("weight", "guidance_scale", "image_size")
_TIMES = {"min_step_percent": "min_timestep", "max_step_percent": "max_timestep"}


def translate_teachers(given: Mapping[str, Json], present: Mapping[str, Tree], where: str, complete: bool) -> Tree:
    """The teachers that flat options describe, by name.

    Args:
        given: the options of the guidance.
        present: teachers of ours that they change, by name; without `complete` only these.
        complete: `given` is all that is said about the guidance, so that the original's defaults hold.
    """
    options = {**DEFAULTS, **given} if complete else dict(given)
    names = dict(TEACHER_PREFIXES) if complete else _names(present)
    teachers = {name: _teacher(prefix, options, present.get(name, {}), where) for prefix, name in names.items()}
    if complete:
        for prefix, name in names.items():
            teachers[name] = {"type": _TYPES[prefix], "label": prefix, **teachers[name]}
    unused = [p for p in TEACHER_PREFIXES if p not in names and any(key.startswith(f"{p}_") for key in given)]
    if unused:
        raise ConfigError(f"{where}: there is no teacher that the options {unused[0]}_* could be about")
    return {name: teacher for name, teacher in teachers.items() if teacher}


def _names(present: Mapping[str, Tree]) -> dict[str, str]:
    """By prefix, the first teacher of its kind."""
    found = {}
    for prefix, kind in _TYPES.items():
        names = [name for name, teacher in present.items() if isinstance(teacher, dict) and teacher.get("type") == kind]
        if names:
            found[prefix] = names[0]
    return found


def _teacher(prefix: str, options: Mapping[str, Json], present: Tree, where: str) -> Tree:
    teacher: Tree = {name: options[f"{prefix}_{name}"] for name in _PER_TEACHER if f"{prefix}_{name}" in options}
    for name, ours in _TIMES.items():
        own = options.get(f"{prefix}_{name}")
        if own is None:
            own = options.get(name)
        if own is not None:
            teacher[ours] = own
    path = options.get(f"{prefix}_ckpt_path") or options.get(f"{prefix}_model_name_or_path")
    if path is not None:
        teacher["path"] = path
    if prefix == "mv" and options.get("mv_vae_path") is not None:
        teacher["vae_path"] = options["mv_vae_path"]
    if prefix == "rd" and "cam_method" in options:
        teacher["cam_method"] = options["cam_method"]
    if prefix == "sd" and "sd_hq_only" in options:
        teacher["first_renderer_only"] = options["sd_hq_only"]
    if prefix != "sd" and "n_view" in options:
        teacher["n_view"] = options["n_view"]
    teacher |= {key: options[key] for key in ("gradient_checkpoint", "network_dtype") if key in options}
    if options.get("half_precision_weights") is False:
        teacher["network_dtype"] = "float32"
    if options.get("grad_clip") is not None:
        teacher["latent_clip"] = options["grad_clip"]
    rule = _rule(prefix, options, present.get("rule"), where)
    return teacher | ({"rule": rule} if rule else {})


def _rule(prefix: str, options: Mapping[str, Json], present: Json, where: str) -> Tree:
    """The rule and its options, on top of the `present` one; empty if nothing is said about it."""
    own = {name: options[f"{prefix}_{name}"] for name in ("plus_ratio", "plus_random", "weighting_strategy", "use_sds")
           if f"{prefix}_{name}" in options}  # fmt: skip
    shared = {name: options[name] for name in ("t_plus_type", "plus_schedule", "eps") if name in options}
    if not own and not shared:
        return {}
    rule: Tree = {"type": present} if isinstance(present, str) else dict(present or {})
    if "weighting_strategy" in own:
        rule |= weighting(own["weighting_strategy"], f"{where}.{prefix}_weighting_strategy")
    if "eps" in shared:
        rule["eps"] = shared["eps"]
    shift = {
        "ratio": own.get("plus_ratio", rule.get("ratio", 0.0)),
        "random": own.get("plus_random", rule.get("random")),
    }
    if "plus_schedule" in shared:
        if not re.fullmatch(_GROWTH, str(shared["plus_schedule"])):
            raise ConfigError(
                f"{where}.plus_schedule is {shared['plus_schedule']!r}; allowed: linear, sqrt, sqrt_<bias>"
            )
        shift["growth"] = shared["plus_schedule"]
    if "t_plus_type" in shared:
        if shared["t_plus_type"] not in _SHIFTS:
            raise ConfigError(f"{where}.t_plus_type is {shared['t_plus_type']!r}; allowed: {', '.join(_SHIFTS)}")
        shift["from_zero"], shift["limit_last"] = _SHIFTS[shared["t_plus_type"]]
    sds = own.get("use_sds", rule.get("type") == "sds" and "plus_ratio" not in own)
    kind = "sds" if sds else "asd" if shift["ratio"] else "csd"
    for key in ("ratio", "random", "growth", "from_zero", "limit_last"):
        if kind != "asd":
            rule.pop(key, None)
        elif shift.get(key) is not None:
            rule[key] = shift[key]
    return {"type": kind, **{key: value for key, value in rule.items() if key != "type"}}


def weighting(name: Json, where: str) -> Tree:
    """The options of a rule that a published weighting stands for."""
    if name not in _WEIGHTINGS:
        raise ConfigError(f"{where} is {name!r}; allowed: {', '.join(map(repr, _WEIGHTINGS))}")
    return {
        "weighting": name.removesuffix("+1").removesuffix("_mv"),
        **({"gap_over_views": True} if "_mv" in name else {}),
        **({"gap_at_shift": True} if name.endswith("+1") else {}),
    }
