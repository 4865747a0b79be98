"""The command `triplaneturbo` in a checkout, and the programs that are doors to the same code."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_student import write_pipeline
from toy import write_distribution

from triplaneturbo import cli
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.extensions import import_extensions
from triplaneturbo.pipelines import students
from triplaneturbo.places import find_recipe

ROOT = Path(__file__).parents[1]
DOORS = sorted(
    path for folder in ("evaluation", "scripts") for path in (ROOT / folder).rglob("*.py")
    if "with stoppable()" in path.read_text() and path.parent != ROOT / "scripts/test"
)  # fmt: skip


@pytest.fixture
def requests(monkeypatch):
    """The launches that were asked for, and not made."""
    made = []
    monkeypatch.setattr("triplaneturbo.launcher.launch", made.append)
    return made


@pytest.fixture
def student(tmp_path, tiny_world):
    return write_pipeline(tmp_path / "student", tiny_world / "sd")


def test_both_command_lines_ask_for_the_same_launch(requests):
    words = ["data.batch_size=8", "--prompt", "a red cube", "--verbose", "name=x", "--out", "meshes", "--overwrite"]
    assert cli.run(["export", "shapeworld/prd.yaml", *words, "shapeworld/tiny.yaml"]) == 0
    files = ["--config", "shapeworld/prd.yaml", "--config", "configs/shapeworld/tiny.yaml"]
    assert cli.launch(["--export", *files, *words]) == 0
    one, other = requests
    recipes = [ROOT / "configs/shapeworld/prd.yaml", ROOT / "configs/shapeworld/tiny.yaml"]
    assert [[Path(config).resolve() for config in request.configs] for request in requests] == [recipes, recipes]
    assert dataclasses.replace(one, configs=()) == dataclasses.replace(other, configs=())
    assert one.mode == "export"
    assert one.overrides == ["data.batch_size=8", "name=x", "system.exporter.overwrite=true"]
    assert (one.prompts, one.out, one.verbose) == (["a red cube"], "meshes", True)


@pytest.mark.parametrize("mode", ["train", "validate", "test"])
def test_flags_of_an_export_belong_to_it(requests, capsys, mode):
    for line in ([mode, "shapeworld/prd.yaml", "--out", "x"], [mode, "shapeworld/prd.yaml", "--overwrite"]):
        with pytest.raises(SystemExit, match="2"):
            cli.run(line)
        assert f"there is no flag {line[2]}" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):
            cli.launch([f"--{mode}", "--config", *line[1:]])
        assert f"{line[2]} goes with --export" in capsys.readouterr().err
    assert cli.run([mode, "shapeworld/prd.yaml"]) == 0
    assert [request.mode for request in requests] == [mode]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "a=1"], "which configuration? Name a file or one of the recipes: "),
        (["train", "shapeworld/prd.yaml", "--gpuu"], "there is no flag --gpuu; did you mean '--gpu'"),
        (["generate", "a cube", "-o", "a.glb", "--sed", "1"], "there is no flag --sed; did you mean '--seed'"),
        (["doctor", "--all"], "there is no flag --all"),
        (["evaluate", "shapworld"], "invalid choice: 'shapworld'"),
        (["generat"], "invalid choice: 'generat'"),
    ],
)
def test_mistakes_on_the_command_line_are_said(requests, capsys, line, said):
    with pytest.raises(SystemExit, match="2"):
        cli.run(line)
    assert said in capsys.readouterr().err
    assert not requests


def test_a_configuration_that_is_not_there_is_said_with_the_nearest_recipe(requests, capsys):
    assert cli.run(["train", "configs/shapeworld/prdd.yaml"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("triplaneturbo train: there is no configuration file configs/shapeworld/prdd.yaml")
    assert "did you mean 'shapeworld/prd.yaml'" in message


def test_files_come_before_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("shapeworld/prd.yaml") == ROOT / "configs/shapeworld/prd.yaml"
    (tmp_path / "shapeworld").mkdir()
    (tmp_path / "shapeworld/prd.yaml").touch()
    assert find_recipe("shapeworld/prd.yaml").resolve() == tmp_path / "shapeworld/prd.yaml"
    assert find_recipe("configs/shapeworld/prd.yaml") == ROOT / "configs/shapeworld/prd.yaml"


def test_generate_writes_the_mesh_of_prompt_seed_and_resolution(student, tmp_path, capsys):
    def generate(name, *options):
        out = tmp_path / name
        assert cli.run(["generate", "a red cube", "-o", str(out), "--weights", str(student), *options]) == 0
        assert str(student) in capsys.readouterr().out
        return read_mesh(out)

    first, again = generate("a.glb"), generate("b.glb", "--seed", "0")
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    assert again.vertices.shape == first.vertices.shape
    assert generate("c.obj", "--seed", "1").vertices.tolist() != first.vertices.tolist()
    assert len(generate("d.glb", "--resolution", "10").vertices) < len(first.vertices)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "a.stl"], "the name must end in .glb or .obj"),
        (["-o", "a.glb", "--seed", "-1"], "--seed must be in [0, 4294967295], not -1"),
        (["-o", "a.glb", "--resolution", "1"], "--resolution must be in [2, 2048], not 1"),
        (["-o", "a.glb", "--weights", "nowhere"], "nowhere has no pipeline.json"),
    ],
)
def test_generate_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["generate", "a red cube", *options]) == 2
    assert capsys.readouterr().err.startswith("triplaneturbo generate: ")
    assert cli.run(["generate", "a red cube", *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_generate_replaces_no_file_unless_told_to(student, tmp_path, capsys):
    line = ["generate", "a red cube", "-o", str(tmp_path / "mine.glb"), "--weights", str(student)]
    (tmp_path / "mine.glb").write_text("of somebody")
    assert cli.run(line) == 2
    assert "mine.glb is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.glb").read_text() == "of somebody"
    assert cli.run([*line, "--overwrite"]) == 0
    assert (tmp_path / "mine.glb").read_bytes()[:4] == b"glTF"


@pytest.mark.parametrize(("checkout", "command"), [(ROOT, "{}"), (None, "the repository: {} --root {root}")])
def test_without_weights_it_says_where_it_looked_and_how_to_get_them(tmp_path, monkeypatch, checkout, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(students, "CHECKOUT", checkout)
    root = tmp_path / "project"
    with pytest.raises(WeightsError) as refused:
        students.find_student(root)
    said = str(refused.value)
    assert f"no pipeline.json in {tmp_path}/load/shapeworld or {root}/load/shapeworld" in said
    assert f"the published student: {root}/pretrained/" in said
    assert said.endswith("fetched by " + command.format("python scripts/prepare/download_eval_only.py", root=root))


def test_generate_takes_the_student_of_the_working_directory_and_says_so(tiny_world, tmp_path, monkeypatch, capsys):
    write_pipeline(tmp_path / "load/shapeworld", tiny_world / "sd")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["generate", "a red cube", "-o", "cube.glb"]) == 0
    assert f"the weights of {tmp_path}/load/shapeworld;" in capsys.readouterr().out


# Extensions


def write_extension(folder, name, content="x = 1\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(content)
    return folder


def test_extensions_of_two_folders_are_one_package_and_no_path_is_edited(tmp_path):
    one = write_extension(tmp_path / "one/both_kinds", "first", "from both_kinds.second import x\n")
    other = write_extension(tmp_path / "other/both_kinds", "second")
    before = list(sys.path)
    assert import_extensions(one, other) == ["both_kinds.first", "both_kinds.second"]
    assert sys.path == before
    assert sys.modules["both_kinds.first"].x == 1


def test_two_extensions_of_one_name_are_both_named(tmp_path):
    one, other = (write_extension(tmp_path / name / "twins", "same") for name in ("one", "other"))
    with pytest.raises(ConfigError, match=r"two extensions twins\.same: ") as refused:
        import_extensions(one, other)
    assert f"{one}/same.py and {other}/same.py" in str(refused.value)
    assert import_extensions(one, one) == ["twins.same"]


def test_an_installed_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "x = 1\n1 / 0\n"))
    with pytest.raises(ConfigError, match=r"toys/toy\.py:2: ZeroDivisionError") as refused:
        import_extensions()
    assert "the extension toys.toy of the installed package many-toys cannot be imported: " in str(refused.value)


# Doors


def test_sys_path_is_not_edited_anywhere():
    for name in ("triplaneturbo", "evaluation", "custom", "scripts"):
        for file in (ROOT / name).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            assert not [n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n) == "sys.path"], file


def door(path, cwd, *words, python_path=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(python_path), "CUDA_VISIBLE_DEVICES": ""}
    # -S leaves out what is installed; without it this checkout may be.
    command = [sys.executable, *(["-S"] if python_path != ROOT else []), str(path), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.name)
def test_a_door_without_the_package_says_what_to_install(path, tmp_path):
    done = door(path, tmp_path, python_path=tmp_path)
    advice = "run ./setup.sh, or in the project's folder: pip install -e ."
    assert done.stderr == f"{path.name}: No module named 'triplaneturbo'; {advice}\n"
    assert done.returncode == 1


def test_a_door_works_from_any_directory(tmp_path):
    """The one that needs most: extensions and a recipe of the checkout."""
    done = door(ROOT / "scripts/demo.py", tmp_path, "--student", "nowhere")
    assert re.search(r"demo: nowhere has no pipeline\.json", done.stderr)
