"""A very small text-to-mesh pipeline with random weights, on disk."""

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from custom.shapeworld.models import TEXT_WIDTH, build_scheduler, build_text_encoder, build_tokenizer
from triplaneturbo.geometry import FewStepTriplaneDualStableDiffusion
from triplaneturbo.geometry.adapters import Adapter
from triplaneturbo.materials import NoMaterial
from triplaneturbo.pipelines.text_to_mesh import PipelineConfig
from triplaneturbo.weights.files import save_tensors

UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": [2, 2],
    "cross_attention_dim": TEXT_WIDTH,
}
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
GEOMETRY = {
    "space_generator_config": {
        "training_type": "self_lora_rank_2-cross_lora_rank_2-locon_rank_2",
        "output_dim": 8,
        "cross_lora_type": "vanilla",
        "locon_type": "vanilla_v1",
        "vae_attn_type": "basic",
    },
    "sdf_bias": "sphere",
    "sdf_bias_params": 0.5,
    "split_channels": "v1",
    "isosurface_resolution": 16,
}


def write_base(folder: Path) -> Path:
    """A diffusers folder: unet, vae, scheduler, tokenizer, text_encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        parts = {
            "unet": UNet2DConditionModel.from_config(UNET),
            "vae": AutoencoderKL.from_config(VAE),
            "scheduler": build_scheduler(),
            "tokenizer": tokenizer,
            "text_encoder": build_text_encoder(tokenizer),
        }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def write_pipeline(folder: Path) -> Path:
    """A folder for `TextToMeshPipeline.from_pretrained`, its adapters random."""
    base = write_base(folder / "stable_diffusion")
    generator = {**GEOMETRY["space_generator_config"], "pretrained_model_name_or_path": str(base)}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        geometry = FewStepTriplaneDualStableDiffusion({**GEOMETRY, "space_generator_config": generator})
        for module in geometry.modules():
            if isinstance(module, Adapter):
                for parameter in module.parameters(recurse=False):
                    parameter.data.normal_(std=0.2)
    state = nn.ModuleDict({"geometry": geometry, "material": NoMaterial()}).state_dict()
    save_tensors(folder / "student.safetensors", state)
    config = PipelineConfig(base=base.name, geometry=GEOMETRY, latent_size=(8, 8), resolution=16)
    (folder / "pipeline.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder
