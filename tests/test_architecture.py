"""Rooms import in one direction only, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "triplaneturbo"
TRAINING = ("pytorch_lightning", "lightning_fabric", "triplaneturbo.systems", "triplaneturbo.launcher")
FORBIDDEN = {
    "ops": ("triplaneturbo",),
    "geometry": ("triplaneturbo.renderers", "triplaneturbo.guidance", "triplaneturbo.data", *TRAINING),
    "materials": ("triplaneturbo.renderers", "triplaneturbo.guidance", *TRAINING),
    "background": ("triplaneturbo.renderers", "triplaneturbo.guidance", *TRAINING),
    "renderers": ("triplaneturbo.guidance", "triplaneturbo.data", *TRAINING),
    "guidance": ("triplaneturbo.geometry", "triplaneturbo.renderers", "triplaneturbo.data", *TRAINING),
    "prompts": ("triplaneturbo.geometry", "triplaneturbo.guidance", *TRAINING),
    "weights": ("triplaneturbo.guidance", "triplaneturbo.renderers", *TRAINING),
    "exporters": ("triplaneturbo.guidance", "triplaneturbo.data", *TRAINING),
    "pages": ("triplaneturbo",),
    "pipelines": ("triplaneturbo.guidance", "triplaneturbo.data", *TRAINING),
}


def imported(file: Path) -> set[str]:
    """Dotted names of the modules and members that `file` imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_in_one_direction(room):
    files = sorted((PACKAGE / room).glob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            outside = not name.startswith(f"triplaneturbo.{room}")
            banned = [b for b in FORBIDDEN[room] if name == b or name.startswith(b + ".")]
            assert not (outside and banned), f"{file.relative_to(PACKAGE)} imports {name}"


def test_nothing_of_the_package_imports_extensions():
    for file in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "custom" for name in imported(file)), file


def test_importing_the_package_adds_less_than_half_a_second_to_torch():
    code = "import time, torch; start = time.perf_counter(); import triplaneturbo; print(time.perf_counter() - start)"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.5


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    code = "import sys, triplaneturbo; assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
