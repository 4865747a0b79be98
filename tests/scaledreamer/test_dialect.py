"""Files as the original writes them."""

import pytest
import yaml

from triplaneturbo.config import read_config
from triplaneturbo.errors import ConfigError
from triplaneturbo.extensions import import_extensions
from triplaneturbo.legacy.trees import take
from triplaneturbo.places import PROJECT

SINGLE = """
name: asd_sd_nerf
tag: "${rmspace:${system.prompt_processor.prompt},_}"
exp_root_dir: outputs
seed: 0
data_type: random-camera-datamodule
data:
  batch_size: [1, 2]
  width: [64, 256]
  height: [64, 256]
  resolution_milestones: [10000]
  camera_distance_range: [1.0, 1.5]
  fovy_range: [40, 70]
  elevation_range: [-10, 45]
  camera_perturb: 0.
  center_perturb: 0.
  up_perturb: 0.
  eval_camera_distance: 1.2
  n_val_views: 30
system_type: scaledreamer-system
system:
  stage: coarse
  geometry_type: implicit-volume
  geometry:
    radius: 1.0
    normal_type: finite_difference
    density_bias: blob_magic3d
    density_activation: softplus
    density_blob_scale: 10.
    density_blob_std: 0.5
  material_type: no-material
  material: {n_output_dims: 3, color_activation: sigmoid}
  background_type: neural-environment-map-background
  background: {color_activation: sigmoid, random_aug: true}
  renderer_type: nerf-volume-renderer
  renderer: {radius: "${system.geometry.radius}", num_samples_per_ray: 512}
  prompt_processor_type: stable-diffusion-prompt-processor
  prompt_processor:
    pretrained_model_name_or_path: pretrained/stable-diffusion-2-1-base
    prompt: a DSLR photo of a peacock
    front_threshold: 30.
    back_threshold: 30.
  guidance_type: stable-diffusion-asynchronous-score-distillation-guidance
  guidance:
    pretrained_model_name_or_path: pretrained/stable-diffusion-2-1-base
    guidance_scale: 7.5
    min_step_percent: [0, 0.5, 0.02, 25000]
    max_step_percent: [0, 0.98, 0.5, 25000]
    plus_random: true
    plus_ratio: 0.1
    guidance_perp_neg: -0.5
    weighting_strategy: sds
  loss: {lambda_asd: 1., lambda_orient: 0., lambda_sparsity: 30, lambda_opaque: [10000, 0.0, 100.0, 10001]}
  optimizer:
    name: AdamW
    args: {betas: [0.0, 0.99], eps: 1.e-15}
    params:
      geometry.encoding: {lr: 0.01}
      geometry.density_network: {lr: 0.001}
      geometry.feature_network: {lr: 0.001}
      background.encoding: {lr: 0.01}
      background.network: {lr: 0.001}
trainer: {max_steps: 25000, log_every_n_steps: 1, num_sanity_val_steps: 0, val_check_interval: 200, precision: 32}
checkpoint: {save_last: true, save_top_k: -1, every_n_train_steps: "${trainer.max_steps}"}
"""
MULTI = """
name: asd_mv_triplane
data_type: multiprompt-multiview-camera-datamodule
data:
  prompt_library: instant3d_17000_prompt_library
  batch_size: 4
  n_view: 4
  width: 64
  height: 64
  camera_distance_range: [0.8, 1.0]
  fovy_range: [15, 60]
  elevation_range: [0, 30]
  camera_perturb: 0.
  center_perturb: 0.
  up_perturb: 0.
  eval_camera_distance: 3.0
  eval_fovy_deg: 40.
system_type: multiprompt-radience-field-generator-system
system:
  stage: coarse
  initialize_shape: false
  geometry_type: Triplane-transformer-sdf
  geometry: {radius: 2.0, normal_type: finite_difference, sdf_bias: sphere, sdf_bias_params: 0.8}
  material_type: no-material
  material: {n_output_dims: 3, color_activation: sigmoid-mipnerf}
  background_type: neural-environment-map-background
  background: {color_activation: sigmoid-mipnerf, random_aug: false}
  renderer_type: generative-space-volsdf-volume-renderer
  renderer:
    radius: 2.0
    use_volsdf: true
    trainable_variance: false
    learned_variance_init: 0.340119
    estimator: importance
    num_samples_per_ray: 64
    num_samples_per_ray_importance: 128
    near_plane: 0.1
    far_plane: 4.0
    train_chunk_size: 0
  prompt_processor_type: stable-diffusion-multi-prompt-processor
  prompt_processor:
    prompt_library: instant3d_17000_prompt_library
    negative_prompt: ugly, bad anatomy
    use_local_text_embeddings: true
  guidance_type: mvdream-asynchronous-score-distillation-guidance
  guidance:
    model_name: sd-v2.1-base-4view
    ckpt_path: pretrained/sd-v2.1-base-4view.pt
    guidance_scale: 7.5
    n_view: 4
    plus_ratio: 0.1
    plus_random: true
    min_step_percent: [0, 0.5, 0.02, 100000]
    max_step_percent: [0, 0.98, 0.5, 100000]
  loss: {lambda_asd: 1., lambda_eikonal: 0.01, lambda_sparsity: 20, lambda_opaque: [80000, 0.0, 1.0, 100000]}
  optimizer:
    name: Adan
    args: {betas: [0.98, 0.92, 0.99], eps: 1.e-15}
    params: {geometry: {lr: 0.0002}, background: {lr: 0.0002}}
trainer: {max_steps: 100000, accumulate_grad_batches: 2, precision: 32}
"""


@pytest.fixture
def read(tmp_path):
    import_extensions(PROJECT / "custom")

    def read(text, *overrides, **changes):
        tree = yaml.safe_load(text)
        for part, options in changes.items():
            tree["system"][part].update(options)
        path = tmp_path / "original.yaml"
        path.write_text(yaml.safe_dump(tree))
        return read_config([path], list(overrides))

    return read


def test_a_file_about_one_prompt(read):
    reading = read(SINGLE)
    reading.experiment()  # every option is one that there is
    expected = {
        "tag": "a_DSLR_photo_of_a_peacock",
        "data.prompts": ["a DSLR photo of a peacock"],
        "data.batch_size": 1,
        "data.milestones": [10000],
        "data.ray_height": 64,
        "data.later_ray_sizes": [[256, 256]],
        "data.eval_size": [512, 512],
        "data.cameras.ring": False,
        "data.cameras.n_view": 1,
        "data.cameras.later_views": [2],
        "data.cameras.elevation": [-10, 45],
        "data.conditions.text.by_view": True,
        "data.conditions.text.view_limits": [30.0, 30.0, 60.0],
        "system.type": "scene-distillation",
        "system.geometry.field.kind": "density",
        "system.background.random_color": 0.5,
        "system.renderers.volume.estimator": "occupancy",
        "system.renderers.volume.near_plane": 0.0,
        "system.guidance.teachers.stable_diffusion.all_views": True,
        "system.guidance.teachers.stable_diffusion.max_timestep_included": True,
        "system.guidance.teachers.stable_diffusion.perp_neg.strength": 0.5,
        "system.guidance.teachers.stable_diffusion.rule": {
            "type": "asd", "ratio": 0.1, "random": True, "weighting": "sds"
        },
        "system.losses.volume.score": 1.0,
        "system.losses.volume.opaque": [10000, 0.0, 100.0, 10001],
        "system.optimizer.params": {
            "geometry.field.encoding": {"lr": 0.01},
            "geometry.field.value_network": {"lr": 0.001},
            "geometry.field.feature_network": {"lr": 0.001},
            "background.encoding": {"lr": 0.01},
            "background.network": {"lr": 0.001},
        },
        "trainer.max_steps": 25000,
        "checkpoint.every_n_train_steps": 25000,
    }  # fmt: skip
    assert {place: take(reading.tree, place) for place in expected} == expected


def test_a_file_about_many_prompts(read):
    reading = read(MULTI)
    reading.experiment()
    expected = {
        "data.prompt_library": "instant3d_17000_prompt_library",
        "data.batch_size": 4,
        "data.cameras.ring": True,
        "data.cameras.n_view": 4,
        "data.cameras.relative_distance": True,
        "data.conditions.text.negative_prompt": "ugly, bad anatomy",
        "data.conditions.text.by_view": False,
        "system.geometry.type": "triplane-transformer",
        "system.renderers.volume.law": "volsdf",
        "system.renderers.volume.num_samples_per_ray_importance": 128,
        "system.guidance.teachers.mvdream.n_view": 4,
        "system.guidance.teachers.mvdream.rule.type": "asd",
        "system.losses.volume.eikonal": 0.01,
        "system.gradient_accumulation_steps": 2,
        "trainer": {"max_steps": 100000, "precision": 32},
    }
    assert {place: take(reading.tree, place) for place in expected} == expected
    assert take(reading.tree, "system.guidance.teachers.mvdream.path").endswith("sd-v2.1-base-4view.pt")


def test_overrides_are_in_the_dialect_of_the_file(read):
    reading = read(MULTI, "system.guidance.guidance_scale=20", "trainer.accumulate_grad_batches=8")
    assert take(reading.tree, "system.guidance.teachers.mvdream.guidance_scale") == 20
    assert take(reading.tree, "system.gradient_accumulation_steps") == 8
    assert "command line" in reading.origins["system.guidance.teachers.mvdream.guidance_scale"]


def test_without_a_shift_there_is_no_third_pass(read):
    reading = read(MULTI, "system.guidance.plus_ratio=0")
    assert take(reading.tree, "system.guidance.teachers.mvdream.rule") == {"type": "csd"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": {"guidance_scal": 3}}, r"system\.guidance has no option 'guidance_scal'"),
        ({"guidance": {"camera_condition_type": "euler"}}, "allowed: 'rotation'"),
        ({"renderer": {"estimator": "occgrid"}}, "estimator is 'occgrid'; allowed: 'importance'"),
        ({"loss": {"lambda_warmth": 1}}, "system.loss has no option 'lambda_warmth'"),
        ({"prompt_processor": {"prompt_library": "other"}}, "is 'other', but data.prompt_library is 'instant3d"),
        ({"prompt_processor": {"use_prompt_debiasing": True}}, "allowed: False"),
    ],
)
def test_what_the_original_does_not_have_is_said(read, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(MULTI, **changes)


def test_negatives_that_would_raise_the_estimate_are_refused(read):
    with pytest.raises(ConfigError, match=r"guidance_perp_neg must be 0 or less, not 0\.5"):
        read(SINGLE, guidance={"guidance_perp_neg": 0.5})
