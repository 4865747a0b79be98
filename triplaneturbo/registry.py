"""One table from the names used in YAML files to classes.

A class registers itself under the name its users write; the folder it lives in is the kind it belongs to::

    @register("my-guidance")
    class MyGuidance(Component): ...
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from triplaneturbo.errors import UnknownNameError, nearest

_CLASSES: dict[str, type] = {}

# Names of the original work that stand for a class of ours with a clearer name.
ALIASES = {
    "mesh-exporter": "multiprompt-mesh-exporter",
}

# Modules that hold registered classes; imported on the first lookup so that `import triplaneturbo` stays cheap.
ROOMS = (
    "data",
    "prompts",
    "scenes",
    "geometry",
    "materials",
    "background",
    "renderers",
    "guidance",
    "exporters",
    "systems",
)

T = TypeVar("T", bound=type)


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make the class available under `name`.

    Raises:
        ValueError: the name is taken by another class; the message says which file owns it.
    """

    def decorate(cls: T) -> T:
        owner = _CLASSES.get(name) or (ALIASES.get(name) and find(name))
        if owner and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"cannot register {cls.__qualname__} as {name!r}: the name belongs to {owner.__qualname__} "
                f"in {inspect.getsourcefile(owner)}; choose another name"
            )
        _CLASSES[name] = cls
        return cls

    return decorate


def import_rooms() -> None:
    """Fill the table with the classes of this project."""
    for room in ROOMS:
        import_module(f"triplaneturbo.{room}")


def find(name: str) -> type:
    """The class registered under `name`.

    Raises:
        UnknownNameError: with the nearest registered names.
    """
    name = ALIASES.get(name, name)
    if name not in _CLASSES:
        import_rooms()
    if name not in _CLASSES:
        raise UnknownNameError(f"nothing is registered as {name!r}; {nearest(name, _CLASSES)}")
    return _CLASSES[name]


def names() -> list[str]:
    """All names registered so far, sorted."""
    return sorted(_CLASSES)
