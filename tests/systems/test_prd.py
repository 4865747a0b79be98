"""The method against a direct, memory-hungry way of writing it, and how it behaves when things go wrong."""

import dataclasses
import json
import shutil

import pytest
import torch
from miniature import assemble

from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.legacy.state_dicts import to_original
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.prd import pick_timesteps
from triplaneturbo.systems.training import read_weights


class Spy:
    """Sees the gradients of each update and the batches they come from."""

    def __init__(self, system, monkeypatch, spoil=()):
        self.gradients, self.batches = [], []
        step, update = system.training_step, system.update

        def training_step(batch, batch_idx):
            self.batches.append(batch)
            step(batch, batch_idx)

        def spying_update(batch):
            if len(self.gradients) in spoil:
                next(p for p in system.geometry.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")
            named = system.named_parameters()
            self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
            update(batch)

        monkeypatch.setattr(system, "training_step", training_step)
        monkeypatch.setattr(system, "update", spying_update)


# Lightning takes a system off the GPU after training; batches stay there.
ON_CPU = "trainer.accelerator=cpu"


@pytest.fixture
def run(tiny_world, tmp_path, monkeypatch):
    """run(*overrides, max_steps=1, spoil=()) -> system, data module and spy after training."""

    def start(*overrides, max_steps=1, spoil=()):
        system, data, trainer = assemble(tiny_world, tmp_path, *overrides, max_steps=max_steps)
        spy = Spy(system, monkeypatch, spoil)
        trainer.fit(system, datamodule=data)
        return system, data, spy

    start.world = tiny_world, tmp_path
    return start


# What ends the names of draws of the renderers in published configurations.
LABELS = {"mesh": "", "volume": "_2nd"}


def direct_loss(system, batch, share):
    """The sum of all losses of a step as one graph, with the score gradient as a fixed direction."""
    draws = Draws(system.run.seed, batch.samples, torch.device("cpu")).within("train")
    clean = draws.normal("start", *batch.latent_shape).flatten(0, 1)
    times = system.draw_timesteps(draws)
    total = 0.0
    for number, cameras in enumerate(batch.cameras):
        local = draws.within(f"part{number}")
        noise = local.normal("noise", *batch.latent_shape).flatten(0, 1)
        t = times[number].repeat_interleave(6)
        generator = system.geometry.space_generator
        noisy = generator.schedule.add_noise(clean.detach(), noise, t)
        clean = generator.predict_clean(noisy, t, batch.condition.tokens)
        scene = system.geometry.decode(clean)
        views = [
            system.render(renderer, scene, cameras, batch, local.within(f"renderer{LABELS[name]}"))
            for name, renderer in system.renderers.items()
        ]
        scores = system.guidance(views, cameras, batch.conditions, local, Progress())
        for name, view, score in zip(system.renderers, views, scores, strict=True):
            reference = (view.rgb * score.rgb).sum() + (view.normal * score.normal).sum()
            reference = reference + (view.disparity * score.disparity).sum()
            objective = system.objectives[name]
            total = total + share * (objective.score(Progress()) * reference + objective(view, Progress())[0])
    return total


def test_gradients_are_those_of_the_whole_loss(run):
    system, _, spy = run("system.optimizer.params.geometry.lr=0.0", ON_CPU)
    assert len(spy.batches) == 2
    system.zero_grad()
    sum(direct_loss(system, batch, share=1 / 4) for batch in spy.batches).backward()
    found = spy.gradients[0]
    expected = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6 * float(scale), msg=name)


def test_a_step_can_follow_every_round(run):
    system, data, spy = run("system.step_every_part=true", "system.gradient_accumulation_steps=1", max_steps=4)
    assert len(spy.batches) == 2
    assert len(spy.gradients) == 4
    assert (system.progress.step, data.position.batches) == (4, 2)


def test_schedules_see_steps_and_epochs(run):
    system, data, _ = run(max_steps=3)
    assert system.progress == Progress(step=3, epoch=2)  # 12 prompts seen, 5 in the library
    assert data.position.samples == 12


def test_one_renderer_is_enough(run):
    for slot in ("renderer", "renderer_2nd"):
        system, _, spy = run(f"system.{slot}_type=''", "data.n_steps=1", "system.num_parts_training=1")
        assert len(system.renderers) == 1
        assert all(gradient.isfinite().all() for gradient in spy.gradients[0].values())


def test_updates_that_are_not_finite_are_skipped_and_counted(run, monkeypatch):
    system, data, spy = run(max_steps=2, spoil=(0, 2))
    assert len(spy.gradients) == 4
    assert (system.skipped, system.skipped_in_a_row) == (2, 0)
    assert system.progress.step == 2
    assert data.position.batches == 8
    assert all(p.isfinite().all() for p in system.parameters())


def test_training_that_diverges_stops(run, monkeypatch):
    monkeypatch.setattr("triplaneturbo.systems.training.MAX_SKIPPED_IN_A_ROW", 4)
    with pytest.raises(RuntimeError, match="4 times in a row"):
        run("data.n_steps=1", "system.num_parts_training=1", "system.renderer_type=''", spoil=range(99), max_steps=99)


def test_the_average_is_what_evaluation_sees(run):
    system, *_ = run(max_steps=2)
    name, parameter = next((n, p) for n, p in system.named_parameters() if n.endswith("sdf_network.layers.0.weight"))
    trained, average = parameter.detach().clone(), system.average.averages[name].clone()
    assert not torch.equal(trained, average)
    system.on_validation_start()
    assert torch.equal(parameter, average)
    system.on_validation_end()
    assert torch.equal(parameter, trained)


def test_generation_is_the_same_every_time_and_at_every_place_of_a_list(run):
    system, _, spy = run(ON_CPU)
    batch = spy.batches[0]
    system.eval()
    planes = system.generate(batch).tensors["planes"]
    assert torch.equal(planes, system.generate(batch).tensors["planes"])
    text = dataclasses.replace(batch.condition, tokens=batch.condition.tokens[1:], pooled=batch.condition.pooled[1:])
    second = dataclasses.replace(batch, prompts=batch.prompts[1:], samples=(77,), conditions={"second": text})
    torch.testing.assert_close(system.generate(second).tensors["planes"], planes[1:], rtol=1e-4, atol=1e-4)


def test_only_what_is_trained_is_saved(run):
    system, *_ = run()
    state = system.state_dict()
    trained = {name for name, p in system.named_parameters() if p.requires_grad}
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad} - {
        "renderers.volume.base_renderer.variance._inv_std"
    }
    assert trained <= state.keys()
    assert not frozen & state.keys()
    assert not any("guidance" in name for name in state)


def test_a_state_of_another_system_is_refused_by_name(run):
    system, *_ = run()
    state = system.state_dict()
    name = "geometry.field.sdf_network.layers.0.weight"
    with pytest.raises(WeightsError, match=rf"1 missing \({name}\)"):
        system.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(WeightsError, match=r"1 unexpected \(geometry\.more\)"):
        system.load_state_dict(state | {"geometry.more": torch.ones(1)})
    with pytest.raises(WeightsError, match=name):
        system.load_state_dict(state | {name: torch.ones(1)})


def test_timesteps_are_those_of_the_base_model(tiny_world, tmp_path):
    base = shutil.copytree(tiny_world / "sd", tmp_path / "sd")
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 400}))
    folder = f"system.geometry.space_generator_config.pretrained_model_name_or_path={base}"
    system, _, _ = assemble(tiny_world, tmp_path, folder, "system.specifiy_guidance_timestep=v1")
    assert system.timesteps == [399, 299, 199, 99]
    assert [system.teacher_range(part) for part in range(2)] == [(199 / 400, 399 / 400), (0.0, 199 / 400)]


def test_timesteps_are_drawn_within_their_part():
    picks = torch.tensor([[0, 1], [1, 0]])
    assert pick_timesteps([999, 749, 499, 249], picks).tolist() == [[999, 749], [249, 499]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.num_steps_training=3", r"training_timesteps \(3\) must be a multiple of rounds \(2\)"),
        ("system.predition_type=epsilon", "predicts 'v_prediction'"),
        ("system.scheduler_dir=elsewhere", "elsewhere"),
        ("system.ema_decay=1.0", "ema_decay"),
        ("system.step_every_part=true", "one of the two options"),
        ("system.geometry_convert_from=x", "geometry_convert_from"),
        ("system.guidance=null", "training needs system.guidance"),
        ("data.n_steps=3", r"data\.camera_sets \(3\) must be system\.rounds \(2\)"),
    ],
)
def test_options_without_meaning_are_refused(run, override, message):
    with pytest.raises(ConfigError, match=message):
        run(override)


def test_another_geometry_is_refused(run):
    """One that does not denoise has no rounds."""
    with pytest.raises(ConfigError, match=r"free-parameters does not denoise.*trained by scene-distillation"):
        run("system.geometry={type: free-parameters}")


def test_weights_of_a_file_are_the_averaged_ones(run, tmp_path):
    system, *_ = run(max_steps=2)
    path = tmp_path / "saved.ckpt"
    system.trainer.save_checkpoint(path)
    state, progress = read_weights(str(path))
    assert progress == system.progress
    assert set(state) == set(system.state_dict())
    assert all(torch.equal(state[name], average) for name, average in system.average.averages.items())


def test_weights_of_the_original_are_renamed(run, tmp_path):
    system, *_ = run()
    original = {f"geometry.{name}": value for name, value in to_original(system.geometry.state_dict()).items()}
    path = tmp_path / "original.pth"
    torch.save({"epoch": 0, "global_step": 7, "state_dict": original}, path)
    other, _, _ = assemble(*run.world, f"system.weights={path}", "seed=9")
    for name, value in system.geometry.state_dict().items():
        assert torch.equal(other.geometry.state_dict()[name], value)
    assert other.progress.step == 7
    units = [each.geometry.field.cfg.deformation_unit for each in (other, system)]
    assert units == ["cell", "training cell"]  # it belongs to the file
    torch.save({"state_dict": {k: v for k, v in original.items() if "sdf_network.layers.0" not in k}}, path)
    with pytest.raises(WeightsError, match="sdf_network"):
        assemble(*run.world, f"system.weights={path}")
