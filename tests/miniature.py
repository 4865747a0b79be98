"""The whole system in miniature: random networks of a few thousand parameters, and a configuration that trains them."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel

from custom.shapeworld.models import TEXT_WIDTH, build_scheduler, build_text_encoder, build_tokenizer
from triplaneturbo.config import load_config
from triplaneturbo.launcher import trainer_options
from triplaneturbo.systems.checkpoint import AtomicCheckpointIO
from triplaneturbo.types import Run

PROMPTS = ("a red cube", "a blue sphere", "a green cone", "a red torus", "a blue cone")


def unet(camera: bool) -> UNet2DConditionModel:
    """A denoiser; with `camera` one that is told where it looks from."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        class_embed_type="projection" if camera else None,
        projection_class_embeddings_input_dim=16 if camera else None,
    )


def vae() -> AutoencoderKL:
    """Pictures of 16 pixels to latents of 8 and back."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


def write_world(folder: Path) -> Path:
    """Folders sd, mv and rd in diffusers layout, and a prompt library."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        text = build_text_encoder(tokenizer)
        for name in ("sd", "mv", "rd"):
            unet(camera=name != "sd").save_pretrained(folder / name / "unet")
            vae().save_pretrained(folder / name / "vae")
            build_scheduler().save_pretrained(folder / name / "scheduler")
        text.save_pretrained(folder / "sd" / "text_encoder")
        tokenizer.save_pretrained(folder / "sd" / "tokenizer")
    library = {"train": PROMPTS, "val": PROMPTS[:1], "test": PROMPTS[:1]}
    (folder / "library.json").write_text(json.dumps(library))
    return folder


def configuration(world: Path, out: Path) -> dict[str, Any]:
    """A run of the whole method with both renderers and all three teachers."""
    sd = str(world / "sd")
    return {
        "name": "tiny",
        "tag": "trial",
        "use_timestamp": False,
        "exp_root_dir": str(out),
        "data_type": "multiview-multiprompt-dualrenderer-multistep-datamodule-v2",
        "data": {
            "prompt_library": "library",
            "prompt_library_dir": str(world),
            "batch_size": 4,
            "n_view": 2,
            "n_steps": 2,
            "height": 16,
            "width": 16,
            "ray_height": 12,
            "ray_width": 12,
            "unsup_elevation_range": [0, 30],
            "unsup_camera_distance_range": [0.8, 1.0],
            "unsup_fovy_range": [60, 60],
            "eval_camera_distance": 3.0,
            "eval_fovy_deg": 40.0,
            "n_val_views": 2,
            "n_test_views": 2,
            "dim_gaussian": [6, 4, 8, 8],
            "guidance_processor_type": "dual-stable-diffusion-multi-prompt-processor-callable",
            "guidance_processor": {
                "pretrained_model_name_or_path": sd,
                "pretrained_model_name_or_path_2nd": sd,
                "negative_prompt": "a red sphere",
            },
            "condition_processor_type": "stable-diffusion-multi-prompt-processor-callable",
            "condition_processor": {"pretrained_model_name_or_path": sd},
        },
        "system_type": "multiprompt-dual-renderer-multistep-generator-system",
        "system": _system(world),
        "trainer": {"max_steps": 8, "log_every_n_steps": 3, "limit_test_batches": 0, "num_sanity_val_steps": 0},
        "checkpoint": {"every_n_train_steps": 2, "save_top_k": 2},
    }


def _system(world: Path) -> dict[str, Any]:
    sd = str(world / "sd")
    return {
        "num_parts_training": 2,
        "num_steps_training": 4,
        "num_steps_sampling": 2,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "geometry_type": "few-step-triplane-dual-stable-diffusion",
        "geometry": {
            "space_generator_config": {
                "pretrained_model_name_or_path": sd,
                "training_type": "self_lora_rank_2-cross_lora_rank_2-locon_rank_2",
                "output_dim": 8,
                "cross_lora_type": "vanilla",
                "vae_attn_type": "basic",
                "locon_type": "vanilla_v1",
            },
            "mlp_network_config": {"n_neurons": 8},
            "split_channels": "v1",
            "tex_interpolate": "v2",
            "sdf_bias": "sphere",
            "sdf_bias_params": 0.5,
            "isosurface_deformable_grid": True,
            "isosurface_resolution": 12,
        },
        "material_type": "no-material",
        "background_type": "solid-color-background",
        "renderer_type": "generative-space-mesh-rasterize-renderer",
        "renderer": {"isosurface_resolution": 12, "enable_bg_rays": True},
        "renderer_2nd_type": "patch-renderer",
        "renderer_2nd": {
            "base_renderer_type": "generative-space-sdf-volume-renderer",
            "base_renderer": {
                "num_samples_per_ray": 4,
                "num_samples_per_ray_importance": 8,
                "learned_variance_init": 0.3,
                "trainable_variance": False,
            },
            "patch_size": 6,
            "global_downsample": 2,
        },
        "guidance_type": "richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance",
        "guidance": {
            "n_view": 2,
            "mv_ckpt_path": str(world / "mv"),
            "rd_ckpt_path": str(world / "rd"),
            "sd_model_name_or_path": sd,
            "mv_image_size": 16,
            "rd_image_size": 8,
            "sd_image_size": 16,
            "mv_plus_ratio": 0.0,
            "sd_plus_ratio": 0.0,
            **{f"{teacher}_weighting_strategy": "dmd" for teacher in ("mv", "rd", "sd")},
        },
        "loss": {"lambda_sparsity_2nd": [0, 1.0, 0.0, 10], "lambda_eikonal_2nd": 0.1},
        "optimizer": {
            "name": "Adan",
            "args": {"betas": [0.98, 0.92, 0.99], "eps": 1e-15},
            "params": {"geometry": {"lr": [0, 1e-3, 1e-4, 10]}},
        },
    }


def write_configuration(world: Path, out: Path) -> Path:
    """The configuration as a file in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tiny.yaml"
    path.write_text(yaml.safe_dump(configuration(world, out)))
    return path


def assemble(world: Path, out: Path, *overrides: str, max_steps: int = 1) -> tuple[Any, Any, pl.Trainer]:
    """System, data module and trainer of the configuration, as the launcher builds them, without loggers."""
    experiment = load_config([write_configuration(world, out)], overrides)
    torch.manual_seed(experiment.seed)
    data, system = experiment.data.build(), experiment.system.build()
    for part in (data, system):
        part.enter(Run(experiment.seed))
    options = trainer_options(experiment) | {"max_steps": max_steps}
    return system, data, pl.Trainer(**options, logger=False, callbacks=[], plugins=[AtomicCheckpointIO()])
