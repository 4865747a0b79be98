"""Random views as a function of their random numbers and of the step."""

import math

import pytest
import torch

from custom.scaledreamer.cameras import RandomViews
from triplaneturbo.base import build
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.schedule import Progress

STILL = {"elevation": [0, 30], "azimuth": [-180, 180], "fovy": [40, 60], "distance": [1.0, 2.0]}


def numbers(samples, groups, **given):
    """Half of everything, and no shaking, unless it is given."""
    half = torch.full((samples, groups), 0.5)
    found = dict.fromkeys(("elevation", "azimuth", "distance", "fovy", "zoom"), half)
    vector = torch.zeros(samples, groups, 3)
    found |= {"sphere": torch.ones(samples, 1), "camera": vector + 0.5, "center": vector, "up": vector}
    return found | given


def test_a_ring_shares_all_but_the_azimuth():
    made = RandomViews(STILL).place(numbers(2, 1, azimuth=torch.tensor([[0.0], [0.5]])))
    torch.testing.assert_close(made.azimuth_deg, torch.tensor([-180.0, -90, 0, 90, -135, -45, 45, 135]))
    torch.testing.assert_close(made.elevation_deg, torch.full((8,), 15.0))
    torch.testing.assert_close(made.distance, torch.full((8,), 1.5))
    torch.testing.assert_close(made.fovy, torch.full((8,), math.radians(50)))
    torch.testing.assert_close(made.positions.norm(dim=1), made.distance)


def test_views_on_their_own_stand_in_parts_of_the_range_or_anywhere():
    uniform = torch.tensor([[0.0, 0.5, 0.25, 1.0]])
    for spread, expected in ((True, [-180.0, -45, 22.5, 180]), (False, [-180.0, 0, -90, 180])):
        sampler = RandomViews({**STILL, "ring": False, "spread_azimuth": spread})
        made = sampler.place(numbers(1, 4, azimuth=uniform, elevation=uniform))
        torch.testing.assert_close(made.azimuth_deg, torch.tensor(expected))
        torch.testing.assert_close(made.elevation_deg, 30 * uniform[0])


def test_a_relative_distance_belongs_to_the_field_of_view_before_the_zoom():
    sampler = RandomViews({**STILL, "zoom": [0.5, 1.5], "relative_distance": True})
    made = sampler.place(numbers(1, 1, zoom=torch.zeros(1, 1)))
    torch.testing.assert_close(made.fovy, torch.full((4,), math.radians(25)))
    torch.testing.assert_close(made.distance, torch.full((4,), 1.5 / math.tan(math.radians(25))))


@pytest.mark.parametrize("quirks", [[], ["sphere-by-percent"]])
def test_elevations_on_the_sphere(quirks):
    """Evenly in height: half of them below asin(sin(30) / 2); by percent none is above asin(1 / 3)."""
    sampler = RandomViews({**STILL, "sphere_share": 1.0, "quirks": quirks})
    uniform = torch.linspace(0, 1, 1001)[:, None]
    made = sampler.place(numbers(1001, 1, elevation=uniform, sphere=torch.zeros(1001, 1)))
    elevation = made.elevation_deg[::4]
    heights = made.positions[::4, 2] / made.distance[::4]
    torch.testing.assert_close(heights, torch.linspace(0, 1 / 3 if quirks else 0.5, 1001), atol=1e-5, rtol=0)
    assert elevation.max().item() == pytest.approx(math.degrees(math.asin(1 / 3)) if quirks else 30.0, abs=1e-3)


def test_half_of_the_samples_are_even_in_degrees():
    sampler = RandomViews({**STILL, "elevation": [0, 90], "n_view": 1})
    draws = Draws(seed=0, samples=range(2000), device=torch.device("cpu"))
    high = (sampler(draws, "cameras/0").elevation_deg > 60).float().mean()
    expected = 0.5 * (1 / 3) + 0.5 * (1 - math.sin(math.radians(60)))
    assert abs(float(high) - expected) < 0.03


def test_shaken_cameras_look_at_a_shaken_point():
    shaken = {"camera_jitter": 0.2, "center_jitter": 0.1, "up_jitter": 0.3}
    drawn = {"camera": [1.0, 0.5, 0.0], "center": [1.0, -2.0, 0.0], "up": [0.0, 1.0, 0.0]}
    given = {name: torch.tensor(vector).view(1, 1, 3) for name, vector in drawn.items()}
    still = RandomViews({**STILL, "n_view": 1}).place(numbers(1, 1))
    made = RandomViews({**STILL, "n_view": 1, **shaken}).place(numbers(1, 1, **given))
    torch.testing.assert_close(made.positions - still.positions, torch.tensor([[0.2, 0.0, -0.2]]))
    right, upward, backward = made.c2w[0, :3, :3].T
    towards = torch.tensor([0.1, -0.2, 0.0]) - made.positions[0]
    torch.testing.assert_close(-backward, towards / towards.norm())
    assert torch.dot(right, torch.tensor([0.0, 0.3, 1.0])).abs() < 1e-6
    assert torch.dot(upward, torch.tensor([0.0, 0.3, 1.0])) > 0
    torch.testing.assert_close(made.c2w[0, :3, :3].det(), torch.tensor(1.0))


def test_views_grow_from_one_place_to_the_whole_ranges():
    sampler = RandomViews({**STILL, "progressive_until": 99, "first_elevation": 20.0})
    expected = {
        0: ((20, 20), (0, 0)),
        50: ((10, 25), (-90, 90)),
        100: ((0, 30), (-180, 180)),
        500: ((0, 30), (-180, 180)),
    }
    for step, (elevation, azimuth) in expected.items():
        now = sampler.at(Progress(step)).cfg
        assert now.elevation == pytest.approx(elevation)
        assert now.azimuth == pytest.approx(azimuth)


def test_without_growth_the_first_step_sees_everything_unless_by_mistake():
    for quirks, azimuth in (([], (-180, 180)), (["first-step-at-rest"], (0, 0))):
        sampler = RandomViews({**STILL, "quirks": quirks})
        assert sampler.at(Progress(0)).cfg.azimuth == azimuth
        assert sampler.at(Progress(1)).cfg.azimuth == (-180, 180)


def test_the_number_of_views_changes_at_milestones():
    sampler = RandomViews({**STILL, "ring": False, "n_view": 4, "milestones": [10, 20], "later_views": [2, 1]})
    draws = Draws(seed=0, samples=(5,), device=torch.device("cpu"))
    found = {step: sampler.at(Progress(step))(draws, "cameras/0") for step in (0, 9, 10, 19, 20)}
    assert {step: (len(made), made.n_view) for step, made in found.items()} == {
        0: (4, 4), 9: (4, 4), 10: (2, 2), 19: (2, 2), 20: (1, 1)
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"later_views \(\[2\]\) must have an entry for each of the increasing"):
        RandomViews({"milestones": [10, 20], "later_views": [2]})


def test_views_belong_to_the_sample_and_the_stream():
    sampler = build("cameras", {"type": "random-views", **STILL, "camera_jitter": 0.1, "n_view": 3})

    def place(*samples, stream="cameras/0"):
        return sampler(Draws(seed=1, samples=samples, device=torch.device("cpu")), stream)

    both = place(4, 9)
    assert (both.n_view, len(both)) == (3, 6)
    assert torch.equal(both.c2w[3:], place(9).c2w)
    assert not torch.equal(place(9, stream="cameras/1").c2w, place(9).c2w)


def test_ranges_are_checked():
    with pytest.raises(ConfigError, match=r"cameras\.zoom must be \[low, high\]"):
        RandomViews({"zoom": [2.0, 1.0]})
