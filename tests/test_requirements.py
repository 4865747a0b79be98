"""pyproject.toml names what the code imports: all of it, and nothing else."""

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Installed by those who want them; the code that imports them says how.
OPTIONAL = {"diso", "imageio-ffmpeg", "nvdiffrast", "open-clip", "tinycudann", "triton", "xformers"}
# Not imported by an import statement: diffusers loads models and Lightning writes logs with them; extras are looked up.
INDIRECT = {"accelerate", "fast-simplification", "tensorboard", "wandb", "xatlas"}
# Not imported by name: conftest.py, setup.sh and test_package.py use them. Triton comes with torch for CUDA; on a CPU
# it is only tested.
TESTS_INDIRECT = {"beartype", "pytest-xdist", "triton"}


def packages(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def required() -> set[str]:
    """What the program needs."""
    return packages(PROJECT["dependencies"])


def extra(*names: str) -> set[str]:
    """What these extras add."""
    return {package for name in names for package in packages(PROJECT["optional-dependencies"][name])}


@cache
def is_ours(module: str) -> bool:
    places = [(ROOT, ""), (ROOT / "scripts", "**/"), (ROOT / "tests", "**/")]
    return any(next(folder.glob(f"{within}{module}{end}"), None) for folder, within in places for end in ("", ".py"))


def imported(*places: str) -> set[str]:
    """Packages that files and folders import, at the top or within functions."""
    files = [file for place in places for file in [ROOT / place, *(ROOT / place).rglob("*.py")] if file.is_file()]
    modules = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module.split(".")[0]} if node.module and not node.level else set()
    foreign = (m for m in modules - sys.stdlib_module_names if not is_ours(m))
    owners = packages_distributions()
    return {
        canonicalize_name(owners[module][0]) if module in owners else canonicalize_name(module) for module in foreign
    }


def test_the_program_imports_what_it_requires():
    found = imported("triplaneturbo", "custom", "evaluation", "scripts", "launch.py", "gradio_app.py")
    assert found - OPTIONAL == (required() | extra("page", "ray", "texture", "wandb")) - INDIRECT


def test_the_tests_import_what_they_require():
    of_program = required() | extra("page", "ray", "texture")
    assert not of_program & extra("test")
    assert imported("tests") - of_program == extra("test") - TESTS_INDIRECT
    assert "beartype" in (ROOT / "tests" / "conftest.py").read_text()


def test_the_requirements_are_one_list():
    """requirements.txt takes that of pyproject.toml, with all that the tests need."""
    (line,) = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert line == "-e .[page,texture,test]"
