import math

import numpy as np
import pytest
import torch
from painted_ball import painted_ball
from PIL import Image
from solids import sphere

from triplaneturbo.cameras import ray_directions, turntable
from triplaneturbo.exporters.render import look_at, render_mesh, render_turntable, save_picture
from triplaneturbo.exporters.texture import add_texture
from triplaneturbo.types import Mesh


def test_sphere_covers_the_exact_disc():
    cameras = turntable(3, elevation_deg=15.0, distance=1.6, fovy_deg=60.0)
    picture = render_mesh(sphere(0.5, 48), cameras, 64)
    # A sphere of radius r at distance d is seen under the half angle asin(r / d).
    tangent = math.tan(math.asin(0.5 / 1.6)) / math.tan(math.radians(30))
    expected = math.pi * tangent**2 / 4
    covered = (picture != 1).any(-1).float().mean((1, 2))
    assert picture.shape == (3, 64, 64, 3)
    # Edge pixels count as covered: at most one pixel around the rim.
    rim = math.pi * tangent * 64 / 64**2
    assert ((covered > expected * 0.98) & (covered < expected + rim)).all()


def test_each_camera_sees_its_own_side():
    """The camera at azimuth 0 stands on +x and sees high red, (x + 1) / 2; y grows to its right."""
    cameras = turntable(4, elevation_deg=0.0, distance=1.6, fovy_deg=60.0)
    picture = render_mesh(sphere(), cameras, 33)
    centre = picture[:, 16, 16]
    expected = torch.tensor([[0.75, 0.5, 0.5], [0.5, 0.75, 0.5], [0.25, 0.5, 0.5], [0.5, 0.25, 0.5]])
    torch.testing.assert_close(centre, expected, atol=0.02, rtol=0)
    assert picture[0, 16, 22, 1] > picture[0, 16, 10, 1] + 0.1
    assert picture[0, 10, 16, 2] > picture[0, 22, 16, 2] + 0.1


def test_background_and_plain_colour():
    mesh = Mesh(sphere().vertices, sphere().faces)
    picture = render_mesh(mesh, turntable(1, elevation_deg=0.0, distance=1.6, fovy_deg=60.0), 16, background=0.25)
    assert picture[0, 0, 0].tolist() == [0.25] * 3
    torch.testing.assert_close(picture[0, 8, 8], torch.full((3,), 0.7))


def test_textures_are_shown():
    mesh = painted_ball(48)
    picture = render_turntable(mesh, 2, 48)
    textured = render_turntable(add_texture(mesh, size=128, max_faces=0), 2, 48)
    assert textured.std() > 0.1
    torch.testing.assert_close(textured, picture, atol=0.03, rtol=0)


def test_turntable_shows_all_of_the_object():
    """A long, thin object far from the origin is still framed."""
    mesh = sphere(0.5)
    moved = Mesh(mesh.vertices * torch.tensor([0.1, 0.1, 1.0]) + 5, mesh.faces, mesh.colors)
    views = render_turntable(moved, 4, 32)
    covered = (views != 1).any(-1)
    assert covered.flatten(1).any(1).all()
    edge = torch.cat([covered[:, 0], covered[:, -1], covered[:, :, 0], covered[:, :, -1]], dim=1)
    assert not edge.any()


def test_turntables_look_from_20_degrees_above():
    """In the middle of a view is the point of the ball of radius 1/2 that is nearest to its camera."""
    views = render_turntable(sphere(), 4, 33)
    up, along = math.sin(math.radians(20)), math.cos(math.radians(20))
    nearest = torch.tensor([[along, 0, up], [0, along, up], [-along, 0, up], [0, -along, up]]) / 2
    torch.testing.assert_close(views[:, 16, 16], (nearest + 1) / 2, atol=0.02, rtol=0)


def test_a_pixel_is_the_mean_of_four_samples():
    cameras = turntable(2, elevation_deg=15.0, distance=1.6, fovy_deg=60.0)
    fine = render_mesh(sphere(), cameras, 32, supersample=1)
    expected = fine.unflatten(2, (16, 2)).unflatten(1, (16, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(render_mesh(sphere(), cameras, 16), expected)


def test_pictures_stand_row_by_row(tmp_path):
    views = torch.arange(6).div(10).view(6, 1, 1, 1).expand(6, 4, 5, 3)
    save_picture(tmp_path / "a.png", views, columns=3)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (8, 15, 3)
    np.testing.assert_array_equal(pixels[::4, ::5, 0], np.rint(np.arange(6).reshape(2, 3) * 25.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_meshes_of_either_precision(dtype):
    mesh = sphere()
    double = Mesh(mesh.vertices.to(dtype), mesh.faces, mesh.colors.to(dtype))
    picture = render_mesh(double, turntable(1, elevation_deg=0.0, distance=1.6, fovy_deg=60.0), 8)
    assert picture.dtype == torch.float32


def test_normals_are_those_of_the_faces_and_look_at_the_camera():
    """Rays of a ball meet it at known points, where the normal is the point's direction; facets are 2 / 63 wide."""
    cameras = turntable(3, elevation_deg=25.0, distance=1.6, fovy_deg=60.0)
    ball = sphere(0.5, 64)
    sight = look_at(ball, cameras, 48)
    direction = ray_directions(cameras, 48, 48)
    origin = cameras.positions[:, None, None]
    middle = -(origin * direction).sum(-1)
    inside = middle.square() - origin.square().sum(-1) + 0.25
    sure = sight.covered & (inside > 0.02)
    expected = 2 * (origin + (middle - inside.clamp(min=0).sqrt())[..., None] * direction)
    assert (sight.normal[sure] * expected[sure]).sum(-1).min() > 0.995
    assert (sight.normal[~sight.covered] == 0).all()
    assert (sight.color[~sight.covered] == 0).all()
    torch.testing.assert_close(sight.normal[sight.covered].norm(dim=-1), torch.ones(int(sight.covered.sum())))


def test_the_order_of_corners_does_not_turn_normals():
    cameras = turntable(2, elevation_deg=10.0, distance=1.6, fovy_deg=60.0)
    ball = sphere(0.5, 24)
    turned = Mesh(ball.vertices, ball.faces.flip(1), ball.colors)
    torch.testing.assert_close(look_at(turned, cameras, 24).normal, look_at(ball, cameras, 24).normal)
