"""The original's options: each has a fate that docs/options.md states, and its recipes load as they are."""

import json
from functools import reduce
from pathlib import Path

import pytest
import yaml

from scripts.options_table import DOCUMENT, PUBLISHED, component, document, fate
from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.legacy.options import COMPONENTS as TABLES
from triplaneturbo.legacy.options import EXPERIMENT
from triplaneturbo.legacy.translate import Translator

ROOT = Path(__file__).parents[1]
CONTENT = json.loads(PUBLISHED.read_text())
COMPONENTS = CONTENT["components"]
RECIPES = ("TriplaneTurbo_v1", "TriplaneTurbo_v1_acc-2")
# A place in a published tree for each role.
PLACES = {"data": "data", "condition": "data.guidance_processor", "system": "system"}


def test_the_document_says_what_the_code_does():
    assert DOCUMENT.read_text() == document(), "run: python -m scripts.options_table"


def test_an_option_that_nobody_knows_has_no_fate():
    with pytest.raises(KeyError):
        fate(EXPERIMENT, "nonsense")


def refusals():
    for role, components in TABLES.items():
        for name, (_, table) in components.items():
            for key, option in table.items():
                if option.refused and role in ("data", "geometry", "material", "background", "renderer", "system"):
                    yield role, name, key


@pytest.mark.parametrize(("role", "name", "key"), refusals())
def test_a_refusal_says_why(role, name, key):
    """Of a component alone, in the place that it has in a published file."""
    options = {key: 1}
    if role in ("data", "system"):
        tree = {f"{role}_type": name, role: options}
    else:
        tree = {"system_type": next(iter(TABLES["system"])), "system": {f"{role}_type": name, role: options}}
    with pytest.raises(ConfigError, match=f"{key} is not supported: .{{20,}}"):
        Translator()(tree)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_published_option_has_a_fate(name):
    _, table = component(name)
    assert all(fate(table, key) for key in COMPONENTS[name])


def test_a_misspelt_option_names_the_nearest():
    tree = {"data_type": next(iter(TABLES["data"])), "data": {"unsup_elevation_rang": [0, 30]}}
    with pytest.raises(UnknownNameError, match="did you mean 'unsup_elevation_range'"):
        Translator()(tree)


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
    """The whole configuration, without what only labels draws and encoders."""
    tree = as_tree(load_config([path], ["data.prompt_library=some_library"]))
    conditions = tree["data"].pop("conditions")
    encoders = {(c["pretrained_model_name_or_path"], c["negative_prompt"]) for c in conditions.values()}
    del tree["data"]["generator_condition"]
    for part in (*tree["system"]["renderers"].values(), *tree["system"]["guidance"]["teachers"].values()):
        del part["label"]
        if "condition" in part:  # the generator's encoder, if it is not named
            name = part.pop("condition") or next(iter(conditions))
            part["told"] = conditions[name]["pretrained_model_name_or_path"]
    for renderer in (tree["system"]["renderers"]["mesh"], tree["system"]["renderers"]["volume"]["base_renderer"]):
        renderer.pop("label", None)
        assert renderer.pop("radius") in (None, tree["system"]["geometry"]["field"]["radius"])
    tree["system"]["losses"].setdefault("mesh", {"score": 1.0})
    for terms in tree["system"]["losses"].values():
        for name in [name for name, term in terms.items() if name != "score" and term["weight"] == 0]:
            del terms[name]
    for given in ("enable_progress_bar", "precision"):
        tree["trainer"].pop(given, None)
    return tree | {"encoders": encoders}


@pytest.mark.parametrize("index", [0, 1], ids=RECIPES)
def test_the_original_recipe_loads_unchanged_and_is_ours(index, tmp_path):
    theirs, ours = parsed(published(index, tmp_path)), parsed(ROOT / f"configs/{RECIPES[index]}.yaml")
    theirs["system"]["loggers"] = ours["system"]["loggers"]
    for teacher in theirs["system"]["guidance"]["teachers"].values():
        assert teacher.pop("gradient_checkpoint")  # ours need less memory in other ways, and record their encoders
    for teacher in ours["system"]["guidance"]["teachers"].values():
        assert not teacher.pop("gradient_checkpoint")
    assert theirs == ours
