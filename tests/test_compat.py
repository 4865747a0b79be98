"""Where this project does by default what the original meant, not what it did, and what it says about that."""

import re
from pathlib import Path

import pytest
from miniature import assemble, write_configuration

from triplaneturbo.config import read_config
from triplaneturbo.guidance import ScoreDistillation
from triplaneturbo.launcher import log_differences
from triplaneturbo.legacy.trees import leaves

ROOT = Path(__file__).parents[1]
EVERYTHING = (
    "system.specifiy_guidance_timestep=v1",
    "system.guidance.sd_oppo_side=true",
    "system.loss.lambda_normal_smoothness_2d=1",
)
# Of these nothing can be said at a launch: it is an option of the evaluation.
SILENT = {"protocol"}


def test_teachers_look_at_the_timesteps_of_their_round(tiny_world, tmp_path, monkeypatch):
    """The original computes these ranges and does not use them."""
    drawn = []
    sample_draws = ScoreDistillation.sample_draws

    def spy(self, *arguments):
        drawn.append(sample_draws(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(ScoreDistillation, "sample_draws", spy)
    system, data, trainer = assemble(tiny_world, tmp_path, "system.specifiy_guidance_timestep=v1")
    trainer.fit(system, datamodule=data)
    assert system.timesteps == [999, 749, 499, 249]
    rounds = system.cfg.rounds
    assert len(drawn) == rounds * system.cfg.gradient_accumulation_steps
    for call, draws in enumerate(drawn):
        low, high = ((499, 999), (0, 499))[call % rounds]
        for of_renderers in draws.teachers.values():
            for teacher in of_renderers:
                assert teacher.t_min == low
                assert low <= teacher.t.min() <= teacher.t.max() < high
    options = "system.specifiy_guidance_timestep=v1", "compat=original"
    assert assemble(tiny_world, tmp_path, *options)[0].teacher_range(0) is None


@pytest.fixture
def said(tiny_world, tmp_path, caplog):
    """Names that are logged for a configuration of the original."""
    path = write_configuration(tiny_world, tmp_path)

    def names(*overrides):
        caplog.clear()
        with caplog.at_level("INFO"):
            log_differences(read_config([path], overrides))
        return set(re.findall(r"^  ([a-z-]+) ", caplog.text, re.MULTILINE))

    return names


USUAL = {
    *("gap-from-clean", "unit-range", "sum-over-prompts", "ray-focal", "mixed-backgrounds", "clip-depth"),
    *("view-per-renderer", "lost-end-token", "repeated-first-view", "deformation-in-cells"),
}


def test_a_configuration_of_the_original_says_where_it_differs(said, caplog):
    assert said() == USUAL
    assert caplog.text.count("compat=original repeats") == 1
    for compat in ("original", "right"):
        assert said(f"compat={compat}") == set()
        assert caplog.text == ""


def test_a_recipe_in_our_names_says_nothing(caplog):
    reading = read_config([ROOT / "configs/TriplaneTurbo_v1.yaml"], ["data.prompt_library=some"])
    assert reading.differences == {}


@pytest.mark.parametrize(
    ("override", "more", "less"),
    [
        ("system.guidance.sd_oppo_side=true", {"opposite-in-parallel"}, set()),
        ("system.parallel_guidance=true", set(), {"view-per-renderer"}),
        ("system.guidance.rd_weight=0", set(), {"unit-range"}),
        ("system.renderer.enable_bg_rays=false", set(), {"ray-focal"}),
        ("system.renderer.def_grad_shrink=0.5", {"sdf-share"}, set()),
        ("system.geometry.isosurface_deformable_grid=false", set(), {"deformation-in-cells"}),
        ("system.specifiy_guidance_timestep=v1", {"teachers-choose"}, set()),
        ("system.loss.lambda_normal_smoothness_2d=[0, 1.0, 0.0, 100]", {"smoothed-normals"}, set()),
        ("system.loss.lambda_normal_smoothness_2d_2nd=1", set(), set()),
    ],
)
def test_only_what_concerns_the_components_in_use_is_said(said, override, more, less):
    assert said(override) == USUAL - less | more


def test_other_weightings_do_not_estimate_a_clean_latent(said):
    assert "gap-from-clean" not in said(*(f"system.guidance.{n}_weighting_strategy=sds" for n in ("mv", "rd", "sd")))


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        (
            "compat=original",
            {
                "data.conditions.first.quirks": ["lost-end-token"],
                "data.quirks": ["repeated-first-view"],
                "system.geometry.field.deformation_unit": "cell",
                "system.guidance.quirks": ["sum-over-prompts", "view-per-renderer"],
                "system.guidance.teachers.mvdream.rule.quirks": ["gap-from-clean"],
                "system.guidance.teachers.richdreamer.quirks": ["unit-range"],
                "system.guidance.teachers.richdreamer.rule.quirks": ["gap-from-clean"],
                "system.guidance.teachers.stable_diffusion.rule.quirks": ["gap-from-clean"],
                "system.renderers.mesh.background_focal_height": 12,
                "system.renderers.mesh.quirks": ["mixed-backgrounds", "clip-depth"],
            },
        ),
        (
            "system.renderer.compat=original",
            {
                "system.renderers.mesh.background_focal_height": 12,
                "system.renderers.mesh.quirks": ["mixed-backgrounds", "clip-depth"],
            },
        ),
        (
            "data.compat=original",
            {
                "data.conditions.first.quirks": ["lost-end-token"],
                "data.quirks": ["repeated-first-view"],
            },
        ),
    ],
)
def test_compat_repeats_the_mistakes_of_a_configuration_or_of_one_component(tiny_world, tmp_path, override, changed):
    path = write_configuration(tiny_world, tmp_path)
    before, after = (dict(leaves(read_config([path], options).tree)) for options in ([], [override]))
    found = {place: value for place, value in after.items() if before.get(place) != value}
    # One encoder says the same with two negative prompts.
    assert {k.replace("second", "first"): v for k, v in found.items()} == changed


def test_the_document_and_the_code_have_the_same_names(said):
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/compat.md").read_text(), re.MULTILINE))
    assert said(*EVERYTHING, "system.renderer.def_grad_shrink=0.5") == documented - SILENT
