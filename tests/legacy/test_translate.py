"""The published option tree in our names: what moves, what has no effect, what is refused."""

import pytest

from triplaneturbo.base import build
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.legacy import quirks
from triplaneturbo.legacy.translate import Translator, parse_training_type
from triplaneturbo.legacy.trees import put, take

GEOMETRY = "few-step-triplane-dual-stable-diffusion"
DATA = "multiview-multiprompt-dualrenderer-multistep-datamodule-v2"
SYSTEM = "multiprompt-dual-renderer-multistep-generator-system"
GUIDANCE = "richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance"
ENVIRONMENT = "multi-prompt-neural-hashgrid-environment-map-background"
PROCESSOR = "stable-diffusion-multi-prompt-processor-callable"
MESH, VOLUME = "generative-space-mesh-rasterize-renderer", "generative-space-sdf-volume-renderer"
RECIPE = "self_lora_rank_16-cross_lora_rank_16-locon_rank_16"


def component(role, name, **options):
    """The component that the published `name` and `options` are, as it stands in a tree of ours."""
    return Translator().component(role, name, options, f"system.{role}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RECIPE, {"self_rank": 16, "cross_rank": 16, "convolution_rank": 16}),
        (
            RECIPE + "-with_bias",
            {"self_rank": 16, "cross_rank": 16, "convolution_rank": 16, "adapter_bias": True},
        ),
        ("self_lora_rank_4", {"self_rank": 4, "cross_rank": 0, "convolution_rank": 0}),
        ("full", {"full": True}),
    ],
)
def test_training_type_is_read(text, expected):
    assert parse_training_type(text, "x") == expected
    generator = take(component("geometry", GEOMETRY, space_generator_config={"training_type": text}), "space_generator")
    assert expected.items() <= generator.items()


@pytest.mark.parametrize(
    "text", ["lora", "self_lora_rank_0", "locon_rank_2-locon_rank_4", "with_bias-locon_rank_2", ""]
)
def test_bad_training_type_is_an_error_that_shows_a_good_one(text):
    with pytest.raises(ConfigError, match="self_lora_rank_16"):
        parse_training_type(text, "space_generator_config.training_type")


@pytest.mark.parametrize(
    ("options", "place", "value"),
    [
        ({"sdf_bias": "sphere"}, "field.bias", "sphere"),
        ({"rotate_planes": "v2"}, "field.axes", "xy"),
        ({"split_channels": "v1"}, "split_channels", True),
        ({"tex_interpolate": "v2"}, "field.color_features", "concat"),
        ({}, "field.color_features", "sum"),  # the published default is another than ours
        ({"isosurface_resolution": 12}, "field.training_resolution", 12),
        ({"isosurface_remove_outliers": True}, "smallest_component", 0.01),
        ({"isosurface_remove_outliers": True, "isosurface_outlier_n_faces_threshold": 0.2}, "smallest_component", 0.2),
        ({"isosurface_outlier_n_faces_threshold": 0.2}, "smallest_component", 0.0),
        ({"space_generator_config": {"self_lora_type": "hexa_v1"}}, "space_generator.self_attention", "plane_lora"),
        (
            {"space_generator_config": {"vae_attn_type": "basic"}},
            "space_generator.decoder_attention",
            "separate_planes",
        ),
        ({"space_generator_config": {"locon_type": "vanilla_v1"}}, "space_generator.convolutions", "shared_lora"),
    ],
)
def test_options_of_the_geometry_move(options, place, value):
    assert take(component("geometry", GEOMETRY, **options), place) == value


@pytest.mark.parametrize(("volsdf", "law"), [(True, "volsdf"), (False, None), (None, None)])
def test_the_law_of_the_volume_renderer(volsdf, law):
    given = {} if volsdf is None else {"use_volsdf": volsdf}
    assert component("renderer", VOLUME, **given).get("law") == law


@pytest.mark.parametrize(
    ("role", "name", "options", "message"),
    [
        ("geometry", GEOMETRY, {"space_generator_config": {"prompt_bias_lr_multiplier": 1.0}}, "learning rate"),
        ("geometry", GEOMETRY, {"isosurface": True}, "nothing to switch"),
        ("geometry", GEOMETRY, {"weights": "a.ckpt"}, r"system\.weights"),
        ("geometry", GEOMETRY, {"rotate_planes": "v3"}, "allowed: 'v1', 'v2'"),
        ("renderer", VOLUME, {"estimator": "occgrid"}, "occupancy grid"),
        ("renderer", VOLUME, {"grid_prune": False}, "remove it"),
        ("renderer", MESH, {"context_type": "cuda"}, "no graphics context"),
        ("renderer", "patch-renderer", {"radius": 2.0}, r"set base_renderer\.radius"),
        ("background", ENVIRONMENT, {"random_aug": True}, "random_aug is True; allowed: False"),
        ("background", ENVIRONMENT, {"random_aug_prob": 0.5}, "random_aug"),
        ("background", ENVIRONMENT, {"pos_encoding_config": {"otype": "SphericalHarmonics"}}, "otype"),
        ("exporter", "mesh-exporter", {"save_texture": False}, "save_texture is False; allowed: True"),
        ("condition", PROCESSOR, {"front_threshold": 30}, "text_by_view"),
        ("condition", PROCESSOR, {"use_perp_neg": True}, "text_by_view"),
        ("condition", PROCESSOR, {"prompt_library": "x"}, "set it under data"),
        ("condition", PROCESSOR, {"use_local_text_embeddings": False}, "allowed: True"),
        ("data", DATA, {"obj_library": "objaverse"}, "obj_library"),
        ("data", DATA, {"rgb_bg": [0, 0, 0]}, "3D data"),
        ("data", DATA, {"light_sample_strategy": "dreamfusion"}, "not lit"),
        ("data", DATA, {"pure_zeros": True}, "pure_zeros"),
        ("data", DATA, {"resolution_milestones": [100]}, "resolution_milestones"),
        ("guidance", GUIDANCE, {"auto_grad": False}, "auto_grad"),
        ("guidance", GUIDANCE, {"rd_recon_std_rescale": 0.5}, "not supported: no published recipe"),
        ("guidance", GUIDANCE, {"mv_weighting_strategy": "dmb"}, "allowed: 'dmd', 'sds'"),
        ("guidance", GUIDANCE, {"t_plus_type": "v5"}, "allowed: v1, v2, v3, v4"),
        ("system", SYSTEM, {"geometry_convert_from": "x"}, "geometry_convert_from"),
        ("system", SYSTEM, {"scheduler": {}}, "as a schedule"),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_a_reason(role, name, options, message):
    with pytest.raises(ConfigError, match=message):
        component(role, name, **options)


@pytest.mark.parametrize(
    ("role", "name", "options", "message"),
    [
        ("geometry", GEOMETRY, {"space_generator_config": {"output_dims": 8}}, "did you mean .*output_dim"),
        ("condition", PROCESSOR, {"negative_promt": "x"}, "did you mean 'negative_prompt'"),
        ("data", DATA, {"n_views": 4}, "'n_view'"),
        ("guidance", GUIDANCE, {"mv_guidance_scael": 3}, "did you mean 'mv_guidance_scale'"),
    ],
)
def test_an_unknown_published_option_names_the_nearest(role, name, options, message):
    with pytest.raises(UnknownNameError, match=message):
        component(role, name, **options)


# Teachers


def rule(prefix="mv", **options):
    names = {"rd": "richdreamer", "mv": "mvdream", "sd": "stable_diffusion"}
    return component("guidance", GUIDANCE, **options)["teachers"][names[prefix]]["rule"]


def test_one_class_with_prefixed_options_is_three_named_teachers():
    given = {"mv_ckpt_path": "a", "rd_ckpt_path": "b", "sd_model_name_or_path": "c", "mv_weight": 2.0, "n_view": 2}
    guidance = component("guidance", GUIDANCE, **given, sd_oppo_side=True, sd_hq_only=True, grad_clip=0.5)
    assert (guidance["type"], guidance["opposite_views"]) == ("score-distillation", True)
    teachers = guidance["teachers"]
    assert {name: (t["type"], t["path"], t["label"], t["weight"]) for name, t in teachers.items()} == {
        "richdreamer": ("richdreamer", "b", "rd", 1.0),
        "mvdream": ("mvdream", "a", "mv", 2.0),
        "stable_diffusion": ("stable-diffusion", "c", "sd", 1.0),
    }
    assert [t.get("n_view") for t in teachers.values()] == [2, 2, None]
    assert [t.get("first_renderer_only") for t in teachers.values()] == [None, None, True]
    assert {t["latent_clip"] for t in teachers.values()} == {0.5}


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "asd"), ({"mv_plus_ratio": 0.2}, "asd"), ({"mv_plus_ratio": 0.0}, "csd"), ({"mv_use_sds": True}, "sds")],
)
def test_the_rule_is_that_of_the_shift(options, kind):
    translated = rule(**options)
    assert translated["type"] == kind
    assert ("ratio" in translated) == (kind == "asd")
    build("rule", translated)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dmd", {"weighting": "dmd"}),
        ("dmd_mv", {"weighting": "dmd", "gap_over_views": True}),
        ("dmd+1", {"weighting": "dmd", "gap_at_shift": True}),
        ("dmd_mv+1", {"weighting": "dmd", "gap_over_views": True, "gap_at_shift": True}),
        ("fantasia3d", {"weighting": "fantasia3d"}),
    ],
)
def test_weightings(name, expected):
    translated = rule(mv_weighting_strategy=name)
    keys = ("weighting", "gap_over_views", "gap_at_shift")
    assert {key: translated[key] for key in keys if key in translated} == expected


@pytest.mark.parametrize(
    ("kind", "from_zero", "limit_last"),
    [("v1", False, False), ("v2", False, True), ("v3", True, False), ("v4", True, True)],
)
def test_kinds_of_shift(kind, from_zero, limit_last):
    translated = rule(t_plus_type=kind, plus_schedule="sqrt_100", mv_plus_random=False)
    shift = {key: translated[key] for key in ("from_zero", "limit_last", "growth", "random")}
    assert shift == {"from_zero": from_zero, "limit_last": limit_last, "growth": "sqrt_100", "random": False}


def test_timesteps_of_a_teacher_go_before_those_of_all():
    teachers = component("guidance", GUIDANCE, mv_min_step_percent=0.5, min_step_percent=0.1)["teachers"]
    assert [t["min_timestep"] for t in teachers.values()] == [0.1, 0.5, 0.1]


def test_full_precision_on_request():
    teachers = component("guidance", GUIDANCE, half_precision_weights=False)["teachers"]
    assert {t["network_dtype"] for t in teachers.values()} == {"float32"}


# Encoders


def encoders(second="b", condition="b", negative=""):
    dual = {"pretrained_model_name_or_path": "a", "pretrained_model_name_or_path_2nd": second}
    tree = {
        "data_type": DATA,
        "data": {
            "guidance_processor_type": "dual-" + PROCESSOR,
            "guidance_processor": dual | {"negative_prompt": negative},
            "condition_processor_type": PROCESSOR,
            "condition_processor": {"pretrained_model_name_or_path": condition},
        },
    }
    data = Translator()(tree)["data"]
    folders = {name: part["pretrained_model_name_or_path"] for name, part in data["conditions"].items()}
    return folders, data["generator_condition"]


def test_two_processors_are_as_many_encoders_as_there_are_models():
    assert encoders() == ({"first": "a", "second": "b"}, "second")
    assert encoders(condition="c") == ({"first": "a", "second": "b", "generator": "c"}, "generator")
    assert encoders(second="a", condition="a") == ({"first": "a"}, "first")
    assert encoders(second="a", condition="a", negative="ugly") == ({"first": "a", "second": "a"}, "second")


# Mistakes that `compat: original` repeats


def repeated(place, options, tree, compat=None):
    """The component at `place` with the original's mistakes."""
    put(tree, place, options)
    quirks.repeat(tree, compat or {"": "original"})
    return take(tree, place)


@pytest.mark.parametrize(("given", "expected"), [(0.7, 0.2), (0.0, 0.0), (0.2, 0.2), (None, 0.2)])
def test_the_share_of_the_sdf_takes_the_place_of_another_that_is_not_zero(given, expected):
    options = {"type": "mesh", "sdf_grad_shrink": 0.2} | ({} if given is None else {"def_grad_shrink": given})
    found = repeated("system.renderers.mesh", options, {})
    assert found["def_grad_shrink"] == expected


def test_background_rays_have_the_focal_length_of_the_volume_renderers_pictures():
    options = {"type": "mesh", "enable_bg_rays": True}
    assert repeated("system.renderers.mesh", options, {"data": {"ray_height": 24}})["background_focal_height"] == 24
    still = {"type": "mesh", "enable_bg_rays": False}
    assert "background_focal_height" not in repeated("system.renderers.mesh", still, {})


def test_compat_holds_for_what_is_inside_unless_it_says_otherwise():
    tree = {"system": {"renderers": {"far": {"type": "mesh"}, "near": {"type": "mesh"}}}}
    quirks.repeat(tree, {"": "original", "system.renderers.near": "right"})
    assert tree["system"]["renderers"]["far"]["quirks"] == ["mixed-backgrounds", "clip-depth"]
    assert "quirks" not in tree["system"]["renderers"]["near"]
    untouched = {"system": {"renderers": {"far": {"type": "mesh"}}}}
    quirks.repeat(untouched, {})
    assert untouched == {"system": {"renderers": {"far": {"type": "mesh"}}}}


@pytest.mark.parametrize("parallel", [False, True])
def test_opposite_views_were_looked_at_in_parallel_only(parallel):
    options = {"type": "score-distillation", "teachers": {}, "opposite_views": True, "parallel": parallel}
    found = repeated("system.guidance", options, {})
    assert found["opposite_views"] is parallel
    assert ("view-per-renderer" in found["quirks"]) == (not parallel)
