"""The student never sees a shape: distillation runs where everything that knows the exact solids refuses to work."""

import dataclasses
import inspect
import sys

import pytest
import torch
from miniature import assemble

from custom.shapeworld import data, measure, render, scorer, shapes, world

MODULES = (shapes, world, render, scorer, measure)


def refuse(*args, **kwargs):
    raise AssertionError("training asked for the exact solids")


@pytest.fixture
def nothing_exact(monkeypatch):
    """Replace every function of the exact world, under all names that loaded modules have for it, and every method."""
    names = {module.__name__ for module in MODULES}
    values = [value for module in MODULES for value in vars(module).values() if callable(value)]
    functions = {id(v) for v in values if not inspect.isclass(v) and v.__module__ in names}
    holders = [module for name, module in sys.modules.items() if name.split(".")[0] in ("custom", "triplaneturbo")]
    for module in holders:
        for name in [name for name, value in vars(module).items() if id(value) in functions]:
            monkeypatch.setattr(module, name, refuse)
    for name in ("load", "similarity", "recall"):
        monkeypatch.setattr(scorer.Scorer, name, refuse)
    for name, shape in shapes.SHAPES.items():
        monkeypatch.setitem(shapes.SHAPES, name, dataclasses.replace(shape, sdf=refuse))


def test_the_refusal_reaches_every_way_to_the_solids(nothing_exact):
    calls = (world.sdf, world.parse_caption, world.placements, render.render, measure.solid_occupancy, measure.chamfer)
    for call in (*calls, data.render, data.parse_caption, scorer.Scorer.load, shapes.SHAPES["cube"].sdf):
        with pytest.raises(AssertionError, match="exact solids"):
            call()


def test_a_training_step_uses_no_3d_data(tiny_world, tmp_path, nothing_exact):
    system, module, trainer = assemble(tiny_world, tmp_path)
    before = {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}
    trainer.fit(system, datamodule=module)
    assert system.progress.step == 1
    assert any(not torch.equal(p, before[name]) for name, p in system.named_parameters() if name in before)
