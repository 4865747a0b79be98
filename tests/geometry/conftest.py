import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.geometry.adapters import Adapter

UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": [2, 2],
    "cross_attention_dim": 12,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A very small Stable Diffusion with random weights."""
    folder = tmp_path_factory.mktemp("sd")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        UNet2DConditionModel.from_config(UNET).save_pretrained(folder / "unet")
        AutoencoderKL.from_config(VAE).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


@pytest.fixture
def build(sd_folder):
    """build(generator={...}, field={...}, **options) -> geometry whose adapters are not zero."""

    def make(generator=None, field=None, **options):
        small = {
            "pretrained_model_name_or_path": str(sd_folder),
            "self_rank": 2,
            "cross_rank": 2,
            "convolution_rank": 2,
            "output_dim": 8,
            "cross_attention": "shared_lora",
            "convolutions": "shared_lora",
            "decoder_attention": "separate_planes",
        }
        recipe = {
            "bias": "sphere",
            "bias_size": 0.5,
            "deformable": True,
            "network": {"n_neurons": 8},
        }
        config = {
            "split_channels": True,
            "field": {**recipe, **(field or {})},
            "space_generator": {**small, **(generator or {})},
            **options,
        }
        with torch.random.fork_rng():
            torch.manual_seed(1)
            geometry = FewStepTriplanes(config)
            for module in geometry.modules():
                if isinstance(module, Adapter):
                    for parameter in module.parameters(recurse=False):
                        parameter.data.normal_(std=0.3)
        return geometry

    return make
