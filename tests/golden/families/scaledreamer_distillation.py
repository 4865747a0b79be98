"""Asynchronous score distillation with one teacher, and the texts of views."""

from typing import Any

import pytest
import torch
from golden_case import Case
from recorded_draws import RecordedDraws
from torch import Tensor
from workbench import WatchedGuidance, Workbench, cameras

from custom.scaledreamer.teachers import translate_processor, translate_teacher
from families.guidance import compare_weightings
from triplaneturbo.base import parse_config
from triplaneturbo.guidance.perp_neg import NO_SIDE, PerpNeg
from triplaneturbo.guidance.rules import ScoreEstimates
from triplaneturbo.guidance.teacher import Question, Sight
from triplaneturbo.prompts.processors import seen_from
from triplaneturbo.types import SIDES, Cameras, TextStates, Views

# In the order in which the texts of sides are recorded.
_RECORDED_SIDES = ("side", "front", "back", "overhead")
_OF_RECORDED = [_RECORDED_SIDES.index(side) for side in SIDES]
_KINDS = {
    "sd": "stable-diffusion-asynchronous-score-distillation-guidance",
    "mv": "mvdream-asynchronous-score-distillation-guidance",
}
_LIMITS = ("front_threshold", "back_threshold", "overhead_threshold")


def prompt_views(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta, elevation, azimuth = case.meta, case["elevation"], case["azimuth"]
    processor = {name: meta[name] for name in (*_LIMITS, "view_dependent_prompt_front", "negative_prompt")}
    encoder = translate_processor(processor, "prompt_processor", by_view=True)
    texts = [seen_from(meta["prompt"], side, first=encoder["side_first"]) for side in _RECORDED_SIDES]
    case.require("view_prompts", texts == meta["view_prompts"])
    case.require("negatives", {encoder["negative_prompt"]} == set(meta["view_negative_prompts"]))

    nothing = torch.zeros(1, 1, 1)
    limits = tuple(encoder["view_limits"])
    states = TextStates(nothing, nothing[:, 0], negative=nothing, empty=nothing, view_limits=limits)
    made = _looking(elevation, azimuth, 1)
    recorded = torch.tensor(_OF_RECORDED)
    case.equal("direction", recorded[states.sides(made)])

    options = {"guidance_perp_neg": -1.0}
    teacher = translate_teacher(_KINDS["sd"], options, meta["perp"], "guidance")
    sides = parse_config(PerpNeg, teacher["perp_neg"], "perp_neg").texts(elevation, azimuth, limits[2])
    case.close("mix", torch.zeros_like(sides.mix).index_copy(1, recorded, sides.mix), 1e-6)
    without = torch.full((1,), -1)
    case.equal("negative", torch.cat([recorded, without])[sides.negative])
    case.require("negatives of none", len(recorded) == NO_SIDE)
    case.close("weights", sides.weight, 1e-6)


def stable_diffusion(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    n_prompts = len(case["text"])
    made = _looking(case["elevation"], case["azimuth"], len(case["elevation"]) // n_prompts)
    options = {"pretrained_model_name_or_path": str(workbench.sd_folder(case.meta["sd"]))}
    _compare(case, "sd", options, made, n_prompts, latents=2e-4, gradients=2e-3)


def mvdream(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one prompt in several groups of views, each group is a prompt of its own here."""
    n_view, groups = case.meta["n_view"], case.meta["groups"]
    made = cameras(
        case["c2w"],
        n_view,
        distance=case["camera_distances"],
        elevation_deg=case["elevation"],
        azimuth_deg=case["azimuth"],
    )
    case.require("groups", len(made) == groups * n_view)
    options = {"ckpt_path": str(workbench.ldm_folder("mv", case.meta["mv"])), "n_view": n_view}
    guidance = _compare(case, "mv", options, made, groups, latents=1e-4, gradients=5e-4)
    case.close("camera", guidance.labelled("mv").camera(made), 1e-6)


def _compare(
    case: Case, kind: str, options: dict[str, Any], made: Cameras, n_prompts: int, *, latents: float, gradients: float
) -> WatchedGuidance:
    """latents, gradients: tolerances of these; predictions and losses have that of latents."""
    meta = case.meta
    case.require("processor", case.option("processor", "single", "multi") == "multi" or len(case["text"]) == 1)
    teacher = translate_teacher(_KINDS[kind], {**meta["guidance"], **options}, {}, "guidance")
    teacher |= {"image_size": meta["image_size"], "network_dtype": "float32"}
    if "perp_neg" in teacher:
        teacher["perp_neg"]["quirks"] = ["other-latents"]
    guidance = WatchedGuidance({"teachers": {kind: teacher}}).to(torch.get_default_device())
    texts = {"texts": _texts(case, n_prompts, by_view=teacher.get("text_by_view", False))}
    views, draws = _views(case), _draws(case, kind, n_prompts)
    (found,) = guidance([views], made, texts, draws, case.progress)

    case.require("bounds of t", draws.bounds[f"{kind}0/t"] == (meta["min_step"], meta["max_step"] + 1))
    question = Question((Sight(0, 0, views, torch.arange(len(made))),), made, texts, case.progress)
    teacher = guidance.labelled(kind)
    case.close("used_text", teacher.conditions(question)[1].text, 1e-6)
    against, weights = teacher.negatives(question)
    if weights is not None:
        case.close("used_negatives", torch.stack([told.text for told in against], 1).flatten(0, 1), 1e-6)
        case.close("neg_weights", weights, 1e-6)
        case.close("eps_neg", guidance.seen.negatives.flatten(0, 1), latents)
    _compare_estimates(case, guidance.seen, latents)
    compare_weightings(case, guidance, kind, len(made), latents, gradients)
    case.close("grad_rgb", found.rgb, gradients)
    return guidance


def _compare_estimates(case: Case, seen: ScoreEstimates, tolerance: float) -> None:
    group = len(seen.t) // len(case["t"])
    case.equal("t", seen.t[::group])
    case.equal("t_plus", seen.t_plus[::group])
    for name, value in (
        ("latents", seen.latents),
        ("eps_uncond", seen.uncond),
        ("eps_text", seen.cond),
        ("eps_second", seen.plus),
        ("first", seen.guided),
    ):
        case.close(name, value, tolerance)


def _texts(case: Case, n_prompts: int, *, by_view: bool) -> TextStates:
    """Of one prompt that stands for several: its texts again. The negative prompt is the same from all sides."""
    tokens, sides = (case[name].expand(n_prompts, *case[name].shape[1:]) for name in ("text", "text_vd"))
    plain, by_side = case["uncond"][None], case["uncond_vd"]
    case.require("one negative prompt", bool((by_side == by_side[:1]).all()))
    negative = by_side[:1] if by_view else plain
    return TextStates(
        tokens,
        tokens[:, 0],
        negative,
        torch.full_like(negative, float("nan")),
        sides.movedim(1, 0)[_OF_RECORDED],
        tuple(case.meta[name] for name in _LIMITS),
    )


def _draws(case: Case, kind: str, n_prompts: int) -> RecordedDraws:
    """Stable Diffusion draws a timestep for each view, MVDream one for all."""
    t, noise = case["t"], case["noise"]
    # Without plus_random nothing is drawn for the shift, and no number may matter.
    plus = case.get("plus_rand", torch.full(t.shape, float("nan")))
    case.require("plus_random", case.meta["guidance"]["plus_random"] == ("plus_rand" in case))
    if kind == "sd":
        t, plus = t.view(n_prompts, -1), plus.view(n_prompts, -1)
    else:
        t, plus = t.expand(n_prompts), plus.expand(n_prompts)
    by_prompt = {"noise": noise, "vae": case["vae_noise"]}
    streams = {f"{kind}0/{name}": value.unflatten(0, (n_prompts, -1)) for name, value in by_prompt.items()}
    streams |= {f"{kind}0/t": t, f"{kind}0/plus": plus}
    streams["view"] = torch.zeros(n_prompts, dtype=torch.long)  # drawn, and looked at by no teacher
    return RecordedDraws.of(streams, n_prompts)


def _views(case: Case) -> Views:
    pictures = case["rgb_u8"].float() / 255
    blank = torch.zeros_like(pictures[..., :1])
    return Views(rgb=pictures, normal=torch.zeros_like(pictures), disparity=blank, opacity=blank, depth=blank)


def _looking(elevation: Tensor, azimuth: Tensor, n_view: int) -> Cameras:
    """Cameras of which nothing but the direction is known."""
    nowhere = torch.full((len(elevation), 4, 4), float("nan"))
    return cameras(nowhere, n_view, elevation_deg=elevation, azimuth_deg=azimuth)
