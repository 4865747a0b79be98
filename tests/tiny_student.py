"""A very small text-to-mesh pipeline with random weights, on disk."""

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.geometry.adapters import Adapter
from triplaneturbo.materials import Unlit
from triplaneturbo.pipelines.text_to_mesh import PipelineConfig, refer_to_base
from triplaneturbo.weights.files import save_tensors

GENERATOR = {
    "self_rank": 2,
    "cross_rank": 2,
    "convolution_rank": 2,
    "output_dim": 8,
    "cross_attention": "shared_lora",
    "convolutions": "shared_lora",
    "decoder_attention": "separate_planes",
}
GEOMETRY = {
    "space_generator": GENERATOR,
    "split_channels": True,
    "field": {"bias": "sphere", "bias_size": 0.5, "color_features": "sum", "training_resolution": 16},
}


def geometry_options(base: Path) -> dict:
    """GEOMETRY on top of the text-to-image model in `base`."""
    return {**GEOMETRY, "space_generator": {**GENERATOR, "pretrained_model_name_or_path": str(base)}}


def training_options(base: Path) -> dict:
    """A configuration of a training of this student."""
    return {
        "data": {
            "type": "prompts-and-cameras",
            "prompts": ["a red cube"],
            "latent_shape": [6, 4, 8, 8],
            "conditions": {"sd": {"pretrained_model_name_or_path": str(base)}},
        },
        "system": {
            "type": "progressive-rendering-distillation",
            "geometry": {"type": "few-step-triplanes", **geometry_options(base)},
            "renderers": {"mesh": "mesh"},
            "inference_steps": 4,
        },
    }


def write_pipeline(folder: Path, base: Path) -> Path:
    """A folder for `TextToMeshPipeline.from_pretrained`, its adapters random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        geometry = FewStepTriplanes(geometry_options(base))
        for module in geometry.modules():
            if isinstance(module, Adapter):
                for parameter in module.parameters(recurse=False):
                    parameter.data.normal_(std=0.2)
    state = nn.ModuleDict({"geometry": geometry, "material": Unlit()}).state_dict()
    save_tensors(folder / "student.safetensors", state)
    config = PipelineConfig(base=refer_to_base(base, folder), geometry=GEOMETRY, latent_size=(8, 8), resolution=16)
    (folder / "pipeline.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder
