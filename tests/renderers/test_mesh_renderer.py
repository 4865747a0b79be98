import pytest
import torch
from analytic_scenes import SOLIDS, Solid, box_sdf, cameras, eroded, solids, sphere_sdf, surroundings

from triplaneturbo.cameras import ray_directions
from triplaneturbo.errors import ConfigError, EmptyFieldError
from triplaneturbo.ops.marching_cubes import touched_points
from triplaneturbo.renderers.mesh import MeshRenderer
from triplaneturbo.renderers.shading import disparity, normals_as_colors
from triplaneturbo.renderers.surface import force_surface, surface_meshes
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.isosurface import extract
from triplaneturbo.schedule import Progress

TEXT = torch.zeros(1, 4)
PICTURES = ("rgb", "normal", "normal_white", "disparity", "opacity", "depth")


def ball(*sizes):
    return solids(sphere_sdf, *sizes)


def renderer(background=None, **options):
    return MeshRenderer({"isosurface_resolution": 24, **options}, **surroundings(background=background))


class Waves(Solid):
    """A bumpy ball; the amplitudes of bumps and of the grid's offsets are 6 and 18 of 24 numbers."""

    def configure(self):
        super().configure(lambda points, size: points.norm(dim=-1, keepdim=True) - 0.6)

    def value(self, tensors, points):
        bumps = tensors["waves"][:, None, :6] * self.basis(points)
        return self.function(points, None) + bumps.sum(-1, keepdim=True)

    def level_set(self, tensors, points, *, resolution):
        amplitudes = tensors["waves"][:, 6:].unflatten(-1, (3, 6))
        return self.value(tensors, points), torch.einsum("bdk,bnk->bnd", amplitudes, self.basis(points))

    def basis(self, points):
        return torch.cat([(5 * points).sin(), (4 * points + 1).cos()], -1)


class LiftedWaves(Waves):
    """The same, coloured by the numbers; where the last one is large, the field is positive everywhere."""

    def value(self, tensors, points):
        return super().value(tensors, points) + tensors["waves"][:, None, -1:].square()

    def features(self, tensors, points):
        return 2 * points + tensors["waves"][:, None, :3]


def waves(batch=1):
    return 0.05 * torch.randn(batch, 24, generator=torch.Generator().manual_seed(0))


def wavy(numbers, field=Waves):
    return FieldScene(field(), {"waves": numbers})


@pytest.mark.parametrize("solid", SOLIDS)
def test_exact_field_gives_exact_pictures(solid):
    sdf, truth, size = SOLIDS[solid]
    view = cameras(35.0)
    with torch.no_grad():
        views = renderer(isosurface_resolution=128)(solids(sdf, size), view, TEXT, size=(128, 128))
    directions = ray_directions(view, 128, 128)
    hit, t, normal = truth(view.positions[:, None, None], directions, size)
    drawn = views.opacity[..., 0] > 0.5
    assert (drawn & hit).sum() / (drawn | hit).sum() >= 0.98
    inside = eroded(hit, 3)
    assert views.opacity[inside].min() == 1
    assert (views.depth[..., 0] - t)[inside].abs().mean() < 0.002
    assert (views.normal - normals_as_colors(normal, view))[inside].abs().mean() < 0.01
    expected_disparity = disparity(t[..., None], torch.ones_like(views.opacity), view.distance)
    assert (views.disparity - expected_disparity)[inside].abs().mean() < 0.001
    color = torch.sigmoid(2 * (view.positions[:, None, None] + t[..., None] * directions))
    assert (views.rgb - color)[inside].abs().mean() < 0.002
    outside = eroded(~hit, 3)
    assert (views.rgb[outside] == 0.5).all()
    assert (views.depth[outside] == 0).all()
    assert (views.disparity[outside] == 0).all()
    assert (views.normal[outside] == torch.tensor([0.5, 0.5, 1.0])).all()
    assert (views.normal_white[outside] == 1).all()


@pytest.mark.parametrize("solid", SOLIDS)
def test_agrees_with_the_volume_renderer(solid):
    sdf, _, size = SOLIDS[solid]
    counts = {"num_samples_per_ray": 32, "num_samples_per_ray_importance": 48}
    volume = VolumeRenderer({"inv_std": 200.0, "ray_range": "box", **counts}, **surroundings()).eval()
    arguments = solids(sdf, size), cameras(20.0, 200.0), TEXT
    with torch.no_grad():
        drawn = renderer(isosurface_resolution=96)(*arguments, size=(64, 90))
        marched = volume(*arguments, size=(64, 90))
    inside = eroded(drawn.opacity[..., 0] == 1, 3)
    assert inside.sum() > 1000
    for name in ("depth", "normal", "disparity", "rgb"):
        assert (getattr(drawn, name) - getattr(marched, name))[inside].abs().mean() < 0.01, name
    normals = [views.extras["comp_normal"] for views in (drawn, marched)]
    assert (normals[0] - normals[1])[inside].abs().mean() < 0.02
    assert all(((n[inside].norm(dim=-1) - 1).abs() < 1e-5).all() for n in normals)
    assert (normals[0][drawn.opacity[..., 0] == 0] == 0).all()
    assert (drawn.opacity - marched.opacity).abs().mean() < 0.01


def test_each_prompt_is_drawn_from_its_own_scene_and_views():
    view = cameras(0.0, 70.0, 150.0, 220.0, n_view=2)
    subject = renderer(enable_bg_rays=True)
    both = subject(ball(0.4, 0.7), view, TEXT.expand(2, -1), size=(10, 14))
    for prompt, size in enumerate((0.4, 0.7)):
        rows = slice(2 * prompt, 2 * prompt + 2)
        alone = subject(ball(size), view.select(rows, 2), TEXT, size=(10, 14))
        for name in PICTURES:
            torch.testing.assert_close(getattr(both, name)[rows], getattr(alone, name))
        torch.testing.assert_close(both.extras["meshes"][prompt].vertices, alone.extras["meshes"][0].vertices)


@pytest.mark.parametrize("detached", [True, False])
def test_a_batch_equals_single_calls_with_and_without_a_surface(detached):
    numbers = waves(3)
    numbers[1, -1] = 3.0
    weights = torch.randn(6, 14, 18, 3, generator=torch.Generator().manual_seed(1))
    view = cameras(0.0, 70.0, 150.0, 220.0, 10.0, 300.0, n_view=2)
    subject = renderer(isosurface_resolution=15, detach_if_empty=detached, surface_samples=True)

    def draw(single, rows):
        leaf = single.clone().requires_grad_()
        views = subject(wavy(leaf, LiftedWaves), view.select(rows, 2), TEXT.expand(len(leaf), -1), size=(14, 18))
        loss = sum((getattr(views, name) * weights[rows]).sum() for name in PICTURES)
        return views, torch.autograd.grad(loss, leaf)[0]

    together, gradient = draw(numbers, slice(0, 6))
    for prompt in range(3):
        rows = slice(2 * prompt, 2 * prompt + 2)
        alone, truth = draw(numbers[prompt : prompt + 1], rows)
        for name in PICTURES:
            torch.testing.assert_close(getattr(together, name)[rows], getattr(alone, name))
        for name in ("sdf", "sdf_grad"):
            torch.testing.assert_close(together.extras[name][prompt], alone.extras[name][0])
        mesh, single = together.extras["meshes"][prompt], alone.extras["meshes"][0]
        assert len(mesh.faces) > 0
        assert torch.equal(mesh.faces, single.faces)
        torch.testing.assert_close(mesh.vertices, single.vertices)
        torch.testing.assert_close(gradient[prompt], truth[0], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_through_the_whole_grid():
    resolution = 13
    line = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)
    numbers = waves().requires_grad_()
    scene = wavy(numbers)
    (mesh,) = surface_meshes(scene, resolution, radius=1.0)
    vertices, faces = mesh.vertices, mesh.faces
    values, offset = scene.level_set(grid, resolution=resolution)
    shape = (resolution,) * 3
    expected, expected_faces = extract(values.view(shape), offset.view(*shape, 3), 1.0)
    torch.testing.assert_close(vertices, expected)
    assert torch.equal(faces, expected_faces)
    direction = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((vertices * direction).sum(), numbers)
    (truth,) = torch.autograd.grad((expected * direction).sum(), numbers)
    assert (truth.abs() > 1e-3).sum() > 20
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_touched_points_reach_the_boundary():
    sdf = torch.ones(4, 4, 4)
    sdf[0, 1, 1] = -1
    expected = {(0, 1, 1), (1, 1, 1), (0, 0, 1), (0, 2, 1), (0, 1, 0), (0, 1, 2)}
    found = {(int(i) // 16, int(i) // 4 % 4, int(i) % 4) for i in touched_points(sdf).flatten().nonzero()}
    assert found == expected


def test_gradient_shares():
    def gradient(**options):
        numbers = waves().requires_grad_()
        (mesh,) = renderer(**options).surfaces(wavy(numbers), Progress(step=50))
        if not mesh.vertices.requires_grad:
            return torch.zeros(6), torch.zeros(18)
        (found,) = torch.autograd.grad(mesh.vertices.square().sum(), numbers)
        return found.flatten()[:6], found.flatten()[6:]

    sdf, deformation = gradient()
    assert sdf.abs().min() > 0
    assert deformation.abs().min() > 0

    def check(options, sdf_share, deformation_share):
        found = gradient(**options)
        torch.testing.assert_close(found[0], sdf_share * sdf, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[1], deformation_share * deformation, rtol=1e-4, atol=1e-6)

    check({"sdf_grad_shrink": [0, 1.0, 0.5, 100], "def_grad_shrink": 0.1}, 0.75, 0.1)
    check({"sdf_grad_shrink": 0.0, "def_grad_shrink": 1.0}, 0.0, 1.0)
    check({"sdf_grad_shrink": 0.0, "def_grad_shrink": 0.0}, 0.0, 0.0)


def test_silhouettes_move_with_the_surface():
    subject = renderer()
    view = cameras(20.0, 140.0)

    def area(size):
        scene = FieldScene(Solid(None, sphere_sdf), {"size": size.view(1, 1)})
        return subject(scene, view, TEXT, size=(48, 48)).opacity.sum()

    size = torch.tensor(0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(area(size), size)
    difference = (area(size + 0.02) - area(size - 0.02)) / 0.04
    torch.testing.assert_close(gradient, difference, rtol=0.1, atol=0)


def test_color_pulls_on_the_surface():
    scene, _ = solids(box_sdf, 0.5).detached()
    views = renderer()(scene, cameras(0.0, elevation=1.0), TEXT, size=(24, 24))
    centre = views.rgb[0, 8:16, 8:16, 0].mean()
    (gradient,) = torch.autograd.grad(centre, scene.tensors["size"])
    # The front face lies at x = size and is sigmoid(2x) red.
    expected = 2 * centre * (1 - centre)
    torch.testing.assert_close(gradient[0, 0], expected.detach(), rtol=0.02, atol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_field_without_surface_gets_a_stand_in(sign):
    scene, _ = solids(lambda points, size: sign * (points.square().sum(-1, keepdim=True) + size), 0.3).detached()
    size = scene.tensors["size"]
    (mesh,) = surface_meshes(scene, 12, radius=1.0)
    vertices, faces = mesh.vertices, mesh.faces
    assert len(faces) > 0
    assert vertices.abs().max() <= 1.2
    (gradient,) = torch.autograd.grad(vertices.square().sum(), size)
    line = torch.linspace(-1, 1, 12)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)
    sdf = scene.value(grid).view(12, 12, 12)
    extremes = torch.stack([sdf.argmin(), sdf.argmax()])
    whole, _ = extract(force_surface(sdf, extremes), None, 1.0)
    torch.testing.assert_close(vertices, whole)
    (expected,) = torch.autograd.grad(whole.square().sum(), size)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    flagged = renderer(detach_if_empty=True).surfaces(scene)[0]
    assert not flagged.vertices.requires_grad
    assert renderer(detach_if_empty=False).surfaces(scene)[0].vertices.requires_grad


def test_the_stand_in_is_a_point_inside_and_two_layers_outside():
    """-1 - max is added to the point in the middle, 1 - min to the two outermost layers, nothing to the rest."""
    sdf = torch.full((9, 9, 9), 2.0)
    expected = sdf.clone()
    expected[2:-2, 2:-2, 2:-2] = 0
    expected = torch.where(expected > 0, 1.0, 2.0)
    expected[4, 4, 4] = -1
    assert torch.equal(force_surface(sdf, torch.tensor([0, 1])), expected)


def test_a_broken_field_is_an_error():
    with pytest.raises(EmptyFieldError, match="not finite"):
        renderer().surfaces(ball(float("nan")))


def test_an_object_behind_the_camera_is_not_drawn():
    views = renderer()(ball(0.1), cameras(0.0, distance=0.2, fovy=5.0), TEXT, size=(8, 8))
    assert torch.isfinite(views.rgb).all()
    away = cameras(0.0)
    turned = away.c2w.clone()
    turned[:, :3, [0, 2]] *= -1
    away = type(away)(**{**vars(away), "c2w": turned})
    views = renderer()(ball(0.3), away, TEXT, size=(8, 8))
    assert (views.opacity == 0).all()
    assert (views.rgb == 0.5).all()


def test_small_pieces_can_be_dropped():
    def two_balls(points, size):
        big = points.norm(dim=-1, keepdim=True) - 0.5
        small = (points - 0.75).norm(dim=-1, keepdim=True) - 0.15
        return torch.minimum(big, small)

    (kept,) = renderer().surfaces(solids(two_balls, 0.5))
    (dropped,) = renderer(smallest_component=0.5).surfaces(solids(two_balls, 0.5))
    assert kept.vertices.norm(dim=-1).max() > 1
    assert dropped.vertices.norm(dim=-1).max() < 0.51
    # The small ball has (0.15 / 0.5)^2 = 0.09 of the faces.
    (all_of_it,) = renderer(smallest_component=0.01).surfaces(solids(two_balls, 0.5))
    torch.testing.assert_close(all_of_it.vertices, kept.vertices)


def test_surface_samples_are_the_field_at_visible_points():
    views = renderer(surface_samples=True)(
        ball(0.4, 0.6), cameras(0.0, 90.0, n_view=1), TEXT.expand(2, -1), size=(16, 16)
    )
    for sdf, gradient in zip(views.extras["sdf"], views.extras["sdf_grad"], strict=True):
        assert len(sdf) > 20
        assert sdf.abs().max() < 0.02
        torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(len(gradient)))


def text_color(directions, text):
    return text.repeat_interleave(len(directions) // len(text), 0)[:, None, None, :3].expand_as(directions)


def test_background_belongs_to_the_prompt_of_the_view():
    view = cameras(0.0, 90.0, 180.0, 270.0, n_view=2)
    text = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])
    corner = {}
    for quirks in ((), ("mixed-backgrounds",)):
        subject = renderer(background=text_color, quirks=list(quirks))
        corner[quirks] = subject(ball(0.3, 0.3), view, text, size=(8, 8)).rgb[:, 0, 0, 0]
    torch.testing.assert_close(corner[()], torch.tensor([0.1, 0.1, 0.9, 0.9]))
    torch.testing.assert_close(corner["mixed-backgrounds",], torch.tensor([0.1, 0.9, 0.1, 0.9]))


def test_background_rays():
    view = cameras(0.0, 90.0)

    def background(seen):
        return lambda directions, text: seen.append(directions) or torch.zeros_like(directions)

    lower = {"enable_bg_rays": True, "background_focal_height": 4}
    for options, expected in (
        ({}, -view.positions / 1.6),
        ({"enable_bg_rays": True}, ray_directions(view, 8, 10)),
        (lower, ray_directions(view, 8, 10, focal_height=4)),
    ):
        seen = []
        subject = renderer(background=background(seen), **options)
        subject(ball(0.3), view, TEXT, size=(8, 10))
        expected = expected[:, None, None].expand(2, 8, 10, 3) if expected.dim() == 2 else expected
        torch.testing.assert_close(seen[0], expected)


def test_depth_can_be_clip_space_z():
    view = cameras(0.0)
    arguments = ball(0.5), view, TEXT
    right = renderer()(*arguments, size=(16, 16)).depth[0, ..., 0]
    clip_z = renderer(quirks=["clip-depth"])(*arguments, size=(16, 16)).depth[0, ..., 0]
    hit = right > 0
    along_axis = -(ray_directions(view, 16, 16)[0] @ view.c2w[0, :3, 2])
    torch.testing.assert_close(clip_z[hit], (1.00020002 * right * along_axis - 0.20002)[hit], atol=1e-5, rtol=0)


def test_normals_for_losses_can_be_colours_smoothed_at_edges():
    arguments = ball(0.5), cameras(0.0), TEXT
    plain, smoothed = (
        renderer(quirks=quirks)(*arguments, size=(16, 16)).extras["comp_normal"]
        for quirks in ([], ["smoothed-normals"])
    )
    hit = plain.norm(dim=-1) > 0
    inside = eroded(hit, 1)
    torch.testing.assert_close(smoothed[inside], (plain[inside] + 1) / 2)
    assert (smoothed[eroded(~hit, 1)] == 0).all()
    assert (smoothed - (plain + 1) / 2 * hit[..., None]).abs().max() > 0.01  # at edges


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"isosurface_resolution must be in \[6, 2048\]"):
        renderer(isosurface_resolution=5)
    with pytest.raises(ConfigError, match="allowed: 'clip-depth'"):
        renderer(quirks=["clip-z"])
    with pytest.raises(ValueError, match="do not fit"):
        renderer()(ball(0.5, 0.5), cameras(0.0), TEXT.expand(2, -1), size=(4, 4))
