"""Random stand-ins for published files: they have the published layout, load as usual, and are told apart."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from triplaneturbo import doctor
from triplaneturbo.evaluation.clip_models import load_clip
from triplaneturbo.evaluation.published_layouts import FULL, contents
from triplaneturbo.evaluation.random_weights import ASSETS, draw_tensors, main
from triplaneturbo.guidance import MVDreamTeacher, RichDreamerTeacher, StableDiffusionTeacher
from triplaneturbo.prompts.text_encoder import TextEncoder
from triplaneturbo.types import Condition
from triplaneturbo.weights.files import load_tensors
from triplaneturbo.weights.hub import CLIP, MVDREAM, RICHDREAMER, STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, STUDENT
from triplaneturbo.weights.stand_ins import NOTE

KEYS = json.loads((Path(__file__).parent / "published_keys.json").read_text())


@pytest.mark.parametrize(("asset", "name"), [(MVDREAM, "mvdream"), (RICHDREAMER, "richdreamer"), (STUDENT, "student")])
def test_names_and_shapes_are_the_published_ones(asset, name):
    (layout,) = contents(asset, FULL).values()
    assert {key: list(shape) for key, shape in layout.items()} == KEYS[name]


def test_sizes_of_the_published_folders():
    counts = {
        f"{asset.name}/{file}": sum(torch.Size(shape).numel() for shape in content.values())
        for asset in (STABLE_DIFFUSION_2, STABLE_DIFFUSION_1, CLIP)
        for file, content in contents(asset, FULL).items()
        if not isinstance(content, str)
    }
    assert counts == {
        "stable-diffusion-2-1-base/unet/diffusion_pytorch_model.safetensors": 865_910_724,
        "stable-diffusion-2-1-base/vae/diffusion_pytorch_model.safetensors": 83_653_863,
        "stable-diffusion-2-1-base/text_encoder/model.safetensors": 340_387_840,
        "stable-diffusion-v1-5/text_encoder/model.safetensors": 123_060_480,
        "clip-vit-base-patch32/model.safetensors": 151_277_313,
    }


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_every_file_that_is_asked_for_is_written(asset):
    files = contents(asset, FULL)
    assert all(any(choice in files for choice in file.split("|")) for file in asset.files or ("",))


def test_the_teachers_of_the_recipe_load_and_are_finite(tiny_stand_ins):
    view = {"n_view": 1, "image_size": 64}
    teachers = [
        (MVDreamTeacher({"path": str(tiny_stand_ins / MVDREAM.name), **view}), 32),
        (RichDreamerTeacher({"path": str(tiny_stand_ins / RICHDREAMER.name), **view, "image_size": 8}), 24),
        (StableDiffusionTeacher({"path": str(tiny_stand_ins / STABLE_DIFFUSION_2.name), "image_size": 64}), 32),
    ]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    camera = torch.eye(4).flatten().expand(2, -1)
    for teacher, width in teachers:
        out = teacher.predict(noise, torch.tensor([20, 980]), Condition(torch.ones(2, 5, width), camera))
        assert 0.05 < out.std() < 5
        if teacher.vae is not None:
            latents = teacher.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), noise[:1])
            assert latents.isfinite().all()


@pytest.mark.parametrize("asset", [STABLE_DIFFUSION_1, STABLE_DIFFUSION_2], ids=lambda asset: asset.name)
def test_text_of_any_script_is_read(tiny_stand_ins, asset):
    encoder = TextEncoder(tiny_stand_ins / asset.name)
    prompts = ["a red cube", "一只红色的猫", "Ünï🙂", "", "word " * 100]
    ids = encoder.tokenize(prompts)
    assert ids.shape == (5, 77)
    assert encoder.tokenizer.decode(ids[1], skip_special_tokens=True).rstrip("!") == prompts[1]
    assert ids.max() == 49407  # the table of the published encoders has one row more
    tokens, pooled = encoder.encode(prompts)
    assert tokens.isfinite().all()
    ends = (ids == 49407).int().argmax(dim=1)
    torch.testing.assert_close(pooled, tokens[torch.arange(5), ends])
    assert len(pooled.unique(dim=0)) == 5


def test_the_scorer_loads(tiny_stand_ins):
    judge = load_clip(str(tiny_stand_ins / CLIP.name))
    pictures = [Image.new("RGB", (50, 40), color) for color in ("red", "blue")]
    assert judge.images(pictures).shape == judge.texts(["a red cube", "猫"]).shape == (2, 16)


def test_tensors_depend_on_seed_and_name_only():
    shapes = {"a.weight": (3, 400), "b.weight": (3, 400), "norm.weight": (4,), "norm.bias": (4,), "g.bbox": (2, 3)}
    drawn = draw_tensors(shapes, 0, torch.float32)
    alone = draw_tensors({"b.weight": (3, 400)}, 0, torch.float32)
    assert torch.equal(drawn["b.weight"], alone["b.weight"])
    assert not torch.equal(drawn["a.weight"], drawn["b.weight"])
    assert not torch.equal(alone["b.weight"], draw_tensors({"b.weight": (3, 400)}, 1, torch.float32)["b.weight"])
    assert drawn["a.weight"].abs().max() <= 1 / 20
    assert drawn["a.weight"].std() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)
    assert [drawn[name].tolist() for name in ("norm.weight", "norm.bias")] == [[1.0] * 4, [0.0] * 4]
    assert drawn["g.bbox"].tolist() == [[-1.0] * 3, [1.0] * 3]


def write(folder, *options):
    return main("", ["--out", str(folder), "--width", "tiny", "--only", STABLE_DIFFUSION_1.name, *options])


def test_stand_ins_are_rewritten_and_real_files_are_not(tmp_path, capsys):
    assert write(tmp_path) == 0
    weights = tmp_path / "stable-diffusion-v1-5/text_encoder/model.safetensors"
    first = load_file(weights)
    assert {tensor.dtype for tensor in first.values()} == {torch.float16}
    assert write(tmp_path, "--dtype", "float32", "--seed", "1") == 0
    second = load_file(weights)
    assert {tensor.dtype for tensor in second.values()} == {torch.float32}
    weights.write_bytes(weights.read_bytes()[:-4] + b"real")
    before = weights.read_bytes()
    capsys.readouterr()
    assert write(tmp_path) == 1
    assert f"first {weights}" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_without_a_note_is_left_alone(tmp_path, capsys):
    assert write(tmp_path) == 0
    (tmp_path / NOTE).unlink()
    assert write(tmp_path) == 1
    assert "6 files are there and are not stand-ins" in capsys.readouterr().err


def test_unknown_names_are_refused(tmp_path, capsys):
    assert main("", ["--out", str(tmp_path), "--only", "sdxl"]) == 1
    assert "nothing is called 'sdxl'" in capsys.readouterr().err


def test_doctor_and_downloads_know_them(tmp_path):
    assert write(tmp_path / "pretrained") == 0
    line = next(line for line in doctor.weights(tmp_path) if STABLE_DIFFUSION_1.target in line)
    assert line.startswith("random stand-in pretrained/stable-diffusion-v1-5")
    assert [p.rsplit(" is ")[-1] for p in STABLE_DIFFUSION_1.missing(tmp_path)] == ["a random stand-in"]
    weights = tmp_path / STABLE_DIFFUSION_1.target / "text_encoder/model.safetensors"
    load_tensors(weights)
    (tmp_path / "pretrained" / NOTE).unlink()
    assert STABLE_DIFFUSION_1.state(tmp_path) == "there"
