"""One table from the names used in YAML files to classes, by the role that a class plays.

A class registers itself under the name its users write; its role is that of the base class it extends::

    @register("my-renderer")
    class MyRenderer(Renderer): ...

A name belongs to one class of a role: a renderer and an exporter may both be called `mesh`.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from triplaneturbo.errors import ConfigError, UnknownNameError, nearest

_CLASSES: dict[tuple[str, str], type] = {}

# What can be registered, and the room whose import registers this project's own.
ROLES = {
    "data": "data",
    "cameras": "data",
    "condition": "prompts",
    "scene": "scenes",
    "geometry": "geometry",
    "material": "materials",
    "background": "background",
    "renderer": "renderers",
    "teacher": "guidance",
    "guidance": "guidance",
    "rule": "guidance",
    "shaping": "guidance",
    "loss": "losses",
    "system": "systems",
    "exporter": "exporters",
    "measure": "systems",
}
# The role of a class that extends none of this project's.
_OF_LIGHTNING = {"LightningModule": "system", "LightningDataModule": "data"}

T = TypeVar("T", bound=type)


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make the class available under `name`.

    Raises:
        TypeError: the class plays no role: it extends none of the base classes.
        ValueError: the name is taken by another class; the message says which file owns it.
    """

    def decorate(cls: T) -> T:
        key = role_of(cls), name
        owner = _CLASSES.get(key)
        if owner and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"cannot register {cls.__qualname__} as the {key[0]} {name!r}: the name belongs to "
                f"{owner.__qualname__} in {inspect.getsourcefile(owner)}; choose another name"
            )
        _CLASSES[key] = cls
        return cls

    return decorate


def role_of(cls: type) -> str:
    """What `cls` can be named as in a configuration.

    Raises:
        TypeError: it plays no role.
    """
    given = getattr(cls, "role", "")
    inherited = (_OF_LIGHTNING[base.__name__] for base in cls.__mro__ if base.__name__ in _OF_LIGHTNING)
    role = given or next(inherited, "")
    if role not in ROLES:
        raise TypeError(
            f"{cls.__qualname__} plays no role ({role or 'none given'}); extend the base class of one: "
            f"{', '.join(ROLES)} (docs/extending.md)"
        )
    return role


def import_rooms() -> None:
    """Fill the table with the classes of this project."""
    for room in dict.fromkeys(ROLES.values()):
        import_module(f"triplaneturbo.{room}")


def find(role: str, name: str, place: str = "") -> type:
    """The class registered as the `role` called `name`.

    place: where the name was given, for messages.

    Raises:
        UnknownNameError: there is none, with the nearest names; a class of another role is said to be one.
    """
    if (role, name) not in _CLASSES:
        import_rooms()
    if (role, name) in _CLASSES:
        return _CLASSES[role, name]
    start = f"{place} is {name!r}" if place else f"{name!r} was asked for"
    others = [other for other, known in _CLASSES if known == name]
    if others:
        raise UnknownNameError(f"{start}, which is {_an(others[0])}; wanted is {_an(role)}: {', '.join(names(role))}")
    raise UnknownNameError(f"{start}, but no {role} has that name; {nearest(name, names(role))}")


def names(role: str) -> list[str]:
    """The names registered so far for `role`, sorted.

    Raises:
        ConfigError: there is no such role.
    """
    if role not in ROLES:
        raise ConfigError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    return sorted(name for known, name in _CLASSES if known == role)


def _an(role: str) -> str:
    """The role with its article."""
    if role in ("data", "cameras"):
        return f"one of {role}"
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"
