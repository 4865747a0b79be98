"""The site of the documentation: every page it leads to is there, and every module of its reference can be imported."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
import yaml

from triplaneturbo import registry

ROOT = Path(__file__).resolve().parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
TEXTS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")} | SITE["pages"]()
PAGES = {place: SITE["own_links"](text, place) for place, text in TEXTS.items()}
MODULES = [name for room in SITE["ROOMS"] for name in SITE["modules"](room)]


def navigated(entries: list) -> set[str]:
    """Places of all pages in a navigation."""
    places = set()
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            places |= navigated(value) if isinstance(value, list) else {value}
    return places


def test_the_navigation_leads_to_every_page_and_nowhere_else():
    assert navigated(SITE["navigation"]()) == PAGES.keys()


@pytest.mark.parametrize("place", PAGES)
def test_links_between_pages_lead_somewhere(place):
    files = {path.relative_to(ROOT).as_posix() for path in SITE["linked_files"]()}
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[place]):
        target = (ROOT / "site" / place).parent.joinpath(link).resolve().relative_to(ROOT / "site").as_posix()
        assert target in PAGES.keys() | files


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_the_reference_can_be_imported_and_hold_what_it_lists(module):
    found = importlib.import_module(module)
    for _, owner in SITE["registered"](module):
        assert hasattr(found, owner)
    assert any(f"::: {module}\n" in text for place, text in PAGES.items() if place.startswith("reference/"))


def test_all_registered_names_are_in_the_reference():
    registry.import_rooms()
    classes = [(name, registry.find(role, name)) for role in registry.ROLES for name in registry.names(role)]
    ours = {(name, cls.__qualname__) for name, cls in classes if cls.__module__.startswith("triplaneturbo.")}
    row = re.compile(r"^\| `([\w-]+)` \| \[`(\w+)`\]\[[\w.]+\] \|$", re.MULTILINE)
    assert {found for text in PAGES.values() for found in row.findall(text)} == ours


def test_nothing_is_fetched_from_other_servers():
    assert CONFIG["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "repo_url"} & CONFIG.keys()


def test_the_quick_part_of_the_gate_has_the_same_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = [line for line in (ROOT / "scripts" / "requirements-dev.txt").read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert [hook["additional_dependencies"] for hook in hooks] == [
        [pin for pin in pins if pin.startswith("ruff==")]
    ] * 2
