import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.materials import Unlit
from triplaneturbo.ops.mesh import signed_volume
from triplaneturbo.scenes import Field, base
from triplaneturbo.scenes.isosurface import check_surface, extract, extract_meshes


def grid_points(resolution, radius):
    line = torch.linspace(-radius, radius, resolution, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(1, -1, 3)


@pytest.mark.parametrize("own", [True, False], ids=["separable", "default"])
@pytest.mark.parametrize("how", ["sum", "mean", "concat"])
@pytest.mark.parametrize("slab", [1, 200, 1 << 19])
def test_grid_equals_pointwise_queries_with_gradients(build, monkeypatch, how, slab, own):
    monkeypatch.setattr(base, "_SLAB_ON_CPU", slab)
    field = build(shape_features=how, radius=1.3, training_resolution=16).double()
    planes = torch.randn(2, 6, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    tensors = {"planes": planes}
    values, offset = field.grid(tensors, 7, 2) if own else Field.grid(field, tensors, 7, 2)
    expected, expected_offset = field.level_set(tensors, grid_points(7, 1.3).expand(2, -1, -1), resolution=7)
    torch.testing.assert_close(values, expected.view(2, 7, 7, 7))
    torch.testing.assert_close(offset, expected_offset.view(2, 7, 7, 7, 3))
    leaves = [planes, *field.sdf_network.parameters(), *field.deformation_network.parameters()]
    ours = torch.autograd.grad(values.sin().sum() + offset.cos().sum(), leaves)
    truth = torch.autograd.grad(expected.sin().sum() + expected_offset.cos().sum(), leaves)
    torch.testing.assert_close(ours, truth)
    with torch.no_grad():
        again = field.grid(tensors, 7, 2) if own else Field.grid(field, tensors, 7, 2)
    torch.testing.assert_close(again, (values, offset), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_slabs_do_not_fragment_the_memory_of_a_thread():
    """50 slabs whose temporaries take 24 MB, in a thread as that of a server."""
    code = """
import threading, torch
from triplaneturbo.scenes import base
base._SLAB_ON_CPU = 1

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
        (whole,) = base.in_slabs(lambda start, stop: (slab(start, stop)[0][:, None],), 50, 1, torch.device("cpu"))
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
    tensors = {"planes": torch.randn(1, 6, 4, 6, 6)}
    ours, of_any = (build(training_resolution=17, deformation_unit=unit) for unit in ("training cell", "cell"))
    torch.testing.assert_close(ours.grid(tensors, 9, 1)[1], of_any.grid(tensors, 9, 1)[1] / 2)
    torch.testing.assert_close(ours.grid(tensors, 17, 1)[1], of_any.grid(tensors, 17, 1)[1])


def test_without_deformation_there_is_none(build):
    assert build(deformable=False).grid({"planes": torch.randn(1, 6, 4, 6, 6)}, 5, 1)[1] is None


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
        values, offset = field.grid({"planes": value}, 12, 1)
        return extract(values[0], offset[0], 1.0)[0][:, 2].mean()

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
    monkeypatch.setattr(scene.field, "grid", lambda *a, **k: (torch.minimum(large, small)[None], None))
    meshes = [extract_meshes(scene, Unlit(), 24, ["two"], smallest_component=share)[0] for share in (0.0, 0.2)]
    assert [mesh.vertices.amax().item() > 0.6 for mesh in meshes] == [True, False]


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
