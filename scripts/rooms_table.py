"""Write the table of rooms in docs/architecture.md from docs/rooms.yaml: `python scripts/rooms_table.py`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS, PAGE = ROOT / "docs" / "rooms.yaml", ROOT / "docs" / "architecture.md"
HEAD = "| place | what lives there | may import, besides the core |\n|---|---|---|\n"
OUTSIDE = "extensions, imported at launch; `custom/shapeworld` is the miniature world, `custom/scaledreamer` a method"
CUSTOM = f"| `custom/` | {OUTSIDE} | everything |\n"


def table() -> str:
    """The table in Markdown."""
    rows = []
    for name, room in yaml.safe_load(ROOMS.read_text(encoding="utf-8")).items():
        place = "triplaneturbo/*.py" if name == "core" else f"{name}/"
        rows.append(f"| `{place}` | {room['holds']} | {', '.join(room['may_import'])} |\n")
    return HEAD + "".join(rows) + CUSTOM


def with_table(page: str) -> str:
    """`page` with its table replaced."""
    start = page.index("| place |")
    return page[:start] + table() + page[page.index("\n\n", start) + 1 :]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
