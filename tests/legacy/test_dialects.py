"""Overrides in either dialect, on a file in either."""

import pytest

from triplaneturbo.config import read_config
from triplaneturbo.legacy.trees import take

PUBLISHED = """
data_type: multiview-multiprompt-dualrenderer-multistep-datamodule-v2
data: {prompts: [a], batch_size: 8, ray_width: "${data.batch_size}"}
system_type: multiprompt-dual-renderer-multistep-generator-system
system:
  num_steps_training: 4
  geometry_type: few-step-triplane-dual-stable-diffusion
  background_type: multi-prompt-neural-hashgrid-environment-map-background
  renderer_type: generative-space-mesh-rasterize-renderer
  guidance_type: richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance
"""
BOTH = [
    ("system.geometry.sdf_bias=0.3", "system.geometry.field.bias=0.3", "system.geometry.field.bias", 0.3),
    ("system.renderer.radius=2", "system.renderers.mesh.radius=2", "system.renderers.mesh.radius", 2),
    (
        "system.guidance.mv_weight=0.5",
        "system.guidance.teachers.mvdream.weight=0.5",
        "system.guidance.teachers.mvdream.weight",
        0.5,
    ),
    ("system.num_parts_training=2", "system.rounds=2", "system.rounds", 2),
    ("data.n_steps=2", "data.camera_sets=2", "data.camera_sets", 2),
    ("system.loss.lambda_eikonal=3", "system.losses.mesh.eikonal=3", "system.losses.mesh.eikonal", 3),
    (
        "system.background.pos_encoding_config.n_levels=4",
        "system.background.encoding.n_levels=4",
        "system.background.encoding.n_levels",
        4,
    ),
    ("system.guidance.parallel=true", "system.parallel_guidance=true", "system.guidance.parallel", True),
]


@pytest.fixture(params=["published", "ours"])
def config(request, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(PUBLISHED)
    if request.param == "ours":
        (tmp_path / "ours.yaml").write_text(read_config([path]).to_yaml())
        path = tmp_path / "ours.yaml"
    return path


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case[2])
def test_an_override_in_either_dialect_changes_a_file_in_either(config, case):
    *overrides, place, value = case
    plain = take(read_config([config]).tree, place)
    for override in overrides:
        reading = read_config([config], [override])
        assert take(reading.tree, place) == value != plain, override
        assert "command line" in reading.origins[place]
        reading.experiment()


def test_a_block_of_another_type_takes_the_place_of_a_published_one(config):
    tree = read_config([config], ["system.geometry={type: free-parameters}"]).tree
    assert tree["system"]["geometry"] == {"type": "free-parameters"}


def test_an_option_of_both_is_seen_by_the_files_interpolations(tmp_path):
    (tmp_path / "a.yaml").write_text(PUBLISHED)
    tree = read_config([tmp_path / "a.yaml"], ["data.batch_size=16"]).tree
    assert (tree["data"]["batch_size"], tree["data"]["ray_width"]) == (16, 16)
