import json
import math
import os
from itertools import pairwise

import pytest
import torch
from PIL import Image
from solids import sphere, tetrahedron

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.evaluation import views as module
from triplaneturbo.evaluation.common import _gpus
from triplaneturbo.evaluation.views import ViewSettings, find_meshes, main, protocol_views, render_folder
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.exporters.render import render_mesh
from triplaneturbo.types import Cameras, Mesh, Texture

RIGHT, ORIGINAL = ViewSettings("right", 32), ViewSettings("original", 32)
PICTURES = [f"rgb_{k}.png" for k in range(4)]


def test_four_sides():
    """View k looks from azimuth 90 k and 15 degrees above at the point that faces it, whose colour is its position."""
    views = protocol_views(sphere(0.5, 48), ViewSettings(size=33))
    side, top = 0.5 + 0.25 * 0.9659, 0.5 + 0.25 * 0.2588
    expected = [[side, 0.5, top], [0.5, side, top], [1 - side, 0.5, top], [0.5, 1 - side, top]]
    torch.testing.assert_close(views[:, 16, 16], torch.tensor(expected), atol=0.01, rtol=0)
    assert views[0, 16, 22, 1] > views[0, 16, 10, 1] + 0.1  # y grows to the right
    assert torch.equal(views[:, 0, 0], torch.ones(4, 3))


def centre_of(picture: torch.Tensor, colour: list[float]) -> float:
    """Mean column of the pixels that are nearly of `colour`, from 0 at the left to 1."""
    columns = ((picture - torch.tensor(colour)).abs().amax(dim=-1) < 0.35).nonzero()[:, 1]
    assert len(columns) > 5
    return columns.double().mean().item() / picture.shape[1]


def test_the_original_mirrors_an_asymmetric_object():
    """The tip on +y is blue: seen from +x it is on the right, in the original's picture on the left."""
    right, original = (protocol_views(tetrahedron(), ViewSettings(p, 64)) for p in ("right", "original"))
    tip = centre_of(right[0], [0, 0, 1])
    assert tip > 0.55
    assert centre_of(original[0], [0, 0, 1]) == pytest.approx(1 - tip - 1 / 64)


def orbit_y_up(azimuth_deg: float, elevation_deg: float, distance: float) -> torch.Tensor:
    """Pose of a camera on a sphere in a world with y up, in which azimuth 0 is on +z and 90 on +x."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = math.cos(elevation)
    backward = torch.tensor([flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)])
    right = torch.linalg.cross(torch.tensor([0.0, 1, 0]), backward)
    right = right / right.norm()
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(backward, right), backward, distance * backward], dim=1)
    return pose


def test_the_original_is_its_renderers_geometry():
    """The way that it went: y and z of the vertices swapped, a world with y up, file k from azimuth 90 + 90 k."""
    mesh = tetrahedron()
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    framed = (mesh.vertices - (low + high) / 2) * (1.8 / (high - low).max())
    swapped = Mesh(framed[:, [0, 2, 1]], mesh.faces, mesh.colors)
    poses = torch.stack([orbit_y_up((90 + 90 * k) % 360, 15, 3) for k in range(4)])
    four = torch.ones(4)
    like = orbit_cameras(15 * four, 0 * four, 3 * four, 50 * four, n_view=4, relative=False)
    cameras = Cameras(poses, like.fovy, like.distance, like.distance, like.elevation_deg, like.azimuth_deg, 4)
    expected = render_mesh(swapped, cameras, 64)
    found = protocol_views(mesh, ViewSettings("original", 64))
    # Rounding moves samples on an edge to the other side.
    assert ((found - expected).abs().amax(dim=-1) > 0.01).float().mean() < 0.002
    for a, b in pairwise(expected):
        assert (a - b).abs().max() > 0.5


def test_position_and_size_of_the_mesh_do_not_matter():
    mesh = sphere()
    moved = Mesh(mesh.vertices * 3 + 7, mesh.faces, mesh.colors)
    torch.testing.assert_close(protocol_views(moved, RIGHT), protocol_views(mesh, RIGHT), atol=1e-3, rtol=0)


@pytest.fixture
def meshes(tmp_path):
    """Three meshes as launch.py --export writes them."""
    exporter = MeshExporter({"turntable_views": 0, "fmt": "obj"})
    exporter([sphere(), sphere(0.3), tetrahedron()], ["a ball.", "b", "c"], tmp_path / "meshes")
    return tmp_path / "meshes"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_command(meshes, tmp_path, capsys):
    assert main([str(meshes), "--save_dir", str(tmp_path / "views"), "--size", "16"]) == 0
    folders = sorted((tmp_path / "views").iterdir())
    assert [(f / "prompt.txt").read_text() for f in folders] == ["a ball.", "b", "c"]
    assert sorted(p.name for p in folders[0].glob("*.png")) == PICTURES
    assert Image.open(folders[0] / "rgb_0.png").size == (16, 16)
    assert json.loads((folders[0] / "views.json").read_text()) == {"protocol": "right", "size": 16}
    captured = capsys.readouterr()
    assert "3 meshes rendered, 0 had their pictures" in captured.out
    assert "3/3" in captured.err


def test_several_processes_make_the_same_pictures(meshes, tmp_path, capsys):
    """And what one of them cannot show does not stop it."""
    (meshes / "a" / "model.glb").parent.mkdir()
    (meshes / "a" / "model.glb").write_bytes(b"not a mesh")
    render_folder(meshes, tmp_path / "alone", RIGHT)
    assert main([str(meshes), "--save_dir", str(tmp_path / "together"), "--size", "32", "--jobs", "2"]) == 1
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")
    assert "is not a binary glTF 2.0 file" in capsys.readouterr().err


def test_a_second_call_goes_on(meshes, tmp_path):
    views = tmp_path / "views"
    render_folder(meshes, views, RIGHT)
    whole = contents(views)
    (views / "b" / "rgb_2.png").unlink()
    os.utime(meshes / "c" / "model.obj", ns=(2**62, 2**62))
    again = render_folder(meshes, views, RIGHT)
    assert (again.written, again.kept, again.failed) == (["b", "c"], [next(iter(find_meshes(meshes)))], {})
    assert contents(views) == whole


def test_pictures_of_another_kind_are_not_overwritten(meshes, tmp_path, capsys):
    views = tmp_path / "views"
    render_folder(meshes, views, RIGHT)
    whole = contents(views)
    command = [str(meshes), "--save_dir", str(views), "--size", "32", "--protocol", "original"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "made by --protocol right --size 32" in capsys.readouterr().err
    (views / "b" / "views.json").unlink()
    with pytest.raises(ValueError, match=r"b has pictures made by another program.*--force"):
        render_folder(meshes, views, RIGHT)
    assert contents(views).items() <= whole.items()
    assert main([*command, "--force"]) == 0
    changed = contents(views)
    assert changed.keys() == whole.keys()
    assert all(changed[path] != whole[path] for path in whole if path.name == "rgb_1.png")


def test_a_stop_in_between_leaves_no_mixture(meshes, tmp_path, monkeypatch):
    """Killed after two of the original's pictures in the place of right ones: a right call makes all of them anew."""
    views = tmp_path / "views"
    render_folder(meshes, views, RIGHT)
    whole, saved = contents(views), []

    def save_two(path, view, columns):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        path.write_bytes(b"original")

    monkeypatch.setattr(module, "save_picture", save_two)
    render_folder(meshes, views, ORIGINAL, force=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--protocol original"):
        render_folder(meshes, views, RIGHT)
    render_folder(meshes, views, RIGHT, force=True)
    assert contents(views) == whole


def test_meshes_that_cannot_be_shown_are_named_at_the_end(meshes, tmp_path, capsys):
    (meshes / "a" / "model.glb").parent.mkdir()
    (meshes / "a" / "model.glb").write_bytes(b"not a mesh")
    write_mesh(meshes / "z" / "model.obj", Mesh(sphere().vertices * float("nan"), sphere().faces))
    command = [str(meshes), "--save_dir", str(tmp_path / "views"), "--size", "16"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "3 meshes rendered" in captured.out
    reasons = captured.err.splitlines()[-3:]
    assert "is not a binary glTF 2.0 file" in reasons[0]
    assert "EmptyFieldError: the mesh of 'z' has numbers that are not finite" in reasons[1]
    assert reasons[2] == "2 meshes have no pictures"
    assert len(list((tmp_path / "views").glob("*/*.png"))) == 12
    assert main(command) == 1
    assert "0 meshes rendered, 3 had their pictures" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ball/model.glb", "ball.obj"])
def test_textures_are_rendered(tmp_path, name):
    mesh = sphere(0.5, 12)
    n = len(mesh.vertices)
    texture = Texture(
        torch.tensor([1.0, 0.2, 0.0]).expand(4, 4, 3), torch.full((n, 2), 0.5), torch.arange(n), mesh.faces
    )
    write_mesh(tmp_path / "meshes" / name, Mesh(mesh.vertices, mesh.faces, texture=texture))
    main([str(tmp_path / "meshes"), "--save_dir", str(tmp_path / "views"), "--size", "16"])
    assert Image.open(tmp_path / "views" / "ball" / "rgb_0.png").getpixel((8, 8)) == (255, 51, 0)


def test_meshes_that_stand_alone(tmp_path):
    write_mesh(tmp_path / "a_cube.obj", sphere())
    assert find_meshes(tmp_path) == {"a_cube": tmp_path / "a_cube.obj"}
    write_mesh(tmp_path / "a_cube" / "model.glb", sphere())
    with pytest.raises(ValueError, match="belong to the same prompt"):
        find_meshes(tmp_path)


def test_nothing_to_render(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--save_dir", str(tmp_path / "views")])
    assert "there are no meshes" in capsys.readouterr().err


def test_lists_of_gpus(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _gpus("1,0,3,1") == [torch.device("cuda", i) for i in (1, 0, 3)]
    with pytest.raises(SystemExit, match="2"):
        main(["meshes", "--save_dir", "views", "--gpu", "0,4"])
    assert "there is no GPU 4: this machine has 4, counted from 0" in capsys.readouterr().err
