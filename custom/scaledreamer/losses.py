"""The original's weights of the loss."""

import re
from collections.abc import Mapping

from triplaneturbo.errors import UnknownNameError, nearest
from triplaneturbo.storage import Json, Tree

_TERMS = {"asd": "score", **{name: name for name in ("orient", "sparsity", "opaque", "z_variance", "eikonal")}}


def translate_losses(given: Mapping[str, Json], place: str) -> Tree:
    """`{lambda_eikonal: 0.1, ...}` as terms with their weights; that of the distillation is called `score`.

    Raises:
        UnknownNameError: there is no such term.
    """
    ours: Tree = {}
    for name, weight in given.items():
        match = re.fullmatch(r"lambda_(\w+)", str(name))
        if match is None or match[1] not in _TERMS:
            raise UnknownNameError(
                f"{place} has no option {name!r}; {nearest(str(name), [f'lambda_{term}' for term in _TERMS])}"
            )
        ours[_TERMS[match[1]]] = weight
    return ours
