"""Published checkpoints to folders and back, on tiny files with the published names and at full size by shape."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from published_layout import draw, published_unet, published_vae, tiny_unet, tiny_vae
from tiny_student import training_options, write_pipeline

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.config import load_config
from triplaneturbo.errors import WeightsError
from triplaneturbo.evaluation.convert import main
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.guidance import MVDreamTeacher, RichDreamerTeacher
from triplaneturbo.legacy.state_dicts import from_original, to_original
from triplaneturbo.pipelines.convert import convert, convert_back, kind_of
from triplaneturbo.types import Condition
from triplaneturbo.weights import ldm
from triplaneturbo.weights.files import load_tensors

KEYS = json.loads((Path(__file__).parents[1] / "weights/published_keys.json").read_text())
RECIPE = Path(__file__).parents[2] / "configs/TriplaneTurbo_v1.yaml"


def shapes(name):
    """The tensors of a published file, without their content."""
    return {key: torch.empty(shape, device="meta") for key, shape in KEYS[name].items()}


@pytest.fixture
def on_meta(monkeypatch):
    """Models that are built from checkpoints stay without memory."""

    def empty(cls, config):
        with torch.device("meta"):
            return cls.from_config(config)

    monkeypatch.setattr(ldm, "_empty", empty)


@pytest.mark.parametrize(
    ("name", "head", "count"),
    [("mvdream", {"head_width": 64}, 867_572_164), ("richdreamer", {"heads": 8}, 861_182_404)],
)
def test_every_tensor_of_the_published_teachers_has_its_place(on_meta, name, head, count):
    state = shapes(name)
    assert kind_of(state, name) == name
    unet = ldm.build_unet(state, name, **head)
    assert sum(p.numel() for p in unet.parameters()) == count
    if name == "mvdream":
        assert sum(p.numel() for p in ldm.build_vae(state, name).parameters()) == 83_653_863


def test_every_tensor_of_the_published_student_has_its_place():
    state = shapes("student")
    assert kind_of(state, "student") == "student"
    options = load_config([RECIPE], ["data.prompt_library=none"]).system.cfg.geometry.cfg
    with torch.device("meta"):
        ours = FewStepTriplanes(options).state_dict()
    own = {name.removeprefix("geometry."): tensor for name, tensor in state.items()}
    renamed = from_original(own, ours)
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in ours.items()}
    assert {name: t.shape for name, t in to_original(renamed).items()} == {n: t.shape for n, t in own.items()}


def recipe(folder, world):
    """A student's recipe on top of the tiny Stable Diffusion."""
    config = training_options(world / "sd")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    return folder / "recipe.yaml"


def test_a_student_there_and_back(tmp_path, tiny_world):
    ours = write_pipeline(tmp_path / "ours", tiny_world / "sd")
    convert_back(ours, tmp_path / "original.pth")
    content = torch.load(tmp_path / "original.pth", weights_only=True)
    assert {"epoch", "global_step", "pytorch-lightning_version", "state_dict"} == set(content)
    assert "geometry.space_generator.peft_layers.layers.0.to_q_xy_lora_geo.down.weight" in content["state_dict"]
    assert convert(tmp_path / "original.pth", tmp_path / "back", recipe(tmp_path, tiny_world)) == "student"
    before, after = (load_tensors(folder / "student.safetensors") for folder in (ours, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    first, second = (TextToMeshPipeline.from_pretrained(f, "cpu") for f in (ours, tmp_path / "back"))
    scenes = (student.generate(["a red cube"]).tensors["planes"] for student in (first, second))
    torch.testing.assert_close(*scenes, rtol=0, atol=0)
    units = [student.geometry.field.cfg.deformation_unit for student in (first, second)]
    assert units == ["training cell", "cell"]
    assert second.config.resolution == 160  # that of the published pipeline


@pytest.mark.parametrize("name", ["mvdream", "richdreamer"])
def test_a_teacher_works_from_its_folder_as_from_its_file(tmp_path, name):
    is_mvdream = name == "mvdream"
    unet = tiny_unet(is_mvdream, widths=(64, 128) if is_mvdream else (32, 64), heads=(1, 2) if is_mvdream else (8, 8))
    path, folder = tmp_path / "file.ckpt", tmp_path / "folder"
    torch.save({"state_dict": published_unet(unet) | published_vae(tiny_vae())}, path)
    assert convert(path, folder, RECIPE) == name
    assert sorted(os.listdir(folder)) == (["scheduler", "unet", "vae"] if is_mvdream else ["scheduler", "unet"])
    cls = MVDreamTeacher if is_mvdream else RichDreamerTeacher
    one, two = (cls({"path": str(place), "image_size": 16, "n_view": 1}) for place in (path, folder))
    inputs = draw(2, 4, 8, 8), torch.tensor([3, 900]), Condition(draw(2, 5, 12), draw(2, 16))
    torch.testing.assert_close(one.predict(*inputs), two.predict(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(one.schedule.alphas_cumprod, two.schedule.alphas_cumprod, rtol=0, atol=0)


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_is_refused_and_not_executed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1)}, "trainer": Code()}, tmp_path / "bad.pth")
    assert main("", [str(tmp_path / "bad.pth"), str(tmp_path / "out")]) == 1
    assert "could run code" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["bad.pth"]


def test_other_files_are_refused(tmp_path):
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="neither MVDream's, RichDreamer's nor a student's"):
        convert(tmp_path / "other.pt", tmp_path / "out", RECIPE)
    with pytest.raises(WeightsError, match=r"has no pipeline\.json"):
        convert_back(tmp_path, tmp_path / "x.pth")


def test_the_command_says_how_to_use_what_it_wrote(tmp_path, tiny_world, capsys):
    ours = write_pipeline(tmp_path / "ours", tiny_world / "sd")
    original, folder = str(tmp_path / "o.pth"), str(tmp_path / "folder")
    assert main("", [str(ours), original, "--to-original"]) == 0
    assert main("", [original, folder, "--config", str(recipe(tmp_path, tiny_world))]) == 0
    assert f'from_pretrained("{folder}")' in capsys.readouterr().out
    assert main("", [original, folder]) == 1
    assert "this model needs" in capsys.readouterr().err
