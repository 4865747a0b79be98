"""What README.md says works: its Python runs, its commands and files exist."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from miniature import write_configuration
from readme import ROOT, blocks, commands, python_blocks
from tiny_student import write_pipeline

import launch
from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions

README = (ROOT / "README.md").read_text()
CONFIGURATIONS = sorted(ROOT.glob("configs/**/*.yaml"))


def test_the_snippet_makes_meshes(tmp_path, tiny_world, monkeypatch):
    (tmp_path / "load" / "shapeworld").mkdir(parents=True)
    write_pipeline(tmp_path / "load" / "shapeworld", tiny_world / "sd")
    monkeypatch.chdir(tmp_path)
    snippet = python_blocks()[0]
    assert "from_pretrained" in snippet
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "cube.glb").stat().st_size > 1000
    written = {path.name for path in (tmp_path / "outputs" / "batch" / "a_tall_blue_pyramid").iterdir()}
    assert written == {"model.glb", "turntable.png", "prompt.txt", "origin.json"}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python ")])
def test_commands_parse(command, monkeypatch, capsys, tmp_path):
    """Scripts exist and know the flags; configurations exist and know the keys."""
    script, *arguments = shlex.split(command)[1:]
    if script == "launch.py":
        arguments = ["shapeworld/prd.yaml" if word == "CONFIG" else word for word in arguments]
        parsed = []
        monkeypatch.setattr("triplaneturbo.launcher.launch", parsed.append)
        assert launch.main(arguments) == 0
        (request,) = parsed
        if any("unit-score" in text for text in request.overrides):
            folder = tmp_path / "examples_rule"  # as in test_extending.py: a process knows one class of that name
            folder.mkdir()
            (folder / "unit_score.py").write_text(next(b for b in python_blocks() if "custom/unit_score.py" in b))
            import_extensions(folder)
        assert all(load_config([path], request.overrides) for path in request.configs)
        return
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    known = capsys.readouterr().out
    assert all(re.search(rf"{flag}\b", known) for flag in arguments if flag.startswith("--"))


def test_training_and_exporting_own_prompts(tmp_path, tiny_world, monkeypatch):
    """The two commands as they stand, with the miniature's networks and one step."""
    library = json.loads(blocks("json")[0])
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "my_prompts.json").write_text(json.dumps(library | {"test": library["train"]}))
    monkeypatch.chdir(tmp_path)
    config = write_configuration(tiny_world, tmp_path / "outputs")
    small = ("data.prompt_library_dir=load", "tag=${data.prompt_library}", "use_timestamp=true", "trainer.max_steps=1")
    own = [shlex.split(c)[2:] for c in commands() if c.startswith("python launch.py") and "my_prompts" in c]
    for arguments in own:
        arguments[arguments.index("--config") + 1] = str(config)
        assert launch.main([*arguments, *small, "trainer.accelerator=cpu"]) == 0
    assert ["--train" in arguments for arguments in own] == [True, False]
    exported = {path.read_text() for path in tmp_path.glob("outputs/meshes/*/prompt.txt")}
    assert exported == set(library["train"])


def test_the_two_commands_are_there():
    text = (ROOT / "setup.sh").read_text()
    for command in [c for c in commands() if c.startswith("./setup.sh")]:
        assert re.search(rf"^    {command.split()[1]}\)", text, re.MULTILINE)
    first_screen = README[:2500]
    assert "./setup.sh demo" in first_screen
    assert "./setup.sh test" in first_screen
    assert "setup.sh" in (ROOT / ".ci" / "run").read_text()


def test_files_that_are_named_exist():
    links = [link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", README)]
    for name, _, section in (link for link in links if link[2]):
        headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE)
        assert section in {heading.lower().replace(" ", "-") for heading in headings}
    named = {name for name, *_ in links}
    named |= set(re.findall(r"`((?:configs|scripts|custom|docs)/[^`{}]+)`", README))
    assert all((ROOT / name).exists() for name in named), sorted(n for n in named if not (ROOT / n).exists())


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_is_in_the_table(path: Path):
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert any(path.parent.name in row and re.search(rf"\b{re.escape(path.stem)}\b", row) for row in rows)
