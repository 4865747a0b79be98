"""The guidance as a whole: gradients of pictures, their normalisation, and which draws they depend on."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from tiny_teachers import make_cameras, make_texts, make_views
from torch import Tensor

from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import AsynchronousScoreDistillation
from triplaneturbo.guidance.rules import ScoreEstimates, score_gradient
from triplaneturbo.registry import find, register
from triplaneturbo.schedule import Progress

START = Progress()
PICTURES = ("rgb", "normal", "disparity")


ASD = "richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance"


def build(folders: dict[str, str], name: str = ASD, **options) -> AsynchronousScoreDistillation:
    defaults = {
        "mv_ckpt_path": folders["mv"],
        "rd_ckpt_path": folders["rd"],
        "sd_model_name_or_path": folders["sd"],
        "mv_image_size": 16,
        "rd_image_size": 8,
        "sd_image_size": 24,
        "mv_weight": 1.0,
        "eps": 0.1,
        "n_view": 4,
    }
    strategies = {f"{p}_weighting_strategy": "dmd" for p in ("mv", "rd", "sd")}
    return find(name)(defaults | strategies | options)


def only(prefix: str) -> dict[str, float]:
    return {f"{p}_weight": float(p == prefix) for p in ("mv", "rd", "sd")}


def draws_of(*samples: int) -> Draws:
    return Draws(seed=0, samples=samples, device=torch.device("cpu"))


def run(guidance: AsynchronousScoreDistillation, n_renderers: int = 2, samples: tuple[int, ...] = (3, 5)):
    views = [make_views(4 * len(samples), seed=r) for r in range(n_renderers)]
    return guidance(views, make_cameras(len(samples)), make_texts(len(samples)), draws_of(*samples), START)


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to float32 rounding of the largest entry: gradients are differences of nearly equal predictions."""
    assert expected.abs().max() > 0
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("prefix", ["mv", "rd", "sd"])
def test_pixel_gradient_is_that_of_the_distillation_loss(folders: dict[str, str], prefix: str) -> None:
    """Against autograd through 0.5 |x - stopgrad(x - g)|^2 / n_view, averaged over prompts, written out in full."""
    guidance = build(folders, **only(prefix), **{f"{prefix}_guidance_scale": 3.0, f"{prefix}_plus_ratio": 0.3})
    cameras, texts, views = make_cameras(2), make_texts(2), make_views(8)
    draws = guidance.sample_draws(draws_of(3, 5), 1, START)
    got = guidance.gradients([views], cameras, texts, draws, START)[0]

    teacher, drawn = guidance.teachers[prefix], draws.teachers[prefix]
    rows = torch.arange(8) if prefix != "sd" else torch.arange(2) * 4 + draws.view
    frames = len(rows) // 2
    leaf = replace(views, **{name: getattr(views, name).clone().requires_grad_() for name in PICTURES})
    x = teacher.encode(teacher.preprocess(leaf, rows), drawn.vae_noise)
    t = drawn.t.repeat_interleave(frames)
    t_plus = torch.stack(
        [
            now + int(min(max(0.3 * (now - 20), 0), 999 - now) * u)
            for now, u in zip(drawn.t, drawn.plus_rand, strict=True)
        ]
    ).repeat_interleave(frames)
    cond, uncond = (text.expand(2, -1, -1).repeat_interleave(frames, dim=0) for text in teacher.text(texts))
    camera = None if prefix == "sd" else teacher.camera(cameras)

    def noise_at(time: Tensor, text: Tensor) -> Tensor:
        return teacher.predict(teacher.schedule.add_noise(x.detach(), drawn.noise, time), time, text, camera)

    e_u, e_c, e_plus = noise_at(t, uncond), noise_at(t, cond), noise_at(t_plus, cond)
    estimates = ScoreEstimates(x.detach(), drawn.noise, t, t_plus, e_u, e_c, e_plus, 3.0, teacher.schedule, frames)
    gradient = score_gradient(estimates, weighting="dmd", eps=0.1)
    (0.5 * (x - (x - gradient).detach()).square().sum() / (2 * frames)).backward()
    for name in PICTURES:
        expected = getattr(leaf, name).grad
        if expected is None:
            assert getattr(got, name) is None
        else:
            assert_near(getattr(got, name), expected)
    torch.testing.assert_close(got.logs[f"{prefix}_grad_norm"], gradient.norm(), rtol=1e-4, atol=0)


def test_one_pass_for_both_renderers_gives_the_same(folders: dict[str, str]) -> None:
    together, one_by_one = (run(build(folders, parallel=p)) for p in (True, False))
    for a, b in zip(together, one_by_one, strict=True):
        for name in PICTURES:
            assert_near(getattr(a, name), getattr(b, name))


def test_a_sample_does_not_depend_on_its_batch(folders: dict[str, str]) -> None:
    guidance = build(folders)
    both = run(guidance)
    cameras, (first, second) = make_cameras(2), make_texts(2)
    rows = torch.arange(4, 8)
    texts = tuple(replace(s, tokens=s.tokens[1:], pooled=s.pooled[1:]) for s in (first, second))
    views = [
        replace(v, **{name: getattr(v, name)[rows] for name in (*PICTURES, "opacity", "depth")})
        for v in (make_views(8, seed=r) for r in range(2))
    ]
    alone = guidance(views, cameras.select(rows, 4), texts, draws_of(5), START)
    for a, b in zip(both, alone, strict=True):
        for name in PICTURES:
            assert_near(2 * getattr(a, name)[rows], getattr(b, name))


def test_original_sums_over_prompts(folders: dict[str, str]) -> None:
    options = {"mv_weighting_strategy": "sds", "sd_weighting_strategy": "sds", "rd_weight": 0.0, "parallel": True}
    right, original = (run(build(folders, compat=c, **options)) for c in ("right", "original"))
    for a, b in zip(original, right, strict=True):
        assert_near(a.rgb, 2 * b.rgb)


def test_weights_add_up(folders: dict[str, str]) -> None:
    total = run(build(folders, mv_weight=0.5, sd_weight=2.0, rd_weight=0.0))
    mv, sd = (run(build(folders, **only(p))) for p in ("mv", "sd"))
    for a, b, c in zip(total, mv, sd, strict=True):
        assert_near(a.rgb, 0.5 * b.rgb + 2 * c.rgb)
        assert a.normal is None


def test_a_teacher_of_weight_zero_is_not_loaded(folders: dict[str, str]) -> None:
    guidance = build(folders, rd_weight=0, rd_ckpt_path="/does/not/exist", mv_weight=[0, 0.0, 0.0, 10])
    assert list(guidance.teachers) == ["sd"]
    with pytest.raises(ConfigError, match="all 0"):
        build(folders, mv_weight=0, rd_weight=0, sd_weight=0)


def test_a_teacher_rests_while_its_scheduled_weight_is_zero(folders: dict[str, str]) -> None:
    guidance = build(folders, rd_weight=0.0, mv_weight=[0, 0.0, 1.0, 10])
    assert not any(key.startswith("mv_") for key in run(guidance)[0].logs)
    later = guidance([make_views(4)], make_cameras(1), make_texts(1), draws_of(0), Progress(step=5))
    assert later[0].logs["mv_grad_norm"] > 0


def seen_views(gradient: Tensor) -> list[int]:
    return [int(rows.nonzero()) for rows in gradient.abs().amax(dim=(1, 2, 3)).gt(0).unflatten(0, (-1, 4))]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("opposite", "shift"), [(True, 2), (False, 0)])
def test_both_renderers_show_one_view_or_opposite_ones(
    folders: dict[str, str], parallel: bool, opposite: bool, shift: int
) -> None:
    first, second = run(build(folders, **only("sd"), sd_oppo_side=opposite, parallel=parallel))
    assert [(v + shift) % 4 for v in seen_views(first.rgb)] == seen_views(second.rgb)


def test_original_draws_a_view_for_every_call(folders: dict[str, str]) -> None:
    guidance = build(folders, **only("sd"), sd_oppo_side=True, compat="original")
    first, second = guidance.sample_draws(draws_of(*range(64)), 2, START).view.view(2, -1)
    assert {int(d) for d in (second - first) % 4} == {0, 1, 2, 3}


def test_high_quality_only_looks_at_the_first_renderer_twice(folders: dict[str, str]) -> None:
    first, second = run(build(folders, **only("sd"), sd_oppo_side=True, sd_hq_only=True))
    assert second.rgb is None
    assert first.rgb.abs().amax(dim=(1, 2, 3)).gt(0).unflatten(0, (-1, 4)).sum(dim=1).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("options", "passes"), [({"mv_plus_ratio": 0.0}, 2), ({"mv_plus_ratio": 0.1}, 3), ({"mv_use_sds": True}, 2)]
)
def test_the_shift_costs_a_third_pass_and_nothing_else_does(
    folders: dict[str, str], options: dict[str, float], passes: int
) -> None:
    guidance = build(folders, **only("mv"), **options)
    sizes = []
    guidance.teachers["mv"].unet.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    run(guidance, n_renderers=1)
    assert sizes == [8 * passes]


def test_v_prediction_is_the_same_teacher_in_other_words(folders: dict[str, str]) -> None:
    guidance = build(folders, **only("mv"))
    expected = run(guidance, n_renderers=1)[0].rgb
    teacher = guidance.teachers["mv"]
    predict_noise, schedule = teacher.predict, teacher.schedule

    def predict_velocity(noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t, noisy)
        return (predict_noise(noisy, t, text, camera) - sigma * noisy) / alpha

    teacher.predict = predict_velocity
    teacher.schedule = replace(schedule, prediction_type="v_prediction")
    assert_near(run(guidance, n_renderers=1)[0].rgb, expected)


def test_timesteps_follow_their_schedule(folders: dict[str, str]) -> None:
    guidance = build(folders, mv_min_step_percent=[0, 0.5, 0.02, 100], mv_max_step_percent=0.52, max_step_percent=0.03)
    for step, low in ((0, 500), (50, 260), (100, 20)):
        drawn = guidance.sample_draws(draws_of(*range(40)), 1, Progress(step=step)).teachers
        assert drawn["mv"].t_min == low
        assert low <= drawn["mv"].t.min() < low + 0.2 * (520 - low)
        assert 520 - 0.2 * (520 - low) < drawn["mv"].t.max() < 520
        assert 20 <= drawn["sd"].t.min() <= drawn["sd"].t.max() < 30
    ranged = guidance.sample_draws(draws_of(0, 1), 1, START, timestep_range=(0.7, 0.702)).teachers
    assert set(ranged["mv"].t.tolist()) <= {700, 701}
    with pytest.raises(ConfigError, match=r"no timesteps between 0\.5 and 0\.2"):
        guidance.sample_draws(draws_of(0), 1, START, timestep_range=(0.5, 0.2))


def test_the_weight_of_a_teacher_may_be_scheduled(folders: dict[str, str]) -> None:
    """Its gradient grows with its weight, from none at all."""
    guidance = build(folders, **only("mv") | {"mv_weight": [0, 0.0, 4.0, 100]})
    constant = build(folders, **only("mv"))
    inputs = [make_views(4)], make_cameras(1), make_texts(1), guidance.sample_draws(draws_of(0), 1, START)
    unit = constant.gradients(*inputs, START)[0].rgb
    assert guidance.gradients(*inputs, START)[0].rgb is None
    for step, weight in ((25, 1.0), (100, 4.0)):
        assert_near(guidance.gradients(*inputs, Progress(step=step))[0].rgb, weight * unit)


def test_the_guidance_scale_may_be_scheduled(folders: dict[str, str]) -> None:
    guidance = build(folders, **only("rd"), rd_guidance_scale=[0, 1.0, 9.0, 10], rd_plus_ratio=0.0)
    inputs = [make_views(4)], make_cameras(1), make_texts(1), guidance.sample_draws(draws_of(0), 1, START)
    small, large = (guidance.gradients(*inputs, Progress(step=s))[0].logs["rd_grad_norm"] for s in (0, 10))
    assert small < 1e-5 * large  # at s = 1 the two estimates are the same


@register("test-not-a-number-guidance")
class NotANumber(AsynchronousScoreDistillation):
    """A rule of a stranger: it overrides `latent_gradient` and nothing else. Every second entry is not finite."""

    @dataclass(kw_only=True)
    class Config(AsynchronousScoreDistillation.Config):
        value: Any = float("nan")

    def latent_gradient(self, estimates: ScoreEstimates, options) -> Float[Tensor, "N C H W"]:
        gradient = 100 * estimates.noise
        gradient.flatten()[::2] = self.cfg.value
        return gradient


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_are_left_out_and_counted(folders: dict[str, str], value: float) -> None:
    guidance = build(folders, "test-not-a-number-guidance", **only("mv"), value=value)
    (gradient,) = run(guidance, n_renderers=1)
    assert gradient.rgb.isfinite().all()
    assert gradient.rgb.abs().max() > 0
    assert gradient.logs["mv_nonfinite"] == 8 * 4 * 8 * 8 / 2


def test_gradients_are_clipped(folders: dict[str, str]) -> None:
    guidance = build(folders, "test-not-a-number-guidance", **only("mv"), value=0.0, grad_clip=0.5)
    (gradient,) = run(guidance, n_renderers=1)
    largest = 0.5 * (8 * 4 * 8 * 8 / 2) ** 0.5
    assert 0.95 * largest < gradient.logs["mv_grad_norm"] <= largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_grad": False}, "auto_grad"),
        ({"rd_recon_std_rescale": 0.5}, "not supported: no published recipe"),
        ({"mv_weighting_strategy": "dmb"}, "allowed: 'dmd', 'sds'"),
        ({"mv_guidance_scael": 3}, "did you mean 'mv_guidance_scale'"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders: dict[str, str], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(folders, **options)


def test_full_precision_on_request(folders: dict[str, str]) -> None:
    assert build(folders, half_precision_weights=False).teachers["mv"].cfg.network_dtype == "float32"


def test_a_wrong_number_of_views_is_refused(folders: dict[str, str]) -> None:
    guidance = build(folders, **only("sd"))
    with pytest.raises(ValueError, match="2 views a prompt, but n_view is 4"):
        guidance([make_views(4)], make_cameras(2, n_view=2), make_texts(2), draws_of(0, 1), START)
