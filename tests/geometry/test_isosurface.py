import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.geometry import isosurface
from triplaneturbo.geometry.isosurface import check_surface, extract, extract_meshes, field_grid
from triplaneturbo.materials import NoMaterial
from triplaneturbo.ops.mesh import signed_volume


def grid_points(resolution, radius):
    line = torch.linspace(-radius, radius, resolution, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)


@pytest.mark.parametrize("interpolate", ["v1", "v2"])
@pytest.mark.parametrize("slab", [1, 200, 1 << 19])
def test_grid_equals_pointwise_queries_with_gradients(build, monkeypatch, interpolate, slab):
    monkeypatch.setattr(isosurface, "_SLAB_ON_CPU", slab)
    geometry = build(geo_interpolate=interpolate, radius=1.3, isosurface_resolution=16).double()
    planes = torch.randn(2, 6, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    sdf, deformation = field_grid(geometry, planes, 7, with_deformation=True)
    expected_sdf, expected_deformation = geometry.sdf_and_deformation(planes, grid_points(7, 1.3).expand(2, -1, -1))
    expected_sdf = expected_sdf.view(2, 7, 7, 7)
    expected_deformation = expected_deformation.view(2, 7, 7, 7, 3) * 6 / 15
    torch.testing.assert_close(sdf, expected_sdf)
    torch.testing.assert_close(deformation, expected_deformation)
    leaves = [planes, *geometry.sdf_network.parameters(), *geometry.deformation_network.parameters()]
    ours = torch.autograd.grad(sdf.sin().sum() + deformation.cos().sum(), leaves)
    truth = torch.autograd.grad(expected_sdf.sin().sum() + expected_deformation.cos().sum(), leaves)
    torch.testing.assert_close(ours, truth)
    with torch.no_grad():
        again = field_grid(geometry, planes, 7, with_deformation=True)
    assert torch.equal(again[0], sdf)
    assert torch.equal(again[1], deformation)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_slabs_do_not_fragment_the_memory_of_a_thread():
    """50 slabs whose temporaries take 24 MB, in a thread as that of a server."""
    code = """
import threading, torch
from triplaneturbo.geometry.isosurface import _run

def slab(start, stop):
    x = torch.ones(1, 1 << 21)
    return ((x + 1) * (x + 2))[:, : 1 << 16].clone(),

def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def run():
    with torch.no_grad():
        for _ in range(5):
            slab(0, 1)
        before = peak()
        (whole,) = _run(lambda start, stop: (slab(start, stop)[0][:, None],), 50, 1)
        print(peak() - before - (whole.nbytes >> 20))

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    root = Path(isosurface.__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100


def test_deformation_is_in_cells_of_the_training_grid_or_of_any_grid(build):
    """A shift by one cell of the training grid is a shift by half a cell of a grid twice as coarse."""
    geometry = build(isosurface_resolution=17)
    planes = torch.randn(1, 6, 4, 6, 6)
    raw = field_grid(geometry, planes, 9, with_deformation=True, compat="original")[1]
    torch.testing.assert_close(field_grid(geometry, planes, 9, with_deformation=True)[1], raw / 2)
    same = field_grid(geometry, planes, 17, with_deformation=True)[1]
    torch.testing.assert_close(same, field_grid(geometry, planes, 17, with_deformation=True, compat="original")[1])


def test_without_deformation_there_is_none(build):
    assert field_grid(build(), torch.randn(1, 6, 4, 6, 6), 5, with_deformation=False)[1] is None


def test_start_sphere_is_extracted_where_it_is(build):
    geometry = build(radius=1.5, isosurface_deformable_grid=False)
    mesh = extract_meshes(geometry, NoMaterial(), torch.zeros(1, 6, 4, 6, 6), 65, ["a ball"])[0]
    torch.testing.assert_close(mesh.vertices.norm(dim=1), torch.full((len(mesh.vertices),), 0.5), rtol=0, atol=5e-3)
    assert signed_volume(mesh.vertices, mesh.faces).item() == pytest.approx(4 / 3 * torch.pi / 8, rel=0.01)
    assert mesh.colors.shape == mesh.vertices.shape
    torch.testing.assert_close(mesh.colors, torch.full_like(mesh.colors, 0.5))


def test_vertices_carry_the_colours_of_the_field(build):
    geometry = build(isosurface_resolution=12)
    planes = 0.3 * torch.randn(2, 6, 4, 6, 6)
    material = NoMaterial({"color_activation": "sigmoid-mipnerf"})
    meshes = extract_meshes(geometry, material, planes, 12, ["one", "two"])
    for single, mesh in zip(planes.split(1), meshes, strict=True):
        expected = material(geometry.query(single, mesh.vertices[None]).features)[0].clamp(0, 1)
        torch.testing.assert_close(mesh.colors, expected)
    assert meshes[0].vertices.shape != meshes[1].vertices.shape or not torch.equal(*[m.vertices for m in meshes])


def test_vertices_differentiate_through_grid_and_deformation(build):
    geometry = build(isosurface_resolution=12).double()
    planes = 0.3 * torch.randn(1, 6, 4, 6, 6, dtype=torch.float64)

    def mean_height(value):
        sdf, deformation = field_grid(geometry, value, 12, with_deformation=True)
        return extract(sdf[0], deformation[0], 1.0)[0][:, 2].mean()

    planes.requires_grad_()
    (gradient,) = torch.autograd.grad(mean_height(planes), planes)
    direction = torch.randn_like(planes)
    step = 1e-7
    with torch.no_grad():
        slope = (mean_height(planes + step * direction) - mean_height(planes - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_small_pieces_are_dropped_when_asked(build, monkeypatch):
    line = torch.linspace(-1, 1, 24)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    large = points.norm(dim=-1) - 0.5
    small = (points - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1) - 0.12
    monkeypatch.setattr(isosurface, "field_grid", lambda *a, **k: (torch.minimum(large, small)[None], None))
    counts = []
    for remove in (False, True):
        options = {"isosurface_remove_outliers": remove, "isosurface_outlier_n_faces_threshold": 0.2}
        geometry = build(isosurface_deformable_grid=False, **options)
        mesh = extract_meshes(geometry, NoMaterial(), torch.zeros(1, 6, 4, 6, 6), 24, ["two"])[0]
        counts.append((mesh.vertices.amax() > 0.6).item())
    assert counts == [True, False]


@pytest.mark.parametrize(
    ("sdf", "message"),
    [
        (torch.full((3, 3, 3), float("nan")), "not finite"),
        (torch.full((3, 3, 3), float("inf")), "not finite"),
        (torch.ones(3, 3, 3), "every grid point is outside"),
        (-torch.ones(3, 3, 3), "every grid point is inside"),
    ],
)
def test_empty_fields_are_errors_that_name_the_prompt(sdf, message):
    with pytest.raises(EmptyFieldError, match=message) as error:
        check_surface(sdf, "a red chair")
    assert "a red chair" in str(error.value)


def test_a_field_with_a_surface_passes():
    sdf = torch.ones(3, 3, 3)
    sdf[1, 1, 1] = -1
    check_surface(sdf, "a ball")
