"""Write docs/options.md, what becomes of every option of the original: `python -m scripts.options_table`.

docs/published_options.json holds the original's names and defaults; everything else is read off the configuration
classes. A test compares the document with what this script would write.
"""

import ast
import inspect
import json
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from triplaneturbo.base import parse_config, refused_options
from triplaneturbo.bounds import Range
from triplaneturbo.config import ExperimentConfig
from triplaneturbo.errors import ConfigError
from triplaneturbo.geometry.generator import TriplaneGenerator
from triplaneturbo.registry import find

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "published_options.json"
DOCUMENT = ROOT / "docs" / "options.md"
# Configurations of the original that are no registered name.
CLASSES = {
    "experiment": ExperimentConfig,
    "few-step-triplane-dual-stable-diffusion: space_generator_config": TriplaneGenerator.Config,
}
# Without these no configuration of their kind is complete.
REQUIRED = {"data_type": "d", "system_type": "s", "geometry_type": "g", "renderer_type": "r", "base_renderer_type": "b"}
PARTS_OF_STEPS = {"num_parts_training": 4, "num_steps_training": 4}
# How the text under a field begins that changes nothing.
NO_EFFECT = "Accepted for old configurations: "
HEAD = """# Options of the original

Every option of the original, with its default there, and what becomes of it here. This file is written by
`python -m scripts.options_table` from `docs/published_options.json` and the configuration classes; a test keeps it so.

- **honoured**: it means what it meant. Where places of the original's results differ, `compat=original` repeats them.
- **no effect**: accepted so that existing files load; why nothing depends on it.
- **refused**: giving it is an error with this reason.

Whole groups: `system.loss` has every `lambda_*` and `lambda_*_2nd` of the recipes; `system.optimizer` takes `name`
(Adan, Adam, AdamW), `args` and `params` by part, but no `scheduler` (write the learning rate as a schedule);
`system.loggers` knows `wandb`; `trainer` takes every argument of the Lightning trainer but those that the launcher
decides; `checkpoint` takes `save_last`, `save_top_k` and `every_n_train_steps`. Of the original's components,
`Hypernet-sdf`, the single-prompt processors and the explicit geometries are not there: none of the published recipes
uses them.
"""


def document() -> str:
    """The content of docs/options.md."""
    components = json.loads(PUBLISHED.read_text())["components"]
    return "\n".join([HEAD, *(section(name, options) for name, options in components.items())])


def section(name: str, options: dict[str, Any]) -> str:
    """The table of one component."""
    config = config_class(name)
    rows = [f"| `{key}` | {_code(default)} | {fate(config, key, default)} |" for key, default in options.items()]
    return "\n".join([f"## {name}\n", "| option | the original's default | here |", "|---|---|---|", *rows, ""])


def config_class(name: str) -> type:
    """The configuration that takes the options of the original's component `name`."""
    return CLASSES[name] if name in CLASSES else find(name).Config


def fate(config: type, key: str, default: Any) -> str:
    """What becomes of the option `key` and of the original's default.

    Raises:
        KeyError: `config` neither has the option nor refuses it with a reason.
    """
    if key in refused_options(config):
        return f"refused: {refused_options(config)[key]}"
    field = {f.name: f for f in fields(config)}[key]
    meaning = field_docs(config).get(key, "")
    if meaning.startswith(NO_EFFECT):
        return f"no effect: {meaning.removeprefix(NO_EFFECT)}"
    notes = ["honoured"]
    hint, own = get_type_hints(config)[key], _default(field)
    if get_origin(hint) is Literal and len(get_args(hint)) == 1:
        notes.append(f"only {_code(own)}" + (f": {meaning}" if meaning else ""))
    elif isinstance(own, bool) and (refusal := _refusal(config, key, not own)):
        notes.append(f"only {_code(own)}: {refusal}")
    elif refusal := _refusal(config, key, default):
        notes.append(f"the original's default is refused: {refusal}")
    if not (own is MISSING or is_dataclass(own) or own == default):
        notes.append(f"default here {_code(own)}")
    if bounds := _bounds(get_type_hints(config, include_extras=True)[key]):
        notes.append(f"numbers {bounds}")
    return "; ".join(notes)


def _bounds(hint: Any) -> Range | None:
    """What is declared of the numbers of an option, the first if its entries have several."""
    if isinstance(hint, Range):
        return hint
    return next((found for part in get_args(hint) if (found := _bounds(part))), None)


def field_docs(config: type) -> dict[str, str]:
    """The text under each field of a configuration and of the classes it extends."""
    docs = {}
    for cls in reversed(config.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for field, text in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def completed(config: type, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with what a configuration needs to be complete."""
    names = {f.name for f in fields(config)}
    return {key: value for key, value in (REQUIRED | PARTS_OF_STEPS).items() if key in names} | options


def _refusal(config: type, key: str, default: Any) -> str | None:
    try:
        parse_config(config, completed(config, {key: default}), "")
    except ConfigError as error:
        return str(error).removeprefix(".")
    return None


def _default(field: Field) -> Any:
    """A field's default as JSON knows it; MISSING without one."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return list(value) if isinstance(value, tuple) else value


def _code(value: Any) -> str:
    return f"`{value}`" if value and isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
