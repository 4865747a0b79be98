"""Solids can be known from the training cameras: custom/shapeworld/visibility.py."""

import math

import pytest
import torch

from custom.shapeworld.visibility import camera_positions, forms, hull_iou, main, seen_share
from custom.shapeworld.world import parse_caption

LEAST = 0.9  # of two and three parts; measured: 0.902, a cross that closes the hole of a tall torus


def test_cameras_go_around_over_the_elevations_of_the_training():
    positions = camera_positions()
    elevations = (positions[:, 2] / 1.6).asin().rad2deg().round().int().tolist()
    torch.testing.assert_close(positions.norm(dim=1), torch.full((len(positions),), 1.6))
    assert sorted(set(elevations)) == list(range(-45, 61, 15))
    assert len(positions.unique(dim=0)) == len(positions) == 24 * 8


def test_what_is_seen_from_below_is_a_matter_of_the_angle():
    """The lower face of a cylinder: from its middle the lowest cameras are `middle` degrees beside the normal."""
    solid = parse_caption("a red cylinder")
    share = 0.72 / (0.72 + 2) / 2  # of one face in the surface
    low, flat = -0.65 / math.hypot(0.72, 1), 1.6 * math.cos(math.radians(45))
    rim = 0.72 * 0.65 / math.hypot(0.72, 1)
    nearest = math.degrees(math.atan((flat - rim) / (flat + low)))
    middle = math.degrees(math.atan(flat / (flat + low)))
    assert seen_share(solid, 1000, grazing_deg=middle + 1) == 1
    seen = seen_share(solid, 1000, grazing_deg=nearest - 1)
    assert seen == pytest.approx(1 - share, abs=4 * math.sqrt(share / 1000))


def test_what_stands_beside_hides_nothing_for_good():
    assert seen_share(parse_caption("a red cube beside a blue cube"), 500) > 0.98


@pytest.mark.parametrize("start", range(0, 48, 16))
def test_single_solids_can_be_known(start):
    for solid in forms(48)[start : start + 16]:
        assert len(solid.parts) == 1
        assert seen_share(solid, 300) >= 0.99, solid


@pytest.mark.parametrize("start", range(48, 88, 10))
def test_solids_of_several_parts_can_be_known(start):
    for solid in forms(88)[start : start + 10]:
        assert len(solid.parts) > 1
        assert seen_share(solid, 300) >= LEAST, solid


def test_the_hull_of_a_convex_solid_is_itself():
    """Notches fill up: from no camera is a star more than its silhouette."""
    cube, star = (hull_iou(parse_caption(f"a red {shape}"), 32) for shape in ("cube", "star"))
    assert cube > 0.99
    assert 0.7 < star < 0.95


def test_command(capsys):
    main(["--limit", "2", "--points", "50", "--lowest", "1"])
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2
    assert "of 2 solids show 99 % of their surface" in said
