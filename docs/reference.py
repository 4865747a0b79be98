"""What the site shows besides the pages of this folder: the repository's own pages, a reference from the docstrings.

A hook of mkdocs, see mkdocs.yml; `./setup.sh docs` builds the site. Rooms come from rooms.yaml, modules and registered
names from the code, and pages from the folders, so that nothing has to be listed here.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "triplaneturbo"
ROOMS: dict[str, dict] = yaml.safe_load((ROOT / "docs" / "rooms.yaml").read_text(encoding="utf-8"))
# Files that are shown as they are, or that pages link to.
FILES = ("assets/*.png", "CITATION.cff")


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Called by mkdocs first: what is in the navigation."""
    config.nav = navigation()
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Called by mkdocs when it has found the pages of this folder: adds the others."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for path in linked_files():
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: "Page", **given: object) -> str:
    """Called by mkdocs for each page: links as the site has them."""
    return own_links(markdown, page.file.src_uri)


def own_links(text: str, place: str) -> str:
    """Links of a page at a place of the site, where what is in docs/ lies beside the repository's folders."""
    within = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", text)
    return within if "/" in place else within.replace("](../", "](")


def navigation() -> list[dict]:
    """Titles and places of all pages, in groups, in the form of mkdocs."""
    guides = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    others = [place for place in pages() if not place.startswith("reference/")]
    return [
        {"Home": "index.md"},
        {"Guides": guides},
        {"Methods": [place for place in others if place.startswith("custom/")]},
        {"Measurements": [place for place in others if place.startswith("benchmarks/")]},
        {"Reference": [{room: f"reference/{room}.md"} for room in ROOMS]},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md"]},
    ]


def pages() -> dict[str, str]:
    """The text of every page that is not in this folder, by its place in the site, whose root this folder is."""
    reports = (f"benchmarks/{path.name}" for path in sorted((ROOT / "benchmarks").glob("*.md")))
    methods = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "custom").glob("*/README.md")))
    own = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *reports, *methods)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in own}
    found = {"index.md" if name == "README.md" else name: text for name, text in texts.items()}
    return found | {f"reference/{room}.md": room_page(room) for room in ROOMS}


def linked_files() -> list[Path]:
    """Files of the repository that are part of the site and no pages."""
    return [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]


def room_page(room: str) -> str:
    """The reference of a room: what it holds, what is registered there, its modules with all that is public in them."""
    rows = [
        f"| `{name}` | [`{owner}`][{module}.{owner}] |"
        for module in modules(room)
        for name, owner in registered(module)
    ]
    table = ["| registered name | class |", "|---|---|", *rows, ""] if rows else []
    place = "triplaneturbo/*.py" if room == "core" else f"triplaneturbo/{room}/"
    head = [f"# {room}", "", f"`{place}`: {ROOMS[room]['holds']}.", ""]
    return "\n".join([*head, *table, *(f"::: {module}\n" for module in modules(room))])


def modules(room: str) -> list[str]:
    """Dotted names of the room's modules but its `__init__`, which has names of the others, and kernels, whose callers
    document them."""
    files = PACKAGE.glob("*.py") if room == "core" else (PACKAGE / room).rglob("*.py")
    shown = sorted(path for path in files if path.stem != "__init__" and not path.stem.endswith("_triton"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown]


def registered(module: str) -> Iterator[tuple[str, str]]:
    """Names that the classes of a module are registered under, and those of the classes; the module is not imported."""
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "register":
                yield ast.literal_eval(decorator.args[0]), node.name
