"""The measures of pictures against closed forms."""

import math

import pytest
import torch
from solids import sphere

from triplaneturbo.cameras import turntable
from triplaneturbo.evaluation.color import delta_e, lab
from triplaneturbo.evaluation.measures import (
    color_error,
    genus_right,
    normal_error,
    psnr,
    silhouette_iou,
    two_faces,
)
from triplaneturbo.exporters.render import Sight, look_at
from triplaneturbo.ops.mesh import Topology
from triplaneturbo.types import Mesh

DISTANCE = 1.6
CAMERAS = turntable(4, elevation_deg=0.0, distance=DISTANCE, fovy_deg=60.0)


def ball(radius=0.5, color=None):
    """Coloured by `color` of the vertices' positions."""
    mesh = sphere(radius, 48)
    return Mesh(mesh.vertices, mesh.faces, None if color is None else color(mesh.vertices))


def tint(*color):
    return lambda vertices: torch.tensor(color).expand_as(vertices)


def sight(color=(0.0, 0, 0), normal=(0.0, 0, 1), covered=True):
    shape = (2, 3, 3)
    return Sight(
        torch.tensor(color).expand(*shape, 3), torch.tensor(normal).expand(*shape, 3), torch.full(shape, covered)
    )


def test_silhouettes_of_two_balls_overlap_as_their_discs():
    """The tangent cone of a ball of radius r has the half angle asin(r / d); areas go with its squared tangent."""
    a, b = (look_at(ball(radius), CAMERAS, 192).covered for radius in (0.4, 0.5))
    tangents = [math.tan(math.asin(radius / DISTANCE)) for radius in (0.4, 0.5)]
    assert silhouette_iou(a, b) == pytest.approx((tangents[0] / tangents[1]) ** 2, abs=0.01)
    assert silhouette_iou(a, a) == 1
    assert silhouette_iou(a, torch.zeros_like(a)) == 0


def test_silhouettes_are_averaged_over_views():
    a = torch.tensor([[[True, True]], [[False, False]]])
    b = torch.tensor([[[True, False]], [[False, False]]])
    assert silhouette_iou(a, b) == 0.75  # 1/2, and two empty pictures


def test_psnr_is_averaged_over_views_and_ends_at_100():
    a = torch.zeros(2, 4, 4, 3)
    b = torch.stack([torch.full((4, 4, 3), 0.1), torch.full((4, 4, 3), 0.01)])
    assert psnr(a, b) == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert psnr(a, a) == pytest.approx(100, abs=1e-4)


@pytest.mark.parametrize("degrees", [0.0, 0.5, 30.0, 90.0, 180.0])
def test_normals_differ_by_the_angle_between_them(degrees):
    angle = math.radians(degrees)
    turned = sight(normal=(math.sin(angle), 0.0, math.cos(angle)))
    assert normal_error(sight(), turned) == pytest.approx(degrees, abs=1e-4)


def test_normals_of_a_ball_and_of_a_smaller_one_differ_by_where_rays_meet_them():
    """A ray at the distance h from the centre meets a ball of radius r where the normal is asin(h / r) off the ray."""
    near, far = (look_at(ball(radius), CAMERAS, 128) for radius in (0.4, 0.5))
    n = 20_000
    tangent = math.tan(math.asin(0.4 / DISTANCE)) * torch.linspace(0, 1, n, dtype=torch.float64).sqrt()  # even by area
    height = DISTANCE * tangent / (1 + tangent.square()).sqrt()
    expected = ((height / 0.4).clamp(max=1).asin() - (height / 0.5).asin()).rad2deg().mean().item()
    assert normal_error(near, far) == pytest.approx(expected, abs=0.3)


def test_colours_differ_as_their_ciede2000():
    a, b = (0.9, 0.1, 0.1), (0.8, 0.2, 0.1)
    expected = delta_e(lab(torch.tensor(a)), lab(torch.tensor(b))).item()
    assert expected > 3
    assert color_error(sight(a), sight(b)) == pytest.approx(expected, abs=1e-4)
    seen = [look_at(ball(color=tint(*color)), CAMERAS, 32) for color in (a, b)]
    assert color_error(*seen) == pytest.approx(expected, abs=1e-3)


def test_what_is_covered_in_one_picture_only_has_no_normal_and_no_colour():
    assert normal_error(sight(), sight(covered=False)) is None
    assert color_error(sight(), sight(covered=False)) is None
    half = sight((0.9, 0.1, 0.1))
    covered = half.covered.clone()
    covered[1] = False
    mixed = torch.where(covered[..., None], half.color, 0.0)
    assert color_error(half, Sight(mixed, half.normal, covered)) == pytest.approx(0, abs=1e-4)


# Janus


def pictures(mesh):
    return look_at(mesh, CAMERAS, 64).pictures(0.5, pool=2)


def painted(front, back):
    """Caps of these colours towards +x and -x on a ball that is light where y > 0 and dark elsewhere."""

    def colors(vertices):
        x, y = vertices[:, :1], vertices[:, 1:2]
        body = torch.where(y > 0, 0.9, 0.4).expand(-1, 3)
        return torch.where(x > 0.3, torch.tensor(front), torch.where(x < -0.3, torch.tensor(back), body))

    return pictures(ball(color=colors))


RED, BLUE = (1.0, 0.1, 0.1), (0.1, 0.1, 1.0)


def test_a_face_on_both_sides_is_a_janus():
    """Front and back are a pair of views, left and right another; of the second the two-faced ball is right."""
    true = painted(RED, BLUE)
    assert two_faces(true, true) == (1.0, 0.0)
    assert two_faces(painted(RED, RED), true) == (0.5, 0.5)
    assert two_faces(painted(BLUE, BLUE), true) == (0.5, 0.5)


def test_one_side_all_around_is_a_janus_everywhere():
    front = painted(RED, BLUE)[:1].expand(4, -1, -1, -1)
    right, twice = two_faces(front, painted(RED, BLUE))
    assert right == 0
    assert twice >= 0.5


def test_an_object_that_is_turned_around_is_wrong_and_no_janus():
    true = painted(RED, BLUE)
    assert two_faces(true.roll(2, 0), true) == (0.0, 0.0)


def test_an_object_whose_sides_are_equal_has_no_janus():
    plain = pictures(ball())
    assert two_faces(plain, plain) is None
    assert two_faces(painted(RED, BLUE), plain) is None


def test_genus_is_right_with_the_pieces_and_a_closed_surface_only():
    ring = Topology(True, 1, 1)
    assert genus_right(ring, ring)
    assert not genus_right(Topology(True, 1, 0), ring)
    assert not genus_right(Topology(True, 2, 1), ring)
    assert not genus_right(Topology(False, 1, None), Topology(False, 1, None))
