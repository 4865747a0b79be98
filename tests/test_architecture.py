"""Rooms import in one direction only, and importing the package is cheap."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "triplaneturbo"
ROOMS = yaml.safe_load((ROOT / "docs" / "rooms.yaml").read_text())


def imported(file: Path) -> set[str]:
    """Dotted names of the modules and members that `file` imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:  # others stay in their room
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(name: str) -> str:
    """The room of a dotted name of the package."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in ROOMS else "core"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_list_allows_and_no_more_is_allowed(room):
    places = {"core": PACKAGE.glob("*.py"), "evaluation": (ROOT / room).rglob("*.py")}
    files = places.get(room) or (PACKAGE / room).rglob("*.py")
    names = {name for file in files for name in imported(file) if name.split(".")[0] == "triplaneturbo"}
    assert {room_of(name) for name in names} - {room, "core"} == set(ROOMS[room]["may_import"])


def test_training_is_known_to_the_launcher_and_the_systems_alone():
    for room in ROOMS.keys() - {"core", "systems", "data"}:
        for file in (PACKAGE / room).rglob("*.py"):
            assert not any(name.split(".")[0] in ("pytorch_lightning", "lightning_fabric") for name in imported(file))


def test_every_room_is_listed_and_the_table_is_that_of_the_list():
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()} == ROOMS.keys() - {"core"}
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == runpy.run_path(str(ROOT / "scripts" / "rooms_table.py"))["with_table"](page)


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
