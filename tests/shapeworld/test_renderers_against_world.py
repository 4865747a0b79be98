"""Both renderers against the exact pictures of the miniature world's solids."""

import pytest
import torch
import torch.nn.functional as F

from custom.shapeworld.render import MEASURES, render, surface_color
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.world import parse_caption, placements, sdf
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.renderers.mesh import MeshRenderer
from triplaneturbo.renderers.volume import VolumeRenderer
from triplaneturbo.scenes import Field, FieldScene
from triplaneturbo.types import FieldSample

SIZE = 128
GREY = 0.5
CAPTIONS = [f"a red {shape}" for shape in SHAPES] + ["a red cube on a blue cylinder", "a cyan cone on an orange torus"]
# Largest mean absolute errors inside the common silhouette, and the largest that was measured (solid).
VOLUME_LIMITS = {
    "depth": 0.015,  # 0.0130 (torus): parts that hide others have soft edges
    "normal": 0.030,  # 0.0263 (cross)
    "rgb": 0.025,  # 0.0235 (cube on cylinder): the grey behind shines through the edges
}
MESH_LIMITS = {
    "depth": 0.0025,  # 0.0020 (pyramid)
    "normal": 0.018,  # 0.0150 (cross): vertex normals are smooth across edges
    "rgb": 0.0075,  # 0.0061 (cube on cylinder)
}
TEXT = torch.zeros(1, 1)


class ExactField(Field):
    """The field of one solid in place of a generated one: features are its colours."""

    def configure(self, solid):
        self.solid, self.radius = [solid], 1.0

    def value(self, tensors, points):
        return sdf(self.solid, points)[..., None]

    def features(self, tensors, points):
        return self.query(tensors, points).features

    def query(self, tensors, points, *, features=True, normals=True):
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            distance = self.value(tensors, points)
            (gradient,) = torch.autograd.grad(distance.sum(), points)
        normal = F.normalize(gradient, dim=-1)
        points = points.detach()
        return FieldSample(distance.detach(), surface_color(self.solid, points, normal), gradient, normal)


def scene(solid):
    return FieldScene(ExactField(None, solid))


SURROUNDINGS = {
    "material": lambda colors: colors,
    "background": lambda directions, text: torch.full_like(directions, GREY),
}


def volume_renderer():
    options = {"inv_std": 100.0, "ray_range": "box", "num_samples_per_ray": 64, "num_samples_per_ray_importance": 128}
    return VolumeRenderer(options, **SURROUNDINGS).eval()


def mesh_renderer(resolution=128):
    return MeshRenderer({"isosurface_resolution": resolution}, **SURROUNDINGS).eval()


def cameras(*azimuths):
    full = torch.ones(len(azimuths))
    angles = torch.tensor(azimuths)
    return orbit_cameras(20 * full, angles, 1.6 * full, 60 * full, n_view=len(azimuths), relative=False)


def exact_pictures(solid, views):
    """Along the rays through the pixel centres alone, which is what renderers see.

    The pictures for the teachers average four rays, so that a half-covered pixel is a tie, and count as a hit what
    comes as near as 2e-3 (0.14 pixels here): 1 and 0.4 per cent of the silhouettes.
    """
    return render([solid], views, SIZE, supersample=1, background=GREY, precision=MEASURES)


def overlap(views, truth):
    """Intersection over union of the silhouettes."""
    ours, exact = views.opacity > 0.5, truth.opacity > 0.5
    return ((ours & exact).sum() / (ours | exact).sum()).item()


def errors(views, depth, truth):
    """Mean absolute differences inside both silhouettes."""
    common = ((views.opacity > 0.5) & (truth.opacity > 0.5))[..., 0]
    pairs = {"depth": (depth, truth.depth), "normal": (views.normal, truth.normal), "rgb": (views.rgb, truth.rgb)}
    return {name: (ours - exact)[common].abs().mean().item() for name, (ours, exact) in pairs.items()}


def exceeded(found, limits):
    return {name: value for name, value in found.items() if value > limits[name]}


@torch.no_grad()
@pytest.mark.parametrize("caption", CAPTIONS)
def test_volume_renderer(caption):
    solid, around = parse_caption(caption), cameras(30.0)
    views, truth = volume_renderer()(scene(solid), around, TEXT, size=(SIZE, SIZE)), exact_pictures(solid, around)
    assert overlap(views, truth) >= 0.99
    assert not exceeded(errors(views, views.depth / views.opacity, truth), VOLUME_LIMITS)


@torch.no_grad()
@pytest.mark.parametrize("caption", CAPTIONS)
def test_mesh_renderer(caption):
    """Sharp edges between grid lines need twice the resolution: `test_the_mesh_of_a_wedge_ends_where_the_grid_does`."""
    solid, around = parse_caption(caption), cameras(30.0, 165.0)
    renderer = mesh_renderer(256 if solid.shapes[0] in ("wedge", "frame", "arch", "star") else 128)
    views, truth = renderer(scene(solid), around, TEXT, size=(SIZE, SIZE)), exact_pictures(solid, around)
    assert overlap(views, truth) >= 0.975  # measured: 0.9797 (star)
    assert not exceeded(errors(views, views.depth, truth), MESH_LIMITS)


@torch.no_grad()
@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_the_mesh_of_a_wedge_ends_where_the_grid_does(resolution):
    """Marching cubes has vertices on grid lines alone. The ridge of the wedge runs midway between two of them, so the
    mesh ends where its sides, of slope 1.7, meet these: 0.85 cells lower, a whole pixel at 128 grid points. The other
    four edges are as sharp. All of it together is why the silhouettes overlap by 0.959 only.
    """
    solid = parse_caption("a red wedge")
    (mesh,) = mesh_renderer(resolution).surfaces(scene(solid))
    (placed,) = placements(solid.form)
    ridge, cell = placed.radius * (placed.offset + 1.7 * placed.stretch[1]), 2 / (resolution - 1)
    assert mesh.vertices[:, 2].max().item() == pytest.approx(ridge - 1.7 * cell / 2, abs=1e-4)
