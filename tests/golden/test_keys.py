"""The names of the original's tensors, as computed here, are those of its state dicts."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from golden_case import Case
from workbench import LINEAR, Workbench

from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.state_dicts import to_original
from triplaneturbo.weights.ldm import UNET_PREFIX, VAE_PREFIX
from triplaneturbo.weights.ldm_names import unet_shapes, vae_shapes

DATA = Path(__file__).parent / "data"
# Configurations that no key list tells: which resolutions attend, and depth.
_LAYOUT = {"channel_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attention_resolutions": [4, 2, 1]}


def recorded(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((DATA / "keys" / f"{name}.json").read_text()).items()}


@pytest.mark.parametrize("name", ["mv_a", "mv_b", "rd_a", "rd_b"])
def test_names_of_multi_view_teachers(name: str) -> None:
    keys = {key: shape for key, shape in recorded(name).items() if key.startswith((UNET_PREFIX, VAE_PREFIX))}
    model = {
        **_LAYOUT,
        "model_channels": keys[f"{UNET_PREFIX}input_blocks.0.0.weight"][0],
        "context_dim": keys[f"{UNET_PREFIX}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
    }
    expected = unet_shapes(model, linear=LINEAR[name[:2]])
    if name.startswith("mv"):
        expected |= vae_shapes({**model, "ch": keys[f"{VAE_PREFIX}encoder.conv_in.weight"][0]})
    assert keys == expected


@pytest.mark.parametrize(
    ("case", "keys"),
    [("c1_generator", "geometry_gen_a"), ("c2_generator_hexa_all", "geometry_gen_a_hexa_all")],
)
def test_names_of_the_generator(case: str, keys: str, workbench: Workbench) -> None:
    meta = Case(DATA / f"{case}.npz").meta
    geometry = workbench.geometry(meta["geometry"], workbench.sd_folder(meta["sd"], meta["scheduler"]))
    assert shapes(geometry) == recorded(keys)


def test_names_of_a_wider_and_deeper_generator(tmp_path: Path, workbench: Workbench) -> None:
    meta = Case(DATA / "c1_generator.npz").meta
    unet = {**meta["sd"]["unet"], "block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 40}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = {**meta["sd"]["vae"], **blocks, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    generator = {
        **meta["geometry"]["space_generator_config"],
        "training_type": "self_lora_rank_5-cross_lora_rank_5-locon_rank_5",
        "output_dim": 20,
    }
    with torch.device("meta"):
        UNet2DConditionModel.from_config(unet).save_config(tmp_path / "unet")
        AutoencoderKL.from_config(vae).save_config(tmp_path / "vae")
        options = workbench.own_geometry_options({**meta["geometry"], "space_generator_config": generator}, tmp_path)
        geometry = FewStepTriplanes(options)
    assert shapes(geometry) == recorded("geometry_gen_b")


def shapes(geometry: FewStepTriplanes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in to_original(geometry.state_dict()).items()}
