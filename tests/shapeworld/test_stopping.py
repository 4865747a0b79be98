"""A training of the miniature world that is stopped and launched again ends as one that was not stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import launch
from custom.shapeworld.data import ShapeWorldData
from custom.shapeworld.stages import ScorerStage
from triplaneturbo.types import Run
from triplaneturbo.weights.files import read_checkpoint, read_safetensors

ROOT = Path(__file__).parents[2]
# One of each class of stage, a teacher that starts from another, and one that starts from itself.
STAGES = ("vae", "stable_diffusion", "mvdream", "mvdream_longer", "scorer")
# Sizes that two cores train in seconds; the learning rate is what it is from the first step on, so that it matters.
TINY = (
    "trainer.accelerator=cpu",
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
    "data.n_objects=8",
    "data.batch_size=8",
    "system.optimizer.args.lr=1e-3",
)


@pytest.fixture
def train(tmp_path):
    """train(stage, world, *overrides): a launch of the recipe at its smallest; returns the run's folder."""

    def start(stage, world, *overrides):
        out = tmp_path / world
        if not out.exists() and stage != "vae":  # what earlier stages wrote
            for teacher in ("stable_diffusion", "mvdream"):
                shutil.copytree(ROOT / "load/shapeworld" / teacher, out / teacher)
        views = ["data.batch_size=2"]  # of four views each
        small = {"mvdream": views, "mvdream_longer": views, "scorer": ["data.neighbours=4"]}.get(stage, [])
        options = [f"exp_root_dir={out / 'outputs'}", f"system.out_dir={out}", *TINY, *small, *overrides]
        config = ROOT / f"configs/shapeworld/{stage}.yaml"
        assert launch.main(["--config", str(config), "--train", *options]) == 0
        return out / "outputs/shapeworld" / stage

    return start


def assert_same_networks(world, other):
    """All network files of the two folders hold equal tensors, and there are some."""
    files = [path.relative_to(world) for path in world.rglob("*.safetensors")]
    assert files
    for file in files:
        (tensors, _), (others, _) = read_safetensors(world / file), read_safetensors(other / file)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(others[name], value) for name, value in tensors.items()), file


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_ends_as_one_that_was_not_stopped(stage, train, tmp_path):
    whole = train(stage, "whole")
    part = train(stage, "part", "trainer.limit_train_batches=2", "trainer.max_epochs=1")
    record = tmp_path / f"part/training/{stage}.json"
    assert len((part / "losses.jsonl").read_text().splitlines()) == 2
    assert not record.exists()
    train(stage, "part")
    assert (part / "losses.jsonl").read_bytes() == (whole / "losses.jsonl").read_bytes()
    assert_same_networks(tmp_path / "whole", tmp_path / "part")
    records = [json.loads((tmp_path / world / f"training/{stage}.json").read_text()) for world in ("whole", "part")]
    seconds = [values.pop("seconds") for values in records]
    assert records[0] == records[1]
    assert min(seconds) > 0
    states = [read_checkpoint(folder / "ckpts/last.ckpt") for folder in (whole, part)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(states[1]["state_dict"][name], value), name


def test_a_stage_that_was_killed_before_it_wrote_its_networks_writes_them(train, tmp_path):
    train("scorer", "world")
    record = tmp_path / "world/training/scorer.json"
    said = record.read_text()
    (tmp_path / "world/scorer").rename(tmp_path / "scorer")
    record.unlink()
    train("scorer", "world")
    assert_same_networks(tmp_path / "scorer", tmp_path / "world/scorer")
    assert record.read_text() == said


def test_a_stage_writes_the_averaged_weights_in_half_precision(train, tmp_path):
    folder = train("scorer", "world")
    state = read_checkpoint(folder / "ckpts/last.ckpt")
    written, _ = read_safetensors(tmp_path / "world/scorer/model.safetensors")
    name = "text_model.final_layer_norm.weight"
    assert torch.equal(written[name], state["ema"][f"model.{name}"].half())
    assert not torch.equal(written[name], state["state_dict"][f"model.{name}"].half())


def test_every_batch_has_draws_of_its_own_and_has_them_again():
    data, stage = ShapeWorldData({"n_objects": 1000, "batch_size": 64}), ScorerStage()
    data.pool = range(1000)

    def draws(step, samples, seed=0):
        for part in (data, stage):
            part.enter(Run(seed))
        batch = data.training_batch(step, samples)
        return batch.rows, torch.rand(4, generator=stage.generator(batch))

    first = draws(3, range(192, 256))
    for same, other in zip(first, draws(3, range(192, 256)), strict=True):
        assert torch.equal(same, other)
    for other in (draws(4, range(256, 320)), draws(3, range(192, 256), seed=1)):
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[1], other[1])


def test_other_pictures_cannot_continue_a_stage(train, capsys, tmp_path):
    train("scorer", "world", "trainer.max_steps=1")
    config, out = str(ROOT / "configs/shapeworld/scorer.yaml"), tmp_path / "world"
    options = [
        f"exp_root_dir={out / 'outputs'}",
        f"system.out_dir={out}",
        *TINY,
        "data.neighbours=4",
        "data.background=[0,0.1]",
    ]
    assert launch.main(["--config", config, "--train", *options]) == 2
    assert "trained on other" in capsys.readouterr().err
