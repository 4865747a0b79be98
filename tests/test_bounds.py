"""What is declared beside the types of options, and mistakes in configurations by the dozen."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest

from scripts.test.config_storm import BY_HAND, Mistake, attempt, mistakes
from triplaneturbo import launcher, registry
from triplaneturbo.base import Component, parse_config
from triplaneturbo.bounds import PROJECT, ProjectPath, Range, file_name, inside
from triplaneturbo.config import _PATH
from triplaneturbo.errors import ConfigError
from triplaneturbo.extensions import import_extensions
from triplaneturbo.schedule import Schedule

TINY = str(PROJECT / "configs/shapeworld/tiny.yaml")


@pytest.mark.parametrize(
    ("bounds", "allowed", "forbidden", "text"),
    [
        (Range(1), (1, 10**9), (0, -1), "1 or more"),
        (Range(0, above=True), (1e-9,), (0, -1), "above 0"),
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1, float("nan")), "in [0, 1]"),
        (Range(0, 1, below=True), (0, 0.99), (1,), "in [0, 1)"),
        (Range(0, 180, above=True, below=True), (1,), (0, 180), "in (0, 180)"),
        (Range(2, 8, even=True), (2, 8), (3, 10), "an even number in [2, 8]"),
    ],
)
def test_a_range_says_what_it_allows(bounds, allowed, forbidden, text):
    assert all(bounds(number, "x") == number for number in allowed)
    for number in forbidden:
        with pytest.raises(ConfigError) as refused:
            bounds(number, "some.place")
        assert str(refused.value) == f"some.place must be {text}, not {number!r}"


@dataclass(kw_only=True)
class Options:
    weight: Annotated[Schedule, Range(0, 1)] = 0.5
    sizes: list[Annotated[int, Range(1)]] | None = None
    by_name: dict[str, Annotated[float, Range(0)]] | None = None
    start: ProjectPath = "load"
    plain: float = 0.0


def test_every_number_of_a_schedule_a_list_and_a_mapping_is_checked():
    for given, place in (
        ({"weight": [0, 0.5, 1.5, 10]}, "weight must be in"),
        ({"weight": [0, 0.5, 1.0, 10, -0.1, 20]}, "weight must be in"),
        ({"weight": [0, 0.5, float("inf"), 10]}, "weight: cannot read"),
        ({"weight": 10**400}, "weight: cannot read"),
        ({"sizes": [1, 0]}, r"sizes\[1\] must be 1 or more"),
        ({"by_name": {"a": 1, "b": -1}}, "by_name.b must be 0 or more"),
        ({"plain": float("nan")}, "plain must be a finite number"),
        ({"plain": "1e999"}, "plain must be a finite number"),
        ({"plain": 10**400}, "plain must be a finite number"),
    ):
        with pytest.raises(ConfigError, match=f"here.{place}"):
            parse_config(Options, given, "here")
    assert parse_config(Options, {"weight": [0, 0.5, 1.0, 10]}, "").weight.points == ((0, 0.5), (10, 1))
    assert parse_config(Options, {}, "").weight == Schedule.parse(0.5)


def test_relative_paths_start_from_the_project_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_config(Options, {}, "").start == str(PROJECT / "load")
    assert parse_config(Options, {"start": "a/b"}, "").start == str(PROJECT / "a/b")
    assert parse_config(Options, {"start": "/a/b"}, "").start == "/a/b"
    assert parse_config(Options, {"start": ""}, "").start == ""


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "a\0b", "a\nb", "x" * 300])
def test_names_stay_in_their_folder(path):
    with pytest.raises(ConfigError, match="place"):
        inside(path, "place")
    with pytest.raises(ConfigError, match="place"):
        file_name(path, "place")
    assert inside("a/b", "place") == "a/b"
    with pytest.raises(ConfigError, match="name of a file"):
        file_name("a/b", "place")


def test_the_command_line_knows_every_option_that_is_a_path():
    import_extensions(PROJECT / "custom")
    registry.import_rooms()
    classes = [registry.find(role, name) for role in registry.ROLES for name in registry.names(role)]
    found = set()
    for cls in (cls for cls in classes if issubclass(cls, Component)):
        hints = get_type_hints(cls.Config, include_extras=True)
        for field in fields(cls.Config):
            if ProjectPath in (hints[field.name], *get_args(hints[field.name])):
                found.add(field.name)
    assert found >= {"weights", "path", "vae_path", "pretrained_model_name_or_path"}
    assert [name for name in found if not _PATH.fullmatch(name)] == []


CHOSEN = [*mistakes(TINY, [], every=45)[: -len(BY_HAND)], *BY_HAND[::5]]


@pytest.mark.parametrize("mistake", CHOSEN, ids=lambda mistake: (" ".join(mistake.overrides) or mistake.kind)[:60])
def test_a_mistake_is_refused_with_one_message(mistake, tmp_path):
    outcome, said = attempt(TINY, [], mistake, tmp_path)
    assert outcome == "refused", said


def test_the_storm_notices_nonsense_that_runs_and_tracebacks(tmp_path, monkeypatch):
    absurd = Mistake("option", ("system.optimizer.args.eps=7",))
    assert attempt(TINY, [], absurd, tmp_path)[0] == "refused"
    with monkeypatch.context() as patch:
        patch.setattr(Range, "__call__", lambda self, value, place: value)
        assert attempt(TINY, [], absurd, tmp_path)[0] == "ran"

    def broken(*_):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(launcher, "read_configuration", broken)
    assert attempt(TINY, [], absurd, tmp_path) == ("traceback", "KeyError: 'a mistake of ours'")


def test_a_shipped_recipe_runs_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    out = tmp_path / "storm"
    out.mkdir()
    assert attempt("configs/shapeworld/tiny.yaml", [], Mistake("none"), out) == ("ran", "")
    assert (out / "shapeworld-tiny").is_dir()
    assert not (tmp_path / "outputs").exists()
    assert not Path("load").exists()
