"""The original's YAML files, as they are, in this project's names.

A file is recognised by its data module or its system. Everything is translated but its mistakes: the quirks of the
components that could repeat them are not set.
"""

from collections.abc import Mapping
from typing import Any

from custom.scaledreamer.data import MODULES, translate_data
from custom.scaledreamer.losses import translate_losses
from custom.scaledreamer.options import COMPONENTS, component
from custom.scaledreamer.renderers import translate_renderer
from custom.scaledreamer.teachers import translate_processor, translate_teacher
from triplaneturbo.errors import ConfigError
from triplaneturbo.legacy.dialects import register_dialect
from triplaneturbo.legacy.options import Option, decided, ignored, only, refused, same
from triplaneturbo.legacy.translate import Translator, in_our_names
from triplaneturbo.legacy.trees import put, take
from triplaneturbo.storage import Json, Tree

SYSTEMS = ("scaledreamer-system", "multiprompt-radience-field-generator-system")
PROCESSORS = ("stable-diffusion-prompt-processor", "stable-diffusion-multi-prompt-processor")
# The names here of the only renderer, teacher and encoder.
_RENDERER, _TEXT = "volume", "text"
_TEACHERS = {"stable-diffusion": "stable_diffusion", "mvdream": "mvdream"}
_PARTS = ("geometry", "material", "background", "renderer", "guidance", "prompt_processor", "exporter")
_EXPERIMENT = {
    **same("name", "description", "tag", "seed", "use_timestamp", "timestamp", "exp_root_dir", "n_gpus", "resume"),
    **same("checkpoint"),
    **dict.fromkeys(("data_type", "data", "system_type", "system", "trainer"), decided("blocks of their own")),
}
_SYSTEM: Mapping[str, Option] = {
    **same("weights", "loggers", "cleanup_after_validation_step", "cleanup_after_test_step"),
    **dict.fromkeys(
        (*_PARTS, *(f"{part}_type" for part in _PARTS), "loss", "optimizer"), decided("blocks of their own")
    ),
    "stage": only("coarse", why="normals are no pictures that teachers look at here"),
    "initialize_shape": ignored(bool, why="the start shape is the bias of the field"),
    "visualize_samples": ignored(bool, why="samples are seen in validation"),
    "scheduler": refused("write the learning rate as a schedule: optimizer.params.geometry.lr=[0, 2e-4, 2e-5, 15000]"),
    **dict.fromkeys(
        ("geometry_convert_from", "geometry_convert_inherit_texture", "geometry_convert_override"),
        ignored(Any, why="a scene is trained in one stage"),
    ),
}


def speaks(tree: Tree) -> bool:
    """Whether a file is one of the original's."""
    return tree.get("data_type") in MODULES or tree.get("system_type") in SYSTEMS


def translate(tree: Tree) -> Tree:
    """A tree of the original's, complete and resolved, in this project's names.

    Raises:
        UnknownNameError: an option that the original does not have.
        ConfigError: a value that it cannot have, an option that is refused, or a part that is missing.
    """
    blocks = {name: tree.get(name) or {} for name in ("data", "system", "trainer")}
    for name, block in blocks.items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"{name} must be a mapping of options, not {block!r}")
    ours = in_our_names({name: value for name, value in tree.items() if name not in blocks}, _EXPERIMENT, "")
    data, system = blocks["data"], blocks["system"]
    ours["data"] = translate_data(tree.get("data_type"), data, "data")
    ours["system"] = _system(tree.get("system_type"), system)
    _accumulation(ours, blocks["trainer"])
    _prompts(ours, _block(system, "prompt_processor"), "system.prompt_processor")
    _noise(ours, data)
    return ours


register_dialect("scaledreamer", speaks, translate)


def _block(system: Mapping[str, Json], part: str) -> Mapping[str, Json]:
    given = system.get(part) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"system.{part} must be a mapping of options, not {given!r}")
    return given


def _system(kind: Json, system: Mapping[str, Json]) -> Tree:
    texts = system.get("prompt_processor_type")
    for option, name, allowed in (("system_type", kind, SYSTEMS), ("system.prompt_processor_type", texts, PROCESSORS)):
        if name not in allowed:
            raise ConfigError(f"{option} is {name!r}; allowed: {', '.join(map(repr, allowed))}")
    ours: Tree = {"type": "scene-distillation"}
    parts = {name: value for name, value in system.items() if not isinstance(value, Mapping) or name in ("loggers",)}
    ours |= in_our_names(parts, _SYSTEM, "system")
    others = Translator()
    for part in ("geometry", "material", "background", "exporter"):
        name, options, place = system.get(f"{part}_type"), _block(system, part), f"system.{part}"
        if name in COMPONENTS.get(part, {}):
            ours[part] = component(part, str(name), options, place)
        elif name is not None:
            ours[part] = others.component(part, name, options, place)
    renderer = translate_renderer(system.get("renderer_type"), _block(system, "renderer"), "system.renderer")
    ours["renderers"] = {_RENDERER: renderer}
    ours["losses"] = {_RENDERER: translate_losses(_block(system, "loss"), "system.loss")}
    processor = _block(system, "prompt_processor")
    teacher = translate_teacher(system.get("guidance_type"), _block(system, "guidance"), processor, "system.guidance")
    ours["guidance"] = {"teachers": {_TEACHERS[teacher["type"]]: teacher}}
    if "optimizer" in system:
        ours["optimizer"] = _optimizer(_block(system, "optimizer"), ours["geometry"]["type"])
    return ours


def _optimizer(given: Mapping[str, Json], geometry: str) -> Tree:
    """With the parts' names as they are here. What a file leaves out is not trained, there and here."""
    names = {"renderer": f"renderers.{_RENDERER}"}
    for network in ("encoding", "sdf_network", "feature_network", "density_network"):
        own = "value_network" if network == "density_network" else network
        names[f"geometry.{network}"] = f"geometry.field.{own}"
    params = {names.get(name, name): group for name, group in (given.get("params") or {}).items()}
    return {**given, "params": params}


def _accumulation(ours: Tree, trainer: Mapping[str, Json]) -> None:
    ours["trainer"] = {name: value for name, value in trainer.items() if name != "accumulate_grad_batches"}
    put(ours, "system.gradient_accumulation_steps", trainer.get("accumulate_grad_batches", 1))


def _prompts(ours: Tree, processor: Mapping[str, Json], place: str) -> None:
    """The prompts of the text processor are those of the data, and so is the encoder."""
    data, (teacher,) = ours["data"], ours["system"]["guidance"]["teachers"].values()
    if processor.get("prompt"):
        data["prompts"] = [processor["prompt"]]
    for name in ("prompt_library", "eval_prompt", "target_prompt"):
        given = processor.get(name)
        if given is not None and data.setdefault(name, given) != given:
            raise ConfigError(f"{place}.{name} is {given!r}, but data.{name} is {data[name]!r}")
    by_view = teacher.get("text_by_view", False)
    data["conditions"] = {_TEXT: translate_processor(processor, place, by_view=by_view)}


def _noise(ours: Tree, data: Mapping[str, Json]) -> None:
    width = take(ours, "system.geometry.space_generator.noise_width")
    if width is not None and data.get("dim_gaussian", width) not in (width, [width]):
        raise ConfigError(
            f"data.dim_gaussian is {data['dim_gaussian']!r}, but system.geometry.space_generator_config.z_dim is "
            f"{width}"
        )
