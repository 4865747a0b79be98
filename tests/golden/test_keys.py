"""The names of the original's tensors, as computed here, are those of its state dicts."""

import json
from pathlib import Path

import pytest
from golden_case import Case
from workbench import LINEAR, Workbench

from triplaneturbo.geometry.legacy import to_original
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
    assert {name: tuple(value.shape) for name, value in to_original(geometry.state_dict()).items()} == recorded(keys)
