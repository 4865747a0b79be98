"""What an update does beside the optimizer step, and what a run takes with it when it goes on."""

import pytest
import torch
from miniature import assemble

from triplaneturbo.schedule import Progress
from triplaneturbo.types import ScoreGradient, Views

# One renderer, one teacher, one part, one batch: an update as fast as can be.
FAST = (
    "trainer.accelerator=cpu",
    "system.renderer_type=''",
    "system.guidance.rd_weight=0",
    "system.guidance.sd_weight=0",
    "system.gradient_accumulation_steps=1",
    "data.n_steps=1",
    "system.num_parts_training=1",
)


@pytest.fixture
def make(tiny_world, tmp_path):
    """make(*overrides, max_steps=1) -> system and trainer with its data; see `miniature.assemble`."""

    def start(*overrides, max_steps=1):
        system, data, trainer = assemble(tiny_world, tmp_path, *FAST, *overrides, max_steps=max_steps)
        return system, lambda **options: trainer.fit(system, datamodule=data, **options)

    return start


def test_the_weight_of_the_teachers_scales_nothing_else(make):
    """The scalar is score <gradient, picture> + sparsity sqrt(opacity^2 + .01), worked out by hand."""
    system, _ = make("system.loss.lambda_asd_2nd=0.25", "system.loss.lambda_sparsity_2nd=2.0")
    picture = torch.full((2, 3, 3, 3), 0.5)
    flat = torch.zeros(2, 3, 3, 1)
    views = Views(rgb=picture, normal=picture, disparity=flat, opacity=flat, depth=flat, extras={"sdf_grad": [flat]})
    score = ScoreGradient(torch.full_like(picture, 4.0), None, None, {})
    loss = system.loss(views, score, "volume", share=1.0)
    eikonal = 0.1 * 1.0  # the configured weight times (|0| - 1)^2
    torch.testing.assert_close(loss, torch.tensor(0.25 * 54 * 0.5 * 4.0 + 2.0 * 0.1 + eikonal))


def test_the_average_is_taken_with_the_decay_of_its_step(make, monkeypatch):
    """d = (1 + step) / (10 + step) while that is below the option."""
    system, fit = make("system.optimizer.params.geometry.lr=0.01", max_steps=3)
    seen = []
    update = system.update

    def recording_update(batch):
        update(batch)
        seen.append({name: p.detach().clone() for name, p in system.average.parameters.items()})

    monkeypatch.setattr(system, "update", recording_update)
    expected = {name: p.detach().clone() for name, p in system.average.parameters.items()}
    fit()
    for step, parameters in enumerate(seen, start=1):
        decay = (1 + step) / (10 + step)
        expected = {name: decay * expected[name] + (1 - decay) * parameters[name] for name in expected}
    assert len(seen) == 3
    assert any(not torch.equal(seen[0][name], seen[2][name]) for name in expected)
    torch.testing.assert_close(system.average.averages, expected, atol=1e-6, rtol=1e-5)


def test_skipped_updates_are_counted_across_lives(make, tmp_path, monkeypatch):
    """A run that was about to give up gives up when it goes on, and does not start counting again."""
    system, fit = make()
    fit()
    system.skipped, system.skipped_in_a_row = 25, 19
    system.trainer.save_checkpoint(tmp_path / "a.ckpt")
    later, go_on = make(max_steps=2)
    broken = torch.tensor(float("nan"))
    monkeypatch.setattr("triplaneturbo.systems.training.average_gradients", lambda parameters, wishes: (broken, wishes))
    with pytest.raises(RuntimeError, match="20 times in a row"):
        go_on(ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert later.skipped == 26


def test_a_run_goes_on_in_the_epoch_it_had_reached(make, tmp_path, monkeypatch):
    """Schedules by epochs stand where they stood: an update sees all 5 prompts of the library."""
    epoch_a_step = "data.batch_size=10"
    system, fit = make(epoch_a_step)
    fit()
    system.trainer.save_checkpoint(tmp_path / "a.ckpt")
    later, go_on = make(epoch_a_step, max_steps=2)
    seen = []
    step = later.training_step

    def spying_step(batch, batch_idx):
        seen.append(later.progress)
        step(batch, batch_idx)

    monkeypatch.setattr(later, "training_step", spying_step)
    go_on(ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert seen == [Progress(step=1, epoch=1)]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["system.gradient_accumulation_steps=3"], [0, 0, 0, 1, 1, 1, 2]),
        (["system.num_parts_training=2", "data.n_steps=2", "system.step_every_part=true"], [0, 2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_data_are_told_which_optimizer_step_a_batch_is_in(make, overrides, steps):
    system, fit = make(*overrides)
    fit()
    assert [system.data_module.step_of(batch) for batch in range(7)] == steps
