import math
from functools import partial

import pytest
import torch
from analytic_scenes import SOLIDS, Solid, box_sdf, cameras, eroded, solids, sphere_sdf, surroundings

from triplaneturbo.cameras import ray_directions
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.renderers.shading import disparity, normals_as_colors
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.schedule import Progress
from triplaneturbo.types import FieldSample

TEXT = torch.zeros(1, 4)
SMALL = {"num_samples_per_ray": 16, "num_samples_per_ray_importance": 24, "randomized": False}
PICTURES = ("rgb", "normal", "normal_white", "disparity", "opacity", "depth")


def ball(*sizes):
    return solids(sphere_sdf, *sizes)


def renderer(material=torch.sigmoid, background=None, **options):
    return VolumeRenderer({**SMALL, **options}, **surroundings(material, background))


def draws(*samples):
    return Draws(seed=1, samples=samples, device=torch.device("cpu"))


@pytest.mark.parametrize("solid", SOLIDS)
@pytest.mark.parametrize("ray_range", ["planes", "box"])
def test_exact_field_gives_exact_pictures(solid, ray_range):
    sdf, truth, size = SOLIDS[solid]
    view = cameras(35.0)
    counts = {"num_samples_per_ray": 32, "num_samples_per_ray_importance": 48}
    subject = renderer(inv_std=100.0, ray_range=ray_range, **counts).eval()
    with torch.no_grad():
        views = subject(solids(sdf, size), view, TEXT, size=(128, 128))
    directions = ray_directions(view, 128, 128)
    hit, t, normal = truth(view.positions[:, None, None], directions, size)
    drawn = views.opacity[..., 0] > 0.5
    assert (drawn & hit).sum() / (drawn | hit).sum() >= 0.95
    solid_pixels = eroded(hit, 5)
    assert views.opacity[solid_pixels].mean() > 0.99
    assert (views.depth[..., 0] - t)[solid_pixels].abs().mean() < 0.002
    expected_normal = normals_as_colors(normal, view)
    assert (views.normal - expected_normal)[solid_pixels].abs().mean() < 0.01
    expected_disparity = disparity(t[..., None], torch.ones_like(views.opacity), view.distance)
    assert (views.disparity - expected_disparity)[solid_pixels].abs().mean() < 0.002
    expected_color = torch.sigmoid(2 * (view.positions[:, None, None] + t[..., None] * directions))
    assert (views.rgb - expected_color)[solid_pixels].abs().mean() < 0.002
    far_away = eroded(~hit, 5)
    assert (views.rgb - 0.5)[far_away].abs().max() < 0.01
    assert (views.normal - torch.tensor([0.5, 0.5, 1.0]))[far_away].abs().max() < 0.01
    assert (views.normal_white - 1)[far_away].abs().max() < 0.01


@pytest.mark.parametrize("ray_range", ["planes", "box"])
def test_a_world_twice_as_large_looks_the_same(ray_range):
    """Everything that is a length is doubled; the sharpness is one over a length."""
    pictures = []
    for scale in (1.0, 2.0):
        lengths = {"radius": scale, "near_plane": 0.1 * scale, "far_plane": 4.0 * scale, "inv_std": 20.0 / scale}
        subject = renderer(ray_range=ray_range, **lengths)
        pictures.append(subject(ball(0.5 * scale), cameras(35.0, distance=1.6 * scale), TEXT, size=(12, 12)))
    small, large = pictures
    torch.testing.assert_close(large.opacity, small.opacity, atol=1e-4, rtol=0)
    torch.testing.assert_close(large.extras["t_points"], 2 * small.extras["t_points"], atol=1e-4, rtol=0)
    torch.testing.assert_close(large.depth, 2 * small.depth, atol=1e-3, rtol=0)


def test_each_prompt_is_seen_through_its_own_scene_and_views():
    view = cameras(0.0, 70.0, 150.0, 220.0, n_view=2)
    both = renderer()(ball(0.4, 0.7), view, TEXT.expand(2, -1), size=(9, 12))
    for prompt, size in enumerate((0.4, 0.7)):
        rows = slice(2 * prompt, 2 * prompt + 2)
        alone = renderer()(ball(size), view.select(rows, 2), TEXT, size=(9, 12))
        for name in PICTURES:
            torch.testing.assert_close(getattr(both, name)[rows], getattr(alone, name))
        count = len(alone.extras["sdf_grad"])
        torch.testing.assert_close(both.extras["sdf_grad"].split(count)[prompt], alone.extras["sdf_grad"])


@pytest.mark.parametrize("training", [True, False])
def test_chunks_change_neither_pictures_nor_gradients(training):
    results = []
    for chunk in (0, 700):
        scene, _ = solids(box_sdf, 0.4, 0.6).detached()
        subject = renderer(train_chunk_size=chunk, eval_chunk_size=chunk).train(training)
        views = subject(scene, cameras(10.0, 100.0, n_view=1), TEXT.expand(2, -1), size=(8, 8))
        (views.rgb.sum() + views.disparity.square().sum() + views.normal.square().sum()).backward()
        results.append((views, scene.tensors["size"].grad))
    # The last digit of a ray, which other vector instructions may round differently, moves the box's normals by 8e-5
    # and a gradient of 140 by 2e-3.
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    (whole, gradient), (pieces, gradient_of_pieces) = results
    for name in PICTURES:
        close(getattr(whole, name), getattr(pieces, name))
    close(gradient, gradient_of_pieces)
    assert gradient.abs().sum() > 0
    assert ("sdf_grad" in whole.extras) == training
    for name, value in whole.extras.items():
        close(value, pieces.extras[name])


def test_jitter_belongs_to_the_sample():
    subject = renderer(randomized=True)
    view = cameras(0.0, 90.0, n_view=1)
    pair = subject(ball(0.5, 0.5), view, TEXT.expand(2, -1), size=(6, 6), draws=draws(7, 9))
    second = subject(ball(0.5), view.select(slice(1, 2), 1), TEXT, size=(6, 6), draws=draws(9))
    still = renderer()(ball(0.5), view.select(slice(1, 2), 1), TEXT, size=(6, 6))
    count = len(second.extras["t_points"])
    torch.testing.assert_close(pair.extras["t_points"][count:], second.extras["t_points"])
    assert (second.extras["t_points"] - still.extras["t_points"]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="needs draws"):
        subject(ball(0.5), view.select(slice(1, 2), 1), TEXT, size=(6, 6))


def test_extras_are_consistent_with_the_pictures():
    view = cameras(0.0)
    views = renderer()(ball(0.5), view, TEXT, size=(7, 7))
    extras = {name: views.extras[name].view(1, 7, 7, 41, -1) for name in ("weights", "t_points", "t_dirs", "sdf")}
    torch.testing.assert_close(extras["weights"].sum(3), views.opacity)
    torch.testing.assert_close((extras["weights"] * extras["t_points"]).sum(3), views.depth)
    spread = extras["weights"] * (extras["t_points"] - views.depth.unsqueeze(3)).square()
    torch.testing.assert_close(spread.sum(3), views.extras["z_variance"])
    points = view.positions[:, None, None, None] + extras["t_points"] * extras["t_dirs"]
    torch.testing.assert_close(points.norm(dim=-1, keepdim=True) - 0.5, extras["sdf"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("law", ["neus", "volsdf"])
def test_gradient_of_the_size_is_the_change_of_the_picture(law):
    subject = renderer(num_samples_per_ray_importance=64, inv_std=30.0, law=law, ray_range="box")
    subject = subject.double()
    view = cameras(30.0, fovy=50.0)
    view = type(view)(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in vars(view).items()})

    def total(size):
        scene = FieldScene(Solid(None, sphere_sdf), {"size": size.view(1, 1)})
        views = subject(scene, view, TEXT.double(), size=(12, 12))
        return views.opacity.sum() + views.disparity.sum() + views.rgb.sum()

    size = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(size), size)
    step = 2e-3
    difference = (total(size + step) - total(size - step)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=0.03, atol=0)


def test_color_gradient_is_shrunk_on_schedule_and_only_in_color():
    gain = torch.ones(3, requires_grad=True)
    tint = torch.full((3,), 0.5, requires_grad=True)
    subject = renderer(
        material=lambda features: features.sigmoid() * gain,
        background=lambda directions, text: tint.expand_as(directions),
        rgb_grad_shrink=[0, 1.0, 0.2, 100],
    )
    gradients = []
    for step in (0, 50, 100):
        views = subject(ball(0.5), cameras(0.0), TEXT, size=(5, 5), progress=Progress(step=step))
        gradients.append(torch.autograd.grad(views.rgb.sum(), (gain, tint)))
    torch.testing.assert_close(gradients[1][0], 0.6 * gradients[0][0])
    torch.testing.assert_close(gradients[2][0], 0.2 * gradients[0][0])
    torch.testing.assert_close(gradients[2][1], gradients[0][1])


def test_sharpness_is_learned_or_scheduled():
    learned = renderer(learned_variance_init=0.3)
    assert dict(learned.named_parameters()).keys() == {"variance._inv_std"}
    views = learned(ball(0.5), cameras(0.0), TEXT, size=(6, 6))
    torch.testing.assert_close(views.extras["inv_std"], torch.tensor(3.0).exp())
    assert renderer(learned_variance_init=0.9).variance().item() == pytest.approx(math.exp(9.0))
    views.depth.sum().backward()
    assert learned.variance._inv_std.grad.abs() > 0
    frozen = renderer(trainable_variance=False)
    assert not any(p.requires_grad for p in frozen.parameters())
    scheduled = renderer(inv_std=[0, 10.0, 50.0, 100])
    views = scheduled(ball(0.5), cameras(0.0), TEXT, size=(6, 6), progress=Progress(step=50))
    assert views.extras["inv_std"].item() == 30.0


def test_annealing_ends_at_the_true_slope():
    arguments = ball(0.5), cameras(0.0), TEXT
    plain = renderer()(*arguments, size=(6, 6))
    annealed = renderer(cos_anneal_end_steps=10)
    start = annealed(*arguments, size=(6, 6))
    torch.testing.assert_close(annealed(*arguments, size=(6, 6), progress=Progress(step=10)).depth, plain.depth)
    # At the start surfaces seen from behind are lit too: light that passed the front is absorbed there.
    assert start.opacity.sum() > plain.opacity.sum()


def test_annealing_changes_nothing_where_the_surface_is_seen_head_on():
    """A ray through the middle of a ball meets it at slope -1 and leaves it at slope 1. The annealed slope relu(1/2 -
    slope / 2) is that of the surface, 1 and 0, at both: only surfaces seen from the side are lit more."""
    arguments = ball(0.5), cameras(0.0), TEXT
    plain, annealed = renderer(), renderer(cos_anneal_end_steps=10)
    middle = plain(*arguments, size=(1, 1))
    for step in (0, 5):
        found = annealed(*arguments, size=(1, 1), progress=Progress(step=step))
        torch.testing.assert_close(found.extras["weights"], middle.extras["weights"], atol=1e-5, rtol=0)
    assert middle.opacity.item() > 0.9


class Fog(Solid):
    """A density of 3 within a ball of the size that the prompt says."""

    kind = "density"

    def value(self, tensors, points):
        return 3.0 * (points.norm(dim=-1, keepdim=True) < tensors["size"][:, None])

    def query(self, tensors, points, *, features=True, normals=False):
        flat = torch.zeros_like(points)
        return FieldSample(self.value(tensors, points), self.features(tensors, points), flat, flat)


def test_a_density_absorbs_along_the_chord():
    """Through the middle of the ball 1 - exp(-3 * 2 * 0.5); the samples are all in the middle of fine intervals."""
    fog = FieldScene(Fog(None, sphere_sdf), {"size": torch.tensor([[0.5]])})
    view = cameras(0.0, elevation=0.0)
    views = renderer(num_samples_per_ray=256, num_samples_per_ray_importance=256, ray_range="box")(
        fog, view, TEXT, size=(9, 9)
    )
    assert views.opacity[0, 4, 4, 0].item() == pytest.approx(1 - math.exp(-3), abs=0.01)
    assert views.opacity[0, 0, 0, 0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("law", "kind", "allowed"), [("density", "sdf", "neus or volsdf"), ("neus", "density", "density")]
)
def test_a_law_for_another_kind_of_field_is_refused(law, kind, allowed):
    class Geometry:
        makes = FieldScene
        field = Fog(None, sphere_sdf) if kind == "density" else Solid(None, sphere_sdf)

    renderer().check_geometry(Geometry)
    with pytest.raises(ConfigError, match=f"law is '{law}'.*of the kind '{kind}'; allowed: {allowed}"):
        renderer(law=law).check_geometry(Geometry)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="near_plane"):
        renderer(near_plane=2.0, far_plane=1.0)
    with pytest.raises(ConfigError, match=r"num_samples_per_ray must be in \[2, 65536\]"):
        renderer(num_samples_per_ray=1)
    with pytest.raises(ConfigError, match="allowed: 'neus', 'volsdf', 'density'"):
        renderer(law="volume")
    with pytest.raises(ValueError, match="do not fit"):
        renderer()(ball(0.5, 0.5), cameras(0.0), TEXT.expand(2, -1), size=(4, 4))
