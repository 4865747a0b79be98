"""How far teachers' answers are from exact pictures, on a stand-in for a teacher."""

from dataclasses import replace

import pytest
import torch

from custom.shapeworld import bias
from custom.shapeworld.data import sample_cameras
from custom.shapeworld.models import N_VIEW, build_scheduler
from custom.shapeworld.render import render
from custom.shapeworld.report import Teachers
from custom.shapeworld.world import parse_caption
from triplaneturbo.diffusion import NoiseSchedule


class OneIdea(Teachers):
    """A teacher that expects the value `conditional` everywhere, without a caption `free`, up to a little noise."""

    def __init__(self, conditional, free, noise=0.0):
        self.expects, self.noise = (conditional, free), noise
        self.schedule = NoiseSchedule.from_config(build_scheduler().config)

    def conditions(self, kind, captions, cameras):
        return {"encoder_hidden_states": torch.zeros(2 * N_VIEW * len(captions), 1, 1)}

    def ask(self, kind, noisy, t, conditions):
        alpha, sigma = self.schedule.alpha_sigma(torch.full((len(noisy),), t), noisy)
        cleans = [value + self.noise * torch.randn_like(noisy) for value in self.expects]
        return tuple(alpha * (noisy - alpha * clean) / sigma - sigma * clean for clean in cleans)


def expected(teacher, clean, t=500):
    cameras = sample_cameras(1, N_VIEW, torch.Generator().manual_seed(0))
    return bias.expected(teacher, "mvdream", clean, ["a red cube"], cameras, t, torch.Generator().manual_seed(0))


def test_a_sample_is_what_the_guided_teacher_expects():
    """Normals and disparity in [-1, 1] come as numbers in [0, 1]."""
    cameras = sample_cameras(1, N_VIEW, torch.Generator().manual_seed(0))
    drawn = OneIdea(0.5, 0.1).sample(
        "richdreamer", ["a red cube"], cameras, torch.Generator().manual_seed(0), steps=5, scale=2.0
    )
    torch.testing.assert_close(drawn, torch.full((N_VIEW, 4, 32, 32), 0.9 / 2 + 0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("t", [60, 900])
def test_the_bias_is_that_of_the_guided_answer(t):
    clean = torch.full((N_VIEW, 4, 8, 8), 0.3)
    found = expected(OneIdea(0.5, 0.1), clean, t)
    for scale, halves in found.items():
        assert bias.bias(halves, clean) == pytest.approx(abs(0.1 + scale * 0.4 - 0.3), abs=1e-4)


def test_noise_of_the_answers_is_no_bias():
    """Its square mean alone would give .1 / sqrt(3) here."""
    torch.manual_seed(0)
    clean = torch.zeros(N_VIEW, 4, 32, 32)
    assert bias.bias(expected(OneIdea(0.0, 0.0, noise=0.1), clean)[1.0], clean) < 0.012


def test_the_share_of_the_way_to_the_dots():
    without, with_dots = torch.zeros(4, 4, 8, 8), torch.ones(4, 4, 8, 8)
    halves = expected(OneIdea(0.4, 0.4), without)[1.0]
    assert bias.share(halves, without, with_dots - without) == pytest.approx(0.4, abs=1e-4)
    halves = expected(OneIdea(0.4, 0.4), with_dots)[1.0]
    assert bias.share(halves, with_dots, without - with_dots) == pytest.approx(0.6, abs=1e-4)


def test_without_dots_solids_are_as_dark_on_average():
    caption = "a dotted red cube"
    cameras = sample_cameras(2, N_VIEW, torch.Generator().manual_seed(0))
    dotted, plain = (render([solid] * 2, cameras, 32) for solid in (parse_caption(caption), bias.without_dots(caption)))
    found = bias.in_mean_colour(dotted, plain).unflatten(0, (2, N_VIEW))
    seen = (plain.opacity > 0.5).permute(0, 3, 1, 2).unflatten(0, (2, N_VIEW))
    wanted = dotted.rgb.permute(0, 3, 1, 2).unflatten(0, (2, N_VIEW))
    sums = [(x * seen).sum((1, 2, 3, 4)) for x in (found, wanted)]
    torch.testing.assert_close(*sums)
    flat = plain.rgb.permute(0, 3, 1, 2).unflatten(0, (2, N_VIEW))
    assert torch.equal(found.where(~seen, 0), flat.where(~seen, 0))


def test_what_is_asked_about():
    assert len(set(bias.exact_captions())) == 24
    assert len(bias.dotted_captions()) == 12
    for caption in bias.dotted_captions():
        solid = parse_caption(caption)
        assert [replace(part, pattern="dotted") for part in bias.without_dots(caption).parts] == list(solid.parts)
