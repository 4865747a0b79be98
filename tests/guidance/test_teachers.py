"""Teachers: what they are told, what they see, and that they stay frozen."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from tiny_teachers import make_cameras, make_texts, make_views, write_scheduler

from custom.shapeworld.models import TEXT_WIDTH
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.guidance import MVDreamTeacher, Question, RichDreamerTeacher, StableDiffusionTeacher
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.teacher import Sight
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Condition, Views


def ask(views: Views, n_view: int, rows: list[int] | None = None) -> Question:
    """A question about the pictures `rows`, or all of them."""
    n_prompts = len(views.rgb) // n_view
    rows = torch.arange(len(views.rgb)) if rows is None else torch.tensor(rows)
    return Question((Sight(0, 0, views, rows),), make_cameras(n_prompts, n_view), make_texts(n_prompts), Progress())


def noise_like(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_camera_conditions_leave_the_cameras_alone() -> None:
    cameras = make_cameras(2)
    before = cameras.c2w.clone()
    mvdream_camera(cameras)
    richdreamer_camera(cameras)
    assert torch.equal(cameras.c2w, before)


def test_mvdream_camera_has_unit_distance_and_the_same_rotation() -> None:
    cameras = make_cameras(2)
    matrix = mvdream_camera(cameras).unflatten(1, (4, 4))
    torch.testing.assert_close(matrix[:, :3, 3].norm(dim=1), torch.ones(8))
    assert torch.equal(matrix[:, :3, :3], cameras.c2w[:, :3, :3])
    torch.testing.assert_close(matrix[:, :3, 3] * cameras.distance[:, None], cameras.positions)


@pytest.mark.parametrize(("method", "factor"), [("rel_x2", 1.8), ("rel", 0.9), ("abs", 0.9 / math.tan(math.pi / 6))])
def test_richdreamer_camera_is_turned_by_a_quarter(method: str, factor: float) -> None:
    cameras = make_cameras(2)
    quarter = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Rot_z(-90 degrees)
    expected = quarter @ cameras.c2w
    expected[:, :3, 3] *= (factor / cameras.distance)[:, None]
    torch.testing.assert_close(richdreamer_camera(cameras, method).unflatten(1, (4, 4)), expected, atol=1e-6, rtol=1e-6)


def test_latents_are_scaled_posterior_samples(folders: dict[str, str]) -> None:
    teacher = StableDiffusionTeacher({"path": folders["sd"], "image_size": 16})
    views, noise = make_views(3), noise_like((3, *teacher.latent_shape))
    latents = teacher.encode(teacher.preprocess(ask(views, 3)), noise)
    resized = F.interpolate(views.rgb.permute(0, 3, 1, 2), (16, 16), mode="bilinear")
    mean, log_variance = teacher.vae.quant_conv(teacher.vae.encoder(resized * 2 - 1)).chunk(2, dim=1)
    expected = 0.18215 * (mean + torch.exp(0.5 * log_variance) * noise)
    torch.testing.assert_close(latents, expected)


def test_gradient_checkpointing_changes_nothing(folders: dict[str, str]) -> None:
    gradients = []
    for checkpoint in (False, True):
        teacher = MVDreamTeacher({"path": folders["mv"], "image_size": 16, "gradient_checkpoint": checkpoint})
        pictures = teacher.preprocess(ask(make_views(4), 4)).requires_grad_()
        latents = teacher.encode(pictures, noise_like((4, *teacher.latent_shape)))
        gradients += torch.autograd.grad(latents.square().sum(), pictures)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("quirks", "low", "high"), [([], -1.0, 1.0), (["unit-range"], 0.0, 1.0)])
def test_richdreamer_sees_averaged_normals_and_disparity(
    folders: dict[str, str], quirks: list[str], low: float, high: float
) -> None:
    teacher = RichDreamerTeacher({"path": folders["rd"], "image_size": 4, "quirks": quirks})
    views = make_views(4, size=12)
    seen = teacher.encode(teacher.preprocess(ask(views, 4)), None)
    average = views.normal.unflatten(1, (4, 3)).unflatten(3, (4, 3)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[:, :3], low + (high - low) * average)
    average = views.disparity.unflatten(1, (4, 3)).unflatten(3, (4, 3)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[:, 3:], low + (high - low) * average)


def test_views_of_a_prompt_see_each_other_and_no_other_prompt(folders: dict[str, str]) -> None:
    teacher = MVDreamTeacher({"path": folders["mv"], "image_size": 16})
    t, text = torch.full((8,), 400), noise_like((8, 5, TEXT_WIDTH))
    text[:4], text[4:] = text[0], text[4]
    camera, noisy = teacher.camera(make_cameras(2)), noise_like((8, *teacher.latent_shape), seed=1)
    base = teacher.predict(noisy, t, Condition(text, camera))
    changed = noisy.clone()
    changed[1] += 1
    moved = (teacher.predict(changed, t, Condition(text, camera)) - base).abs().amax(dim=(1, 2, 3))
    assert (moved[:4] > 1e-4).all()
    assert (moved[4:] < 1e-6).all()
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    permuted = teacher.predict(noisy[order], t, Condition(text, camera[order]))
    torch.testing.assert_close(permuted, base[order], rtol=1e-4, atol=1e-5)


def test_the_camera_matters(folders: dict[str, str]) -> None:
    teacher = RichDreamerTeacher({"path": folders["rd"], "image_size": 8})
    t, text, noisy = torch.full((4,), 400), noise_like((4, 5, TEXT_WIDTH)), noise_like((4, 4, 8, 8))
    camera = teacher.camera(make_cameras(1))
    difference = teacher.predict(noisy, t, Condition(text, camera)) - teacher.predict(
        noisy, t, Condition(text, camera.flip(0))
    )
    assert difference.abs().max() > 1e-4


def test_a_batch_that_is_no_multiple_of_the_views_is_refused(folders: dict[str, str]) -> None:
    teacher = RichDreamerTeacher({"path": folders["rd"], "image_size": 8})
    with pytest.raises(ValueError, match="not a multiple of the 4 views"):
        teacher.predict(
            torch.zeros(3, 4, 8, 8),
            torch.zeros(3, dtype=torch.long),
            Condition(torch.zeros(3, 5, TEXT_WIDTH), torch.zeros(3, 16)),
        )


def test_teachers_are_frozen(folders: dict[str, str]) -> None:
    teacher = StableDiffusionTeacher({"path": folders["sd"], "image_size": 16})
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("condition", [None, "first", "second"])
@pytest.mark.parametrize("unconditional", [None, "negative", "empty"])
def test_teachers_read_the_text_that_they_name(
    folders: dict[str, str], condition: str | None, unconditional: str | None
) -> None:
    """Of the first encoder if they name none; the negative prompt, Stable Diffusion the empty one."""
    said = {} if unconditional is None else {"unconditional": unconditional}
    for cls, name in ((StableDiffusionTeacher, "sd"), (MVDreamTeacher, "mv"), (RichDreamerTeacher, "rd")):
        teacher = cls({"path": folders[name], "image_size": 16, "condition": condition, **said})
        question = ask(make_views(8), 4, rows=[1, 6] if name == "sd" else None)
        without, with_text = teacher.conditions(question)
        states = question.conditions[condition or "first"]
        frames = 1 if name == "sd" else 4
        assert torch.equal(with_text.text, states.tokens.repeat_interleave(frames, dim=0))
        usual = "empty" if name == "sd" else "negative"
        assert torch.equal(without.text, getattr(states, unconditional or usual).expand_as(with_text.text))
        assert (with_text.camera is None) == (name == "sd")
        if name != "sd":
            assert torch.equal(with_text.camera, teacher.camera(question.cameras))


@pytest.mark.parametrize("name", ["sd", "mv"])
def test_a_teacher_can_be_told_the_side_that_its_camera_sees(folders: dict[str, str], name: str) -> None:
    """The views of make_cameras stand at 0, 90, 180 and 270 degrees, those of the second prompt 11 further on."""
    cls = {"sd": StableDiffusionTeacher, "mv": MVDreamTeacher}[name]
    teacher = cls({"path": folders[name], "image_size": 16, "condition": "second", "text_by_view": True})
    question = ask(make_views(8), 4, rows=[2, 5] if name == "sd" else None)
    plain = question.conditions["second"]
    by_view = noise_like((4, 2, 5, TEXT_WIDTH))
    question.conditions["second"] = dataclasses.replace(plain, by_view=by_view)
    without, with_text = teacher.conditions(question)
    if name == "sd":
        expected = [by_view[2, 0], by_view[1, 1]]  # the back of the first prompt, a side of the second
        assert torch.equal(without.text, plain.empty.expand(2, -1, -1))
    else:
        expected = [by_view[side, prompt] for prompt in range(2) for side in (0, 1, 2, 1)]
    assert torch.equal(with_text.text, torch.stack(expected))
    question.conditions["second"] = plain
    with pytest.raises(ValueError, match="by_view=true"):
        teacher.conditions(question)


def test_mvdream_takes_a_missing_autoencoder_only_from_where_it_is_told(
    folders: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(Path(folders["mv"]) / "unet", tmp_path / "unet")
    write_scheduler(tmp_path)
    with pytest.raises(WeightsError, match=r"no vae/config.json.*scheduler, unet"):
        MVDreamTeacher({"path": str(tmp_path), "image_size": 16})
    teacher = MVDreamTeacher({"path": str(tmp_path), "vae_path": folders["sd"], "image_size": 16})
    assert teacher.latent_shape == (4, 8, 8)


def test_half_precision_weights_are_stored_as_such_and_answers_are_float32(folders: dict[str, str]) -> None:
    teacher = StableDiffusionTeacher({"path": folders["sd"], "image_size": 16, "network_dtype": "bfloat16"})
    t, text, noisy = torch.tensor([300]), noise_like((1, 5, TEXT_WIDTH)), noise_like((1, 4, 8, 8))
    short = teacher.predict(noisy, t, Condition(text, None))
    assert short.dtype == torch.float32
    assert teacher.unet.dtype == torch.bfloat16
    full = StableDiffusionTeacher({"path": folders["sd"], "image_size": 16}).predict(noisy, t, Condition(text))
    assert 1e-6 < (short - full).abs().max() < 0.05 * full.abs().max()


def test_a_model_of_other_pictures_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    unet = UNet2DConditionModel.load_config(Path(folders["rd"]) / "unet")
    UNet2DConditionModel.from_config(unet | {"in_channels": 3}).save_pretrained(tmp_path / "unet")
    write_scheduler(tmp_path)
    with pytest.raises(ConfigError, match="3 channels"):
        RichDreamerTeacher({"path": str(tmp_path)})
