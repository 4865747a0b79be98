"""What becomes of the original's options of geometries and backgrounds."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from triplaneturbo.base import convert
from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.options import ENCODING, MLP, Option, decided, ignored, moved, named, nested, only, same, to
from triplaneturbo.legacy.translate import in_our_names
from triplaneturbo.legacy.trees import put
from triplaneturbo.storage import Json, Tree

_NORMALS = {
    "finite_difference": "forward_inside",
    "finite_difference_laplacian": "central_inside",
    "analytic": "analytic",
}
_SURFACE = {
    "isosurface": ignored(bool, why="a surface is extracted where one is asked for"),
    "isosurface_method": only("mt", "mc-cpu", why="marching cubes is the only method"),
    "isosurface_resolution": to("resolution"),
    "isosurface_chunk": ignored(int, why="grids are evaluated in slabs that suit the device"),
    "isosurface_coarse_to_fine": ignored(bool, why="grids are evaluated once"),
    "isosurface_remove_outliers": named("smallest_component", {True: 0.01, False: 0.0}),
    "shape_init": only(None, why="the start shape is the bias of the field"),
    "shape_init_params": only(None, why="the start shape is the bias of the field"),
    "force_shape_init": only(False, why="the start shape is the bias of the field"),
}
_SDF = {
    "n_input_dims": only(3, why="points have three coordinates"),
    "n_feature_dims": to("field.n_feature_dims"),
    "radius": to("field.radius", default=1.0),
    "normal_type": named("field.normals", _NORMALS, default="finite_difference"),
    "finite_difference_normal_eps": to("field.finite_difference_step"),
    "sdf_bias": to("field.bias", default=0.0),
    "sdf_bias_params": to("field.bias_size", default=None),
    "isosurface_threshold": only(0.0, "auto", why="the surface is where the distance is 0"),
    **_SURFACE,
}


def _widths(last: int | None) -> Callable[[Json, str], Json]:
    """Widths of a written network without the last one, which must be that."""

    def value(given: Json, where: str) -> Json:
        if not isinstance(given, list) or not given or (last is not None and given[-1] != last):
            raise ConfigError(f"{where} must be a list of widths that ends with {last}, not {given!r}")
        return given[:-1]

    return value


_HYPERNET = {
    "c_dim": to("text_width"),
    **same("n_neurons", "n_hidden_layers"),
    "spectral_norm": only(False, why="it is not there"),
    "output_activation": ignored(Literal["none"] | None, why="the output has no activation"),
}
HYPER_INGP = {
    **_SDF,
    "backbone": only("linear_hypernetwork", why="there is one hyper-network"),
    **nested("pos_encoding_config", moved(ENCODING, "field.encoding")),
    **nested("hypernet_config", moved(_HYPERNET, "hypernet")),
    "hypernet_config.out_dims.sdf_weights": Option("field.value_widths", _widths(1)),
    "hypernet_config.out_dims.feature_weights": Option("field.color_widths", _widths(3)),
}
_TABLE_OF_WIDTHS = (512, 512, 512, 256, 128, 64)
_CONV3D = {
    "z_dim": to("noise_width"),
    "c_dim": to("text_width"),
    "w_dim": to("style_width"),
    "num_layers": to("n_mapping_layers"),
    "img_channels": to("channels"),
    "bias_resolution": to("constants_until"),
    "img_resolution": decided("as many `widths`"),
    "channel_multiplier": decided("`widths` from 32 voxels along an edge on"),
}
CONV3D_NET = {
    **_SDF,
    "activation": only("none", None, why="features of voxels have no activation"),
    **nested("space_generator_config", moved(_CONV3D, "space_generator")),
    **nested("mlp_network_config", moved(MLP, "field.network")),
    "pos_encoding_config": ignored(dict, why="it has no effect in the original, either"),
    "truncation_psi": ignored(float, why="it has no effect in the original, either"),
}
_TRANSFORMER = {
    "condition_dim": to("text_width"),
    "inner_dim": to("width"),
    "num_heads": to("n_heads"),
    "num_layers": to("n_layers"),
    "mlp_ratio": to("mlp_ratio"),
    "triplane_dim": to("channels"),
    "triplane_low_res": to("token_resolution"),
    "triplane_high_res": decided("twice `token_resolution`"),
    "local_text": named("pooled_text", {True: False, False: True}),
}
TRIPLANE_TRANSFORMER = {
    **_SDF,
    **nested("space_generator_config", moved(_TRANSFORMER, "space_generator")),
    **nested("mlp_network_config", moved(MLP, "field.network")),
}
IMPLICIT_VOLUME = {
    "n_input_dims": only(3, why="points have three coordinates"),
    "n_feature_dims": to("field.n_feature_dims"),
    "radius": to("field.radius"),
    "density_activation": to("field.density_activation"),
    "density_bias": decided("`field.bias` and `field.density_blob_shape`"),
    "density_blob_scale": to("field.density_blob"),
    "density_blob_std": to("field.bias_size"),
    "normal_type": named(
        "field.normals",
        _NORMALS | {"pred": "finite_difference", None: "finite_difference"},
        default="finite_difference",
    ),
    "finite_difference_normal_eps": to("field.finite_difference_step"),
    **nested("pos_encoding_config", moved(ENCODING, "field.encoding")),
    **nested("mlp_network_config", moved(MLP, "field.network")),
    "isosurface_threshold": to("field.level"),
    **_SURFACE,
}
_BACKGROUND = {
    "n_output_dims": only(3, why="colours have three channels"),
    "color_activation": to("color_activation"),
    **dict.fromkeys(("random_aug", "random_aug_prob"), decided("`random_color`")),
    "random_aug_color": only(None, why="the random colours are uniform"),
}
TEXT_ENVIRONMENT = {
    **_BACKGROUND,
    **nested("pos_encoding_config", moved(ENCODING, "encoding")),
    **nested("hypernet_config", moved(_HYPERNET, "hypernet")),
    "hypernet_config.out_dims.bg_weights": to("hypernet.widths"),
    "eval_color": to("eval_color"),
}
ENVIRONMENT = {
    **_BACKGROUND,
    "dir_encoding_config": decided("`encoding`, or none for spherical harmonics"),
    **nested("mlp_network_config", moved(MLP, "network")),
    "eval_color": only(None, why="evaluation sees the learned map"),
}
# By role: published name, name of ours, table.
COMPONENTS: dict[str, dict[str, tuple[str, Mapping[str, Option]]]] = {
    "geometry": {
        "Hyper-iNGP": ("hyper-ingp", HYPER_INGP),
        "3DConv-net": ("conv3d-net", CONV3D_NET),
        "Triplane-transformer-sdf": ("triplane-transformer", TRIPLANE_TRANSFORMER),
        "implicit-volume": ("free-parameters", IMPLICIT_VOLUME),
    },
    "background": {
        "multiprompt-neural-hashgrid-environment-map-background": ("text-environment", TEXT_ENVIRONMENT),
        "neural-environment-map-background": ("environment", ENVIRONMENT),
    },
}


def component(role: str, name: str, options: Mapping[str, Json], place: str) -> Tree:
    """A component of the original with all that a file says of it, in this project's names.

    role: geometry or background. place: dotted, for messages.

    Raises:
        UnknownNameError: an option that the component does not have.
        ConfigError: a value that it cannot have, or an option that is refused.
    """
    ours, table = COMPONENTS[role][name]
    tree = {"type": ours, **in_our_names(options, table, place)}
    _TOGETHER[ours](options, tree, place)
    return tree


def _voxel_widths(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    given = options.get("space_generator_config") or {}
    resolution, factor = given.get("img_resolution", 128), given.get("channel_multiplier", 1)
    levels = round(math.log2(resolution / 4)) + 1 if isinstance(resolution, int) and resolution >= 4 else 0
    if not 1 <= levels <= len(_TABLE_OF_WIDTHS) or 4 << (levels - 1) != resolution:
        raise ConfigError(f"{place}.space_generator_config.img_resolution must be 4, 8, ..., 128, not {resolution!r}")
    widths = [width * (factor if level >= 3 else 1) for level, width in enumerate(_TABLE_OF_WIDTHS[:levels])]
    put(ours, "space_generator.widths", widths)


def _plane_size(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    given = options.get("space_generator_config") or {}
    low, high = given.get("triplane_low_res", 32), given.get("triplane_high_res", 64)
    if high != 2 * low:
        raise ConfigError(
            f"{place}.space_generator_config: triplane_high_res is {high!r}, but planes are twice as large as "
            f"triplane_low_res, {low!r}"
        )


def _density(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    put(ours, "field.type", "hash-grid")
    put(ours, "field.kind", "density")
    shapes = {"blob_magic3d": "cone", "blob_dreamfusion": "gaussian"}
    bias = options.get("density_bias", "blob_magic3d")
    if bias in shapes:
        put(ours, "field.density_blob_shape", shapes[bias])
    elif isinstance(bias, (int, float)):
        put(ours, "field.bias", float(bias))
    else:
        raise ConfigError(f"{place}.density_bias is {bias!r}; allowed: {', '.join(map(repr, shapes))}, or a number")
    put(ours, "field.predict_normals", options.get("normal_type") == "pred")


def _random_color(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    given = convert(bool, options.get("random_aug", False), f"{place}.random_aug")
    ours["random_color"] = options.get("random_aug_prob", 0.5) if given else 0.0


def _environment(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    _random_color(options, ours, place)
    encoding = dict(options.get("dir_encoding_config") or {"otype": "SphericalHarmonics", "degree": 3})
    if encoding.get("otype") != "SphericalHarmonics":
        ours["encoding"] = in_our_names(encoding, ENCODING, f"{place}.dir_encoding_config")
    elif encoding.get("degree", 3) != 3:
        raise ConfigError(f"{place}.dir_encoding_config.degree is {encoding['degree']!r}; allowed: 3")


def _nothing(options: Mapping[str, Json], ours: Tree, place: str) -> None:
    """Each option stands for itself."""


# Options that depend on each other, by our name of the component.
_TOGETHER: dict[str, Callable[[Mapping[str, Json], Tree, str], None]] = {
    "hyper-ingp": _nothing,
    "conv3d-net": _voxel_widths,
    "triplane-transformer": _plane_size,
    "free-parameters": _density,
    "text-environment": _random_color,
    "environment": _environment,
}
