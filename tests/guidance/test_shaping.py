"""Shaping of picture gradients: what each does, of one teacher and of all, in which order."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from tiny_teachers import make_cameras, make_teachers, make_texts, make_views
from torch import Tensor

from triplaneturbo.base import build
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import ScoreDistillation, Shaping
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import ScoreGradient

START = Progress()
# Of four pixels: norms 5, 0.5, 0 and 13 over the channels.
GRADIENT = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.3, 0.4], [0.0, 0.0, 0.0], [-12.0, 3.0, 4.0]]).view(1, 2, 2, 3)


def test_clip_limits_every_entry() -> None:
    before = GRADIENT.clone()
    shaped = build("shaping", {"type": "clip", "limit": 3.5})(GRADIENT, START).view(4, 3)
    assert shaped.tolist()[0] == [3.0, -3.5, 0.0]
    assert shaped.tolist()[3] == [-3.5, 3.0, 3.5]
    assert torch.equal(shaped[1:3], GRADIENT.view(4, 3)[1:3])
    assert torch.equal(GRADIENT, before)


def test_clip_pixels_limits_the_norm_and_keeps_the_direction() -> None:
    shaped = build("shaping", {"type": "clip-pixels", "limit": 2.0})(GRADIENT, START).view(4, 3)
    expected = GRADIENT.view(4, 3) * torch.tensor([2 / 5, 1.0, 1.0, 2 / 13]).view(4, 1)
    torch.testing.assert_close(shaped, expected)


@pytest.mark.parametrize("name", ["clip", "clip-pixels"])
def test_limits_follow_their_schedule(name: str) -> None:
    shaping = build("shaping", {"type": name, "limit": [0, 1.0, 3.0, 100]})
    fixed = build("shaping", {"type": name, "limit": 2.0})
    torch.testing.assert_close(shaping(GRADIENT, Progress(step=50)), fixed(GRADIENT, START))
    with pytest.raises(ConfigError, match="limit must be in"):
        build("shaping", {"type": name, "limit": 0.0})


@register("test-scale")
class Scale(Shaping):
    """A shaping of a stranger."""

    @dataclass(kw_only=True)
    class Config(Shaping.Config):
        factor: float = 1.0

    def __call__(self, gradient: Float[Tensor, "M H W C"], progress: Progress) -> Float[Tensor, "M H W C"]:
        return self.cfg.factor * gradient


def judge(folders: dict[str, str], *names: str, whole: dict | None = None, **own: dict) -> list[ScoreGradient]:
    guidance = ScoreDistillation({"teachers": make_teachers(folders, *names, **own), "shaping": whole or {}})
    draws = Draws(seed=0, samples=(3, 5), device=torch.device("cpu"))
    return guidance([make_views(8, seed=r) for r in range(2)], make_cameras(2), make_texts(2), draws, START)


def shape_of(*shapings: dict) -> dict[str, dict]:
    return {str(i): shaping for i, shaping in enumerate(shapings)}


CLIP = {"type": "clip-pixels", "limit": 1e-3}
TRIPLE = {"type": "test-scale", "factor": 3.0}


def test_a_shaped_teacher_leaves_the_gradients_of_the_others_as_they_are(folders: dict[str, str]) -> None:
    mv, sd = judge(folders, "mv"), judge(folders, "sd")
    clip = build("shaping", CLIP)
    for order in (("mv", "sd"), ("sd", "mv")):
        both = judge(folders, *order, mv={"shaping": shape_of(CLIP)})
        for together, one, other in zip(both, mv, sd, strict=True):
            clipped = clip(one.rgb, START)
            assert (clipped - one.rgb).abs().max() > 1e-4
            torch.testing.assert_close(together.rgb, clipped + other.rgb)
    rd = judge(folders, "mv", "rd", mv={"shaping": shape_of(CLIP)})
    for together, alone in zip(rd, judge(folders, "rd"), strict=True):
        assert torch.equal(together.normal, alone.normal)
        assert torch.equal(together.disparity, alone.disparity)


def test_the_sum_is_shaped_after_all_teachers(folders: dict[str, str]) -> None:
    plain = judge(folders, "mv", "sd", "rd")
    shaped = judge(folders, "mv", "sd", "rd", whole=shape_of(CLIP))
    clip = build("shaping", CLIP)
    for before, after in zip(plain, shaped, strict=True):
        for kind in ("rgb", "normal", "disparity"):
            torch.testing.assert_close(getattr(after, kind), clip(getattr(before, kind), START))
            assert getattr(after, kind).norm(dim=-1).max() <= 1e-3 * (1 + 1e-5)


def test_shapings_act_in_the_order_in_which_they_are_written(folders: dict[str, str]) -> None:
    (plain, _), clip = judge(folders, "mv"), build("shaping", CLIP)
    for place in ("own", "whole"):
        for order, expected in (
            ((CLIP, TRIPLE), 3 * clip(plain.rgb, START)),
            ((TRIPLE, CLIP), clip(3 * plain.rgb, START)),
        ):
            options = {"mv": {"shaping": shape_of(*order)}} if place == "own" else {"whole": shape_of(*order)}
            torch.testing.assert_close(judge(folders, "mv", **options)[0].rgb, expected)


def test_what_no_teacher_looks_at_stays_without_a_gradient(folders: dict[str, str]) -> None:
    (gradient, _) = judge(folders, "mv", mv={"shaping": shape_of(CLIP)}, whole=shape_of(TRIPLE))
    assert gradient.normal is None
    assert gradient.disparity is None
