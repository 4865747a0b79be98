"""What is trained beside a teacher: gradients, the optimiser, checkpoints, and going on from them exactly."""

import pytest
import torch
from miniature import assemble
from tiny_teachers import make_cameras, make_teachers, make_texts, make_views
from trained_teacher import TeacherWithACopy

from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import ScoreDistillation
from triplaneturbo.schedule import Progress

START = Progress()
VSD = {"type": "test-teacher-with-a-copy", "rule": {"type": "vsd", "weighting": "uniform"}, "guidance_scale": 1.0}


def guide(folders: dict[str, str], **options) -> ScoreDistillation:
    return ScoreDistillation({"teachers": make_teachers(folders, "sd", sd=VSD | options)})


def run(guidance: ScoreDistillation, share: float = 1.0):
    draws = Draws(seed=0, samples=(3, 5), device=torch.device("cpu"))
    return guidance([make_views(8)], make_cameras(2), make_texts(2), draws, START, share=share)[0]


def gradients(guidance: ScoreDistillation) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in guidance.trained["sd"].named_parameters() if p.grad is not None}


def test_the_gradient_of_pictures_is_the_difference_from_the_copy(folders: dict[str, str]) -> None:
    """At guidance scale 1 a copy that says the same leaves nothing; one that says nothing leaves the estimate."""
    guidance = guide(folders)
    teacher = guidance.teachers["sd"]
    assert run(guidance).logs["sd_grad_norm"] < 1e-4
    with torch.no_grad():
        teacher.trained.conv_out.weight.zero_()
        teacher.trained.conv_out.bias.zero_()
    assert run(guidance).logs["sd_grad_norm"] > 1


def test_the_copy_learns_its_own_loss_and_nothing_else(folders: dict[str, str]) -> None:
    """Its gradients are those of the share of its loss; the estimate for pictures sends none."""
    guidance = guide(folders)
    teacher, seen = guidance.teachers["sd"], []
    training_loss = teacher.training_loss

    def spy(question, drawn):
        seen.append((question, drawn))
        return training_loss(question, drawn)

    teacher.training_loss = spy
    score = run(guidance, share=0.25)
    found = gradients(guidance)
    loss = training_loss(*seen[0])
    expected = torch.autograd.grad(0.25 * loss, list(teacher.trained.parameters()), allow_unused=True)
    named = dict(zip((name for name, _ in teacher.trained.named_parameters()), expected, strict=True))
    assert found.keys() == {name for name, gradient in named.items() if gradient is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, named[name])
    torch.testing.assert_close(score.logs["sd_training_loss"], loss.detach())
    assert not any(p.grad is not None for name, p in teacher.named_parameters() if not name.startswith("trained."))


def test_the_copy_follows_the_training_mode_and_the_teacher_does_not(folders: dict[str, str]) -> None:
    guidance = guide(folders)
    teacher = guidance.teachers["sd"]
    assert isinstance(teacher, TeacherWithACopy)
    for mode in (True, False):
        guidance.train(mode)
        assert teacher.trained.training is mode
        assert not teacher.unet.training
        assert not teacher.vae.training


def test_a_rule_that_asks_for_a_copy_refuses_a_teacher_without_one(folders: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match="rule 'vsd' needs a teacher with a trained copy, which StableDiffusionTeacher"
    ):
        guide(folders, type="stable-diffusion")


# One renderer, the trained teacher alone, one round, one batch: an update as fast as can be.
FAST = (
    "trainer.accelerator=cpu",
    "system.renderer_type=''",
    "system.guidance.rd_weight=0",
    "system.guidance.mv_weight=0",
    "system.gradient_accumulation_steps=1",
    "data.n_steps=1",
    "system.num_parts_training=1",
)
NAME = "teachers.stable_diffusion."


def teacher(world) -> str:
    """An override that puts the teacher in the place of Stable Diffusion."""
    options = f"type: test-teacher-with-a-copy, path: '{world / 'sd'}', image_size: 16, rule: vsd"
    return f"system.guidance.teachers.stable_diffusion={{{options}}}"


@pytest.fixture
def make(tiny_world, tmp_path):
    """make(*overrides, max_steps=1) -> system and trainer with its data; see `miniature.assemble`."""

    def start(*overrides, max_steps=1):
        options = (*FAST, teacher(tiny_world), "system.optimizer.params.teachers.lr=0.001", *overrides)
        system, data, trainer = assemble(tiny_world, tmp_path, *options, max_steps=max_steps)
        return system, lambda **options: trainer.fit(system, datamodule=data, **options)

    return start


def copies(system) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in system.state_dict().items() if name.startswith(NAME)}


def test_the_copy_is_trained_saved_and_goes_on_exactly(make, tmp_path) -> None:
    system, fit = make(max_steps=2)
    fit()
    begun = copies(system)
    frozen = system.guidance.teachers["stable_diffusion"].unet.state_dict()
    assert begun.keys() == {NAME + name for name in frozen}
    assert sum(not torch.equal(begun[NAME + name], value) for name, value in frozen.items()) > 10
    system.trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert not any(name.startswith("guidance") for name in system.state_dict())

    later, go_on = make(max_steps=4)
    go_on(ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    whole, fit = make(max_steps=4)
    fit()
    assert later.progress.step == whole.progress.step == 4
    continued, uninterrupted = later.state_dict(), whole.state_dict()
    assert continued.keys() == uninterrupted.keys()
    assert all(torch.equal(continued[name], uninterrupted[name]) for name in continued)
    assert any(not torch.equal(continued[name], begun[name]) for name in begun)


def test_evaluation_and_new_trainings_do_without_the_copy(make, tmp_path) -> None:
    system, fit = make()
    fit()
    path = tmp_path / "a.ckpt"
    system.trainer.save_checkpoint(path)
    other, _ = make(f"system.weights={path}")
    assert torch.equal(other.geometry.state_dict()["bbox"], system.geometry.state_dict()["bbox"])
    assert not copies(other)
    other.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    for name, value in system.geometry.state_dict().items():
        assert torch.equal(other.geometry.state_dict()[name], value)


def test_an_optimiser_that_leaves_the_copy_out_is_refused(tiny_world, tmp_path) -> None:
    system, data, trainer = assemble(tiny_world, tmp_path, *FAST, teacher(tiny_world))
    with pytest.raises(ConfigError, match=r"beside the teacher 'stable_diffusion' is in no group.*add teachers"):
        trainer.fit(system, datamodule=data)
