"""The original's options of geometries and backgrounds, in this project's names."""

from typing import Any

import pytest

from custom.scaledreamer.options import COMPONENTS, component
from triplaneturbo.base import Part
from triplaneturbo.errors import ConfigError, UnknownNameError

PLACE = "system.part"
DEGREE_4 = {"otype": "SphericalHarmonics", "degree": 4}
# As the published recipes give them.
HYPER_INGP = {
    "radius": 2.0,
    "normal_type": "finite_difference",
    "sdf_bias": "sphere",
    "sdf_bias_params": 0.5,
    "hypernet_config": {
        "c_dim": 1024,
        "out_dims": {"sdf_weights": [64, 1], "feature_weights": [64, 3]},
        "n_neurons": 64,
        "n_hidden_layers": 1,
    },
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, table in COMPONENTS.items() for name in table])
def test_what_is_translated_can_be_built(role: str, name: str) -> None:
    chosen = Part(role)(component(role, name, {}, PLACE), PLACE)
    assert chosen.type == COMPONENTS[role][name][0]


def test_a_written_decoder_is_described_by_its_hidden_layers() -> None:
    assert component("geometry", "Hyper-iNGP", HYPER_INGP, PLACE) == {
        "type": "hyper-ingp",
        "hypernet": {"text_width": 1024, "n_neurons": 64, "n_hidden_layers": 1},
        "field": {
            "radius": 2.0,
            "normals": "forward_inside",
            "bias": "sphere",
            "bias_size": 0.5,
            "value_widths": [64],
            "color_widths": [64],
        },
    }


@pytest.mark.parametrize(
    ("given", "widths"),
    [
        ({}, [512, 512, 512, 256, 128, 64]),
        ({"channel_multiplier": 2}, [512, 512, 512, 512, 256, 128]),
        ({"img_resolution": 32, "channel_multiplier": 2}, [512, 512, 512, 512]),
    ],
)
def test_widths_of_the_voxel_generator(given: dict[str, int], widths: list[int]) -> None:
    ours = component("geometry", "3DConv-net", {"space_generator_config": given}, PLACE)
    assert ours["space_generator"]["widths"] == widths


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"density_blob_shape": "cone"}),
        ({"density_bias": "blob_dreamfusion"}, {"density_blob_shape": "gaussian"}),
        ({"density_bias": -1}, {"bias": -1.0}),
        ({"normal_type": "pred"}, {"density_blob_shape": "cone", "predict_normals": True}),
    ],
)
def test_a_density(given: dict[str, Any], expected: dict[str, Any]) -> None:
    field = component("geometry", "implicit-volume", given, PLACE)["field"]
    assert field.items() >= ({"type": "hash-grid", "kind": "density", "predict_normals": False} | expected).items()


def test_random_colours_need_to_be_switched_on() -> None:
    name = "neural-environment-map-background"
    assert component("background", name, {"random_aug_prob": 0.2}, PLACE)["random_color"] == 0.0
    assert component("background", name, {"random_aug": True}, PLACE)["random_color"] == 0.5
    both = {"random_aug": True, "random_aug_prob": 0.2}
    assert component("background", name, both, PLACE)["random_color"] == 0.2


@pytest.mark.parametrize(
    ("role", "name", "options", "message"),
    [
        ("geometry", "Hyper-iNGP", {"hypernet_config": {"out_dims": {"sdf_weights": [64, 2]}}}, "ends with 1"),
        ("geometry", "Hyper-iNGP", {"normal_type": "pred"}, "normal_type is 'pred'; allowed"),
        ("geometry", "3DConv-net", {"space_generator_config": {"img_resolution": 12}}, "must be 4, 8"),
        ("geometry", "Triplane-transformer-sdf", {"space_generator_config": {"triplane_high_res": 32}}, "twice"),
        ("geometry", "implicit-volume", {"density_bias": "blob"}, "density_bias is 'blob'; allowed"),
        ("background", "neural-environment-map-background", {"dir_encoding_config": DEGREE_4}, "allowed: 3"),
        ("background", "neural-environment-map-background", {"random_aug": "yes"}, "random_aug must be of type bool"),
    ],
)
def test_values_that_the_original_has_and_this_project_does_not(
    role: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        component(role, name, options, PLACE)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"system\.part\.hypernet_config has no option 'c_dims'.*c_dim"):
        component("geometry", "Hyper-iNGP", {"hypernet_config": {"c_dims": 3}}, PLACE)
