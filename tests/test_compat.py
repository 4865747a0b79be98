"""Where this project does by default what the original meant, not what it did, and what it says about that."""

import re
from pathlib import Path

import pytest
from miniature import assemble

from triplaneturbo.base import parts
from triplaneturbo.config import load_config
from triplaneturbo.guidance import ScoreDistillationGuidance
from triplaneturbo.launcher import log_differences

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs/TriplaneTurbo_v1.yaml"
EVERYTHING = (
    "system.specifiy_guidance_timestep=v1",
    "system.renderer.def_grad_shrink=0.5",
    "system.loss.lambda_normal_smoothness_2d=1",
)
# Of these nothing can be said at a launch: no result depends on the one, the other is an option of the evaluation.
SILENT = {8, 15}


def test_teachers_look_at_the_timesteps_of_their_part(tiny_world, tmp_path, monkeypatch):
    """The original computes these ranges and does not use them."""
    drawn = []
    sample_draws = ScoreDistillationGuidance.sample_draws

    def spy(self, *arguments):
        drawn.append(sample_draws(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(ScoreDistillationGuidance, "sample_draws", spy)
    system, data, trainer = assemble(tiny_world, tmp_path, "system.specifiy_guidance_timestep=v1")
    trainer.fit(system, datamodule=data)
    assert system.timesteps == [999, 749, 499, 249]
    parts = system.cfg.num_parts_training
    assert len(drawn) == parts * system.cfg.gradient_accumulation_steps
    for call, draws in enumerate(drawn):
        low, high = ((499, 999), (0, 499))[call % parts]
        for teacher in draws.teachers.values():
            assert teacher.t_min == low
            assert low <= teacher.t.min() <= teacher.t.max() < high
    system.cfg.compat = "original"
    assert system.teacher_range(0) is None


def rows(caplog, *overrides, without=()):
    """Numbers of the rows that are logged for the published recipe."""
    caplog.clear()
    experiment = load_config([RECIPE], ["data.prompt_library=some", *overrides])
    with caplog.at_level("INFO"):
        log_differences(parts(experiment, without))
    return {int(number) for number in re.findall(r"^ +(\d+) ", caplog.text, re.MULTILINE)}


def test_the_published_recipe_says_where_it_differs(caplog):
    assert rows(caplog) == {1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14}
    assert caplog.text.count("compat=original repeats") == 1
    assert rows(caplog, without=("guidance", "guidance_processor")) == {5, 6, 7, 10, 11, 12}
    assert rows(caplog, "compat=original") == set()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("override", "more", "less"),
    [
        ("system.guidance.sd_oppo_side=false", set(), {9}),
        ("system.parallel_guidance=true", set(), {9, 14}),
        ("system.guidance.rd_weight=0", set(), {2}),
        ("system.renderer.enable_bg_rays=false", set(), {5}),
        ("system.renderer.def_grad_shrink=0.5", {4}, set()),
        ("system.geometry.isosurface_deformable_grid=false", set(), {12}),
        ("system.specifiy_guidance_timestep=v1", {13}, set()),
        ("system.loss.lambda_normal_smoothness_2d=[0, 1.0, 0.0, 100]", {16}, set()),
        ("system.loss.lambda_normal_smoothness_2d_2nd=1", set(), set()),
        ("system.guidance.compat=original", set(), {1, 2, 3, 9, 14}),
        ("system.renderer.compat=original", set(), {5, 6, 7}),
        ("data.compat=original", set(), {10, 11}),
    ],
)
def test_only_what_concerns_the_components_in_use_is_said(caplog, override, more, less):
    assert rows(caplog, override) == rows(caplog) - less | more


def test_other_weightings_do_not_estimate_a_clean_latent(caplog):
    assert 1 not in rows(caplog, *(f"system.guidance.{name}_weighting_strategy=sds" for name in ("mv", "rd", "sd")))


def test_the_document_and_the_code_have_the_same_rows(caplog):
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", (ROOT / "docs/compat.md").read_text(), re.MULTILINE)}
    assert rows(caplog, *EVERYTHING) == documented - SILENT
    named = {
        int(number)
        for path in (ROOT / "triplaneturbo").rglob("*.py")
        for number in re.findall(r"compat\.md row (\d+)", path.read_text())
    }
    assert named <= documented
