import pytest
import torch
from PIL import Image
from solids import sphere, tetrahedron

from triplaneturbo.errors import ConfigError, EmptyFieldError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
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


def test_an_empty_mesh_is_an_error_that_names_its_prompt(tmp_path):
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(EmptyFieldError, match="'a ghost'"):
        MeshExporter(SMALL)([sphere(), empty], ["a ball", "a ghost"], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a_ball"}


def test_options(tmp_path):
    exporter = MeshExporter({"save_name": "x", "save_video": True, "turntable_views": 0, "turntable_size": 8})
    (path,) = exporter([tetrahedron()], ["a"], tmp_path)
    assert {p.name for p in path.parent.iterdir()} == {"x.glb", "prompt.txt", "turntable.webp"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmt": "obj-mtl"}, "no texture atlas; use fmt=glb or fmt=obj"),
        ({"save_uv": True}, "no texture atlas; use fmt=glb or fmt=obj"),
        ({"texture_size": 512}, "no texture atlas"),
        ({"fmt": "ply"}, "allowed: 'glb', 'obj'"),
        ({"turntable_views": 3}, "even number"),
        ({"save_nam": "x"}, "did you mean 'save_name'"),
    ],
)
def test_refused_options_say_what_to_use(options, message):
    with pytest.raises(ConfigError, match=message):
        MeshExporter(options)


def test_registered_names(tmp_path):
    assert find("multiprompt-mesh-exporter") is find("mesh-exporter") is MeshExporter
    assert find("dummy-exporter")({})([sphere()], ["a"], tmp_path) == []
