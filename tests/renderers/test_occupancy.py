"""Even steps through a cube, and a grid that knows where they matter."""

import pytest
import torch
from analytic_scenes import Solid, cameras, solids, sphere_sdf, surroundings

from triplaneturbo.cameras import ray_directions
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.renderers.occupancy import EVERY, RESOLUTION, WARM_UP, OccupancyGrid
from triplaneturbo.renderers.patch import PatchRenderer
from triplaneturbo.renderers.sampling import Jitter
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import FieldScene
from triplaneturbo.schedule import Progress
from triplaneturbo.types import FieldSample

TEXT = torch.zeros(1, 4)
DENSITY = 3.0


class Fog(Solid):
    """A density within a ball of the size that the prompt says."""

    kind = "density"

    def configure(self):
        super().configure(sphere_sdf)
        self.asked = 0

    def value(self, tensors, points):
        self.asked += points.shape[1]
        return DENSITY * (super().value(tensors, points) < 0).to(points.dtype)

    def query(self, tensors, points, *, features=True, normals=False):
        zero = torch.zeros_like(points)
        return FieldSample(self.value(tensors, points), self.features(tensors, points), zero, zero)


def fog(size=0.5):
    return FieldScene(Fog(None), {"size": torch.tensor([[size]])})


def renderer(estimator, **options):
    given = {"law": "density", "num_samples_per_ray": 200, "near_plane": 0.0, "far_plane": 100.0, "randomized": False}
    return VolumeRenderer({"estimator": estimator, **given, **options}, **surroundings())


def draws(*samples, seed=1):
    return Draws(seed=seed, samples=samples, device=torch.device("cpu"))


def learned(subject, scene):
    """The renderer when it has looked around for a while."""
    subject.train()
    for step in range(0, WARM_UP, EVERY):
        subject(scene, cameras(35.0), TEXT, size=(1, 1), draws=draws(0), progress=Progress(step))
    return subject


@pytest.mark.parametrize("estimator", ["even", "occupancy"])
@pytest.mark.parametrize("camera_distance", [0.2, 1.6, 5.0])
def test_even_steps_absorb_along_the_chord(estimator, camera_distance):
    """Beer and Lambert: of the light 1 - exp(-density * chord) is absorbed, also seen from inside and from far away."""
    size, scene = 0.5, fog()
    view = cameras(35.0, distance=camera_distance)
    directions = ray_directions(view, 16, 16)
    middle = (view.positions[:, None, None] * directions).sum(-1)
    root = (middle.square() - camera_distance**2 + size**2).clamp_min(0).sqrt()
    chord = (-middle + root).clamp_min(0) - (-middle - root).clamp_min(0)
    subject = learned(renderer(estimator), scene).eval()
    views = subject(scene, view, TEXT, size=(16, 16))
    step = 2 * 1.732 / 200
    torch.testing.assert_close(views.opacity[..., 0], 1 - torch.exp(-DENSITY * chord), atol=2 * DENSITY * step, rtol=0)
    assert views.opacity.max() > 0.7


def test_cells_without_matter_are_left_out_and_nothing_is_missed():
    view, pictures, asked = cameras(35.0, 100.0), [], []
    for estimator in ("even", "occupancy"):
        scene = fog()
        subject = learned(renderer(estimator, least_alpha=0.0), scene).eval()
        scene.field.asked = 0
        pictures.append(subject(scene, view, TEXT, size=(24, 24)))
        asked.append(scene.field.asked)
    # A cell that the ball's sharp border cuts off a corner of may never have been met there: less than one step.
    torch.testing.assert_close(pictures[0].opacity, pictures[1].opacity, atol=DENSITY * 2 * 1.732 / 200, rtol=0)
    assert asked[1] < asked[0] / 4


def test_steps_that_no_light_reaches_are_left_out():
    scene = fog()
    scene.field.value = lambda tensors, points: 1000 * Fog.value(scene.field, tensors, points)
    kept = {}
    for least in (0.0, 0.01):
        subject = learned(renderer("occupancy", least_alpha=least), scene)
        views = subject(scene, cameras(35.0), TEXT, size=(8, 8), draws=draws(0), progress=Progress(1))
        kept[least] = len(views.extras["weights"])
        assert views.opacity.max() > 0.999
    assert kept[0.01] < kept[0.0] / 4


def test_nothing_is_seen_of_an_empty_scene_and_of_rays_beside_the_cube():
    scene = fog(1e-6)
    subject = learned(renderer("occupancy"), scene)
    views = subject(scene, cameras(35.0, fovy=150.0), TEXT, size=(8, 8), draws=draws(0), progress=Progress(1))
    assert views.opacity.max() == 0
    assert torch.equal(views.rgb, torch.full_like(views.rgb, 0.5))


def test_rays_beside_the_cube_see_nothing_however_large_the_field_is():
    """A field is asked about one point at least; it must not be seen there."""
    subject, scene, view = renderer("even").eval(), fog(100.0), cameras(35.0)
    away = view.positions[:, None, None] / view.positions.norm()
    views = subject.render_rays(scene, view, TEXT, away)
    assert views.opacity.max() == 0


def test_samples_of_training_are_those_that_were_looked_at():
    scene = fog()
    subject = learned(renderer("occupancy", randomized=True), scene)
    views = subject(scene, cameras(35.0, 120.0), TEXT, size=(9, 7), draws=draws(0), progress=Progress(1))
    weights = views.extras["weights"]
    assert 0 < len(weights) < 9 * 7 * 2 * 50
    assert all(len(views.extras[name]) == len(weights) for name in ("sdf", "normal", "t_dirs", "t_points", "sdf_grad"))
    torch.testing.assert_close(weights.sum(), views.opacity.sum())
    torch.testing.assert_close((weights * views.extras["t_points"]).sum(), views.depth.sum())


def test_chunks_change_nothing():
    found = []
    for chunk in (0, 2000):
        scene = fog()
        subject = learned(renderer("occupancy", train_chunk_size=chunk), scene)
        found.append(subject(scene, cameras(35.0), TEXT, size=(9, 7), draws=draws(0), progress=Progress(1)))
    torch.testing.assert_close(found[0].opacity, found[1].opacity)
    torch.testing.assert_close(found[0].depth, found[1].depth)
    torch.testing.assert_close(found[0].extras["weights"].sum(), found[1].extras["weights"].sum())


def test_jitter_moves_all_steps_of_a_ray_by_a_part_of_one():
    subject, scene, view = renderer("even").train(), fog(), cameras(35.0)
    directions = ray_directions(view, 2, 2)
    plain, moved = (
        subject.render_rays(scene, view, TEXT, directions, jitter=jitter).extras["t_points"]
        for jitter in (None, Jitter(torch.full((1, 4), 0.25), torch.zeros(1, 4)))
    )
    step = 2 * 1.732 / 200
    offset = (moved[:50, :1] - plain[:50]) / step
    torch.testing.assert_close(offset.remainder(1.0), torch.full_like(offset, 0.25), atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_variance_of_depth_by_its_definition(normalize):
    scene, view = fog(), cameras(35.0)
    subject = renderer("even", normalize_z_variance=normalize).train()
    views = subject(scene, view, TEXT, size=(16, 16), draws=draws(0))
    everything = {name: views.extras[name].flatten() for name in ("weights", "t_points")}
    rays = (views.extras["t_dirs"][:, None] == ray_directions(view, 16, 16).view(1, -1, 3)).all(-1).int().argmax(1)
    for ray in (0, 100, 136):
        w, t = (each[rays == ray] for each in everything.values())
        opacity = views.opacity.flatten()[ray]
        expected = (w * (t - (w * t).sum()).square()).sum()
        if normalize:
            mean = (w * t).sum() / opacity if opacity > 0 else 0
            expected = (w * (t - mean).square()).sum() / opacity if opacity > 0.5 else torch.tensor(0.0)
        torch.testing.assert_close(views.extras["z_variance"].flatten()[ray], expected, atol=1e-5, rtol=1e-4)
    assert views.opacity.flatten()[136] > 0.5


def test_patches_see_by_the_grid_too():
    base = {"type": "volume", "estimator": "occupancy", "law": "density", "num_samples_per_ray": 50, "near_plane": 0.0}
    options = {"base_renderer": base, "patch_size": 4, "global_downsample": 2}
    subject = PatchRenderer(options, **surroundings()).train()
    views = subject(fog(), cameras(35.0), TEXT, size=(8, 8), draws=draws(0))
    assert views.opacity.max() > 0.5


# The grid itself


def cell_of(x, y, z):
    return (x * RESOLUTION + y) * RESOLUTION + z


def test_a_cell_keeps_the_largest_opacity_and_forgets_it_slowly():
    grid, cells = OccupancyGrid(), torch.tensor([cell_of(1, 2, 3), cell_of(1, 2, 3), cell_of(4, 5, 6)])
    seen = []

    def opacity(points):
        seen.append(points[0])
        return torch.tensor([[[0.3], [0.8], [0.002]]])

    grid.update(opacity, 2.0, cells, torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]))
    width = 4.0 / RESOLUTION
    torch.testing.assert_close(seen[0][1], torch.tensor([1.0, 2.0, 3.0]) * width - 2)
    torch.testing.assert_close(seen[0][2], torch.tensor([4.5, 5.5, 6.5]) * width - 2)
    assert grid.opacity[cells].tolist() == pytest.approx([0.8, 0.8, 0.002])
    assert grid.occupied.nonzero().flatten().tolist() == sorted({int(cell) for cell in cells})  # above their mean
    grid.update(lambda points: torch.zeros(1, 1, 1), 2.0, cells[:1], torch.zeros(1, 3))
    assert grid.opacity[cells].tolist() == pytest.approx([0.76, 0.76, 0.002])
    assert grid.holds(seen[0], 2.0).all()
    assert not grid.holds(-seen[0], 2.0).any()


def test_what_is_not_quite_transparent_is_occupied_however_dense_the_rest_is():
    grid, cells = OccupancyGrid(), torch.arange(RESOLUTION**3)
    values = torch.full((len(cells),), 5.0)
    values[:3] = torch.tensor([0.009, 0.011, 1.0])
    grid.update(lambda points: values[None, :, None], 1.0, cells, torch.zeros(len(cells), 3))
    assert grid.occupied[:3].tolist() == [False, True, True]


def test_the_grid_looks_once_every_sixteen_steps_and_later_at_a_part_only():
    grid, asked = OccupancyGrid(), []

    def opacity(points):
        asked.append(points.shape[1])
        return torch.ones(1, points.shape[1], 1)

    for step in (0, 0, 1, 15, EVERY, EVERY, WARM_UP, WARM_UP + EVERY):
        grid.follow(opacity, 1.0, draws(step), Progress(step))
    cells = RESOLUTION**3
    assert asked == [cells, cells, cells // 2, cells // 2]


def test_the_grid_depends_on_the_step_and_the_seed_but_not_on_the_samples():
    def after(samples, seed=1, step=0):
        grid = OccupancyGrid()
        grid.follow(lambda points: points[..., :1].abs(), 1.0, draws(*samples, seed=seed), Progress(step))
        return grid.opacity

    assert torch.equal(after((3,)), after((4, 5)))
    assert not torch.equal(after((3,)), after((3,), seed=2))
    assert not torch.equal(after((3,)), after((3,), step=EVERY))


def test_the_grid_is_a_part_of_a_checkpoint():
    subject = learned(renderer("occupancy"), fog())
    other = renderer("occupancy")
    assert not other.occupancy.occupied.any()
    other.load_state_dict(subject.state_dict())
    assert torch.equal(other.occupancy.occupied, subject.occupancy.occupied)
    assert other.occupancy.occupied.any()


def test_several_scenes_have_no_grid_in_common():
    two = FieldScene(Fog(None), {"size": torch.tensor([[0.4], [0.5]])})
    view = cameras(0.0, 70.0, n_view=1)
    with pytest.raises(ValueError, match="renders one scene at a time, not 2"):
        renderer("even").eval()(two, view, TEXT.expand(2, -1), size=(4, 4))

    class Geometry:
        makes = FieldScene
        field = solids(sphere_sdf, 0.5).field

    Geometry.field.free = False
    with pytest.raises(ConfigError, match="'occupancy', which is for a single scene; those of Geometry change"):
        VolumeRenderer({"estimator": "occupancy"}, **surroundings()).check_geometry(Geometry())
    with pytest.raises(ValueError, match="random points in training: give draws"):
        renderer("occupancy").train()(fog(), cameras(0.0), TEXT, size=(4, 4))
