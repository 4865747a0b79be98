import pytest
import torch

from triplaneturbo.errors import WeightsError
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.state_dicts import from_original, to_original

KINDS = [
    {},
    {"cross_attention": "plane_lora", "convolutions": "plane_lora", "decoder_attention": "shared_lora"},
    {"adapter_bias": True, "convolutions": "plane_lora"},
]


@pytest.mark.parametrize("generator", KINDS)
def test_round_trip(build, generator):
    state = build(generator=generator).state_dict()
    original = to_original(state)
    assert len(original) > len(state)
    torch.testing.assert_close(from_original(original, state), state, rtol=0, atol=0)


def test_names_do_not_depend_on_the_order_of_the_state_dict(build):
    state = build().state_dict()
    assert to_original(dict(sorted(state.items()))).keys() == to_original(state).keys()


def test_numbers_of_the_published_model():
    """Layer numbers as in the published file: 1110 tensors, 131 numbered layers."""
    with torch.device("meta"):
        geometry = FewStepTriplanes(
            {
                "split_channels": True,
                "field": {"deformable": True},
                "space_generator": {
                    "output_dim": 64,
                    "cross_attention": "shared_lora",
                    "convolutions": "shared_lora",
                    "decoder_attention": "separate_planes",
                },
            }
        )
    shapes = {name: list(value.shape) for name, value in to_original(geometry.state_dict()).items()}
    layers = "space_generator.peft_layers.layers."
    assert len(shapes) == 1110
    assert shapes["bbox"] == [2, 3]
    expected = {
        "0.to_q_xy_lora_geo.down.weight": [16, 320],
        "1.to_k_lora.down.weight": [16, 1024],
        "10.to_out_yz_lora_tex.up.weight": [1280, 16],
        "12.to_v_xz_lora_tex.up.weight": [1280, 16],
        "28.to_q_xy_lora_geo.up.weight": [320, 16],
        "30.to_q_xy_lora_geo.down.weight": [16, 1280],
        "32.to_out_lora.up.weight": [512, 16],
        "33.down.weight": [16, 320, 3, 3],
        "37.down.weight": [16, 320, 3, 3],
        "40.down.weight": [16, 320, 1, 1],
        "54.down.weight": [16, 2560, 3, 3],
        "96.up.weight": [1280, 16, 1, 1],
        "97.down.weight": [16, 512, 3, 3],
        "129.up.weight": [512, 16, 1, 1],
        "130.weight": [64, 128, 3, 3],
        "130.bias": [64],
    }
    assert {name: shapes[layers + name] for name in expected} == expected


def test_planes_are_stacked_in_order(build):
    state = build().state_dict()
    original = to_original(state)
    stacked = state["space_generator.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.down"]
    for plane, name in enumerate(("xy_lora_geo", "xz_lora_geo", "yz_lora_geo", "xy_lora_tex", "xz_lora_tex")):
        value = original[f"space_generator.peft_layers.layers.0.to_q_{name}.down.weight"]
        torch.testing.assert_close(value, stacked[plane], rtol=0, atol=0)


def test_missing_left_over_and_misshapen_tensors_are_named(build):
    state = build().state_dict()
    original = to_original(state)
    name = "space_generator.peft_layers.layers.0.to_q_xy_lora_geo.down.weight"
    with pytest.raises(WeightsError, match=r"no space_generator\.peft_layers\.layers\.0\.to_q_xy_lora_geo"):
        from_original({n: v for n, v in original.items() if n != name}, state)
    with pytest.raises(WeightsError, match="1 tensors this model has no place for, first extra"):
        from_original({**original, "extra": torch.zeros(1)}, state)
    with pytest.raises(WeightsError, match="needs \\[2, 8\\]"):
        from_original({**original, name: torch.zeros(4, 8)}, state)
