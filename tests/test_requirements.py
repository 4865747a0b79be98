"""requirements.txt names what the code imports: all of it, and nothing else."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# Installed by those who want them; the code that imports them says how.
OPTIONAL = {"fast_simplification", "imageio_ffmpeg", "open_clip", "xatlas"}
# Not imported by name: diffusers loads models and Lightning writes logs with them.
PROGRAM_INDIRECT = {"accelerate", "tensorboard"}
# Not imported by name: conftest.py and setup.sh use them. Triton comes with torch for CUDA; on a CPU it is only tested.
# The tests of textures need both optional packages.
TESTS_INDIRECT = {"beartype", "fast-simplification", "pytest-xdist", "triton", "xatlas"}


def required() -> tuple[set[str], set[str]]:
    """What the program needs, and what only the tests and the web page need."""
    program, tests = (ROOT / "requirements.txt").read_text().split("# Only the tests need these.")
    return packages(program.splitlines()), packages(tests.splitlines()[1:])


def packages(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}


@cache
def is_ours(module: str) -> bool:
    return any(next(folder.glob(pattern), None) for folder, pattern in [
        (ROOT, module), (ROOT, f"{module}.py"), (ROOT / "tests", f"**/{module}"), (ROOT / "tests", f"**/{module}.py"),
    ])  # fmt: skip


def imported(*places: str) -> set[str]:
    """Packages that files and folders import, at the top or within functions."""
    files = [file for place in places for file in [ROOT / place, *(ROOT / place).rglob("*.py")] if file.is_file()]
    modules = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    foreign = (m for m in modules - sys.stdlib_module_names - OPTIONAL if not is_ours(m))
    owners = packages_distributions()
    return {canonicalize_name(owners[module][0]) if module in owners else module for module in foreign}


def test_the_program_imports_what_it_requires():
    program, tests = required()
    found = imported("triplaneturbo", "custom", "evaluation", "scripts", "launch.py")
    assert found - {"triton"} == program - PROGRAM_INDIRECT
    assert "triton" in tests


def test_the_tests_import_what_they_require():
    program, tests = required()
    assert not program & tests
    assert imported("tests", "gradio_app.py") - program == tests - TESTS_INDIRECT
    assert "beartype" in (ROOT / "tests" / "conftest.py").read_text()
