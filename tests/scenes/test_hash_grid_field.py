import math

import pytest
import torch
import torch.nn.functional as F

from triplaneturbo.errors import ConfigError
from triplaneturbo.materials import Unlit
from triplaneturbo.scenes import FieldScene, HashGridField
from triplaneturbo.scenes.isosurface import extract_meshes

SMALL = {"encoding": {"n_levels": 4, "base_resolution": 4, "log2_hashmap_size": 10}, "network": {"n_neurons": 8}}


def build(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = HashGridField({**SMALL, **options})
        field.encoding.params.data.uniform_(-0.5, 0.5)
    return field


def points(count=50):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, count, 3, generator=generator, dtype=torch.float64) * 1.8 - 0.9


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_parts_agree_with_a_query(kind):
    scene, x = FieldScene(build(kind=kind).double()), points()
    sample = scene.query(x, normals=True)
    torch.testing.assert_close(scene.value(x), sample.value)
    torch.testing.assert_close(scene.features(x), sample.features)
    assert scene.query(x, features=False).features is None
    assert len(scene) == 1


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_normals_are_those_of_autograd_and_point_outwards(kind):
    exact, approximate = (
        build(kind=kind, normals=how, finite_difference_step=1e-6).double() for how in ("analytic", "finite_difference")
    )
    x = points().requires_grad_()
    (truth,) = torch.autograd.grad(exact.value({}, x).sum(), x)
    found = exact.query({}, x, normals=True)
    torch.testing.assert_close(found.gradient, truth)
    torch.testing.assert_close(found.normal, F.normalize(truth if kind == "sdf" else -truth, dim=-1))
    torch.testing.assert_close(approximate.query({}, x, normals=True).gradient, truth, rtol=1e-4, atol=1e-3)


def test_analytic_normals_can_be_trained_through():
    field = build(normals="analytic").double()
    loss = (field.query({}, points(), normals=True).gradient.norm(dim=-1) - 1).square().mean()
    loss.backward()
    assert field.encoding.params.grad.abs().sum() > 0


def test_a_density_starts_as_a_blob_and_is_cut_at_its_level():
    """Without features softplus(10 (1 - |p| / 0.5)) is 5 where |p| = 0.25 (1 - 0.49 / 10)."""
    field = build(kind="density", level=5.0, density_blob=10.0, bias_size=0.5)
    field.value_network.layers[-1].weight.data.zero_()
    (mesh,) = extract_meshes(FieldScene(field), Unlit(), 48, ["a blob"])
    raw = torch.tensor(5.0).expm1().log()
    expected = 0.5 * (1 - raw / 10)
    torch.testing.assert_close(
        mesh.vertices.norm(dim=1), expected.expand(len(mesh.vertices)).clone(), rtol=0, atol=5e-3
    )
    on_surface = mesh.surface.project(mesh.vertices)
    torch.testing.assert_close(on_surface.norm(dim=1), expected.expand(len(on_surface)).clone(), rtol=0, atol=1e-5)


def test_beyond_the_cube_is_what_is_on_its_side():
    field = build(radius=0.5, bias=0.0, bias_size=None)
    inside, outside = torch.tensor([[[0.5, 0.1, 0.2]]]), torch.tensor([[[0.9, 0.1, 0.2]]])
    torch.testing.assert_close(field.features({}, inside), field.features({}, outside))


@pytest.mark.parametrize(
    ("how", "faded"), [("finite_difference", 1.0), ("central_inside", 0.5), ("forward_inside", 0.0)]
)
def test_differences_inside_the_cube_fade_at_its_sides(how, faded):
    """A step ahead of the side x = radius is the side itself, a step behind is not."""
    step, x = 1e-4, torch.tensor([[[1.0, 0.3, -0.2]]], dtype=torch.float64)
    field = build(normals=how, finite_difference_step=step).double()
    field.value_network.layers[-1].weight.data.zero_()  # the distance to the sphere alone
    expected = x / x.norm() * torch.tensor([faded, 1.0, 1.0])
    torch.testing.assert_close(field.query({}, x, normals=True).gradient, expected, rtol=0, atol=step)


@pytest.mark.parametrize(
    ("shape", "expected"), [("cone", 4 * (1 - 0.5 / 0.25)), ("gaussian", 4 * math.exp(-0.5 * (0.5 / 0.25) ** 2))]
)
@pytest.mark.parametrize("activation", ["softplus", "shifted_softplus", "exp", "shifted_exp"])
def test_a_density_is_the_activated_blob_where_the_network_says_nothing(shape, expected, activation):
    options = {"density_blob": 4.0, "density_blob_shape": shape, "density_activation": activation, "bias_size": 0.25}
    field = build(kind="density", **options)
    field.value_network.layers[-1].weight.data.zero_()
    found = field.value({}, torch.tensor([[[0.3, 0.0, 0.4]]])).item()
    expected -= activation.startswith("shifted")
    truth = math.exp(expected) if activation.endswith("exp") else math.log1p(math.exp(expected))
    assert found == pytest.approx(truth)


def test_normals_of_a_network_have_unit_length_and_learn():
    field = build(kind="density", predict_normals=True)
    sample = field.query({}, points().float(), normals=True)
    assert sample.gradient is None
    torch.testing.assert_close(sample.normal.norm(dim=-1), torch.ones(1, 50))
    sample.normal[..., 0].sum().backward()
    assert field.normal_network.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [{"bias": "ellipsoid", "bias_size": [1.0, 1.0, 2.0]}, {"bias_size": None}])
def test_a_density_starts_as_a_blob(bias):
    with pytest.raises(ConfigError, match="blob"):
        build(kind="density", **bias)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="radius"):
        build(radius=0.0)
