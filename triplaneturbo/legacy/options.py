"""What becomes of every option of the original and of this project's first version, by component.

An option is moved to a place of ours, perhaps with another value; has no effect here, for a reason; or is refused, with
a reason and an alternative. Options that depend on each other have functions in `translate` and `teachers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triplaneturbo.base import Dynamic, convert
from triplaneturbo.errors import ConfigError
from triplaneturbo.storage import Json

_NONE = object()


@dataclass(frozen=True)
class Option:
    """One published option.

    to: the dotted place of its value in our component; "" where `translate` or `teachers` decides it.
    value: from the published value and its place for messages to ours.
    why: it has no effect, for this reason. accepts: the type that it must have all the same.
    refused: giving it is an error, for this reason.
    default: the published default, where ours is another.
    note: what becomes of it, where `to` does not tell.
    """

    to: str = ""
    value: Callable[[Json, str], Json] | None = None
    why: str = ""
    accepts: Dynamic = Any
    refused: str = ""
    default: Json = _NONE
    note: str = ""

    @property
    def has_default(self) -> bool:
        """Whether the original has another default than this project."""
        return self.default is not _NONE


def to(place: str, default: Json = _NONE) -> Option:
    """The same value elsewhere."""
    return Option(place, default=default)


def named(place: str, names: Mapping[Json, Json], default: Json = _NONE) -> Option:
    """Another word for the value."""

    def value(given: Json, where: str) -> Json:
        if not _hashable(given) or given not in names:
            raise ConfigError(f"{where} is {given!r}; allowed: {', '.join(map(repr, names))}")
        return names[given]

    return Option(place, value, default=default)


def only(*allowed: Json, why: str) -> Option:
    """No effect: nothing else is there."""
    return Option(why=why, accepts=Literal[allowed])


def ignored(accepts: Dynamic, why: str) -> Option:
    """No effect, whatever its value is."""
    return Option(why=why, accepts=accepts)


def refused(why: str) -> Option:
    """Giving it is an error."""
    return Option(refused=why)


def decided(note: str) -> Option:
    """Translated together with others. note: into what, for docs/options.md."""
    return Option(note=note)


def same(*names: str) -> dict[str, Option]:
    """Options that are called the same here."""
    return {name: to(name) for name in names}


def _hashable(value: object) -> bool:
    return not isinstance(value, (dict, list))


def check(option: Option, value: object, where: str) -> None:
    """See that a value without effect is one that the option can have.

    Raises:
        ConfigError: it is not, or the option is refused.
    """
    if option.refused:
        raise ConfigError(f"{where} is not supported: {option.refused}")
    if option.why:
        convert(option.accepts, value, where)


_OWN_WEIGHTS = {"weights": refused("load a checkpoint into the whole system with system.weights")}
_NO_3D_DATA = refused("it belongs to training with 3D data, which this method does without; remove it")
_NO_LIGHT = refused("materials are not lit, so there is no light to place; remove it")
_NO_VIEW_TEXT = refused("set by_view of the encoder and text_by_view of a teacher in this project's own names")
_IN_DATA = refused("the prompt library belongs to the data module; set it under data")
_NO_PICTURES = refused("prompts come without reference pictures")
_ALWAYS_BOTH = refused("token and pooled states are always both there")
_FIXED_GEOMETRY = refused("geometries of another kind cannot be turned into planes; remove it")
_PRUNES = refused("it prunes an occupancy grid; samples are placed by importance here, so remove it")
_COMPAT = {"compat": decided("the options named in docs/compat.md")}
MLP = {
    "otype": only("VanillaMLP", why="there is one kind of network"),
    "activation": only("ReLU", why="there is one activation"),
    "output_activation": ignored(Literal["none"] | None, why="the output has no activation"),
    **same("n_neurons", "n_hidden_layers"),
}


def nested(place: str, table: Mapping[str, Option]) -> dict[str, Option]:
    """The options of a mapping inside a component, as they are given there."""
    return {f"{place}.{name}": option for name, option in table.items()}


def moved(table: Mapping[str, Option], place: str) -> dict[str, Option]:
    """A table whose values go below `place`."""
    return {k: Option(f"{place}.{o.to}", o.value, default=o.default) if o.to else o for k, o in table.items()}


PROCESSOR = {
    "pretrained_model_name_or_path": to("pretrained_model_name_or_path", default="runwayml/stable-diffusion-v1-5"),
    **same("negative_prompt", "use_cache", "cache_dir", "remembered"),
    "use_local_text_embeddings": Option(
        why="text reaches the networks as token states, the only way here", accepts=Literal[True]
    ),
    "spawn": ignored(bool, why="nothing is encoded in another process"),
    **dict.fromkeys(("overhead_threshold", "front_threshold", "back_threshold"), _NO_VIEW_TEXT),
    **dict.fromkeys(("view_dependent_prompt_front", "use_prompt_debiasing", "use_perp_neg"), _NO_VIEW_TEXT),
    **dict.fromkeys(("perp_neg_f_sb", "perp_neg_f_fsb", "perp_neg_f_fs", "perp_neg_f_sf"), _NO_VIEW_TEXT),
    **dict.fromkeys(("prompt_library", "prompt_library_dir", "prompt_library_format"), _IN_DATA),
    **dict.fromkeys(("eval_prompt", "eval_prompt_target"), _IN_DATA),
    **dict.fromkeys(("image_root_dir", "default_prompt", "use_latent"), _NO_PICTURES),
    **dict.fromkeys(("use_embed_global", "use_embed_local"), _ALWAYS_BOTH),
    "other_prompts": refused("prompts are encoded when they are needed, none has to be announced"),
    **_COMPAT,
}
DUAL_PROCESSOR = PROCESSOR | {
    "pretrained_model_name_or_path": to("pretrained_model_name_or_path", default="pretrained/stable-diffusion-v1-5"),
    "pretrained_model_name_or_path_2nd": decided("a further encoder in `data.conditions`"),
    "negative_prompt_2nd": decided("its negative prompt"),
}
DATA = {
    **same("prompt_library", "prompt_library_dir", "prompts", "eval_prompt", "batch_size"),
    **same("height", "width", "ray_height", "ray_width", "n_val_views", "n_test_views"),
    **same("eval_elevation_deg", "eval_camera_distance", "eval_fovy_deg"),
    "prompt_library_format": only("json", why="the one format there is"),
    "eval_batch_size": only(1, why="prompts are evaluated one by one"),
    "n_view": to("cameras.n_view"),
    "n_steps": to("camera_sets", default=4),
    "unsup_elevation_range": to("cameras.elevation"),
    "unsup_azimuth_range": to("cameras.azimuth"),
    "unsup_camera_distance_range": to("cameras.distance"),
    "unsup_fovy_range": to("cameras.fovy"),
    "relative_radius": to("cameras.relative_distance"),
    "dim_gaussian": to("latent_shape"),
    "pure_zeros": only(False, why="the generator starts from noise"),
    **dict.fromkeys(("guidance_processor_type", "guidance_processor"), decided("encoders in `data.conditions`")),
    **dict.fromkeys(
        ("condition_processor_type", "condition_processor"),
        decided("an encoder in `data.conditions`, named by `data.generator_condition`"),
    ),
    **dict.fromkeys(
        ("obj_library", "meta_json", "rgb_data_dir", "normal_data_dir", "depth_data_dir", "camera_data_dir"),
        only("none", why="nothing is learnt from 3D data"),
    ),
    "frontal_idx": only(24, why="nothing is learnt from 3D data"),
    "sup_unsup_mode": only("vanilla", why="nothing is learnt from 3D data"),
    **dict.fromkeys(("obj_library_dir", "rgb_bg", "normal_bg", "depth_bg"), _NO_3D_DATA),
    **dict.fromkeys(("light_sample_strategy", "unsup_light_distance_range"), _NO_LIGHT),
    "resolution_milestones": refused("set data.milestones, with later_sizes and later_ray_sizes from each of them on"),
    "target_prompt": to("target_prompt"),
    "eval_fix_camera": to("test_view"),
    "seed": refused("it is that of the run; set seed at the top"),
    **_COMPAT,
}
_ADAPTERS = {"hexa_v1": "plane_lora", "vanilla": "shared_lora", "basic": "separate_planes", "none": "none"}
GENERATOR = {
    **same("pretrained_model_name_or_path", "output_dim", "gradient_checkpoint", "prompt_bias", "network_dtype"),
    "training_type": decided("`full`, `self_rank`, `cross_rank`, `convolution_rank`, `adapter_bias`"),
    "timestep": ignored(Any, why="of one-step generation; generation chooses its own"),
    "self_lora_type": named("self_attention", _ADAPTERS),
    "cross_lora_type": named("cross_attention", {k: v for k, v in _ADAPTERS.items() if k != "basic"}),
    "locon_type": named("convolutions", {"hexa_v1": "plane_lora", "vanilla_v1": "shared_lora"}),
    "vae_attn_type": named("decoder_attention", _ADAPTERS),
    "prompt_bias_lr_multiplier": refused("give the prompt bias its own learning rate in optimizer.params"),
    **_OWN_WEIGHTS,
}
_COMBINED = {"v1": "sum", "v2": "concat"}
GEOMETRY = {
    "backbone": only("few_step_triplane_dual_stable_diffusion", why="the only generator there is"),
    **nested("space_generator_config", moved(GENERATOR, "space_generator")),
    "radius": to("field.radius"),
    "n_feature_dims": to("field.n_feature_dims"),
    **nested("mlp_network_config", moved(MLP, "field.network")),
    "normal_type": to("field.normals"),
    "finite_difference_normal_eps": to("field.finite_difference_step"),
    "sdf_bias": to("field.bias"),
    "sdf_bias_params": to("field.bias_size"),
    "rotate_planes": named("field.axes", {"v1": "yx", "v2": "xy"}),
    "split_channels": named("split_channels", {"v1": True, None: False}),
    "geo_interpolate": named("field.shape_features", _COMBINED),
    "tex_interpolate": named("field.color_features", _COMBINED, default="v1"),
    "isosurface_method": only("mt", "diffmc", why="marching cubes is the only method"),
    "isosurface_resolution": to("field.training_resolution"),
    "isosurface_threshold": to("field.level"),
    "isosurface_chunk": ignored(int, why="grids are evaluated in slabs of a size that suits the networks"),
    "isosurface_coarse_to_fine": ignored(bool, why="the dense grid costs less than the search"),
    "isosurface_deformable_grid": to("field.deformable"),
    "isosurface_remove_outliers": decided("`smallest_component`, 0: all stay"),
    "isosurface_outlier_n_faces_threshold": decided("`smallest_component`"),
    "isosurface": refused("the surface is extracted when a mesh is asked for; there is nothing to switch"),
    **_OWN_WEIGHTS,
    **_COMPAT,
}
MATERIAL = {
    **same("n_output_dims", "color_activation", "input_feature_dims"),
    "requires_normal": ignored(bool, why="colours do not depend on normals"),
    "mlp_network_config": ignored(None, why="features are colours already"),
    **nested("mlp_network_config", moved(MLP, "network")),
    **_OWN_WEIGHTS,
}
ENCODING = {
    "otype": only("HashGrid", why="there is one encoding"),
    **same("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale"),
}
HYPERNET = {
    "c_dim": to("text_width"),
    "out_dims.bg_weights": to("widths"),
    **same("n_neurons", "n_hidden_layers"),
    "spectral_norm": only(False, why="it is not there"),
    "output_activation": ignored(Literal["none"] | None, why="the output has no activation"),
}
_NO_RANDOM_AUG = refused("give the probability as random_color, the name that this project has for it")
ENVIRONMENT = {
    "n_output_dims": only(3, why="colours have three channels"),
    **same("color_activation", "eval_color"),
    **nested("pos_encoding_config", moved(ENCODING, "encoding")),
    **nested("hypernet_config", moved(HYPERNET, "hypernet")),
    "random_aug": only(False, why="it is off unless random_color is set, the name that this project has for it"),
    **dict.fromkeys(("random_aug_prob", "random_aug_color"), _NO_RANDOM_AUG),
    **_OWN_WEIGHTS,
}
SOLID_COLOR = same("color", "eval_color")
MESH = {
    **same("radius", "isosurface_resolution", "enable_bg_rays", "normal_direction", "surface_samples"),
    **same("sdf_grad_shrink", "def_grad_shrink"),
    "allow_empty_flag": to("detach_if_empty"),
    "isosurface_method": only("mt", "mc-cpu", "diffmc", why="each of these means differentiable marching cubes"),
    "isosurface_remove_outliers": decided("`smallest_component`, 0: all stay"),
    "isosurface_outlier_n_faces_threshold": decided("`smallest_component`"),
    "context_type": refused("the rasteriser needs no graphics context; remove it"),
    **_OWN_WEIGHTS,
    **_COMPAT,
}


def _importance(value: Json, where: str) -> Json:
    if value != "importance":
        raise ConfigError(
            f"{where}: estimator {value!r} is not supported: an occupancy grid or proposal network belongs to one "
            "scene, and planes change with every prompt; use estimator 'importance'"
        )
    return value


VOLUME = {
    **same("radius", "num_samples_per_ray", "num_samples_per_ray_importance", "near_plane", "far_plane", "ray_range"),
    **same("law", "learned_variance_init", "trainable_variance", "inv_std", "cos_anneal_end_steps"),
    **same("rgb_grad_shrink", "randomized", "train_chunk_size", "eval_chunk_size", "normal_direction"),
    "use_volsdf": named("law", {True: "volsdf", False: None}),
    "estimator": Option(value=_importance, why="samples are placed by importance"),
    **dict.fromkeys(("grid_prune", "prune_alpha_threshold"), _PRUNES),
    **_OWN_WEIGHTS,
    **_COMPAT,
}
PATCH = {
    **same("patch_size", "global_downsample", "global_detach"),
    **dict.fromkeys(("base_renderer_type", "base_renderer"), decided("`base_renderer: {type: ...}`")),
    "radius": refused("the renderer that is wrapped has it: set base_renderer.radius"),
    **_OWN_WEIGHTS,
    **_COMPAT,
}
EXPORTER = {
    **same("fmt", "save_name", "save_normal", "save_uv", "texture_size", "texture_format", "max_faces"),
    **same("xatlas_chart_options", "xatlas_pack_options", "save_video", "turntable_views", "turntable_size"),
    "overwrite": to("overwrite"),
    "save_texture": only(True, why="texture coordinates alone are of no use; save_uv=false leaves out both"),
    "context_type": only("cuda", "gl", why="pictures are rasterised where the mesh is"),
}
SYSTEM = {
    **same("optimizer", "gradient_accumulation_steps", "ema_decay", "weights", "loggers", "export_resolution"),
    **same("cleanup_after_validation_step", "cleanup_after_test_step", "max_gradient_norm"),
    "weights_ignore_modules": decided("the same, with `renderers.NAME` for a renderer"),
    "num_parts_training": to("rounds"),
    "num_steps_training": to("training_timesteps", default=50),
    "num_steps_sampling": to("inference_steps", default=50),
    "step_every_part": to("update_every_round"),
    "parallel_guidance": to("guidance.parallel"),
    "noise_addition": named("fresh_noise", {"gaussian": True, "zero": False}),
    "specifiy_guidance_timestep": named("guidance_timesteps", {"v1": "round", None: "teacher"}),
    "predition_type": to("geometry.space_generator.prediction_type"),
    "scheduler_dir": decided("no effect: it must be the generator's folder"),
    "noise_scheduler": only("ddpm", "ddim", why="both name the same way of adding noise"),
    "sample_scheduler": only("ddim", why="only ddim generates planes in a few steps"),
    "timesteps_from_T": only(True, why="the first timestep is the noisiest"),
    "initialize_shape": ignored(bool, why="the start shape is the bias of the field"),
    **dict.fromkeys(
        ("visualize_samples", "rgb_as_latents", "train_guidance"), only(False, why="there is nothing to switch")
    ),
    "loss": decided("`losses: {RENDERER: {TERM: weight}}`"),
    **dict.fromkeys(("geometry_convert_from", "geometry_convert_override"), _FIXED_GEOMETRY),
    "geometry_convert_inherit_texture": _FIXED_GEOMETRY,
    **{part: decided(f"`{part}`") for part in ("geometry", "material", "background", "guidance", "exporter")},
    **{f"{p}_type": decided(f"`{p}.type`") for p in ("geometry", "material", "background", "guidance", "exporter")},
    **{f"{slot}_type": decided("`renderers.NAME.type`") for slot in ("renderer", "renderer_2nd")},
    **dict.fromkeys(("renderer", "renderer_2nd"), decided("`renderers.NAME`")),
    **dict.fromkeys(
        ("prompt_processor_type", "prompt_processor"),
        refused("text processors are options of data: condition_processor, guidance_processor"),
    ),
    "scheduler": refused("write the learning rate as a schedule: optimizer.params.geometry.lr=[0, 2e-4, 2e-5, 15000]"),
    "seed": refused("it is that of the run; set seed at the top"),
    **_COMPAT,
}
TEACHER_PREFIXES = {"rd": "richdreamer", "mv": "mvdream", "sd": "stable_diffusion"}


def _of_teachers(option: str, place: str) -> dict[str, Option]:
    return {f"{p}_{option}": decided(f"`teachers.{name}.{place}`") for p, name in TEACHER_PREFIXES.items()}


_EACH = "`teachers.NAME."
GUIDANCE = {
    **_of_teachers("weight", "weight"),
    **_of_teachers("guidance_scale", "guidance_scale"),
    **_of_teachers("min_step_percent", "min_timestep"),
    **_of_teachers("max_step_percent", "max_timestep"),
    **_of_teachers("image_size", "image_size"),
    **_of_teachers("plus_ratio", "rule`: asd with that `ratio`; 0: `csd"),
    **_of_teachers("plus_random", "rule.random"),
    **_of_teachers("weighting_strategy", "rule.weighting`, with `gap_over_views`, `gap_at_shift"),
    **_of_teachers("use_sds", "rule`: `sds"),
    **_of_teachers("model_name_or_path", "path"),
    "mv_ckpt_path": decided("`teachers.mvdream.path`"),
    "rd_ckpt_path": decided("`teachers.richdreamer.path`"),
    "mv_vae_path": decided("`teachers.mvdream.vae_path`"),
    "cam_method": decided("`teachers.richdreamer.cam_method`"),
    "mv_camera_condition_type": only("rotation", why="the camera is told as a matrix, the only way there is"),
    "parallel": to("parallel"),
    "sd_oppo_side": to("opposite_views"),
    "sd_hq_only": decided("`teachers.stable_diffusion.first_renderer_only`"),
    "n_view": decided(_EACH + "n_view`"),
    "t_plus_type": decided(_EACH + "rule.from_zero`, `limit_last`"),
    "plus_schedule": decided(_EACH + "rule.growth`"),
    "grad_clip": decided(_EACH + "latent_clip`"),
    "eps": decided(_EACH + "rule.eps`"),
    "min_step_percent": decided(_EACH + "min_timestep`"),
    "max_step_percent": decided(_EACH + "max_timestep`"),
    "gradient_checkpoint": decided(_EACH + "gradient_checkpoint`"),
    "network_dtype": decided(_EACH + "network_dtype`"),
    "half_precision_weights": decided(_EACH + "network_dtype`"),
    "auto_grad": only(True, why="pixel gradients are taken teacher by teacher; otherwise all graphs are kept at once"),
    "rd_recon_std_rescale": refused("no published recipe uses it; choose among rd_weighting_strategy"),
    **_COMPAT,
}
_DERIVED = refused("it follows from exp_root_dir, name, tag and timestamp; set those")
EXPERIMENT = {
    **same("name", "description", "tag", "seed", "use_timestamp", "timestamp", "exp_root_dir", "n_gpus", "resume"),
    **same("trainer", "checkpoint"),
    "data_type": decided("`data.type`"),
    "data": decided("`data`"),
    "system_type": decided("`system.type`"),
    "system": decided("`system`"),
    **_COMPAT,
    **dict.fromkeys(("exp_dir", "trial_name", "trial_dir"), _DERIVED),
    "guidance": refused("teachers belong to the system; write system.guidance, such as system.guidance.rd_weight=0"),
}

# By role: published name, name of ours, table.
COMPONENTS: dict[str, dict[str, tuple[str, Mapping[str, Option]]]] = {
    "data": {"multiview-multiprompt-dualrenderer-multistep-datamodule-v2": ("prompts-and-cameras", DATA)},
    "condition": {
        "stable-diffusion-multi-prompt-processor-callable": ("clip-text", PROCESSOR),
        "dual-stable-diffusion-multi-prompt-processor-callable": ("clip-text", DUAL_PROCESSOR),
    },
    "system": {
        "multiprompt-dual-renderer-multistep-generator-system": ("progressive-rendering-distillation", SYSTEM),
    },
    "geometry": {"few-step-triplane-dual-stable-diffusion": ("few-step-triplanes", GEOMETRY)},
    "material": {"no-material": ("unlit", MATERIAL)},
    "background": {
        "solid-color-background": ("solid-color", SOLID_COLOR),
        "multi-prompt-neural-hashgrid-environment-map-background": ("text-environment", ENVIRONMENT),
    },
    "renderer": {
        "generative-space-mesh-rasterize-renderer": ("mesh", MESH),
        "generative-space-sdf-volume-renderer": ("volume", VOLUME),
        "patch-renderer": ("patch", PATCH),
    },
    "guidance": {
        "richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance": (
            "score-distillation",
            GUIDANCE,
        ),
    },
    "exporter": {
        "multiprompt-mesh-exporter": ("mesh-files", EXPORTER),
        "mesh-exporter": ("mesh-files", EXPORTER),
        "dummy-exporter": ("no-files", {}),
    },
}
