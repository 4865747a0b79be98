import json
import re
import sys

import pytest
import torch
from painted_ball import painted_ball
from PIL import Image
from solids import sphere, tetrahedron

from triplaneturbo.errors import ConfigError, EmptyFieldError, WriteError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.exporters.origin import Origin, weights_id
from triplaneturbo.naming import slug
from triplaneturbo.registry import find
from triplaneturbo.types import Mesh

SMALL = {"turntable_views": 4, "turntable_size": 32}


@pytest.mark.parametrize("fmt", ["glb", "obj"])
def test_every_prompt_has_its_folder(tmp_path, fmt):
    prompts = ["a red cube", "a cat, asleep.\n"]
    paths = MeshExporter({"fmt": fmt, **SMALL})([sphere(), tetrahedron()], prompts, tmp_path)
    assert paths == [tmp_path / slug(prompt) / f"model.{fmt}" for prompt in prompts]
    for path, prompt in zip(paths, prompts, strict=True):
        assert (path.parent / "prompt.txt").read_text() == prompt
        assert Image.open(path.parent / "turntable.png").size == (64, 64)
        assert len(read_mesh(path).faces) > 0
        assert {p.name for p in path.parent.iterdir()} == {path.name, "prompt.txt", "turntable.png"}


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_mesh_of_the_same_origin_is_replaced(tmp_path):
    origins = [Origin("a cube", 0, "f" * 32)]
    MeshExporter(SMALL)([sphere()], ["a cube"], tmp_path, origins)
    before = written(tmp_path / "a_cube")
    assert json.loads(before["origin.json"]) == {"prompt": "a cube", "seed": 0, "weights": "f" * 32}
    MeshExporter(SMALL)([tetrahedron()], ["a cube"], tmp_path, origins)
    after = written(tmp_path / "a_cube")
    assert after["model.glb"] != before["model.glb"]
    assert after["origin.json"] == before["origin.json"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Origin("a cube", 0, "f"), Origin("a cube", 1, "f")),
        (Origin("a cube", 0, "f"), Origin("a cube", 0, "e")),
        (Origin("a cubE", 0, "f"), Origin("a cube", 0, "f")),
        (Origin("a cube", 0, "f"), None),
        (None, Origin("a cube", 0, "f")),
        (None, None),
    ],
)
def test_a_mesh_of_another_origin_is_kept_unless_it_may_be_replaced(tmp_path, old, new):
    folder = tmp_path / "a_cube"
    MeshExporter({**SMALL, "fmt": "obj"})([sphere()], ["a cube"], tmp_path, old and [old])
    (folder / "notes").write_text("mine")
    before = written(folder)
    exports = [["a ball", "a cube"], tmp_path, new and [Origin("a ball", 0, "f"), new]]
    said = re.escape(f"1 of 2 meshes would replace others: {folder} holds one of {old or 'something that'}")
    with pytest.raises(WriteError, match=f"{said}.*--overwrite"):
        MeshExporter(SMALL).check(*exports)
    with pytest.raises(WriteError, match=said):
        MeshExporter(SMALL)([sphere(), tetrahedron()], *exports)
    assert written(folder) == before
    assert not (tmp_path / "a_ball").exists()
    MeshExporter({**SMALL, "overwrite": True})([sphere(), tetrahedron()], *exports)
    assert written(folder).keys() == {"model.glb", "prompt.txt", "turntable.png", "notes"} | (
        {"origin.json"} if new else set()
    )


def test_a_cut_off_export_can_be_repeated(tmp_path, monkeypatch):
    origins = [Origin("a cube", 0, "f")]

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("triplaneturbo.exporters.mesh_exporter.write_mesh", stop)
        with pytest.raises(KeyboardInterrupt):
            MeshExporter(SMALL)([sphere()], ["a cube"], tmp_path, origins)
    assert not (tmp_path / "a_cube/model.glb").exists()
    MeshExporter(SMALL)([sphere()], ["a cube"], tmp_path, origins)
    assert (tmp_path / "a_cube/model.glb").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"seed": 0}'])
def test_an_origin_that_cannot_be_read_is_another(tmp_path, text):
    origins = [Origin("a cube", 0, "f")]
    MeshExporter(SMALL)([sphere()], ["a cube"], tmp_path, origins)
    (tmp_path / "a_cube/origin.json").write_text(text)
    with pytest.raises(WriteError, match="something that it does not say, not of 'a cube' by seed 0 and weights f"):
        MeshExporter(SMALL).check(["a cube"], tmp_path, origins)


def test_weights_are_told_apart_by_name_shape_and_value():
    state = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    assert weights_id(state) == weights_id({"b": torch.tensor(3), "a": torch.arange(6).half()})
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0) + 1e-6, "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(4)},
    ]
    assert len({weights_id(other) for other in (state, *others)}) == 5
    assert re.fullmatch("[0-9a-f]{32}", weights_id(state))


def test_an_empty_mesh_is_an_error_that_names_its_prompt(tmp_path):
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(EmptyFieldError, match="'a ghost'"):
        MeshExporter(SMALL)([sphere(), empty], ["a ball", "a ghost"], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a_ball"}


def test_options(tmp_path):
    exporter = MeshExporter({"save_name": "x", "save_video": True, "turntable_views": 0, "turntable_size": 8})
    (path,) = exporter([tetrahedron()], ["a"], tmp_path)
    assert {p.name for p in path.parent.iterdir()} == {"x.glb", "prompt.txt", "turntable.webp"}
    for save_normal in (True, False):
        exporter = MeshExporter({"save_normal": save_normal, "turntable_views": 0, "overwrite": True})
        (path,) = exporter([tetrahedron()], ["b"], tmp_path)
        assert (b'"NORMAL"' in path.read_bytes()) == save_normal


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"fmt": "obj-mtl"}, {"model.obj", "model.mtl", "texture_kd.png"}),
        ({"fmt": "obj-mtl", "save_uv": True, "texture_format": "jpg"}, {"model.obj", "model.mtl", "texture_kd.jpg"}),
        ({"fmt": "glb", "save_uv": True}, {"model.glb"}),
    ],
)
def test_textures(tmp_path, options, files):
    exporter = MeshExporter({"texture_size": 32, "max_faces": 100, **options, **SMALL})
    (path,) = exporter([painted_ball(12)], ["a ball"], tmp_path)
    assert {p.name for p in path.parent.iterdir()} == {*files, "prompt.txt", "turntable.png"}
    mesh = read_mesh(path)
    assert mesh.texture.image.shape == (32, 32, 3)
    assert len(mesh.faces) == 100


def test_textures_without_their_packages_are_refused_before_any_mesh_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    MeshExporter({"fmt": "obj"})
    with pytest.raises(ConfigError, match=r"pip install xatlas fast-simplification`, or .* fmt=glb or fmt=obj"):
        MeshExporter({"fmt": "obj-mtl"})


def test_nothing_to_unwrap(tmp_path):
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(EmptyFieldError, match="'a ghost' has no surface"):
        MeshExporter({"fmt": "obj-mtl"})([empty], ["a ghost"], tmp_path)
    with pytest.raises(ValueError, match="painted from the field"):
        MeshExporter({"fmt": "obj-mtl"})([sphere()], ["a ball"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmt": "obj", "save_uv": True}, "colours per vertex; for a texture use fmt=obj-mtl or fmt=glb"),
        ({"texture_size": 8}, r"in \[16, 8192\], not 8"),
        ({"texture_format": "jpeg"}, "'png', 'jpg'"),
        ({"max_faces": -1}, "max_faces must be 0 or more, not -1"),
        ({"fmt": "obj-mtl", "xatlas_pack_options": {"pading": 2}}, "did you mean 'padding'"),
        ({"fmt": "ply"}, "allowed: 'glb', 'obj', 'obj-mtl'"),
        ({"turntable_views": 3}, "even number"),
        ({"save_nam": "x"}, "did you mean 'save_name'"),
    ],
)
def test_refused_options_say_what_to_use(options, message):
    with pytest.raises(ConfigError, match=message):
        MeshExporter(options)


def test_registered_names(tmp_path):
    assert find("exporter", "mesh-files") is MeshExporter
    assert find("exporter", "no-files")({})([sphere()], ["a"], tmp_path) == []
