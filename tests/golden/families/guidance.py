"""Score distillation: single teachers with every weighting, whole calls, and tables of schedules."""

from typing import Any

import pytest
import torch
from golden_case import Case
from recorded_draws import RecordedDraws
from torch import Tensor
from workbench import GUIDANCE, WatchedGuidance, Workbench, cameras, translated

from triplaneturbo.base import Part, as_tree, build
from triplaneturbo.legacy.options import TEACHER_PREFIXES
from triplaneturbo.legacy.teachers import translate_teachers, weighting
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.types import TextStates, Views

TEACHERS = ("mv", "rd", "sd")
# Name of a gradient and of its picture in a case, of the picture in Views, its channels.
_PICTURES = {"rgb": ("rgb", 3), "normal": ("normal", 3), "depth": ("disparity", 1)}
# Timesteps of the networks' training.
_T = 1000


def one_teacher(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    kind = case.option("teacher", *TEACHERS)
    weights = {f"{name}_weight": float(name == kind) for name in TEACHERS}
    described = ("teacher", "n_prompts", "min_step", "max_step", "mv_guidance_scale_now", "stride")
    guidance = workbench.guidance(case.options(*described), **weights)
    n_prompts, n_view, progress = meta["n_prompts"], meta["n_view"], case.progress
    case.require(
        "mv_guidance_scale_now",
        abs(Schedule.parse(meta["mv_guidance_scale"])(progress) - meta["mv_guidance_scale_now"]) < 1e-12,
    )
    # Without plus_random nothing is drawn for the shift, and no number may matter.
    plus = case.get("plus_rand", torch.full((n_prompts,), float("nan")))
    recorded = {"t": case["t_draw"], "plus": plus, "noise": case["noise_draw"]}
    if "vae_noise" in case:
        recorded["vae"] = case["vae_noise"]
    if "noise" in case:
        case.equal("noise", case["noise_draw"])
    streams = _streams(kind, recorded, n_prompts, 1)
    if "view_idx" in case:
        streams["view0"] = case["view_idx"] - torch.arange(n_prompts) * n_view
    else:
        streams["view0"] = torch.zeros(n_prompts, dtype=torch.long)  # drawn, and looked at by no teacher here
    draws = RecordedDraws.of(streams, n_prompts)
    made = cameras(case["c2w"], n_view, **_known(case))
    (found,) = guidance([_views(case)], made, texts(case), draws, progress)

    case.require("bounds of t", draws.bounds[f"{kind}0/t"] == (meta["min_step"], meta["max_step"]))
    seen = guidance.seen
    case.equal("t", seen.t)
    case.equal("t_plus", seen.t_plus)
    for name, value in (
        ("latents", seen.latents),
        ("eps_uncond", seen.uncond),
        ("eps_text", seen.cond),
        ("eps_second", seen.plus),
    ):
        case.close(name, value, 1e-4)
    compare_weightings(case, guidance, kind, seen.frames, 1e-4, 5e-4)
    stride = meta["stride"]
    for name, (ours, _) in _PICTURES.items():
        gradient = getattr(found, ours)
        if gradient is not None:  # the teacher looks at this picture
            case.close(f"grad_{name}", gradient, 5e-4, stride=stride)
            case.close(f"grad_{name}_norm", gradient.flatten(1).norm(dim=1), 5e-4)


def compare_weightings(
    case: Case, guidance: WatchedGuidance, kind: str, divisor: int, loss: float, norm: float
) -> None:
    """Loss 1/2 |g|^2 / divisor and norm |g| of the latent gradient g, as configured and with other weightings.

    loss, norm: the tolerances of these.
    """
    seen, teacher = guidance.seen, guidance.labelled(kind)
    limit, rule = teacher.cfg.latent_clip, teacher.cfg.rule
    alternatives = {name.removesuffix("_loss").removesuffix("_grad_norm") for name in case.with_prefix("alt_")}
    rules = {"": rule.build()}
    for name in alternatives:
        options = as_tree(rule) | {"gap_over_views": False, "gap_at_shift": False} | weighting(name, "alternative")
        rules[f"alt_{name}_"] = build("rule", options)
    for prefix, rule in rules.items():
        gradient = rule.gradient(seen)
        if limit is not None:
            gradient = gradient.clamp(-limit(case.progress), limit(case.progress))
        case.close(f"{prefix}loss", 0.5 * gradient.square().sum() / divisor, loss)
        case.close(f"{prefix}grad_norm", gradient.norm(), norm)


def all_teachers(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    n_prompts, n_view = meta["n_prompts"], meta["n_view"]
    suffixes = ("", "_2nd") if case.option("dual", False, True) else ("",)
    case.require("family", meta["dual"] == (case.family == "guidance_call_parallel"))
    guidance = workbench.guidance(case.options("n_prompts", "dual"), parallel=meta["dual"])
    progress = case.progress
    unseen = torch.zeros(n_prompts, dtype=torch.long)  # drawn, and looked at by no teacher
    streams = {"view" if meta["dual"] else "view0": case.get("sd_view_draw", unseen)}
    for kind in TEACHERS:
        names = {"t": "t", "plus": "plus_rand", "noise": "noise", "vae": "vae_noise"}
        recorded = {ours: case[f"{kind}_{name}"] for ours, name in names.items() if f"{kind}_{name}" in case}
        if recorded:
            recorded.setdefault("plus", torch.full_like(recorded["t"], float("nan"), dtype=torch.float32))
        streams |= _streams(kind, recorded, n_prompts, len(suffixes))
    draws = RecordedDraws.of(streams, n_prompts)
    made = cameras(case["c2w"], n_view, **_known(case))
    found = guidance([_views(case, suffix) for suffix in suffixes], made, texts(case), draws, progress)
    for suffix, score in zip(suffixes, found, strict=True):
        for name, (ours, _) in _PICTURES.items():
            recorded = f"grad_{name}{suffix}"
            if recorded in case:
                gradient = getattr(score, ours)  # None where no teacher has looked
                gradient = torch.zeros_like(case[recorded]) if gradient is None else gradient
                case.close(recorded, gradient, 5e-4)
    looked_at = guidance.sample_draws(draws, len(suffixes), n_view, progress).view.split(n_prompts)
    for suffix, view in zip(suffixes, looked_at, strict=True):
        case.equal(f"sd_azimuth{suffix}", made.azimuth_deg[torch.arange(n_prompts) * n_view + view])
    if "grad_norm_asd" in case:
        # The sum over teachers of |latent gradient|; the recorded call sums its teachers' norms.
        case.close("grad_norm_asd", sum(v for k, v in found[0].logs.items() if k.endswith("_grad_norm")), 5e-4)


def tables(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    moments = [Progress(s, e) for s, e in zip(case["C_steps"].tolist(), case["C_epochs"].tolist(), strict=True)]
    values = [[Schedule.parse(spec)(now) for now in moments] for spec in meta["C_specs"]]
    given = {"guidance_type": GUIDANCE, "guidance": meta["guidance_cfg"]}
    Part("guidance")(translated(given)["system"]["guidance"], "guidance_cfg")  # knows all of them
    case.close("C_values", torch.tensor(values, dtype=torch.float64), 1e-12)

    def column(name: str, now: Progress) -> float:
        kind, _, what = name.partition("_")
        option = f"{kind}_{what}_step_percent" if what in ("min", "max") else name
        value = Schedule.parse(meta["guidance_cfg"][option])(now)
        return int(_T * value) if what in ("min", "max") else value

    table = [[column(name, now) for name in meta["update_step_columns"]] for now in moments]
    case.close("update_step_table", torch.tensor(table, dtype=torch.float64), 1e-12)

    now = Progress(meta["tplus_global_step"])
    for kind, bounds in meta["tplus_minmax"].items():
        case.require("tplus_minmax", [column(f"{kind}_min", now), column(f"{kind}_max", now)] == bounds)
    t = case["tplus_t"]
    shifted = []
    for (kind, form, schedule, ratio, random), rand in zip(meta["tplus_combos"], case["tplus_rand"], strict=True):
        options = {f"{kind}_plus_ratio": ratio, f"{kind}_plus_random": random}
        options |= {"t_plus_type": form, "plus_schedule": schedule}
        teachers = translate_teachers(options, {}, "guidance", complete=True)
        rule = build("rule", teachers[TEACHER_PREFIXES[kind]]["rule"])
        out = rule.shift(t, column(f"{kind}_min", now), rand, _T)
        shifted.append(t if out is None else out)
    case.equal("tplus_out", torch.stack(shifted))


def _streams(kind: str, recorded: dict[str, Tensor], n_prompts: int, n_renderers: int) -> dict[str, Tensor]:
    """Draws of one teacher by the names the guidance asks for; pictures are renderer-major, then prompt, then view."""
    streams = {}
    for name, values in recorded.items():
        for r, part in enumerate(values.chunk(n_renderers)):
            is_noise = part.dim() > 1
            streams[f"{kind}{r}/{name}"] = part.unflatten(0, (n_prompts, -1)) if is_noise else part
    return streams


def _known(case: Case) -> dict[str, Tensor]:
    names = {
        "distance": "camera_distances",
        "distance_relative": "camera_distances_relative",
        "azimuth_deg": "azimuth",
    }
    return {ours: case[name] for ours, name in names.items() if name in case}


def _views(case: Case, suffix: str = "") -> Views:
    """The recorded pictures; those that no teacher of the case looks at are black."""
    shape = next(array.shape[:3] for name, array in case.arrays.items() if name.endswith("_u8"))
    pictures: dict[str, Any] = {}
    for name, (ours, channels) in _PICTURES.items():
        recorded = f"{name}{suffix}_u8"
        pictures[ours] = case[recorded].float() / 255 if recorded in case else torch.zeros(*shape, channels)
    return Views(**pictures, opacity=pictures["disparity"], depth=pictures["disparity"])


def texts(case: Case) -> dict[str, TextStates]:
    """By the names that the translated teachers have for them."""
    return {"second": text_states(case, "2nd"), "first": text_states(case, "1st")}


def text_states(case: Case, encoder: str) -> TextStates:
    """What the first (RichDreamer) or second (MVDream, Stable Diffusion) text encoder said; NaN where not recorded."""
    n_prompts = next(len(case.arrays[f"text_local_{e}"]) for e in ("1st", "2nd") if f"text_local_{e}" in case)
    tokens = case.get(f"text_local_{encoder}", torch.full((n_prompts, 1, 1), float("nan")))
    unknown = torch.full_like(tokens[0], float("nan"))
    negative, empty = (case.get(f"{name}_{encoder}", unknown) for name in ("neg_local", "default_neg_local"))
    return TextStates(tokens, tokens[:, 0], negative[None], empty[None])
