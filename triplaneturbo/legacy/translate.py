"""From the original's option tree, or this project's first one, to ours."""

import re
from collections.abc import Iterator, Mapping

from triplaneturbo.errors import ConfigError, UnknownNameError, nearest
from triplaneturbo.legacy.options import COMPONENTS, DUAL_PROCESSOR, EXPERIMENT, PROCESSOR, Option, check
from triplaneturbo.legacy.teachers import translate_teachers
from triplaneturbo.legacy.trees import merge, put, take
from triplaneturbo.storage import Json, Tree

PARTS = ("geometry", "material", "background", "guidance", "exporter")
_RENDERERS = ("renderer", "renderer_2nd")
# What a published part of a system is called as a module here.
_LABELS = {"renderer": "", "renderer_2nd": "_2nd"}


def flat(options: Mapping[str, Json], table: Mapping[str, Option], where: str, prefix: str = "") -> Iterator[tuple]:
    """The options of a component by their names in its table, those inside mappings too.

    Raises:
        UnknownNameError: the table does not have one.
    """
    for key, value in options.items():
        name = f"{prefix}{key}"
        inner = any(known.startswith(f"{name}.") for known in table)
        if inner and isinstance(value, Mapping):
            yield from flat(value, table, where, f"{name}.")
        elif name in table:
            yield name, value
        elif not (inner and value is None):
            own = [known.removeprefix(prefix) for known in table if known.startswith(prefix)]
            place = f"{where}.{prefix}".rstrip(".")
            raise UnknownNameError(f"{place} has no option {key!r}; {nearest(str(key), own)}")


def in_our_names(
    options: Mapping[str, Json], table: Mapping[str, Option], place: str, *, complete: bool = True
) -> Tree:
    """The options of a component by its table, without those that are decided together with others.

    complete: these are all that are said, so that published defaults hold where ours are others.

    Raises:
        UnknownNameError: the table does not have one.
        ConfigError: a value that it cannot have, or an option that is refused.
    """
    ours: Tree = {}
    if complete:
        for option in table.values():
            if option.has_default and option.to:
                put(ours, option.to, option.value(option.default, place) if option.value else option.default)
    for name, value in flat(options, table, place):
        option = table[name]
        check(option, value, f"{place}.{name}")
        translated = option.value(value, f"{place}.{name}") if option.value else value
        if option.to and not (name == "use_volsdf" and translated is None):
            put(ours, option.to, translated)
    return ours


def published_names(role: str) -> dict[str, str]:
    """By name of ours, the (first) published name of a component."""
    names: dict[str, str] = {}
    for published, (ours, _) in COMPONENTS[role].items():
        names.setdefault(ours, published)
    return names


class Translator:
    """Translates one tree.

    Args:
        present: the tree of ours that it changes; empty for one that stands alone.
        complete: it is all that is said, so that published defaults hold where ours are others.
    """

    def __init__(self, present: Tree | None = None, *, complete: bool = True) -> None:
        self.present = present or {}
        self.complete = complete
        self.compat: dict[str, str] = {}
        """By dotted place in our tree, what `compat` says there."""

    def __call__(self, tree: Mapping[str, Json]) -> Tree:
        """The tree in our names; `compat` is filled.

        Raises:
            UnknownNameError: an option that the published component does not have.
            ConfigError: a value that it cannot have, or an option that is refused.
        """
        ours: Tree = {}
        for key, value in tree.items():
            if key not in EXPERIMENT:
                raise UnknownNameError(f"the configuration has no option {key!r}; {nearest(str(key), EXPERIMENT)}")
            check(EXPERIMENT[key], value, key)
            if EXPERIMENT[key].to:
                ours[key] = value
        self._note_compat(tree, "")
        renderers = self._renderer_names(tree.get("system") or {})
        if "data_type" in tree or "data" in tree:
            ours["data"] = self._data(tree.get("data_type"), tree.get("data") or {})
        if "system_type" in tree or "system" in tree:
            ours["system"] = self._system(tree.get("system_type"), tree.get("system") or {}, renderers)
        if self.complete:
            self._check_views(ours)
            self._name_conditions(ours)
        return ours

    # Components

    def component(self, role: str, name: Json, options: Json, place: str) -> Tree:
        """A component with its registered name. A name that is not published keeps its options as they are.

        place: dotted, in our tree.
        """
        if options is None:
            options = {}
        if not isinstance(options, Mapping):
            raise ConfigError(f"{place} must be a mapping of options, not {options!r}")
        if name is None:
            present = take(self.present, f"{place}.type") or take(self.present, place)
            name = published_names(role).get(present) if isinstance(present, str) else None
            named: Tree = {}
            if name is None:
                return dict(options)
        else:
            named = {"type": COMPONENTS[role][name][0] if name in COMPONENTS[role] else name}
            if name not in COMPONENTS[role]:
                return {**named, **options}
        table = COMPONENTS[role][name][1]
        ours = named | in_our_names(options, table, place, complete=self.complete)
        self._note_compat(options, place)
        if role == "guidance":
            present = take(self.present, f"{place}.teachers") or {}
            ours["teachers"] = translate_teachers(options, present, place, self.complete)
        if role == "renderer" and ours.get("type", take(self.present, f"{place}.type")) == "patch":
            self._base_renderer(options, ours, place)
        if {"isosurface_remove_outliers", "isosurface_outlier_n_faces_threshold"} & options.keys():
            self._outliers(options, ours, place)
        if role == "geometry":
            self._training_type(take(options, "space_generator_config.training_type"), ours, place)
        return ours

    def _base_renderer(self, options: Mapping[str, Json], ours: Tree, place: str) -> None:
        if "base_renderer_type" in options or "base_renderer" in options:
            inner = f"{place}.base_renderer"
            base = self.component("renderer", options.get("base_renderer_type"), options.get("base_renderer"), inner)
            ours["base_renderer"] = base

    def _outliers(self, options: Mapping[str, Json], ours: Tree, place: str) -> None:
        remove = options.get("isosurface_remove_outliers", bool(take(self.present, f"{place}.smallest_component")))
        threshold = options.get("isosurface_outlier_n_faces_threshold", 0.01)
        if not isinstance(remove, bool):
            raise ConfigError(f"{place}.isosurface_remove_outliers must be of type bool, not {remove!r}")
        ours["smallest_component"] = threshold if remove else 0.0

    def _training_type(self, text: Json, ours: Tree, place: str) -> None:
        if text is not None:
            where = f"{place}.space_generator_config.training_type"
            for key, value in parse_training_type(text, where).items():
                put(ours, f"space_generator.{key}", value)

    # Data

    def _data(self, name: Json, options: Mapping[str, Json]) -> Tree:
        ours = self.component("data", name, options, "data")
        if ours.get("type", take(self.present, "data.type")) != "prompts-and-cameras":
            return ours
        kinds = [
            kind
            for kind in ("guidance", "condition")
            if {f"{kind}_processor_type", f"{kind}_processor"} & options.keys()
        ]
        if self.complete:
            self._processors(options, kinds, ours)
        elif kinds:
            self._changed_processors(options, ours)
        return ours

    def _changed_processors(self, options: Mapping[str, Json], ours: Tree) -> None:
        """Options of the published processors for the encoders that are there: the first text is RichDreamer's, the
        second the other teachers'; the negative prompt of the generator's has no effect."""
        encoders = list(take(self.present, "data.conditions") or {})
        generator = take(self.present, "data.generator_condition") or next(iter(encoders), "")
        told = {"richdreamer": generator, "others": generator}
        for teacher in (take(self.present, "system.guidance.teachers") or {}).values():
            if isinstance(teacher, Mapping) and teacher.get("condition"):
                told["richdreamer" if teacher.get("type") == "richdreamer" else "others"] = teacher["condition"]
        places = {"guidance_processor": (told["richdreamer"], told["others"]), "condition_processor": (generator, "")}
        for processor, (first, second) in places.items():
            given = dict(options.get(processor) or {})
            table = DUAL_PROCESSOR if second else PROCESSOR
            for key, value in flat(given, table, f"data.{processor}"):
                check(table[key], value, f"data.{processor}.{key}")
                option = key.removesuffix("_2nd")
                if PROCESSOR[option].to and (second or option != "negative_prompt"):
                    put(ours, f"conditions.{second if key != option else first}.{PROCESSOR[option].to}", value)

    def _processors(self, options: Mapping[str, Json], kinds: list[str], ours: Tree) -> None:
        """The encoders: `first` tells RichDreamer, `second` the other teachers, `generator` the generator."""
        conditions: Tree = {}
        if "guidance" in kinds:
            given = dict(options.get("guidance_processor") or {})
            name = options.get("guidance_processor_type")
            first = self.component("condition", name, given, "data.conditions.first")
            if "data.conditions.first" in self.compat:
                self.compat["data.conditions.second"] = self.compat["data.conditions.first"]
            conditions["first"] = first
            if name == "dual-stable-diffusion-multi-prompt-processor-callable":
                second = {
                    "pretrained_model_name_or_path": given.get(
                        "pretrained_model_name_or_path_2nd", "pretrained/stable-diffusion-2-1-base"
                    ),
                    "negative_prompt": given.get("negative_prompt_2nd", ""),
                }
                if {"negative_prompt": "", **first} != first | second:
                    conditions["second"] = first | second
        if "condition" in kinds:
            encoder = self.component(
                "condition", options.get("condition_processor_type"), options.get("condition_processor"),
                "data.conditions.generator",
            )  # fmt: skip
            like = [name for name, other in conditions.items() if _same_encoder(encoder, other)]
            if like:
                ours["generator_condition"] = like[-1]
            else:
                conditions["generator"] = encoder
                ours["generator_condition"] = "generator"
        ours["conditions"] = conditions

    # System

    def _renderer_names(self, system: Mapping[str, Json]) -> dict[str, str]:
        """By published slot, the name of a renderer here: that of its kind, or that at its place in `present`."""
        if not self.complete:
            return dict(zip(_RENDERERS, take(self.present, "system.renderers") or {}, strict=False))
        names: dict[str, str] = {}
        for slot in _RENDERERS:
            if system.get(f"{slot}_type"):
                kind = "mesh" if "mesh" in str(system[f"{slot}_type"]) else "volume"
                names[slot] = kind if kind not in names.values() else f"{kind}_2nd"
        return names

    def _system(self, name: Json, options: Mapping[str, Json], renderers: Mapping[str, str]) -> Tree:
        known = name is None or name in COMPONENTS["system"]
        if not known:
            return self.component("system", name, options, "system")
        outer = {k: v for k, v in options.items() if k not in _slots()}
        ours = self.component("system", name, outer, "system")
        for part in PARTS:
            if f"{part}_type" in options or part in options:
                inner = self.component(part, options.get(f"{part}_type") or None, options.get(part), f"system.{part}")
                ours[part] = merge(ours.get(part, {}), inner)
        for slot in _RENDERERS:
            self._renderer(slot, options, renderers, ours)
        if "loss" in options:
            self._losses(options["loss"] or {}, renderers, ours)
        if "weights_ignore_modules" in options:
            modules = options["weights_ignore_modules"] or []
            ours["weights_ignore_modules"] = [f"renderers.{renderers[m]}" if m in renderers else m for m in modules]
        if "optimizer" in options:
            ours["optimizer"] = _optimizer(options["optimizer"], renderers)
        self._scheduler_dir(options, ours)
        return ours

    def _renderer(self, slot: str, options: Mapping[str, Json], renderers: Mapping[str, str], ours: Tree) -> None:
        if not options.get(f"{slot}_type") and not options.get(slot):
            return
        if slot not in renderers:
            if self.complete:
                return  # options of a renderer that is not there
            raise ConfigError(f"system.{slot}: there is no such renderer")
        name = renderers[slot]
        inner = self.component("renderer", options.get(f"{slot}_type"), options.get(slot), f"system.renderers.{name}")
        if self.complete:
            inner["label"] = _LABELS[slot]
        ours.setdefault("renderers", {})[name] = inner

    def _losses(self, given: Json, renderers: Mapping[str, str], ours: Tree) -> None:
        if not isinstance(given, Mapping):
            raise ConfigError(f"system.loss must be a mapping of options, not {given!r}")
        for key, value in given.items():
            match = re.fullmatch(r"lambda_(.+?)(_2nd)?", str(key))
            if key == "weighting_strategy":
                if value != "v1":
                    raise ConfigError(f"system.loss.weighting_strategy is {value!r}; allowed: 'v1'")
            elif match is None:
                raise UnknownNameError(
                    f"system.loss has no option {key!r}; its options are lambda_NAME and lambda_NAME_2nd"
                )
            else:
                slot = "renderer_2nd" if match[2] else "renderer"
                term = "score" if match[1] == "asd" else match[1]
                if slot in renderers:
                    put(ours, f"losses.{renderers[slot]}.{term}", value)

    def _scheduler_dir(self, options: Mapping[str, Json], ours: Tree) -> None:
        given = options.get("scheduler_dir")
        folder = take(ours, "geometry.space_generator.pretrained_model_name_or_path") or take(
            self.present, "system.geometry.space_generator.pretrained_model_name_or_path"
        )
        if given is not None and given != folder:
            raise ConfigError(f"system.scheduler_dir is {given!r}, but the generator is in {folder!r}")

    def _check_views(self, ours: Tree) -> None:
        """The number of views a prompt stood in two places."""
        views = take(ours, "data.cameras.n_view", 4)
        for teacher in (take(ours, "system.guidance.teachers") or {}).values():
            if teacher.get("type") in ("mvdream", "richdreamer") and teacher.setdefault("n_view", 4) != views:
                raise ConfigError(f"system.guidance.n_view ({teacher['n_view']}) must be data.n_view ({views})")

    def _name_conditions(self, ours: Tree) -> None:
        """The text that each teacher is told; see `_processors`."""
        conditions = take(ours, "data.conditions")
        if conditions is None:
            return
        others = "second" if "second" in conditions else "first"
        for teacher in (take(ours, "system.guidance.teachers") or {}).values():
            if teacher.get("type") in ("mvdream", "richdreamer", "stable-diffusion"):
                teacher["condition"] = "first" if teacher["type"] == "richdreamer" else others

    def _note_compat(self, options: Mapping[str, Json], place: str) -> None:
        value = options.get("compat")
        if value is None:
            return
        if value not in ("right", "original"):
            raise ConfigError(f"{place}.compat is {value!r}; allowed: 'right', 'original'".lstrip("."))
        self.compat[place] = value


def _slots() -> set[str]:
    slots = {*PARTS, *_RENDERERS}
    return slots | {f"{slot}_type" for slot in slots}


def _same_encoder(one: Tree, other: Tree) -> bool:
    """Whether two encoders say the same about prompts, whatever their negative prompts are."""
    return {k: v for k, v in one.items() if k != "negative_prompt"} == {
        k: v for k, v in other.items() if k != "negative_prompt"
    }


def _optimizer(given: Json, renderers: Mapping[str, str]) -> Json:
    """Parts of the system by the names that they have as modules here."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"system.optimizer must be a mapping of options, not {given!r}")
    if "scheduler" in given:
        raise ConfigError("system.optimizer.scheduler is not supported: write the learning rate itself as a schedule")
    if not isinstance(given.get("params"), Mapping):
        return dict(given)
    return {**given, "params": {module_name(name, renderers): group for name, group in given["params"].items()}}


def module_name(name: str, renderers: Mapping[str, str]) -> str:
    """Of a part of the system, from the published name."""
    name = re.sub(r"^geometry\.(?=(?:sdf|feature|deformation)_network\b)", "geometry.field.", str(name))
    slot, dot, rest = name.partition(".")
    return f"renderers.{renderers[slot]}{dot}{rest}" if slot in renderers else name


def parse_training_type(text: Json, where: str) -> Tree:
    """Read `self_lora_rank_16-cross_lora_rank_16-locon_rank_16[-with_bias]` or `full`; a part left out has rank 0.

    Raises:
        ConfigError: the text has another form.
    """
    if text == "full":
        return {"full": True}
    ours = {"self_lora": "self_rank", "cross_lora": "cross_rank", "locon": "convolution_rank"}
    ranks: dict[str, int] = {}
    parts = str(text).split("-")
    with_bias = parts[-1] == "with_bias"
    for part in parts[:-1] if with_bias else parts:
        match = re.fullmatch(r"(self_lora|cross_lora|locon)_rank_([1-9]\d*)", part)
        if match is None or match[1] in ranks:
            raise ConfigError(
                f"{where} is {text!r}; write 'full' or the adapters' ranks, for example "
                "'self_lora_rank_16-cross_lora_rank_16-locon_rank_16', with '-with_bias' at the end for biases"
            )
        ranks[match[1]] = int(match[2])
    return {name: ranks.get(kind, 0) for kind, name in ours.items()} | ({"adapter_bias": True} if with_bias else {})
