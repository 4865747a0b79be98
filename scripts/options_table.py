"""Write docs/options.md, what becomes of every option of the original: `python -m scripts.options_table`.

docs/published_options.json holds the original's names and defaults; what becomes of them is said in
triplaneturbo/legacy/options.py. A test compares the document with what this script would write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from triplaneturbo.legacy.options import COMPONENTS, EXPERIMENT, GENERATOR, Option

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "published_options.json"
DOCUMENT = ROOT / "docs" / "options.md"
# Tables of the original that are no registered component.
TABLES = {
    "experiment": EXPERIMENT,
    "few-step-triplane-dual-stable-diffusion: space_generator_config": GENERATOR,
}
HEAD = """# Options of the original

Every option of the original, with its default there, and what becomes of it here. Files and command lines with these
names work; `launch.py --translate FILE` prints a file in this project's names. This page is written by
`python -m scripts.options_table` from `docs/published_options.json` and `triplaneturbo/legacy/options.py`; a test keeps
it so.

- a name: what it is called here, inside the component's block;
- **no effect**: accepted so that existing files load; why nothing depends on it;
- **refused**: giving it is an error with this reason.

Whole groups: `system.loss.lambda_TERM` and `lambda_TERM_2nd` are `system.losses.RENDERER.TERM`; `system.optimizer`
takes `name` (Adan, Adam, AdamW), `args` and `params` by part, but no `scheduler` (write the learning rate as a
schedule); `system.loggers` knows `wandb`; `trainer` takes every argument of the Lightning trainer but those that the
launcher decides; `checkpoint` takes `save_last`, `save_top_k` and `every_n_train_steps`. Of the original's components,
`Hypernet-sdf`, the single-prompt processors and the explicit geometries are not there: none of the published recipes
uses them.
"""


def document() -> str:
    """The content of docs/options.md."""
    components = json.loads(PUBLISHED.read_text())["components"]
    return "\n".join([HEAD, *(section(name, options) for name, options in components.items())])


def section(name: str, options: Mapping[str, Any]) -> str:
    """The table of one component."""
    ours, table = component(name)
    title = f"{name}, here `{ours}`" if ours else name
    rows = [f"| `{key}` | {_code(default)} | {fate(table, key)} |" for key, default in options.items()]
    return "\n".join([f"## {title}\n", "| option | the original's default | here |", "|---|---|---|", *rows, ""])


def component(name: str) -> tuple[str, Mapping[str, Option]]:
    """What a published component is called here, and what becomes of its options.

    Raises:
        KeyError: there is no such component.
    """
    if name in TABLES:
        return "", TABLES[name]
    return next(known[name] for known in COMPONENTS.values() if name in known)


def fate(table: Mapping[str, Option], key: str) -> str:
    """What becomes of an option.

    Raises:
        KeyError: the table does not say.
    """
    inner = [name for name in table if name.startswith(f"{key}.")]
    if key not in table and inner:
        places = dict.fromkeys(_block(table[name].to) for name in inner if table[name].to)
        return ", ".join(f"`{place}`" for place in places)
    option = table[key]
    if option.refused:
        return f"refused: {option.refused}"
    if option.why:
        return f"no effect: {option.why}{_allowed(option.accepts)}"
    return option.note or f"`{option.to}`"


def _block(place: str) -> str:
    return place.rpartition(".")[0] or place


def _allowed(accepts: Any) -> str:
    if get_origin(accepts) is not Literal:
        return ""
    return f"; only {', '.join(map(_code, get_args(accepts)))}"


def _code(value: Any) -> str:
    return f"`{value}`" if value and isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
