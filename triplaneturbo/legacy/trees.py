"""Trees of options: nested mappings, a value at each dotted place."""

import copy
from collections.abc import Mapping

from triplaneturbo.storage import Json, Tree


def put(tree: Tree, place: str, value: Json) -> None:
    """Set the dotted `place` of a tree."""
    *above, last = place.split(".")
    for key in above:
        inner = tree.setdefault(key, {})
        if isinstance(inner, str):
            inner = tree[key] = {"type": inner}
        tree = inner
    tree[last] = value


def take(tree: Json, place: str, default: Json = None) -> Json:
    """The value at the dotted `place` of a tree."""
    for key in place.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return default
        tree = tree[key]
    return tree


def merge(under: Json, over: Json, source: str = "", origins: dict[str, str] | None = None, place: str = "") -> Json:
    """`over` on top of `under`: mappings key by key; a block of another `type`, and anything else, takes its place."""
    origins = {} if origins is None else origins
    replaces = isinstance(over, Mapping) and "type" in over and isinstance(under, Mapping) and "type" in under
    if isinstance(over, Mapping) and isinstance(under, Mapping) and not (replaces and over["type"] != under["type"]):
        merged = dict(under)
        for key, value in over.items():
            here = f"{place}.{key}" if place else str(key)
            merged[key] = merge(merged.get(key), value, source, origins, here)
        return merged
    for known in [known for known in origins if known == place or known.startswith(f"{place}.")]:
        del origins[known]
    for leaf, _ in leaves(over, place):
        origins[leaf] = source
    return copy.deepcopy(over)


def leaves(tree: Json, place: str = "") -> list[tuple[str, Json]]:
    """Dotted places of values that are no mappings."""
    if isinstance(tree, Mapping) and tree:
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{place}.{key}" if place else str(key))]
    return [(place, tree)]
