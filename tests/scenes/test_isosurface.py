import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.materials import Unlit
from triplaneturbo.ops.mesh import signed_volume, topology
from triplaneturbo.scenes import Field, base
from triplaneturbo.scenes.isosurface import check_surface, extract, extract_meshes


def grid_points(resolution, radius):
    line = torch.linspace(-radius, radius, resolution, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)


@pytest.mark.parametrize("own", [True, False], ids=["separable", "default"])
@pytest.mark.parametrize("how", ["sum", "mean", "concat"])
@pytest.mark.parametrize("slab", [1, 200, 1 << 19])
@pytest.mark.parametrize("radius", [None, 1.1])
def test_grid_equals_pointwise_queries(build, monkeypatch, how, slab, own, radius):
    monkeypatch.setattr(base, "_SLAB_ON_CPU", slab)
    field = build(shape_features=how, radius=1.3, level=0.1).double()
    tensors = {"planes": torch.randn(2, 6, 4, 6, 6, dtype=torch.float64)}
    values = field.grid(tensors, 7, 2, radius) if own else Field.grid(field, tensors, 7, 2, radius)
    points = grid_points(7, radius or 1.3).expand(2, -1, -1)
    expected, _ = field.level_set(tensors, points, resolution=7)
    torch.testing.assert_close(values, expected.detach().view(2, 7, 7, 7))


@pytest.mark.parametrize("resolution", [12, 17])
def test_the_surface_is_that_of_all_grid_points_moved(build, scene_of, resolution):
    """Though only those next to it are asked how far they move."""
    scene = scene_of(build(radius=1.3, training_resolution=12), torch.randn(1, 6, 4, 6, 6)).prompt(0)
    (mesh,) = extract_meshes(scene, Unlit(), resolution, ["a"])
    with torch.no_grad():
        everywhere = scene.level_set(grid_points(resolution, 1.3).float(), resolution=resolution)
    size = (resolution,) * 3
    vertices, faces = extract(everywhere[0].view(size), everywhere[1].view(*size, 3), 1.3)
    assert len(faces) > 100
    assert torch.equal(mesh.faces, faces)
    torch.testing.assert_close(mesh.vertices, vertices)
    still, _ = extract(everywhere[0].view(size), None, 1.3)
    assert (still - vertices).norm(dim=1).amax() > 0.1 * 2.6 / (resolution - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_slabs_do_not_fragment_the_memory_of_a_thread():
    """50 slabs whose temporaries take 24 MB, in a thread as that of a server."""
    code = """
import threading, torch
from triplaneturbo.scenes import base
base._SLAB_ON_CPU = 1

def slab(start, stop):
    x = torch.ones(1, 1 << 21)
    return ((x + 1) * (x + 2))[:, None, : 1 << 16].clone()

def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def run():
    with torch.no_grad():
        for _ in range(5):
            slab(0, 1)
        before = peak()
        whole = base.in_slabs(slab, 50, 1, torch.device("cpu"))
        print(peak() - before - (whole.nbytes >> 20))

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    root = Path(base.__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100


def test_deformation_is_in_cells_of_the_training_grid_or_of_any_grid(build):
    """A shift by one cell of the training grid is a shift by half a cell of a grid twice as coarse."""
    tensors, points = {"planes": torch.randn(1, 6, 4, 6, 6)}, torch.rand(1, 20, 3)
    ours, of_any = (build(training_resolution=17, deformation_unit=unit) for unit in ("training cell", "cell"))
    for resolution, share in ((9, 0.5), (17, 1.0)):
        in_cells = [field.level_set(tensors, points, resolution=resolution)[1] for field in (ours, of_any)]
        torch.testing.assert_close(in_cells[0], share * in_cells[1])


def test_without_deformation_there_is_none(build):
    tensors = {"planes": torch.randn(1, 6, 4, 6, 6)}
    assert build(deformable=False).level_set(tensors, torch.rand(1, 5, 3), resolution=5)[1] is None


def test_start_sphere_is_extracted_where_it_is(build, scene_of):
    scene = scene_of(build(radius=1.5, deformable=False), torch.zeros(1, 6, 4, 6, 6))
    mesh = extract_meshes(scene, Unlit(), 65, ["a ball"])[0]
    torch.testing.assert_close(mesh.vertices.norm(dim=1), torch.full((len(mesh.vertices),), 0.5), rtol=0, atol=5e-3)
    assert signed_volume(mesh.vertices, mesh.faces).item() == pytest.approx(4 / 3 * torch.pi / 8, rel=0.01)
    assert mesh.colors.shape == mesh.vertices.shape
    torch.testing.assert_close(mesh.colors, torch.full_like(mesh.colors, 0.5))


def test_vertices_carry_the_colours_of_the_field(build, scene_of):
    scene = scene_of(build(training_resolution=12), 0.3 * torch.randn(2, 6, 4, 6, 6))
    material = Unlit({"color_activation": "sigmoid-mipnerf"})
    meshes = extract_meshes(scene, material, 12, ["one", "two"])
    for number, mesh in enumerate(meshes):
        expected = material(scene.prompt(number).query(mesh.vertices[None]).features)[0].clamp(0, 1)
        torch.testing.assert_close(mesh.colors, expected)
    assert meshes[0].vertices.shape != meshes[1].vertices.shape or not torch.equal(*[m.vertices for m in meshes])


def test_vertices_differentiate_through_grid_and_deformation(build):
    field = build(training_resolution=12).double()
    planes = 0.3 * torch.randn(1, 6, 4, 6, 6, dtype=torch.float64)

    def mean_height(value):
        values, offset = field.level_set({"planes": value}, grid_points(12, 1.0), resolution=12)
        return extract(values.view(12, 12, 12), offset.view(12, 12, 12, 3), 1.0)[0][:, 2].mean()

    planes.requires_grad_()
    (gradient,) = torch.autograd.grad(mean_height(planes), planes)
    direction = torch.randn_like(planes)
    step = 1e-7
    with torch.no_grad():
        slope = (mean_height(planes + step * direction) - mean_height(planes - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_small_pieces_are_dropped_when_asked(build, scene_of, monkeypatch):
    line = torch.linspace(-1, 1, 24)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    large = points.norm(dim=-1) - 0.5
    small = (points - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1) - 0.12
    scene = scene_of(build(deformable=False), torch.zeros(1, 6, 4, 6, 6))
    monkeypatch.setattr(scene.field, "grid", lambda *a, **k: torch.minimum(large, small)[None])
    meshes = [extract_meshes(scene, Unlit(), 24, ["two"], smallest_component=share)[0] for share in (0.0, 0.2)]
    assert [mesh.vertices.amax().item() > 0.6 for mesh in meshes] == [True, False]


def test_cavities_are_filled_when_asked(build, scene_of, monkeypatch):
    line = torch.linspace(-1, 1, 40)
    distance = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).norm(dim=-1)
    shell, kernel = (distance - 0.5).abs() - 0.15, distance - 0.2
    scene = scene_of(build(deformable=False), torch.zeros(1, 6, 4, 6, 6))
    monkeypatch.setattr(scene.field, "grid", lambda *a, **k: torch.minimum(shell, kernel)[None])
    hollow, filled = (extract_meshes(scene, Unlit(), 40, ["a"], fill_cavities=fill)[0] for fill in (None, 0.0))
    ball = [4 / 3 * math.pi * radius**3 for radius in (0.2, 0.35, 0.65)]
    assert signed_volume(hollow.vertices, hollow.faces) == pytest.approx(ball[2] - ball[1] + ball[0], rel=0.02)
    assert signed_volume(filled.vertices, filled.faces) == pytest.approx(ball[2], rel=0.02)
    assert topology(filled.vertices, filled.faces).n_components == 1


def test_walls_of_cavities_may_have_openings_as_wide_as_is_said(build, scene_of, monkeypatch):
    line = torch.linspace(-1, 1, 41)  # points .05 apart
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    shell = (torch.stack([x, y, z], -1).norm(dim=-1) - 0.55).abs() - 0.1
    pierced = torch.where((x > 0) & (y.abs() < 0.08) & (z.abs() < 0.08), 1.0, shell)  # by 3 x 3 points
    scene = scene_of(build(deformable=False), torch.zeros(1, 6, 4, 6, 6))
    monkeypatch.setattr(scene.field, "grid", lambda *a, **k: pierced[None])

    def volume(width: float) -> float:
        (mesh,) = extract_meshes(scene, Unlit(), 41, ["a"], fill_cavities=width)
        return float(signed_volume(mesh.vertices, mesh.faces))

    ball = 4 / 3 * math.pi * 0.65**3
    assert volume(0.1) < 0.75 * ball
    assert volume(0.2) == pytest.approx(ball, rel=0.03)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.full((3, 3, 3), float("nan")), "not finite"),
        (torch.full((3, 3, 3), float("inf")), "not finite"),
        (torch.ones(3, 3, 3), "every grid point is outside"),
        (-torch.ones(3, 3, 3), "every grid point is inside"),
    ],
)
def test_empty_fields_are_errors_that_name_the_prompt(values, message):
    with pytest.raises(EmptyFieldError, match=message) as error:
        check_surface(values, "a red chair")
    assert "a red chair" in str(error.value)


def test_a_field_with_a_surface_passes():
    values = torch.ones(3, 3, 3)
    values[1, 1, 1] = -1
    check_surface(values, "a ball")
