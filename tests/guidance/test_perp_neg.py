"""Perpendicular negatives against numbers worked out by hand, and what a teacher makes of them."""

import dataclasses
import math

import pytest
import torch
from tiny_teachers import make_cameras, make_teachers, make_texts, make_views

from custom.shapeworld.models import TEXT_WIDTH
from triplaneturbo.base import build
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import DiffusionTeacher, Question, ScoreDistillation
from triplaneturbo.guidance.perp_neg import NO_SIDE, PerpNeg, perpendicular
from triplaneturbo.guidance.teacher import Sight
from triplaneturbo.schedule import Progress
from triplaneturbo.types import TextStates

FRONT, SIDE, BACK, OVERHEAD = range(4)
# f(r) = 4 exp(-r / 2) - 2.426 against views between front and side; behind exp(-r / 2) - 0.606 and + 0.967.
AHEAD_AT_0, AHEAD_AT_HALF, AHEAD_AT_1 = 4 - 2.426, 4 * math.exp(-0.25) - 2.426, 4 * math.exp(-0.5) - 2.426
BY_HAND = {
    # azimuth, elevation: shares of front, side, back, overhead; negatives; their weights
    (0, 15): ((1, 0, 0, 0), (FRONT, SIDE), (-AHEAD_AT_1, -AHEAD_AT_0)),
    (45, 15): ((0.5, 0.5, 0, 0), (FRONT, SIDE), (-AHEAD_AT_HALF, -AHEAD_AT_HALF)),
    (-45, 60): ((0.5, 0.5, 0, 0), (FRONT, SIDE), (-AHEAD_AT_HALF, -AHEAD_AT_HALF)),
    (270, 15): ((0, 1, 0, 0), (SIDE, FRONT), (0.606 - math.exp(-0.5), -0.967 - math.exp(-0.5))),
    (-135, 0): ((0, 0.5, 0.5, 0), (SIDE, FRONT), (0.606 - math.exp(-0.25), -0.967 - math.exp(-0.25))),
    (180, 0): ((0, 0, 1, 0), (SIDE, FRONT), (0.606 - 1, -0.967 - 1)),
    (45, 61): ((0, 0, 0, 1), (NO_SIDE, NO_SIDE), (0, 0)),
}


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_texts_and_weights_by_azimuth_and_elevation(strength: float) -> None:
    azimuth, elevation = torch.tensor(list(BY_HAND), dtype=torch.float64).unbind(1)
    sides = PerpNeg(strength=strength).texts(elevation, azimuth, 60.0)
    for row, (mix, negative, weight) in enumerate(BY_HAND.values()):
        assert sides.mix[row].tolist() == pytest.approx(mix)
        assert sides.negative[row].tolist() == list(negative)
        assert sides.weight[row].tolist() == pytest.approx([strength * each for each in weight])


def test_the_perpendicular_part_has_no_share_of_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = perpendicular(x, y)
    torch.testing.assert_close((found * y).sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    share = (x[1] * y[1]).sum() / y[1].square().sum()
    torch.testing.assert_close(found[1], x[1] - share * y[1])
    assert torch.equal(perpendicular(x, torch.zeros_like(y)), x)


def teacher_with_negatives(folders: dict[str, str], **options) -> DiffusionTeacher:
    given = {"text_by_view": True, "perp_neg": {"strength": 0.5}, "all_views": True, "image_size": 16, **options}
    return build("teacher", {"type": "stable-diffusion", "path": folders["sd"], **given})


def texts_by_view(n_prompts: int) -> dict[str, TextStates]:
    plain = make_texts(n_prompts)["first"]
    by_view = torch.randn(4, n_prompts, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    return {"first": dataclasses.replace(plain, by_view=by_view)}


def question_about(n_prompts: int, n_view: int = 4) -> Question:
    """Views at 0, 90, 180 and 270 degrees, of the second prompt 11 degrees further on, at an elevation of 15."""
    views = make_views(n_prompts * n_view)
    sight = Sight(0, 0, views, torch.arange(n_prompts * n_view))
    return Question((sight,), make_cameras(n_prompts, n_view), texts_by_view(n_prompts), Progress())


def draws_of(*samples: int) -> Draws:
    return Draws(seed=0, samples=samples, device=torch.device("cpu"))


def test_a_view_is_told_a_blend_of_two_sides_and_not_to_show_two(folders: dict[str, str]) -> None:
    question = question_about(2)
    by_view = question.conditions["first"].by_view
    teacher = teacher_with_negatives(folders)
    _, with_text = teacher.conditions(question)
    share = 11 / 90
    expected = {
        0: by_view[FRONT, 0],
        4: (1 - share) * by_view[FRONT, 1] + share * by_view[SIDE, 1],
        5: (1 - share) * by_view[SIDE, 1] + share * by_view[BACK, 1],
    }
    for row, text in expected.items():
        torch.testing.assert_close(with_text.text[row], text)
    (first, second), weights = teacher.negatives(question)
    assert torch.equal(first.text[0], by_view[FRONT, 0])
    assert torch.equal(second.text[5], by_view[FRONT, 1])
    assert weights.shape == (8, 2)
    assert (weights[1:] < 0).all()


def test_negatives_are_inside_the_guidance_and_perpendicular_to_it(folders: dict[str, str]) -> None:
    question, teacher = question_about(1), teacher_with_negatives(folders, guidance_scale=3.0)
    drawn = teacher.draw(draws_of(7), 4, Progress(), None)
    latents = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(1))
    e = teacher.estimate(latents, question, drawn)
    direction, expected = e.cond - e.uncond, e.uncond + 3.0 * (e.cond - e.uncond)
    for k, told in enumerate(teacher.negatives(question)[0]):
        noisy = e.schedule.add_noise(latents, drawn.noise, e.t)
        away = teacher.predict(noisy, e.t, told) - e.uncond
        for row in range(4):
            share = (away[row] * direction[row]).sum() / direction[row].square().sum()
            expected[row] += 3.0 * e.negative_weights[row, k] * (away[row] - share * direction[row])
    assert e.negative_weights.abs().max() > 0.5
    torch.testing.assert_close(e.guided, expected, rtol=1e-4, atol=1e-5)


def test_from_overhead_there_is_plain_guidance(folders: dict[str, str]) -> None:
    question = question_about(1)
    high = dataclasses.replace(question.cameras, elevation_deg=torch.full((4,), 80.0))
    question = dataclasses.replace(question, cameras=high)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for perp_neg in ({}, {"strength": 0.5}):
        teacher = teacher_with_negatives(folders, perp_neg=perp_neg)
        drawn = teacher.draw(draws_of(7), 4, Progress(), None)
        found.append(teacher.estimate(latents, question, drawn).guided)
    torch.testing.assert_close(*found)


def test_negatives_of_other_latents_are_right_for_one_picture_only(folders: dict[str, str]) -> None:
    gaps = {}
    for n_view in (1, 2):
        question, found = question_about(1, n_view), []
        latents = torch.randn(n_view, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for quirks in ([], ["other-latents"]):
            teacher = teacher_with_negatives(folders, perp_neg={"strength": 0.5, "quirks": quirks})
            drawn = teacher.draw(draws_of(7), n_view, Progress(), None)
            found.append(teacher.estimate(latents, question, drawn).guided)
        gaps[n_view] = (found[0] - found[1]).abs().max()
    assert gaps[1] == 0 < gaps[2]


def test_negatives_need_the_texts_of_the_sides(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="needs text_by_view=true"):
        teacher_with_negatives(folders, text_by_view=False)


# Timesteps


class TopDraws(Draws):
    """The largest integer that could be drawn."""

    def integers(self, stream: str, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.full((len(self.samples), *shape), high - 1)


@pytest.mark.parametrize(("included", "largest"), [(False, 499), (True, 500)])
def test_the_largest_timestep_is_drawn_if_it_is_included(folders: dict[str, str], included: bool, largest: int) -> None:
    options = {"min_timestep": 0.02, "max_timestep": 0.5, "max_timestep_included": included}
    teacher = teacher_with_negatives(folders, **options)
    drawn = teacher.draw(TopDraws(0, (1,), torch.device("cpu")), 4, Progress(), None)
    assert drawn.t.tolist() == [largest] * 4


def test_no_timestep_lies_beyond_the_schedule(folders: dict[str, str]) -> None:
    teacher = teacher_with_negatives(folders, max_timestep=1.0, max_timestep_included=True)
    drawn = teacher.draw(TopDraws(0, (1,), torch.device("cpu")), 4, Progress(), None)
    assert drawn.t.tolist() == [999] * 4


def test_each_of_all_views_has_a_timestep_of_its_own_and_the_gradient_is_their_mean(folders: dict[str, str]) -> None:
    """Against one question a view, each as if it were the only one."""
    teacher = teacher_with_negatives(folders, perp_neg={}, text_by_view=False)
    question = question_about(1)
    drawn = teacher.draw(draws_of(7), 4, Progress(), None)
    assert len(set(drawn.t.tolist())) == 4
    together = teacher.judge(question, [drawn])[0]
    alone = 0.0
    for row in range(4):
        sight = question.sights[0]._replace(rows=torch.tensor([row]))
        names = ("t", "plus_rand", "noise", "vae_noise")
        part = dataclasses.replace(drawn, **{name: getattr(drawn, name)[row : row + 1] for name in names})
        alone = alone + teacher.judge(dataclasses.replace(question, sights=(sight,)), [part])[0] / 4
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
def test_asynchronous_distillation_without_shift_is_the_classifier_times_the_scale_less_one(
    folders: dict[str, str], weighting: str
) -> None:
    """So it is in our CSD, whose gradient is (s - 1) w(t) (e_c - e_u), written out here; pixel gradients agree, too."""
    scale, gradients = 7.5, []
    question, samples = question_about(2), (7, 8)
    for kind in ({"type": "asd", "ratio": 1e-9}, {"type": "csd"}):
        options = {"rule": {**kind, "weighting": weighting}, "guidance_scale": scale, "condition": "first"}
        guidance = ScoreDistillation({"teachers": make_teachers(folders, "sd", sd=options)})
        views = question.sights[0].views
        (score,) = guidance([views], question.cameras, make_texts(2), draws_of(*samples), Progress())
        gradients.append(score.rgb)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))

    options = {"perp_neg": {}, "guidance_scale": scale, "rule": {"type": "asd", "ratio": 1e-9, "weighting": weighting}}
    teacher = teacher_with_negatives(folders, **options)
    drawn = teacher.draw(draws_of(*samples), 4, Progress(), None)
    e = teacher.estimate(torch.zeros(8, *teacher.latent_shape), question, drawn)
    alpha, sigma = e.schedule.alpha_sigma(e.t, e.latents)
    weight = {"sds": sigma**2, "uniform": 1.0, "fantasia3d": alpha * sigma**2}[weighting]
    assert torch.equal(e.t, e.t_plus)
    expected = (scale - 1) * weight * (e.cond - e.uncond)
    torch.testing.assert_close(teacher.rule.gradient(e), expected, rtol=1e-3, atol=1e-5)
