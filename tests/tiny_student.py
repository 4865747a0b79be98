"""A very small text-to-mesh pipeline with random weights, on disk."""

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from triplaneturbo.geometry import FewStepTriplaneDualStableDiffusion
from triplaneturbo.geometry.adapters import Adapter
from triplaneturbo.materials import NoMaterial
from triplaneturbo.pipelines.text_to_mesh import PipelineConfig, refer_to_base
from triplaneturbo.weights.files import save_tensors

GENERATOR = {
    "training_type": "self_lora_rank_2-cross_lora_rank_2-locon_rank_2",
    "output_dim": 8,
    "cross_lora_type": "vanilla",
    "locon_type": "vanilla_v1",
    "vae_attn_type": "basic",
}
GEOMETRY = {
    "space_generator_config": GENERATOR,
    "sdf_bias": "sphere",
    "sdf_bias_params": 0.5,
    "split_channels": "v1",
    "isosurface_resolution": 16,
}


def geometry_options(base: Path) -> dict:
    """GEOMETRY on top of the text-to-image model in `base`."""
    return {**GEOMETRY, "space_generator_config": {**GENERATOR, "pretrained_model_name_or_path": str(base)}}


def write_pipeline(folder: Path, base: Path) -> Path:
    """A folder for `TextToMeshPipeline.from_pretrained`, its adapters random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        geometry = FewStepTriplaneDualStableDiffusion(geometry_options(base))
        for module in geometry.modules():
            if isinstance(module, Adapter):
                for parameter in module.parameters(recurse=False):
                    parameter.data.normal_(std=0.2)
    state = nn.ModuleDict({"geometry": geometry, "material": NoMaterial()}).state_dict()
    save_tensors(folder / "student.safetensors", state)
    config = PipelineConfig(base=refer_to_base(base, folder), geometry=GEOMETRY, latent_size=(8, 8), resolution=16)
    (folder / "pipeline.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder
