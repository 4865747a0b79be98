"""The original's options: each has a fate that docs/options.md states, and its recipes load as they are."""

import json
from functools import reduce
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from scripts.options_table import (
    DOCUMENT,
    NO_EFFECT,
    PUBLISHED,
    completed,
    config_class,
    document,
    fate,
    field_docs,
)
from triplaneturbo.base import parse_config, refused_options
from triplaneturbo.config import ExperimentConfig, load_config
from triplaneturbo.errors import ConfigError
from triplaneturbo.systems.losses import LossConfig
from triplaneturbo.systems.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[1]
CONTENT = json.loads(PUBLISHED.read_text())
COMPONENTS = CONTENT["components"]
RECIPES = ("TriplaneTurbo_v1", "TriplaneTurbo_v1_acc-2")


def test_the_document_says_what_the_code_does():
    assert DOCUMENT.read_text() == document(), "run: python -m scripts.options_table"


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_option_is_taken_or_refused_with_a_reason(name):
    config = config_class(name)
    assert all(text.startswith(NO_EFFECT) for text in field_docs(config).values() if text.startswith("Accepted"))
    for key, default in COMPONENTS[name].items():
        if fate(config, key, default).startswith("refused"):
            with pytest.raises(ConfigError, match=f"{key} is not supported: .{{20,}}"):
                parse_config(config, completed(config, {key: default}), name)
        elif "is refused" not in fate(config, key, default) and "only" not in fate(config, key, default):
            assert key in vars(parse_config(config, completed(config, {key: default}), name))


def test_an_option_that_nobody_knows_has_no_fate():
    with pytest.raises(KeyError):
        fate(ExperimentConfig, "nonsense", 1)


def test_refusals_of_a_base_class_hold_and_can_be_given_another_reason():
    class Base:
        REFUSED: ClassVar = {"a": "1", "b": "1"}

    class Derived(Base):
        REFUSED: ClassVar = {"b": "2"}

    assert refused_options(Derived) == {"a": "1", "b": "2"}


def published(index, folder):
    """A file of the original's recipe, all its options in it."""
    nested: dict = {}
    for dotted, values in CONTENT["recipes"].items():
        *parents, last = dotted.split(".")
        reduce(lambda level, part: level.setdefault(part, {}), parents, nested)[last] = values[index]
    path = folder / "published.yaml"
    path.write_text(yaml.safe_dump(nested))
    return path


def parsed(path):
    """Every component's configuration, by its place."""
    experiment = load_config([path], ["data.prompt_library=some_library"])
    found = {"experiment": {**vars(experiment), "data": None, "system": None}}
    places = [("data", vars(experiment)), ("system", vars(experiment))]
    for part in ("guidance_processor", "condition_processor"):
        places.append((part, experiment.data))
    for part in ("geometry", "material", "background", "renderer", "renderer_2nd", "guidance"):
        places.append((part, experiment.system))
    places.append(("base_renderer", experiment.system["renderer_2nd"]))
    for part, options in places:
        config = config_class(options[f"{part}_type"])
        values = vars(parse_config(config, options[part], part))
        ignored = {key for key, meaning in field_docs(config).items() if meaning.startswith(NO_EFFECT)}
        nested = {key for key, value in values.items() if isinstance(value, dict)} | {"loggers"}
        found[part] = {key: value for key, value in values.items() if key not in ignored | nested}
    found["loss"] = parse_config(LossConfig, experiment.system["loss"], "loss")
    found["optimizer"] = parse_config(OptimizerConfig, experiment.system["optimizer"], "optimizer")
    return found


@pytest.mark.parametrize("index", [0, 1], ids=RECIPES)
def test_the_original_recipe_loads_unchanged_and_is_ours(index, tmp_path):
    theirs, ours = parsed(published(index, tmp_path)), parsed(ROOT / f"configs/{RECIPES[index]}.yaml")
    theirs["geometry"]["space_generator_config"].timestep = ours["geometry"]["space_generator_config"].timestep
    for place in ours:
        assert theirs[place] == ours[place], place
