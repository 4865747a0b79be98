"""The README's module is the first example of docs/extending.md, and a mistake in its options is found."""

import re

import pytest
from miniature import write_configuration
from readme import python_blocks
from test_extending import SECTIONS

import launch
from triplaneturbo import launcher

(SOURCE,) = [block for block in python_blocks() if "custom/unit_score.py" in block]


def test_the_readme_shows_an_example_that_is_tested():
    assert SECTIONS["Rule"]["python"] == SOURCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{type: unit-score, flor: 0.01}", "did you mean 'floor'"),
        ("{type: unit-score, floor: many}", "floor must be a finite number, not 'many'"),
        ("{type: mesh}", "which is a renderer; wanted is a rule: asd, csd, sds,"),
        ("unit-scor", "did you mean 'unit-score'"),
    ],
)
def test_a_mistake_in_its_options_is_found(tiny_world, tmp_path, monkeypatch, capsys, options, message):
    folder = tmp_path / "examples_rule"  # as in test_extending.py: a process knows one class of that name
    folder.mkdir()
    (folder / "unit_score.py").write_text(SOURCE)
    monkeypatch.setattr(launcher, "CUSTOM_FOLDER", folder)
    config = str(write_configuration(tiny_world, tmp_path))
    assert launch.main(["--config", config, "--train", f"system.guidance.teachers.mvdream.rule={options}"]) == 2
    said = capsys.readouterr().err
    assert re.search(re.escape(message), said)
    assert "(command line: system.guidance.teachers.mvdream.rule=" in said
