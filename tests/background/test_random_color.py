"""A random colour in the place of the background, in some steps of training."""

import pytest
import torch
import torch.nn.functional as F

from triplaneturbo.background import SolidColor
from triplaneturbo.background.base import RandomColors
from triplaneturbo.cameras import turntable
from triplaneturbo.draws import Draws
from triplaneturbo.renderers import MeshRenderer, PatchRenderer, VolumeRenderer
from triplaneturbo.scenes import FieldScene, HashGridField

SIZE = (8, 8)
TEXT = torch.zeros(1, 4)
VOLUME = {"type": "volume", "num_samples_per_ray": 4, "num_samples_per_ray_importance": 4}


def draws(*samples, seed=0):
    return Draws(seed, samples, torch.device("cpu"))


def directions(rows):
    return F.normalize(torch.randn(rows, 2, 3, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


def behind(background, drawn, n_view):
    rays = directions(len(drawn.samples) * n_view)
    return background.in_step(drawn, n_view)(rays, torch.zeros(len(drawn.samples), 4))


def test_each_picture_of_a_chosen_prompt_has_one_colour_of_its_own():
    seen = behind(SolidColor({"random_color": 1.0}), draws(3, 7), n_view=2)
    assert seen.std(dim=(1, 2)).max() == 0
    assert len({tuple(color) for color in seen[:, 0, 0].tolist()}) == 4


def test_prompts_are_chosen_with_the_given_probability_whatever_their_neighbours_are():
    background = SolidColor({"random_color": 0.25, "color": [0.5, 0.5, 0.5]})
    together = behind(background, draws(*range(400)), n_view=2)[:, 0, 0].view(400, 2, 3)
    chosen = (together != 0.5).any(2)
    assert torch.equal(chosen[:, 0], chosen[:, 1])
    assert chosen.float().mean() == pytest.approx(0.25, abs=0.07)
    first = int(chosen[:, 0].nonzero()[0])
    alone = behind(background, draws(first), n_view=2)[:, 0, 0]
    torch.testing.assert_close(alone, together[first])


def test_random_colours_fill_the_range_that_was_asked_for():
    background = SolidColor({"random_color": 1.0, "random_range": [0.4, 0.6]})
    seen = behind(background, draws(*range(200)), n_view=1)
    assert 0.4 <= seen.min() < 0.41
    assert 0.59 < seen.max() <= 0.6


def test_nothing_is_random_in_evaluation_or_unless_it_is_asked_for():
    assert SolidColor({}).draw(draws(1), 1) is None
    assert SolidColor({"random_color": 1.0}).eval().draw(draws(1), 1) is None


def test_a_hidden_background_is_part_of_the_graph_and_learns_nothing():
    learned = torch.rand(2, 1, 1, 3, requires_grad=True)
    RandomColors(torch.tensor([True, False]), torch.rand(2, 3)).over(learned).sum().backward()
    assert learned.grad[0].abs().max() == 0
    assert learned.grad[1].abs().min() == 1


@pytest.mark.parametrize("kind", ["volume", "patch", "mesh"])
def test_renderers_show_it_in_training(kind):
    """A corner of the pictures, which is past the object."""
    field = HashGridField({"bias_size": 0.3, "encoding": {"n_levels": 1, "log2_hashmap_size": 4}})
    siblings = {"material": torch.sigmoid, "background": SolidColor({"random_color": 1.0})}
    build = {
        "volume": lambda: VolumeRenderer({k: v for k, v in VOLUME.items() if k != "type"}, **siblings),
        "patch": lambda: PatchRenderer({"base_renderer": VOLUME, "patch_size": 4, "global_downsample": 2}, **siblings),
        "mesh": lambda: MeshRenderer({"isosurface_resolution": 12}, **siblings),
    }
    renderer, cameras = build[kind](), turntable(2, elevation_deg=0.0, distance=3.0, fovy_deg=60.0)
    corner = renderer(FieldScene(field), cameras, TEXT, size=SIZE, draws=draws(5)).rgb[:, 0, 0]
    torch.testing.assert_close(corner, siblings["background"].draw(draws(5), 2).colors, atol=2e-3, rtol=0)
    siblings["background"].eval()
    evaluated = renderer.eval()(FieldScene(field), cameras, TEXT, size=SIZE).rgb[:, 0, 0]
    torch.testing.assert_close(evaluated, torch.ones(2, 3), atol=2e-3, rtol=0)
