"""The wheel: built and installed without a network, it works from a folder that has nothing of the repository."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages
from tiny_student import write_pipeline
from toy import MODULE, write_distribution, write_toy

import triplaneturbo

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "triplaneturbo", "configs", "evaluation")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-deps", "--no-index")


def run(*command, cwd, path=(), code=0):
    """What the program said, on a machine whose packages are those of here and what lies in the folders of `path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Built from a copy: a build writes into its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", folder / "out", folder, cwd=folder)
    (path,) = (folder / "out").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", *OFFLINE, "--target", folder, wheel, cwd=folder)
    return folder


@pytest.fixture
def command(installed, tmp_path):
    """command(*words): what `triplaneturbo words` says; it starts in tmp_path, an empty folder."""

    def start(*words, path=(), code=0):
        script = installed / "bin" / "triplaneturbo"
        return run(sys.executable, script, *words, cwd=tmp_path, path=[installed, *path], code=code)

    return start


def test_a_wheel_has_all_recipes_all_modules_and_nothing_of_the_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"triplaneturbo/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "triplaneturbo").rglob("*.py")}
    measures = {f"triplaneturbo/{path.relative_to(ROOT)}" for path in (ROOT / "evaluation").glob("*.py")}
    package = {name for name in names if ".dist-info/" not in name}
    assert package == recipes | modules | measures | {"triplaneturbo/py.typed"}
    assert (
        zipfile.ZipFile(wheel).read("triplaneturbo/evaluation/__init__.py")
        == (ROOT / "evaluation/__init__.py").read_bytes()
    )  # and not the one that leads to this folder in a checkout


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = find_packages(str(ROOT), include=["triplaneturbo*"])
    folders = {path.relative_to(ROOT).parent for path in (ROOT / "configs").rglob("*.yaml")}
    recipes = ["triplaneturbo." + ".".join(folder.parts) for folder in folders]
    assert listed == sorted([*found, *recipes])


def test_the_metadata_are_those_of_the_project(wheel, command):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    metadata = zipfile.ZipFile(wheel).read(name).decode().split("\n\n")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)]
    assert [r for r in required if "extra" not in str(r.marker)] == list(map(Requirement, project["dependencies"]))
    assert re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE) == list(project["optional-dependencies"])
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    version = triplaneturbo.__version__
    assert f"\nVersion: {version}\n" in metadata
    assert command("--version") == f"{version}\n"


def test_the_version_stands_in_one_place():
    tracked = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*.py")] if path.is_file()]
    tracked += [ROOT / "setup.sh", ROOT / "CITATION.cff"]
    found = re.compile(rf"version\S*\s*[:=]\s*[\"']?{re.escape(triplaneturbo.__version__)}\b", re.IGNORECASE)
    holders = [path.relative_to(ROOT) for path in tracked if found.search(path.read_text())]
    assert holders == [Path("triplaneturbo/__init__.py")]


def test_the_doctor_reads_the_requirements_off_the_installed_package(command, tmp_path, installed):
    said = command("doctor")
    assert f"in {installed}/triplaneturbo; relative paths of configurations start from {tmp_path}\n" in said
    assert "cannot be found out" not in said
    assert "pytorch-lightning  2" in said
    assert "gradio_client" not in said


def test_a_prompt_becomes_a_mesh(command, tiny_world, tmp_path):
    student = write_pipeline(tmp_path / "student", tiny_world / "sd")
    said = command("generate", "a red cube", "-o", "cube.glb", "--weights", student, "--resolution", 12)
    assert f"cube.glb: 'a red cube' by seed 0 and the weights of {student}" in said
    assert (tmp_path / "cube.glb").read_bytes()[:4] == b"glTF"


def test_a_recipe_is_found_by_its_name_and_paths_start_here(installed, tmp_path):
    code = "from triplaneturbo.places import *; print(find_recipe('configs/shapeworld/tiny.yaml'), PROJECT)"
    said = run(sys.executable, "-c", code, cwd=tmp_path, path=[installed])
    assert said.split() == [f"{installed}/triplaneturbo/configs/shapeworld/tiny.yaml", str(tmp_path)]


def test_modules_in_custom_here_and_of_an_installed_package_train_together(command, tmp_path):
    """The data module is of the one, the system of the other."""
    toy = write_toy(tmp_path)
    (tmp_path / "toy_extensions").rename(tmp_path / "custom")
    imports, data, system = re.split(r"(?=@register)", MODULE)
    (tmp_path / "custom/toy.py").write_text(imports + data)
    installed = write_distribution(tmp_path / "installed", imports + system)
    command("train", toy.name, "trainer.max_steps=2", "data.size=5", path=[installed])
    assert (tmp_path / "out/toy/t/ckpts/last.ckpt").is_file()


def test_the_benchmark_is_there_and_asks_for_the_miniature_world(command, tmp_path):
    said = command("evaluate", "shapeworld", "--weights", "x", code=2)
    assert f"not in {tmp_path}/custom" in said
