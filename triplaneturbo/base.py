"""What every registered component shares: a typed configuration, checked when the component is built."""

import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, get_type_hints

import torch.nn as nn
from omegaconf import DictConfig, ListConfig, OmegaConf

from triplaneturbo.errors import ConfigError, UnknownNameError, nearest
from triplaneturbo.registry import find
from triplaneturbo.schedule import Schedule


def option(default: Any) -> Any:
    """A dataclass field with a mutable default or a schedule: `weight: Schedule = option([0, 1.0, 0.1, 100])`."""
    return field(default_factory=lambda: default)


def parse_config(cls: type, given: Any, owner: str) -> Any:
    """Build the dataclass `cls` from a mapping, converting schedules and nested dataclasses.

    Args:
        cls: a dataclass.
        given: an instance of `cls`, a mapping, or None (all defaults).
        owner: the dotted place in the YAML file, for messages.

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
        raise ConfigError(f"{owner} must be a mapping of options, not {given!r}")
    hints = get_type_hints(cls, include_extras=True)
    allowed = {f.name for f in fields(cls) if f.init}
    refused = refused_options(cls)
    values = {}
    for key, value in given.items():
        if key in refused:
            raise ConfigError(f"{owner}.{key} is not supported: {refused[key]}")
        if key not in allowed:
            raise UnknownNameError(f"{owner} has no option {key!r}; {nearest(str(key), allowed)}")
        values[key] = convert(hints[key], value, f"{owner}.{key}")
    try:
        config = cls(**values)
    except TypeError as error:  # a required option is missing: dataclasses name it
        raise ConfigError(f"{owner}: {error}") from error
    for f in fields(cls):  # defaults are written as in YAML too
        as_in_yaml = hints[f.name] is Schedule or typing.get_origin(hints[f.name]) is typing.Annotated
        if as_in_yaml and f.name not in values:
            object.__setattr__(config, f.name, convert(hints[f.name], getattr(config, f.name), f"{owner}.{f.name}"))
    return config


def refused_options(cls: type) -> dict[str, str]:
    """Options that the configuration `cls` or a class it extends refuses, with reason and alternative."""
    return {key: why for base in reversed(cls.__mro__) for key, why in vars(base).get("REFUSED", {}).items()}


def convert(hint: Any, value: Any, place: str) -> Any:
    """`value` as the type `hint` wants it, with what is declared beside the type.

    Raises:
        ConfigError: it is of another type or not allowed; `place` says where it was given.
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        value = convert(hint.__origin__, value, place)
        for rule in hint.__metadata__:
            value = rule(value, place)
        return value
    if hint is Schedule:
        return _parse_schedule(value, place)
    if is_dataclass(hint):
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
        return {convert(of_key, k, place): convert(of_value, v, f"{place}.{k}") for k, v in value.items()}
    return value


def _parse_schedule(value: Any, place: str) -> Schedule:
    try:
        return Schedule.parse(value)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _convert_sequence(hint: Any, value: Any, place: str) -> Any:
    """A list for `list[T]`, a tuple for `tuple[T, ...]` and, of that length, for `tuple[T, U]`."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{place} must be a list, not {value!r}")
    if origin is list or kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{place} must have {len(kinds)} entries, not {list(value)!r}")
    return origin(convert(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_union(hint: Any, value: Any, place: str) -> Any:
    choices = typing.get_args(hint)
    if value is None and type(None) in choices:
        return None
    reasons = []
    for choice in (c for c in choices if c is not type(None)):
        try:
            return convert(choice, value, place)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; or ".join(reasons))


def _to_float(value: Any, place: str) -> float:
    """Of a number, or of a text such as 1e-15, which YAML does not read as a number."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{place} must be a finite number, not {value!r}")
    return number


# The refusal of the option `weights`, which every part of the original's systems has.
NO_OWN_WEIGHTS = "load a checkpoint into the whole system with system.weights"


class Component:
    """A registered class with a nested `Config` dataclass. Subclasses put their set-up into `configure`.

    Options that the original has and that make no sense here are named in `Config.REFUSED` with the reason and
    the alternative; giving one is an error that says so.
    """

    @dataclass(kw_only=True)
    class Config:
        """Options; one line of meaning under each field."""

        REFUSED: ClassVar[dict[str, str]] = {}

    cfg: Any

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        """Where the results of `cfg`, which is not compat=original, are not those of the original: a line each, by the
        row of docs/compat.md. Each is said where the code for it is."""
        return {}

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_config(self.Config, cfg, type(self).__name__)
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Set-up after `self.cfg` is known; receives what the constructor was given beyond the configuration."""


class Module(Component, nn.Module):
    """A component with parameters or buffers."""


def build(name: str, options: Mapping[str, Any] | None, *, handed_down: Mapping[str, Any], **siblings: Any) -> Any:
    """Construct the class registered as `name`.

    Args:
        options: its configuration.
        handed_down: options given once for all components (`compat`, `seed`); a component receives those that it has
            and that its own options do not set.
        siblings: further arguments of the constructor, such as the geometry a renderer draws.
    """
    cls = find(name)
    return cls(_inherit(cls, options, handed_down), **siblings)


def _inherit(cls: type, options: Mapping[str, Any] | None, handed_down: Mapping[str, Any]) -> dict[str, Any]:
    has = {f.name for f in fields(cls.Config)} if issubclass(cls, Component) else set()
    return {**{key: value for key, value in handed_down.items() if key in has}, **(options or {})}


def parts(config: Any, without: Collection[str] = (), place: str = "") -> Iterator[tuple[type[Component], Any]]:
    """The class and the configuration of every component that `config` names, and of those that they name in turn.

    A component `x` is named by two options: `x_type` is its registered name, `x` holds its options. Nothing is built.

    Args:
        without: names of parts that are left out.
        place: where `config` is in the YAML file, for messages.

    Raises:
        UnknownNameError: a name or an option does not exist.
        ConfigError: an option cannot have its value.
    """
    names = {f.name for f in fields(config)}
    for part in sorted(names):
        name = getattr(config, f"{part}_type", None)
        if part in without or not name:
            continue
        cls = find(name)
        if issubclass(cls, Component):
            handed_down = getattr(config, "handed_down", {})
            options = parse_config(cls.Config, _inherit(cls, getattr(config, part), handed_down), place + part)
            yield cls, options
            yield from parts(options, without, f"{place}{part}.")
