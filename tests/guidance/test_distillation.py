"""The guidance as a whole: gradients of pictures, their normalisation, and which draws they depend on."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from tiny_teachers import make_cameras, make_teachers, make_texts, make_views
from torch import Tensor

from triplaneturbo.base import build
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import Question, Rule, ScoreDistillation
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.rules import ScoreEstimates
from triplaneturbo.guidance.teacher import Sight
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Condition

START = Progress()
PICTURES = ("rgb", "normal", "disparity")


CSD = {"type": "csd", "weighting": "dmd", "eps": 0.1}


def guide(folders: dict[str, str], *names: str, guidance: dict | None = None, **options: dict) -> ScoreDistillation:
    """The teachers `names`, see `make_teachers`; `guidance` are options of the whole."""
    return ScoreDistillation({"teachers": make_teachers(folders, *names, **options), **(guidance or {})})


def draws_of(*samples: int) -> Draws:
    return Draws(seed=0, samples=samples, device=torch.device("cpu"))


def run(guidance: ScoreDistillation, n_renderers: int = 2, samples: tuple[int, ...] = (3, 5)):
    views = [make_views(4 * len(samples), seed=r) for r in range(n_renderers)]
    return guidance(views, make_cameras(len(samples)), make_texts(len(samples)), draws_of(*samples), START)


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to float32 rounding of the largest entry: gradients are differences of nearly equal predictions."""
    assert expected.abs().max() > 0
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ["mv", "rd", "sd"])
def test_pixel_gradient_is_that_of_the_distillation_loss(folders: dict[str, str], name: str) -> None:
    """Against autograd through 0.5 |x - stopgrad(x - g)|^2 / n_view, averaged over prompts, written out in full."""
    rule = {"type": "asd", "weighting": "dmd", "eps": 0.1, "ratio": 0.3}
    guidance = guide(folders, name, every={"guidance_scale": 3.0, "rule": rule})
    cameras, texts, views = make_cameras(2), make_texts(2), make_views(8)
    draws = guidance.sample_draws(draws_of(3, 5), 1, 4, START)
    got = guidance.gradients([views], cameras, texts, draws, START)[0]

    teacher, (drawn,) = guidance.teachers[name], draws.teachers[name]
    rows = torch.arange(8) if name != "sd" else torch.arange(2) * 4 + draws.view
    frames = len(rows) // 2
    leaf = replace(views, **{kind: getattr(views, kind).clone().requires_grad_() for kind in PICTURES})
    question = Question((Sight(0, 0, leaf, rows),), cameras, texts, START)
    x = teacher.encode(teacher.preprocess(question), drawn.vae_noise)
    t = drawn.t.repeat_interleave(frames)
    t_plus = torch.stack(
        [
            now + int(min(max(0.3 * (now - 20), 0), 999 - now) * u)
            for now, u in zip(drawn.t, drawn.plus_rand, strict=True)
        ]
    ).repeat_interleave(frames)
    text = texts["first" if name == "rd" else "second"]
    cond = text.tokens.repeat_interleave(frames, dim=0)
    uncond = (text.empty if name == "sd" else text.negative).expand_as(cond)
    camera = {"mv": mvdream_camera(cameras), "rd": richdreamer_camera(cameras, "rel_x2"), "sd": None}[name]

    def noise_at(time: Tensor, told: Tensor) -> Tensor:
        noisy = teacher.schedule.add_noise(x.detach(), drawn.noise, time)
        return teacher.predict(noisy, time, Condition(told, camera))

    e_u, e_c, e_plus = noise_at(t, uncond), noise_at(t, cond), noise_at(t_plus, cond)
    estimates = ScoreEstimates(x.detach(), drawn.noise, t, t_plus, e_u, e_c, e_plus, 3.0, teacher.schedule, frames)
    gradient = build("rule", rule).gradient(estimates)
    (0.5 * (x - (x - gradient).detach()).square().sum() / (2 * frames)).backward()
    for kind in PICTURES:
        expected = getattr(leaf, kind).grad
        if expected is None:
            assert getattr(got, kind) is None
        else:
            assert_near(getattr(got, kind), expected)
    torch.testing.assert_close(got.logs[f"{name}_grad_norm"], gradient.norm(), rtol=1e-4, atol=0)


def test_one_pass_for_both_renderers_gives_the_same(folders: dict[str, str]) -> None:
    together, one_by_one = (run(guide(folders, guidance={"parallel": p})) for p in (True, False))
    for a, b in zip(together, one_by_one, strict=True):
        for name in PICTURES:
            assert_near(getattr(a, name), getattr(b, name))


def test_pictures_of_two_sizes_cannot_be_judged_in_one_pass(folders: dict[str, str]) -> None:
    small = make_views(8, seed=1)
    small = replace(small, **{name: getattr(small, name)[:, ::2, ::2] for name in (*PICTURES, "opacity", "depth")})
    guidance = guide(folders, guidance={"parallel": True})
    with pytest.raises(ConfigError, match=r"parallel=true: .* 12 x 12 and 6 x 6 pixels"):
        guidance([make_views(8, seed=0), small], make_cameras(2), make_texts(2), draws_of(5), START)


def test_a_sample_does_not_depend_on_its_batch(folders: dict[str, str]) -> None:
    guidance = guide(folders)
    both = run(guidance)
    cameras = make_cameras(2)
    rows = torch.arange(4, 8)
    texts = {name: replace(s, tokens=s.tokens[1:], pooled=s.pooled[1:]) for name, s in make_texts(2).items()}
    views = [
        replace(v, **{name: getattr(v, name)[rows] for name in (*PICTURES, "opacity", "depth")})
        for v in (make_views(8, seed=r) for r in range(2))
    ]
    alone = guidance(views, cameras.select(rows, 4), texts, draws_of(5), START)
    for a, b in zip(both, alone, strict=True):
        for name in PICTURES:
            assert_near(2 * getattr(a, name)[rows], getattr(b, name))


def test_losses_can_be_summed_over_prompts(folders: dict[str, str]) -> None:
    mean, total = (
        run(guide(folders, "mv", "sd", guidance={"quirks": quirks, "parallel": True}))
        for quirks in ([], ["sum-over-prompts"])
    )
    for a, b in zip(total, mean, strict=True):
        assert_near(a.rgb, 2 * b.rgb)


def test_weights_add_up(folders: dict[str, str]) -> None:
    total = run(guide(folders, "mv", "sd", mv={"weight": 0.5}, sd={"weight": 2.0}))
    mv, sd = (run(guide(folders, name)) for name in ("mv", "sd"))
    for a, b, c in zip(total, mv, sd, strict=True):
        assert_near(a.rgb, 0.5 * b.rgb + 2 * c.rgb)
        assert a.normal is None


def test_a_teacher_of_weight_zero_is_not_loaded(folders: dict[str, str]) -> None:
    asleep = {"rd": {"weight": 0, "path": "/does/not/exist"}, "mv": {"weight": [0, 0.0, 0.0, 10]}}
    assert list(guide(folders, **asleep).teachers) == ["sd"]
    with pytest.raises(ConfigError, match="no teacher has a weight above 0"):
        guide(folders, every={"weight": 0})


def test_a_teacher_rests_while_its_scheduled_weight_is_zero(folders: dict[str, str]) -> None:
    guidance = guide(folders, "mv", "sd", mv={"weight": [0, 0.0, 1.0, 10]})
    assert not any(key.startswith("mv_") for key in run(guidance)[0].logs)
    later = guidance([make_views(4)], make_cameras(1), make_texts(1), draws_of(0), Progress(step=5))
    assert later[0].logs["mv_grad_norm"] > 0


def test_a_teacher_has_any_name_and_a_label_for_logs_and_draws(folders: dict[str, str]) -> None:
    """Two of a kind draw different numbers; the label keeps those of another name."""
    (rename,) = make_teachers(folders, "mv").values()
    twice = ScoreDistillation({"teachers": {"near": rename, "far": rename}})
    (gradient,) = run(twice, n_renderers=1)
    assert {key.removesuffix("_gap") for key in gradient.logs if key.endswith("_gap")} == {"near", "far"}
    assert not torch.equal(gradient.logs["near_grad_norm"], gradient.logs["far_grad_norm"])
    labelled = ScoreDistillation({"teachers": {"near": {**rename, "label": "mv"}}})
    (one,), (other,) = run(labelled, n_renderers=1), run(guide(folders, "mv"), n_renderers=1)
    assert torch.equal(one.rgb, other.rgb)
    assert one.logs.keys() == other.logs.keys()
    with pytest.raises(ConfigError, match="same label among mv, mv"):
        ScoreDistillation({"teachers": {"mv": rename, "near": {**rename, "label": "mv"}}})


def seen_views(gradient: Tensor) -> list[int]:
    return [int(rows.nonzero()) for rows in gradient.abs().amax(dim=(1, 2, 3)).gt(0).unflatten(0, (-1, 4))]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("opposite", "shift"), [(True, 2), (False, 0)])
def test_both_renderers_show_one_view_or_opposite_ones(
    folders: dict[str, str], parallel: bool, opposite: bool, shift: int
) -> None:
    first, second = run(guide(folders, "sd", guidance={"opposite_views": opposite, "parallel": parallel}))
    assert [(v + shift) % 4 for v in seen_views(first.rgb)] == seen_views(second.rgb)


def test_a_view_can_be_drawn_for_every_renderer(folders: dict[str, str]) -> None:
    guidance = guide(folders, "sd", guidance={"quirks": ["view-per-renderer"]})
    first, second = guidance.sample_draws(draws_of(*range(64)), 2, 4, START).view.view(2, -1)
    assert {int(d) for d in (second - first) % 4} == {0, 1, 2, 3}


def test_a_teacher_can_look_at_the_first_renderer_twice(folders: dict[str, str]) -> None:
    first, second = run(guide(folders, "sd", sd={"first_renderer_only": True}, guidance={"opposite_views": True}))
    assert second.rgb is None
    assert first.rgb.abs().amax(dim=(1, 2, 3)).gt(0).unflatten(0, (-1, 4)).sum(dim=1).tolist() == [2, 2]


@pytest.mark.parametrize(("rule", "passes"), [("csd", 2), ("asd", 3), ({"type": "asd", "ratio": 0.5}, 3), ("sds", 2)])
def test_the_shift_costs_a_third_pass_and_nothing_else_does(
    folders: dict[str, str], rule: str | dict, passes: int
) -> None:
    guidance = guide(folders, "mv", mv={"rule": rule})
    sizes = []
    guidance.teachers["mv"].unet.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    run(guidance, n_renderers=1)
    assert sizes == [8 * passes]


def test_v_prediction_is_the_same_teacher_in_other_words(folders: dict[str, str]) -> None:
    guidance = guide(folders, "mv")
    expected = run(guidance, n_renderers=1)[0].rgb
    teacher = guidance.teachers["mv"]
    predict_noise, schedule = teacher.predict, teacher.schedule

    def predict_velocity(noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t, noisy)
        return (predict_noise(noisy, t, condition) - sigma * noisy) / alpha

    teacher.predict = predict_velocity
    teacher.schedule = replace(schedule, prediction_type="v_prediction")
    assert_near(run(guidance, n_renderers=1)[0].rgb, expected)


def test_timesteps_follow_their_schedule(folders: dict[str, str]) -> None:
    own = {"mv": {"min_timestep": [0, 0.5, 0.02, 100], "max_timestep": 0.52}, "sd": {"max_timestep": 0.03}}
    guidance = guide(folders, **own)
    for step, low in ((0, 500), (50, 260), (100, 20)):
        drawn = guidance.sample_draws(draws_of(*range(40)), 1, 4, Progress(step=step)).teachers
        (mv,), (sd,) = drawn["mv"], drawn["sd"]
        assert mv.t_min == low
        assert low <= mv.t.min() < low + 0.2 * (520 - low)
        assert 520 - 0.2 * (520 - low) < mv.t.max() < 520
        assert 20 <= sd.t.min() <= sd.t.max() < 30
    ranged = guidance.sample_draws(draws_of(0, 1), 1, 4, START, timestep_range=(0.7, 0.702)).teachers
    assert set(ranged["mv"][0].t.tolist()) <= {700, 701}
    with pytest.raises(ConfigError, match=r"no timesteps between 0\.5 and 0\.2"):
        guidance.sample_draws(draws_of(0), 1, 4, START, timestep_range=(0.5, 0.2))
    with pytest.raises(
        ConfigError, match=r"min_timestep must be below max_timestep, but at time 100 they are 0\.6 and 0"
    ):
        guide(folders, "mv", mv={"min_timestep": [0, 0.1, 0.6, 100], "max_timestep": 0.5})


def test_the_weight_of_a_teacher_may_be_scheduled(folders: dict[str, str]) -> None:
    """Its gradient grows with its weight, from none at all."""
    guidance = guide(folders, "mv", mv={"weight": [0, 0.0, 4.0, 100]})
    constant = guide(folders, "mv")
    inputs = [make_views(4)], make_cameras(1), make_texts(1), guidance.sample_draws(draws_of(0), 1, 4, START)
    unit = constant.gradients(*inputs, START)[0].rgb
    assert guidance.gradients(*inputs, START)[0].rgb is None
    for step, weight in ((25, 1.0), (100, 4.0)):
        assert_near(guidance.gradients(*inputs, Progress(step=step))[0].rgb, weight * unit)


def test_the_guidance_scale_may_be_scheduled(folders: dict[str, str]) -> None:
    guidance = guide(folders, "rd", rd={"guidance_scale": [0, 1.0, 9.0, 10], "rule": CSD})
    inputs = [make_views(4)], make_cameras(1), make_texts(1), guidance.sample_draws(draws_of(0), 1, 4, START)
    small, large = (guidance.gradients(*inputs, Progress(step=s))[0].logs["rd_grad_norm"] for s in (0, 10))
    assert small < 1e-5 * large  # at s = 1 the two estimates are the same


@register("test-not-a-number")
class NotANumber(Rule):
    """A rule of a stranger. Every second entry is not finite."""

    @dataclass(kw_only=True)
    class Config(Rule.Config):
        value: Any = float("nan")

    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        raise AssertionError("only `gradient` is asked for")

    def gradient(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        gradient = 100 * estimates.noise
        gradient.flatten()[::2] = self.cfg.value
        return gradient


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_are_left_out_and_counted(folders: dict[str, str], value: float) -> None:
    guidance = guide(folders, "mv", mv={"rule": {"type": "test-not-a-number", "value": value}})
    (gradient,) = run(guidance, n_renderers=1)
    assert gradient.rgb.isfinite().all()
    assert gradient.rgb.abs().max() > 0
    assert gradient.logs["mv_nonfinite"] == 8 * 4 * 8 * 8 / 2


def test_latent_gradients_are_clipped(folders: dict[str, str]) -> None:
    own = {"rule": {"type": "test-not-a-number", "value": 0.0}, "latent_clip": 0.5}
    (gradient,) = run(guide(folders, "mv", mv=own), n_renderers=1)
    largest = 0.5 * (8 * 4 * 8 * 8 / 2) ** 0.5
    assert 0.95 * largest < gradient.logs["mv_grad_norm"] <= largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": {"type": "asd", "weighting": "dmb"}}, r"mv\.rule\.weighting is 'dmb'; allowed: 'dmd', 'sds'"),
        ({"rule": "asb"}, r"teachers\.mv\.rule\.type is 'asb', but no rule has that name; did you mean .*'asd'"),
        ({"rule": "clip"}, "'clip', which is a shaping; wanted is a rule: asd, csd, sds"),
        ({"shaping": {"limit": "sds"}}, "'sds', which is a rule; wanted is a shaping: clip"),
        ({"type": "ring"}, "'ring', which is one of cameras; wanted is a teacher: .*mvdream, richdreamer"),
        ({"guidance_scael": 3}, "did you mean 'guidance_scale'"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders: dict[str, str], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(guide(folders, "mv", mv=options))


def test_a_wrong_number_of_views_is_refused(folders: dict[str, str]) -> None:
    """4 views of one prompt and 2 of two prompts are as many pictures."""
    for name in ("mv", "rd"):
        with pytest.raises(ConfigError, match=r"Teacher looks at n_view=4 views; data\.cameras\.n_view is 2"):
            guide(folders, name).check(2, ("first", "second"))
        guide(folders, name).check(4, ("first", "second"))
    guide(folders, "sd").check(2, ("first", "second"))


def test_an_encoder_that_is_not_there_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"the condition of a teacher is 'third'; data\.conditions has first, second"):
        guide(folders, "mv", mv={"condition": "third"}).check(4, ("first", "second"))
    guide(folders, "mv", mv={"condition": None}).check(4, ("first", "second"))
