import pytest
import torch

from triplaneturbo.geometry.field_surface import FieldSurface
from triplaneturbo.geometry.isosurface import extract_meshes
from triplaneturbo.materials import NoMaterial


def wavy_planes():
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(1, 6, 4, 6, 6, generator=generator)


def displacement(mesh):
    return (mesh.surface.project(mesh.vertices) - mesh.vertices).norm(dim=1)


def test_points_near_the_start_sphere_go_to_it(build):
    geometry = build(isosurface_deformable_grid=False)
    surface = FieldSurface(geometry, NoMaterial(), torch.zeros(1, 6, 4, 6, 6), cell=0.1, deformation_unit=0.1)
    direction = torch.nn.functional.normalize(torch.randn(100, 3), dim=1)
    torch.testing.assert_close(surface.project(0.45 * direction), 0.5 * direction)
    torch.testing.assert_close(surface.project(0.58 * direction), 0.5 * direction)
    far = 0.65 * direction
    assert torch.equal(surface.project(far), far)


@pytest.mark.parametrize("compat", ["right", "original"])
def test_meshes_converge_to_it_where_the_grid_deforms(build, compat):
    """Their distance falls with the square of the grid's spacing, that from the undeformed level set does not."""
    geometry = build(isosurface_resolution=24)
    geometry.deformation_network.layers[-1].weight.data *= 10
    distances, from_level_set = [], []
    for resolution in (24, 48):
        (mesh,) = extract_meshes(geometry, NoMaterial(), wavy_planes(), resolution, ["a"], compat=compat)
        distances.append(displacement(mesh).mean().item())
        from_level_set.append(geometry.sdf(mesh.surface.planes, mesh.vertices[None]).abs().mean().item())
    assert distances[0] < 0.1 * mesh.surface.cell
    assert distances[1] < 0.4 * distances[0]
    assert from_level_set[1] > 10 * distances[1]


def test_projecting_twice_is_projecting_once(build):
    geometry = build(isosurface_resolution=24)
    (mesh,) = extract_meshes(geometry, NoMaterial(), wavy_planes(), 24, ["a"])
    once = mesh.surface.project(mesh.vertices)
    assert (mesh.surface.project(once) - once).norm(dim=1).mean() < 0.05 * displacement(mesh).mean()


def test_its_colours_are_those_of_the_mesh(build):
    (mesh,) = extract_meshes(build(), NoMaterial(), wavy_planes(), 16, ["a"])
    torch.testing.assert_close(mesh.surface.colors(mesh.vertices), mesh.colors)


def test_the_level_is_that_of_the_extraction(build):
    geometry = build(isosurface_deformable_grid=False, isosurface_threshold=0.1)
    (mesh,) = extract_meshes(geometry, NoMaterial(), torch.zeros(1, 6, 4, 6, 6), 32, ["a"])
    points = mesh.surface.project(mesh.vertices)
    torch.testing.assert_close(points.norm(dim=1), torch.full((len(points),), 0.6))
