"""Exact pictures against closed forms."""

import math

import pytest
import torch

from custom.shapeworld.render import AMBIENT, LIGHT, render
from custom.shapeworld.world import PALETTE, parse_caption, placements
from triplaneturbo.cameras import orbit_cameras, ray_directions


def cameras(azimuths, *, elevation=20.0, distance=1.6, n_view=None):
    n = len(azimuths)
    return orbit_cameras(
        torch.full((n,), elevation),
        torch.tensor(azimuths),
        torch.full((n,), distance),
        torch.full((n,), 60.0),
        n_view=n_view or n,
        relative=False,
    )


@pytest.fixture(scope="module")
def sphere():
    """A sphere seen by two cameras without supersampling, and its closed-form ray distances and normals."""
    cams = cameras([30.0, 200.0])
    solid = parse_caption("a blue sphere")
    radius = placements(solid.form)[0].radius * placements(solid.form)[0].stretch[0]
    views = render([solid], cams, 32, supersample=1)
    direction = ray_directions(cams, 32, 32).double()
    origin = cams.positions.double()[:, None, None]
    middle = -(origin * direction).sum(-1)
    inside = middle.square() - origin.square().sum(-1) + radius**2
    hit = inside > 1e-3
    distance = middle - inside.clamp(min=0).sqrt()
    normal = (origin + distance[..., None] * direction) / radius
    return cams, views, hit, distance, normal


def test_silhouette_depth_and_disparity_of_a_sphere(sphere):
    cams, views, hit, distance, _ = sphere
    assert (views.opacity[..., 0] == 1)[hit].all()
    assert views.opacity.mean().item() == pytest.approx(hit.double().mean().item(), abs=0.02)
    torch.testing.assert_close(views.depth[..., 0].double()[hit], distance[hit], atol=2e-4, rtol=0)
    far, near = cams.distance + math.sqrt(3), cams.distance - math.sqrt(3)
    expected = ((far[:, None, None] - distance) / (far - near)[:, None, None]).clamp(0, 1)
    torch.testing.assert_close(views.disparity[..., 0].double()[hit], expected[hit], atol=1e-4, rtol=0)
    background = views.opacity[..., 0] == 0
    assert (views.disparity[..., 0][background] == 0).all()


def test_normals_are_in_the_camera_frame_with_x_flipped(sphere):
    cams, views, hit, _, normal = sphere
    right, up, backward = cams.c2w[:, :3, :3].double().unbind(-1)
    axes = [(normal * axis[:, None, None]).sum(-1) for axis in (-right, up, backward)]
    expected = torch.stack(axes, dim=-1) * 0.5 + 0.5
    torch.testing.assert_close(views.normal.double()[hit], expected[hit], atol=1e-3, rtol=0)
    background = views.opacity[..., 0] == 0
    assert (views.normal[background] == torch.tensor([0.5, 0.5, 1.0])).all()


def test_color_depends_on_position_alone(sphere):
    _, views, hit, _, normal = sphere
    light = torch.nn.functional.normalize(torch.tensor(LIGHT, dtype=torch.float64), dim=0)
    shade = AMBIENT + (1 - AMBIENT) * (0.5 + 0.5 * normal @ light)
    expected = torch.tensor(PALETTE["blue"], dtype=torch.float64) * shade[..., None]
    torch.testing.assert_close(views.rgb.double()[hit], expected[hit], atol=1e-3, rtol=0)


def test_supersampling_averages_rays():
    solid, cams = [parse_caption("a red cube on a blue torus")], cameras([40.0, 130.0])
    fine = render(solid, cams, 32, supersample=1, background=0.2)
    smooth = render(solid, cams, 16, supersample=2, background=0.2)
    for name in ("rgb", "normal", "disparity", "opacity", "depth"):
        pooled = getattr(fine, name).unflatten(2, (16, 2)).unflatten(1, (16, 2)).mean(dim=(2, 4))
        torch.testing.assert_close(getattr(smooth, name), pooled, atol=1e-6, rtol=0)


def test_the_upper_part_is_seen_above_the_lower_one():
    views = render([parse_caption("a red sphere on a blue cube")], cameras([10.0]), 32)
    rows = torch.arange(32.0)[:, None]
    cover = views.opacity[0, ..., 0]
    red, blue = views.rgb[0, ..., 0] * cover, views.rgb[0, ..., 2] * cover
    assert (red * rows).sum() / red.sum() + 5 < (blue * rows).sum() / blue.sum()


def test_background_shows_through():
    solid = [parse_caption("a red torus")]
    dark, bright = (render(solid, cameras([0.0]), 16, background=level) for level in (0.0, 1.0))
    torch.testing.assert_close(bright.rgb - dark.rgb, (1 - dark.opacity).expand(-1, -1, -1, 3), atol=1e-6, rtol=0)


def test_cameras_must_fit_the_solids():
    with pytest.raises(ValueError, match="as many cameras"):
        render([parse_caption("a red cube")] * 2, cameras([0.0, 90.0, 180.0], n_view=3), 8)


def test_a_solid_looks_the_same_in_any_company():
    """Rays that have arrived are left alone, however long those of other solids go on. The sphere fills its picture."""
    solids = [parse_caption(caption) for caption in ("a blue sphere", "a white star on a dotted blue torus")]
    together = render(solids, cameras([30.0, 80.0], distance=1.0, n_view=1), 24)
    for number, (solid, azimuth) in enumerate(zip(solids, (30.0, 80.0), strict=True)):
        alone = render([solid], cameras([azimuth], distance=1.0), 24)
        for kind in ("rgb", "normal", "disparity", "opacity", "depth"):
            seen = getattr(together, kind)[number : number + 1]
            torch.testing.assert_close(seen, getattr(alone, kind), atol=1e-5, rtol=0)
    assert together.opacity[0].min() == 1
