"""custom/shapeworld/bound.py: a teacher that compares with exact pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from custom.shapeworld.bound import ExactPictures
from custom.shapeworld.render import render
from custom.shapeworld.world import parse_caption
from triplaneturbo.base import as_tree
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.config import load_config
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.teacher import Question, Sight
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, Run, Views

CONFIGS = Path(__file__).parents[2] / "configs" / "shapeworld"
PROMPTS = ("a red cube", "a blue sphere")
SIZE = 16


def cameras(n_prompts: int = 2, n_view: int = 2) -> Cameras:
    full = torch.ones(n_prompts * n_view)
    azimuth = torch.linspace(0, 300, len(full))
    return orbit_cameras(20 * full, azimuth, 1.6 * full, 60 * full, n_view=n_view, relative=False)


def exact(prompts: tuple[str, ...], size: int = SIZE, background: float = 0.5) -> Views:
    return render([parse_caption(prompt) for prompt in prompts], cameras(), size, background=background)


def asked(*pictures: Views) -> Question:
    sights = tuple(Sight(i, i, views, torch.arange(4)) for i, views in enumerate(pictures))
    return Question(sights, cameras(), {}, Progress(), PROMPTS)


def loss_of(*pictures: Views, **options: float) -> float:
    loss, logs = ExactPictures(options).judge(asked(*pictures), [None] * len(pictures))
    assert len(logs) == len(pictures)
    return loss.item()


def test_the_truth_has_no_loss_and_anything_else_has() -> None:
    truth = exact(PROMPTS)
    assert loss_of(truth) == 0
    assert loss_of(truth, exact(PROMPTS, size=8)) == 0  # renderers of two sizes
    assert loss_of(exact(("a blue cube", "a blue sphere"))) > 0.005
    assert loss_of(exact(PROMPTS[::-1])) > 0.05
    assert loss_of(exact(PROMPTS, background=0.7)) > 0.05
    assert loss_of(exact(PROMPTS, background=0.7), background=0.7) == 0


def test_each_kind_of_picture_counts_with_its_weight() -> None:
    truth = exact(PROMPTS)
    shifted = replace(truth, rgb=truth.rgb + 0.1, normal=truth.normal + 0.2, disparity=truth.disparity + 0.3)
    assert loss_of(shifted) == pytest.approx(0.6, rel=1e-4)
    assert loss_of(shifted, normal=0.0, disparity=0.0) == pytest.approx(0.1, rel=1e-4)
    assert loss_of(shifted, shifted, rgb=2.0) == pytest.approx(1.4, rel=1e-4)


def test_pictures_move_towards_the_truth() -> None:
    rgb = torch.full((4, SIZE, SIZE, 3), 0.4, requires_grad=True)
    loss, _ = ExactPictures({}).judge(asked(replace(exact(PROMPTS), rgb=rgb)), [None])
    (gradient,) = torch.autograd.grad(loss, rgb)
    assert loss_of(replace(exact(PROMPTS), rgb=(rgb - gradient * rgb.numel() * 0.01).detach())) < loss.item()


def test_oblong_pictures_are_refused() -> None:
    kinds = ("rgb", "normal", "disparity", "opacity", "depth")
    halves = {kind: getattr(exact(PROMPTS), kind)[:, :8] for kind in kinds}
    with pytest.raises(ConfigError, match="square"):
        loss_of(Views(**halves))


def test_the_recipe_differs_from_prd_in_its_teachers_alone() -> None:
    bound, prd = (as_tree(load_config([CONFIGS / f"{name}.yaml"])) for name in ("bound", "prd"))
    assert list(bound["system"]["guidance"].pop("teachers")) == ["exact"]
    assert len(prd["system"]["guidance"].pop("teachers")) == 3
    del prd["system"]["losses"]["volume"]["sparsity"], bound["name"], prd["name"]
    assert bound == prd


def test_a_student_trains_on_exact_pictures(tmp_path: Path) -> None:
    recipe = tmp_path / "bound.yaml"
    teachers = "{richdreamer: null, mvdream: null, stable_diffusion: null, exact: {type: exact-pictures, weight: 300}}"
    recipe.write_text(f"base: {CONFIGS / 'tiny.yaml'}\nsystem: {{guidance: {{teachers: {teachers}}}}}\n")
    experiment = load_config([recipe], ["system.rounds=1", "system.training_timesteps=1", "data.prompts=[a red cube]"])
    torch.manual_seed(0)
    data, system = experiment.data.build(), experiment.system.build()
    for part in (data, system):
        part.enter(Run(0))
    before = [p.detach().clone() for p in system.parameters() if p.requires_grad]
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(**options, max_steps=1).fit(system, datamodule=data)
    after = [p for p in system.parameters() if p.requires_grad]
    assert system.progress.step == 1
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
