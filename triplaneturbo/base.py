"""What every registered component shares: a typed configuration, checked before anything is built."""

import math
import types
import typing
from collections.abc import Callable, ItemsView, ValuesView
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_type_hints

import torch.nn as nn
from omegaconf import DictConfig, ListConfig, OmegaConf

from triplaneturbo.errors import ConfigError, UnknownNameError, nearest
from triplaneturbo.registry import find, import_rooms, names
from triplaneturbo.schedule import Schedule
from triplaneturbo.storage import Json

Options = TypeVar("Options")
Kind = TypeVar("Kind", bound=nn.Module)
# An option as it is written or as its declaration wants it, a component of whatever class was named: what type it has
# is decided when a configuration is read.
Dynamic = Any


def option(default: object) -> Dynamic:
    """A dataclass field with a mutable default or a schedule: `weight: Schedule = option([0, 1.0, 0.1, 100])`."""
    return field(default_factory=lambda: default)


def parse_config(cls: type[Options], given: object, owner: str) -> Options:
    """Build the dataclass `cls` from a mapping, converting schedules and nested dataclasses.

    Args:
        cls: a dataclass.
        given: an instance of `cls`, a mapping, or None (all defaults).
        owner: the dotted place in the YAML file, for messages; empty: the whole.

    Raises:
        UnknownNameError: a key that `cls` does not have, with the nearest ones it has.
        ConfigError: a value of the wrong type, outside what is declared with its type (`bounds`), or that does not go
            with the others (`__post_init__` of `cls`).
    """
    if isinstance(given, cls):
        return given
    if isinstance(given, (DictConfig, ListConfig)):
        given = OmegaConf.to_container(given, resolve=True)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ConfigError(f"{owner or 'the configuration'} must be a mapping of options, not {given!r}")
    hints = get_type_hints(cls, include_extras=True)
    declared = fields(cls)  # type: ignore[arg-type]  # no bound of a type variable says that it is a dataclass
    allowed = {f.name for f in declared if f.init}
    values = {}
    for key, value in given.items():
        if key not in allowed:
            where = owner or "the configuration"
            raise UnknownNameError(f"{where} has no option {key!r}; {nearest(str(key), allowed)}")
        values[key] = convert(hints[key], value, f"{owner}.{key}" if owner else key)
    try:
        config = cls(**values)
    except TypeError as error:  # a required option is missing: dataclasses name it
        raise ConfigError(f"{owner or 'the configuration'}: {error}") from error
    for f in declared:  # defaults are written as in YAML too
        as_in_yaml = hints[f.name] is Schedule or typing.get_origin(hints[f.name]) is typing.Annotated
        if as_in_yaml and f.name not in values:
            object.__setattr__(config, f.name, convert(hints[f.name], getattr(config, f.name), f"{owner}.{f.name}"))
    return config


def convert(hint: Dynamic, value: Dynamic, place: str) -> Dynamic:
    """`value` as the type `hint` wants it, with what is declared beside the type.

    Raises:
        ConfigError: it is of another type or not allowed; `place` says where it was given.
    """
    origin = typing.get_origin(hint)
    if hint is Any or hint is Chosen:
        return value
    if origin is typing.Annotated:
        value = convert(hint.__origin__, value, place)
        for rule in hint.__metadata__:
            value = rule(value, place)
        return value
    if hint is Schedule:
        return _parse_schedule(value, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return parse_config(hint, value, place)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, place)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(repr, typing.get_args(hint)))
            raise ConfigError(f"{place} is {value!r}; allowed: {allowed}")
        return value
    if origin in (tuple, list):
        return _convert_sequence(hint, value, place)
    if hint is float:
        return _to_float(value, place)
    kind = origin or hint
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"{place} must be of type {kind.__name__}, not {value!r}")
    if origin is dict:
        of_key, of_value = typing.get_args(hint)
        return {
            convert(of_key, k, place): convert(of_value, v, f"{place}.{k}") for k, v in value.items() if v is not None
        }
    return value


def _parse_schedule(value: Dynamic, place: str) -> Schedule:
    try:
        return Schedule.parse(value)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _convert_sequence(hint: Dynamic, value: object, place: str) -> Dynamic:
    """A list for `list[T]`, a tuple for `tuple[T, ...]` and, of that length, for `tuple[T, U]`."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{place} must be a list, not {value!r}")
    if origin is list or kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{place} must have {len(kinds)} entries, not {list(value)!r}")
    items = [convert(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))]
    return items if origin is list else tuple(items)


def _convert_union(hint: object, value: object, place: str) -> Dynamic:
    choices = typing.get_args(hint)
    if value is None and type(None) in choices:
        return None
    kinds = [choice for choice in choices if choice is not type(None)]
    if len(kinds) == 1:
        return convert(kinds[0], value, place)
    reasons = []
    for choice in kinds:
        try:
            return convert(choice, value, place)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; or ".join(reasons))


def _to_float(value: object, place: str) -> float:
    """Of a number, or of a text such as 1e-15, which YAML does not read as a number."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{place} must be a finite number, not {value!r}")
    return number


class Component:
    """A registered class with a nested `Config` dataclass. Subclasses put their set-up into `configure`."""

    role: ClassVar[str] = ""
    """What it can be named as, one of `registry.ROLES`; the base class of each role says it."""

    @dataclass(kw_only=True)
    class Config:
        """Options; one line of meaning under each field."""

    cfg: Dynamic

    def __init__(self, cfg: object = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_config(self.Config, cfg, type(self).__name__)
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Set-up after `self.cfg` is known; receives what the constructor was given beyond the configuration."""


class Module(Component, nn.Module):
    """A component with parameters or buffers."""


class Modules(nn.ModuleDict, Generic[Kind]):
    """Modules of one kind by name."""

    if TYPE_CHECKING:  # which kind: ModuleDict does not say it

        def __getitem__(self, key: str) -> Kind: ...
        def values(self) -> ValuesView[Kind]: ...
        def items(self) -> ItemsView[str, Kind]: ...


@dataclass(frozen=True)
class Chosen:
    """A component that a configuration names: its registered name, its class, its options, checked but not built."""

    type: str
    cls: Callable[..., Dynamic]
    cfg: Dynamic

    def build(self, **siblings: object) -> Dynamic:
        """Construct it. siblings: further arguments of the constructor, such as the material of a renderer."""
        return self.cls(self.cfg, **siblings)


@dataclass(frozen=True)
class Part:
    """Declares an option that names a component: `geometry: Annotated[Chosen, Part("geometry")]`.

    It is written as `{type: its registered name, option: value, ...}`, or as the name alone. usual: the name where none
    is given.
    """

    role: str
    usual: str = ""

    def __call__(self, value: object, place: str) -> Chosen:
        """The component that `value` names.

        Raises:
            UnknownNameError: its name or one of its options does not exist, or is that of another role.
            ConfigError: an option cannot have its value.
        """
        if isinstance(value, Chosen):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if isinstance(value, dict) and self.usual:
            value = {"type": self.usual, **value}
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise ConfigError(
                f"{place} must name a {self.role}: {{type: NAME, option: value, ...}}, not {value!r:.80}; "
                f"there are {', '.join(_known(self.role))}"
            )
        cls = find(self.role, value["type"], f"{place}.type")
        options = {key: option for key, option in value.items() if key != "type"}
        config = parse_config(cls.Config, options, place) if hasattr(cls, "Config") else options
        return Chosen(value["type"], cls, config)


def _known(role: str) -> list[str]:
    import_rooms()
    return names(role)


def build(role: str, options: object, place: str = "", **siblings: object) -> Dynamic:
    """Construct the component that `options` name, see `Part`."""
    return Part(role)(options, place or role).build(**siblings)


def as_tree(value: Dynamic) -> Json:
    """A configuration as it is written in YAML, with all defaults; the inverse of `parse_config`."""
    if isinstance(value, Chosen):
        return {"type": value.type, **as_tree(value.cfg)}
    if isinstance(value, Schedule):
        return value.as_written()
    if hasattr(value, "as_tree"):
        return value.as_tree()
    if is_dataclass(value):
        return {f.name: as_tree(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, dict):
        return {key: as_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_tree(item) for item in value]
    return value
