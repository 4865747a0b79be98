import argparse

import pytest
import torch
from PIL import Image
from solids import sphere

from evaluation.views import add_device_option, find_meshes, main, protocol_views
from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.types import Mesh, Texture


def test_four_sides():
    """View k looks from azimuth 90 k and 15 degrees above at the point that faces it, whose colour is its position."""
    views = protocol_views(sphere(0.5, 48), 33)
    side, top = 0.5 + 0.25 * 0.9659, 0.5 + 0.25 * 0.2588
    expected = [[side, 0.5, top], [0.5, side, top], [1 - side, 0.5, top], [0.5, 1 - side, top]]
    torch.testing.assert_close(views[:, 16, 16], torch.tensor(expected), atol=0.01, rtol=0)
    assert views[0, 16, 22, 1] > views[0, 16, 10, 1] + 0.1  # y grows to the right


def test_the_original_walks_the_other_way_round_and_mirrors():
    right, original = (protocol_views(sphere(), 32, protocol) for protocol in ("right", "original"))
    for k, side in enumerate((0, 3, 2, 1)):
        assert torch.equal(original[k], right[side].flip(1))


def test_position_and_size_of_the_mesh_do_not_matter():
    mesh = sphere()
    moved = Mesh(mesh.vertices * 3 + 7, mesh.faces, mesh.colors)
    torch.testing.assert_close(protocol_views(moved, 32), protocol_views(mesh, 32), atol=1e-3, rtol=0)


def test_command(tmp_path, capsys):
    MeshExporter({"turntable_views": 0})([sphere(), sphere(0.3)], ["a ball.", "b"], tmp_path / "meshes")
    main([str(tmp_path / "meshes"), "--save_dir", str(tmp_path / "views"), "--size", "16"])
    folders = sorted((tmp_path / "views").iterdir())
    assert [(f / "prompt.txt").read_text() for f in folders] == ["a ball.", "b"]
    assert sorted(p.name for p in folders[0].glob("*.png")) == [f"rgb_{k}.png" for k in range(4)]
    assert Image.open(folders[0] / "rgb_0.png").size == (16, 16)
    assert "rendered 2 meshes" in capsys.readouterr().out


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


def test_nothing_to_render(tmp_path):
    with pytest.raises(ValueError, match="there are no meshes"):
        main([str(tmp_path), "--save_dir", str(tmp_path / "views")])
    write_mesh(tmp_path / "nan.obj", Mesh(sphere().vertices * float("nan"), sphere().faces))
    with pytest.raises(EmptyFieldError, match="'nan' has numbers that are not finite"):
        main([str(tmp_path), "--save_dir", str(tmp_path / "views")])


@pytest.mark.parametrize("given", ["1", "1,0,3"])
def test_of_a_list_of_gpus_the_first_is_used(given):
    parser = argparse.ArgumentParser()
    add_device_option(parser)
    assert parser.parse_args(["--gpu", given]).device == torch.device("cuda:1")
