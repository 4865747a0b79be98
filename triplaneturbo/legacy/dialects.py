"""The dialects in which configurations are written, and how layers of them become one tree in our names.

The published dialect is the original's (`system_type: ...`, `system.guidance.mv_weight`), with the options that this
project's first version added to it; trials of that version are written in it. Ours names a component inside its block
(`system: {type: ...}`). A package or a folder of `custom/` may register further ones (`register_dialect`).

A file and the overrides in its own dialect are merged and resolved, then translated; overrides in our names apply
after. An override in the published dialect changes a file in ours, too.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from omegaconf.errors import OmegaConfBaseException

from triplaneturbo.bounds import from_project
from triplaneturbo.errors import USER_ERRORS, ConfigError
from triplaneturbo.legacy import quirks
from triplaneturbo.legacy.options import COMPONENTS, EXPERIMENT, Option
from triplaneturbo.legacy.state_dicts import is_original
from triplaneturbo.legacy.translate import PARTS, Translator, published_names
from triplaneturbo.legacy.trees import leaves, merge, put, take
from triplaneturbo.storage import Json, Tree
from triplaneturbo.weights.files import tensor_names

Resolve = Callable[[Tree], tuple[Tree, dict[tuple, str]]]


class Layer(NamedTuple):
    """Part of a configuration, and where it is written."""

    tree: Tree
    source: str


class Dialect(NamedTuple):
    """Whether a file's tree is written in it, and how such a tree, resolved, is called in our names."""

    speaks: Callable[[Tree], bool]
    translate: Callable[[Tree], Tree]


_DIALECTS: dict[str, Dialect] = {}


def register_dialect(name: str, speaks: Callable[[Tree], bool], translate: Callable[[Tree], Tree]) -> None:
    """Make files in another dialect readable.

    Raises:
        ValueError: the name is taken.
    """
    if name in _DIALECTS or name in ("published", "ours"):
        raise ValueError(f"there is a dialect {name!r} already; choose another name")
    _DIALECTS[name] = Dialect(speaks, translate)


@dataclass
class Merged:
    """A tree in our names with the places its values came from; see `config.Reading`."""

    tree: Tree = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    from_environment: dict[tuple, str] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)

    def add(self, layer: Layer) -> None:
        """Put a layer in our names on top."""
        self.tree = merge(self.tree, layer.tree, layer.source, self.origins)


def dialect_of(tree: Tree) -> str | None:
    """The dialect of a file; None: it does not show."""
    for name, dialect in _DIALECTS.items():
        if dialect.speaks(tree):
            return name
    if "data_type" in tree or "system_type" in tree:
        return "published"
    if any(isinstance(tree.get(key), str) or "type" in (tree.get(key) or {}) for key in ("data", "system")):
        return "ours"
    return None


def join(files: Sequence[Layer], overrides: Sequence[Layer], resolve: Resolve) -> Merged:
    """One tree in our names.

    Raises:
        ConfigError: files are written in different dialects, or an override names no option of theirs.
    """
    spoken = {file.source: dialect for file in files if (dialect := dialect_of(file.tree))}
    if len(set(spoken.values())) > 1:
        told = ", ".join(f"{source} ({dialect})" for source, dialect in spoken.items())
        raise ConfigError(
            f"the files are written in different dialects: {told}; translate one: launch.py --translate FILE"
        )
    dialect = next(iter(spoken.values()), "ours")
    if dialect == "ours":
        merged = _ours(files, overrides, resolve)
    else:
        merged = _foreign(dialect, files, overrides, resolve)
    _suit_weights(merged)
    return merged


def _ours(files: Sequence[Layer], overrides: Sequence[Layer], resolve: Resolve) -> Merged:
    merged = Merged()
    for file in files:
        merged.add(file)
    compat: dict[str, str] = {}
    for layer in overrides:
        if _is_published(layer.tree, merged.tree):
            translator = Translator(merged.tree, complete=False)
            layer = Layer(translator(layer.tree), layer.source)
            compat |= translator.compat
        merged.add(layer)
    merged.tree, merged.from_environment = resolve(merged.tree)
    _repeat_mistakes(merged, compat)
    return merged


def _foreign(dialect: str, files: Sequence[Layer], overrides: Sequence[Layer], resolve: Resolve) -> Merged:
    given = Merged()
    layers = [*files]
    translator = Translator()
    translate = translator if dialect == "published" else _DIALECTS[dialect].translate
    present = _components([*files, *overrides]) if dialect == "published" else {}
    for layer in overrides:
        if dialect != "published" or _is_published(layer.tree, present) or _in_both(layer.tree, present):
            layers.append(layer)
    for layer in layers:
        given.add(layer)
    resolved, environment = resolve(given.tree)
    merged = Merged(translate(_marked(resolved, environment)))
    merged.from_environment = _take_marks(merged.tree, ())
    _trace(merged, layers, resolve, translate)
    for layer in (layer for layer in overrides if layer not in layers):
        merged.add(layer)
    merged.tree, _ = resolve(merged.tree)
    if dialect == "published":
        _repeat_mistakes(merged, translator.compat)
        if "" not in translator.compat:
            silent = [q for q in quirks.concerned(merged.tree) if not any(translator.compat.values())]
            merged.differences = {quirk.name: quirk.line for quirk in silent}
    return merged


def _repeat_mistakes(merged: Merged, compat: Mapping[str, str]) -> None:
    before = dict(leaves(merged.tree))
    quirks.repeat(merged.tree, compat)
    changed = [place for place, value in leaves(merged.tree) if before.get(place, Merged) != value]
    merged.origins |= dict.fromkeys(changed, "compat: original")


def _trace(merged: Merged, layers: Sequence[Layer], resolve: Resolve, translate: Callable[[Tree], Tree]) -> None:
    """Find out which layer a value of the translated tree came from: the one after which it is there."""
    before: Tree = {}
    whole, seen = Merged(), Merged()
    for layer in layers:
        whole.add(layer)
        try:
            now = translate(resolve(whole.tree)[0])
        except (OmegaConfBaseException, *USER_ERRORS):  # without the layers to come it need not be complete
            now = before
        changed = {place for place, value in leaves(now) if take(before, place, seen) != value}
        merged.origins |= dict.fromkeys(changed, layer.source)
        before = now
    for place, value in leaves(merged.tree):
        if take(before, place, seen) != value:
            merged.origins.setdefault(place, layers[-1].source)


def _suit_weights(merged: Merged) -> None:
    """The networks of the original's checkpoints say the deformation in cells of whatever grid is in use. That belongs
    to the file, so a configuration that starts from one says so."""
    path = from_project(take(merged.tree, "system.weights") or "", "system.weights")
    if path and take(merged.tree, "system.geometry.field.deformable") and is_original(tensor_names(path)):
        put(merged.tree, "system.geometry.field.deformation_unit", "cell")
        merged.origins["system.geometry.field.deformation_unit"] = f"{path}, a checkpoint of the original"


# Which dialect an override is written in


def _is_published(tree: Tree, present: Tree) -> bool:
    """Whether an override names an option of the published dialect that is called otherwise in ours."""
    (key, value), *_ = tree.items()
    if key in ("data_type", "system_type", "compat") or (key in EXPERIMENT and EXPERIMENT[key].refused):
        return True
    if key not in ("data", "system") or not isinstance(value, Mapping) or "type" in value:
        return False
    table = next(table for _, table in COMPONENTS[key].values())
    return any(_names_published(key, name, inner, table, present) for name, inner in value.items())


def _names_published(role: str, name: str, inner: Json, table: Mapping[str, Option], present: Tree) -> bool:
    option = table.get(name)
    if option is not None and option.to != name and name not in PARTS:
        return True
    if role == "system" and (name in ("renderer", "renderer_2nd", "loss") or name.endswith("_type")):
        return True
    if role != "system" or name not in COMPONENTS or not isinstance(inner, Mapping) or "type" in inner:
        return False
    kind = take(present, f"system.{name}.type") or next(iter(published_names(name)))
    _, inside = COMPONENTS[name].get(published_names(name).get(kind, ""), next(iter(COMPONENTS[name].values())))
    return any(_inside(key, value, inside) for key, value in inner.items())


def _inside(name: str, value: object, table: Mapping[str, Option]) -> bool:
    if name in table:
        return table[name].to != name
    return isinstance(value, Mapping) and any(known.startswith(f"{name}.") for known in table)


def _components(layers: Sequence[Layer]) -> Tree:
    """A tree of ours with the components that layers in the published dialect name, and no more."""
    tree: Tree = reduce(merge, (layer.tree for layer in layers), {})
    parts = {part: tree[part] for part in ("data", "system") if isinstance(tree.get(part), Mapping)}
    named = {part: {k: v for k, v in options.items() if k.endswith("_type")} for part, options in parts.items()}
    return Translator()({key: tree[key] for key in ("data_type", "system_type") if key in tree} | named)


def _in_both(tree: Tree, present: Tree) -> bool:
    """Whether an override names an option that is called the same in both dialects, as those of components do that were
    never published."""
    try:
        translated = Translator(present, complete=False)(tree)
    except ConfigError:
        return False
    return translated == tree


# Texts from the environment


class _FromEnvironment(str):
    """A text that comes from an environment variable. written: as it is in the file."""

    written: str


def _marked(tree: Tree, environment: Mapping[tuple, str]) -> Tree:
    """The tree, with the texts that come from the environment marked, so that they are found after a translation."""
    marked = copy.deepcopy(tree)
    for (*above, key), text in environment.items():
        level: Json = marked
        for part in above:
            level = level[part]
        if isinstance(level[key], str):
            value = _FromEnvironment(level[key])
            value.written = text
            level[key] = value
    return marked


def _take_marks(tree: Json, place: tuple) -> dict[tuple, str]:
    found: dict[tuple, str] = {}
    for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
        if isinstance(value, (dict, list)):
            found |= _take_marks(value, (*place, key))
        elif isinstance(value, _FromEnvironment):
            found[(*place, key)] = value.written
            tree[key] = str(value)
    return found
