import pytest
import torch

from triplaneturbo.materials import Unlit
from triplaneturbo.scenes.isosurface import extract_meshes
from triplaneturbo.scenes.surface import FieldSurface


def wavy_planes():
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(1, 6, 4, 6, 6, generator=generator)


def displacement(mesh):
    return (mesh.surface.project(mesh.vertices) - mesh.vertices).norm(dim=1)


def test_points_near_the_start_sphere_go_to_it(build, scene_of):
    scene = scene_of(build(deformable=False), torch.zeros(1, 6, 4, 6, 6))
    surface = FieldSurface(scene, Unlit(), 21)
    direction = torch.nn.functional.normalize(torch.randn(100, 3), dim=1)
    torch.testing.assert_close(surface.project(0.45 * direction), 0.5 * direction)
    torch.testing.assert_close(surface.project(0.58 * direction), 0.5 * direction)
    far = 0.65 * direction
    assert torch.equal(surface.project(far), far)


@pytest.mark.parametrize("unit", ["training cell", "cell"])
def test_meshes_converge_to_it_where_the_grid_deforms(build, scene_of, unit):
    """Their distance falls with the square of the grid's spacing, that from the undeformed level set does not."""
    field = build(training_resolution=24, deformation_unit=unit)
    field.deformation_network.layers[-1].weight.data *= 5
    scene = scene_of(field, wavy_planes())
    distances, from_level_set = [], []
    for resolution in (24, 48):
        (mesh,) = extract_meshes(scene, Unlit(), resolution, ["a"])
        distances.append(displacement(mesh).mean().item())
        from_level_set.append(scene.value(mesh.vertices[None]).abs().mean().item())
    assert distances[0] < 0.1 * mesh.surface.cell
    assert distances[1] < 0.4 * distances[0]
    assert from_level_set[1] > 10 * distances[1]


def test_projecting_twice_is_projecting_once(build, scene_of):
    (mesh,) = extract_meshes(scene_of(build(training_resolution=24), wavy_planes()), Unlit(), 24, ["a"])
    once = mesh.surface.project(mesh.vertices)
    assert (mesh.surface.project(once) - once).norm(dim=1).mean() < 0.05 * displacement(mesh).mean()


def test_its_colours_are_those_of_the_mesh(build, scene_of):
    (mesh,) = extract_meshes(scene_of(build(), wavy_planes()), Unlit(), 16, ["a"])
    torch.testing.assert_close(mesh.surface.colors(mesh.vertices), mesh.colors)


def test_the_level_is_that_of_the_extraction(build, scene_of):
    scene = scene_of(build(deformable=False, level=0.1), torch.zeros(1, 6, 4, 6, 6))
    (mesh,) = extract_meshes(scene, Unlit(), 32, ["a"])
    points = mesh.surface.project(mesh.vertices)
    torch.testing.assert_close(points.norm(dim=1), torch.full((len(points),), 0.6))
