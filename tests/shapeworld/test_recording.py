"""Recorded steps of the miniature world's trainings: a stand-in for the recording everywhere, the real one on a GPU."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from custom.shapeworld import training
from custom.shapeworld.data import ShapeWorldData
from custom.shapeworld.stages import DiffusionStage, ScorerStage, VaeStage

WORLD = Path(__file__).parents[2] / "load/shapeworld"
STAGES = ("vae", "stable_diffusion", "mvdream", "richdreamer", "scorer")
N_STEP = 3
# Results that depend on values, or on a generator; `lift_fresh` begins the life of a tensor that the host made.
FORBIDDEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
MAY_DROP = "_scaled_dot_product"  # random only if told to drop


class Recordable(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: waiting for values, tensors from the host, draws."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_number = func is torch.ops.aten.index.Tensor and all(i is None or i.dtype == torch.long for i in args[1])
        assert by_number or MAY_DROP in str(func) or not FORBIDDEN & set(func.tags), func
        assert "lift_fresh" not in str(func)
        return func(*args, **(kwargs or {}))


class StandIn:
    """Does what `TrainingReplay` does on CUDA: it goes on with the function of the first call."""

    calls: list[SimpleNamespace]

    def __call__(self, function, arguments, parameters, key):
        first = self.calls[0].function if self.calls else function
        with Recordable():
            *others, last = first(*arguments)
            grads = torch.autograd.grad(last, parameters, retain_graph=True)
        shapes = [(a.shape, a.dtype, a.stride(), a.requires_grad) for a in arguments]
        self.calls.append(SimpleNamespace(function=first, shapes=shapes, grads=grads, key=key))
        return *(other.detach() for other in others), last


def train(name, folder, accelerator="cpu", **options):
    """The first steps of a stage at its smallest: measured values, gradients and number of replays of each."""
    if name not in ("vae", "scorer"):
        shutil.copytree(WORLD / "stable_diffusion", folder / "stable_diffusion", dirs_exist_ok=True)
        options["kind"] = name
    kinds = {"vae": VaeStage, "scorer": ScorerStage}
    torch.manual_seed(0)
    optimizer = {"name": "AdamW", "args": {"lr": 1e-3}}
    stage = kinds.get(name, DiffusionStage)({"out_dir": str(folder), "optimizer": optimizer, **options})
    rows, update = [], stage.update

    def spy(batch):
        grads = {name: p.grad.clone() for name, p in stage.named_parameters() if p.requires_grad}
        rows.append(
            SimpleNamespace(measured=stage.measured, grads=grads, passes=getattr(stage._replay, "passes", None))
        )
        update(batch)

    stage.update = spy
    views = 4 if name in ("mvdream", "richdreamer") else 1
    data = {"n_objects": 8, "batch_size": 8 // views, "n_view": views}
    data["captions"] = "scorer" if name == "scorer" else "teachers"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    # Fewer than all steps: no networks are written.
    trainer = pl.Trainer(
        accelerator=accelerator, devices=1, max_steps=100, max_epochs=1, limit_train_batches=N_STEP, **quiet
    )
    trainer.fit(stage, datamodule=ShapeWorldData(data))
    assert len(rows) == N_STEP
    return rows


@pytest.mark.parametrize("name", STAGES)
def test_what_is_recorded_is_the_whole_step_but_its_draws(name, tmp_path, monkeypatch):
    """Nothing random or made by the host is in it; arguments look alike; gradients reach every weight and are equal."""
    plain = train(name, tmp_path)
    monkeypatch.setattr(training, "graphs_run_on", lambda device: True)
    monkeypatch.setattr(training, "TrainingReplay", StandIn)
    monkeypatch.setattr(StandIn, "calls", [], raising=False)
    recorded = train(name, tmp_path)
    assert len(StandIn.calls) == N_STEP
    for call, row, expected in zip(StandIn.calls, recorded, plain, strict=True):
        assert (call.shapes, call.key) == (StandIn.calls[0].shapes, True)
        assert not any(requires_grad for *_, requires_grad in call.shapes)
        assert row.measured.keys() == expected.measured.keys()
        assert all(torch.equal(row.measured[key], value) for key, value in expected.measured.items())
        assert row.grads.keys() == expected.grads.keys()
        for found, by_hand, key in zip(row.grads.values(), call.grads, expected.grads, strict=True):
            assert torch.equal(found, expected.grads[key]), key
            assert torch.equal(found, by_hand), key


def test_without_the_option_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "graphs_run_on", lambda device: True)
    monkeypatch.setattr(training, "TrainingReplay", StandIn)
    monkeypatch.setattr(StandIn, "calls", [], raising=False)
    train("scorer", tmp_path, graphs=False)
    assert not StandIn.calls


@pytest.mark.gpu
@pytest.mark.parametrize("name", STAGES)
def test_a_recorded_training_is_the_plain_one(name, tmp_path):
    """Up to the order of sums in bfloat16; the first step records, the others are replayed."""
    recorded = train(name, tmp_path, accelerator="gpu", graphs=True)
    plain = train(name, tmp_path, accelerator="gpu", graphs=False)
    assert [row.passes for row in recorded] == [0, 1, 2]
    assert [row.passes for row in plain] == [0, 0, 0]
    for found, expected in zip(recorded, plain, strict=True):
        assert found.measured.keys() == expected.measured.keys()
        for key, value in expected.measured.items():
            torch.testing.assert_close(found.measured[key], value, rtol=0.02, atol=1e-5, msg=key)
        norms = [torch.stack([g.norm() for g in row.grads.values()]).norm() for row in (found, expected)]
        torch.testing.assert_close(*norms, rtol=0.1, atol=0)
