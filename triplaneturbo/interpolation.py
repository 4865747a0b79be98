"""Interpolations in configurations: what they may compute, how large they may grow, what is not written down.

Besides `${key}` and `${oc.env:NAME}` of OmegaConf there are the resolvers of the original. They take numbers where
numbers are meant: `${mul:...}` of a text and a large number would take all memory.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from triplaneturbo.errors import ConfigError
from triplaneturbo.storage import Json, Tree

# Larger than any configuration that a person writes: values in a file, characters that interpolations make.
MAX_VALUES, MAX_CHARACTERS = 100_000, 1_000_000
_REFERENCE = re.compile(r"\$\{\s*(\.*)([\w.\[\]-]+)\s*\}")

Place = tuple[str | int, ...]


def _of_numbers(function: Callable[..., int | float]) -> Callable[..., int | float]:
    """`function`, for real numbers that a float can hold, with such a result."""

    def checked(*arguments: object) -> int | float:
        return _number(function(*map(_number, arguments)))

    return checked


def _number(value: object) -> int | float:
    if not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"a number is needed here, not {value!r:.40}")
    return value


def _without_spaces(text: object, substitute: object) -> str:
    if len(str(text)) * len(str(substitute)) > MAX_CHARACTERS:
        raise ValueError("this text is too long")
    return str(text).replace(" ", str(substitute))


def _largest(schedule: int | float | Sequence[int | float]) -> int | float:
    """The largest of a scheduled value's two ends, as the original defines it."""
    if not isinstance(schedule, Sequence):
        return float(schedule)
    first = 0 if len(schedule) == 3 else 1
    return max(schedule[first : first + 2])


RESOLVERS: dict[str, Callable[..., object]] = {
    "calc_exp_lr_decay_rate": _of_numbers(lambda factor, n: factor ** (1.0 / n)),
    "add": _of_numbers(lambda a, b: a + b),
    "sub": _of_numbers(lambda a, b: a - b),
    "mul": _of_numbers(lambda a, b: a * b),
    "div": _of_numbers(lambda a, b: a / b),
    "idiv": _of_numbers(lambda a, b: a // b),
    "basename": lambda path: os.path.basename(str(path)),
    "rmspace": _without_spaces,
    "tuple2": lambda x: [float(_number(x)), float(_number(x))],
    "gt0": lambda x: _number(x) > 0,
    "not": lambda x: not x,
    # "scheduled maximum above 0": of one schedule, of either of two.
    "cmaxgt0": lambda schedule: _largest(schedule) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: max(_largest(a), _largest(b)) > 0,
}


def resolve(config: DictConfig) -> tuple[Tree, dict[Place, str]]:
    """The values of `config`, and by their places the texts of those that come from the environment.

    Raises:
        ConfigError: interpolations would make an enormous text.
        OmegaConfBaseException: one cannot be resolved, or a value is missing.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")
    written = plain(config, resolve=False)
    _Weigher(written).check()
    asked: list[str] = []
    _watch_environment(asked)
    values = plain(config, resolve=True)
    return values, dict(_from_environment(written, config, (), asked))


def resolve_known(config: DictConfig) -> tuple[Tree, dict[Place, str]]:
    """As `resolve`, but what is missing, and interpolations that need it, stay as they are written, as do those of
    environment variables."""
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")
    written = plain(config, resolve=False)
    _Weigher(written).check()
    return _known(written, config), {}


def _known(written: Json, node: Json) -> Json:
    if isinstance(written, dict):
        return {key: _known(value, _value_of(node, key)) for key, value in written.items()}
    if isinstance(written, list):
        return [_known(value, _value_of(node, index)) for index, value in enumerate(written)]
    if not isinstance(written, str) or "oc.env" in written:
        return written
    return (
        OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else written if node is None else node
    )


def _value_of(parent: Json, key: str | int) -> Json:
    """The value of a key; None if it is missing or cannot be resolved."""
    try:
        return parent[key]
    except OmegaConfBaseException:
        return None


def plain(config: DictConfig, *, resolve: bool = False) -> Tree:
    """Plain values; those that are missing are an error once interpolations are resolved."""
    container: Json = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(container, dict)
    return container


def _watch_environment(asked: list[str]) -> None:
    """Note in `asked` which variables `${oc.env:NAME}` and `${oc.env:NAME,default}` read."""

    def environment(name: str, *default: object) -> str | None:
        asked.append(name)
        return oc.env(name, *default)

    OmegaConf.register_resolver("oc.env", environment, replace=True, annotation_validation="off")


def _from_environment(
    written: Tree | list[Json], node: Json, place: Place, asked: list[str]
) -> Iterator[tuple[Place, str]]:
    for key, value in written.items() if isinstance(written, dict) else enumerate(written):
        if isinstance(value, (dict, list)):
            yield from _from_environment(value, node[key], (*place, key), asked)
        elif isinstance(value, str) and "${" in value:
            asked.clear()
            found = node[key]
            if OmegaConf.is_config(found):
                OmegaConf.to_container(found, resolve=True)
            if asked:
                yield (*place, key), value


class _Weigher:
    """How many characters the texts of a configuration have once every `${key}` in them is replaced."""

    def __init__(self, written: Tree) -> None:
        self.written = written
        self.known: dict[Place, int] = {}

    def check(self) -> None:
        """Raises ConfigError: more than MAX_CHARACTERS."""
        if self._weight(self.written, ()) > MAX_CHARACTERS:
            raise ConfigError(f"the interpolations of the configuration make more than {MAX_CHARACTERS:,} characters")

    def _weight(self, value: object, place: Place) -> int:
        if place in self.known:
            return self.known[place]
        self.known[place] = 0  # for one that refers to itself, of which OmegaConf complains
        if isinstance(value, (dict, list)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            weight = sum(self._weight(item, (*place, key)) for key, item in items)
        else:
            weight = len(str(value)) + sum(self._referred(match, place) for match in _REFERENCE.finditer(str(value)))
        self.known[place] = weight
        return weight

    def _referred(self, match: re.Match, place: Place) -> int:
        """Weight of what a reference names; dots count containers upwards from that of the value at `place`."""
        above: Place = place[: -len(match[1])] if match[1] else ()
        target = (*above, *re.findall(r"[^.\[\]]+", match[2]))
        value: object = self.written
        for i, key in enumerate(target):
            if isinstance(value, list) and str(key).isdigit() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:  # a path through another interpolation, or to nothing
                return self._weight(value, target[:i])
        return self._weight(value, target)


def check_size(text: str) -> None:
    """See that the aliases of a YAML text do not make it grow beyond MAX_VALUES.

    Raises:
        ConfigError: they do, or values are nested too deeply.
        yaml.YAMLError: it is not YAML.
    """
    try:
        if _values(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MAX_VALUES:
            raise ConfigError(f"its aliases make more than {MAX_VALUES:,} values")
    except RecursionError as error:
        raise ConfigError("it is nested too deeply") from error


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Values below `node` with its aliases written out; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1.0 + sum(_values(part, known) for part in inner)
    return known[id(node)]
