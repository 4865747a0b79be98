"""The benchmark's table: every measure of a split, and of its controls beneath."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bootstrap import format_interval


@dataclass(frozen=True)
class Column:
    """A measure. better: whether `more` or `less` of it is better, or neither. interval: its interval is shown."""

    measure: str
    head: str
    digits: int = 3
    better: str = "more"
    interval: bool = False


COLUMNS = (
    Column("iou", "IoU", interval=True),
    Column("r_at_1", "R@1", interval=True),
    Column("r_at_1_object", "R@1 object"),
    Column("chamfer", "Chamfer", 4, "less"),
    Column("silhouette_iou", "silhouette"),
    Column("psnr", "PSNR dB", 1),
    Column("normal_error", "normal deg", 1, "less"),
    Column("color_error", "dE2000", 1, "less"),
    Column("faces_right", "sides right"),
    Column("janus", "Janus", better="less"),
    Column("watertight", "watertight"),
    Column("genus_right", "genus right"),
    Column("faces", "faces", 0, ""),
)
_NAME, _GAP = 22, 2


def cells(numbers: Mapping[str, Any]) -> list[str]:
    """A row's numbers, a dash where there is none; an interval where the row has one and the column shows it."""
    row = []
    for column in COLUMNS:
        value = numbers.get(column.measure)
        row.append("-" if value is None else f"{value:.{column.digits}f}")
        if column.interval:
            found = (numbers.get("intervals") or {}).get(column.measure)
            row.append(format_interval(found, digits=column.digits) if found else "")
    return row


def heads() -> list[str]:
    """The names of the cells."""
    return [name for column in COLUMNS for name in (column.head, *["95 %"] * column.interval)]


def named_rows(split: str, report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The row of a split, and those of its controls if they were measured."""
    blind = report["controls"].get(split, {})
    controls = [(name.replace("_", " "), cells(numbers)) for name, numbers in blind.items()]
    return [(split, cells(report["splits"][split])), *controls]


def _line(name: str, row: Sequence[str]) -> str:
    widths = [max(len(head), 14 if head == "95 %" else 6) + _GAP for head in heads()]
    return f"{name:{_NAME}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))


TABLE_HEAD = _line("split, controls", heads())


def table_rows(split: str, report: Mapping[str, Any]) -> list[str]:
    """Lines under TABLE_HEAD."""
    (own, row), *blind = named_rows(split, report)
    return [_line(own, row), *(_line(f"  {name}", values) for name, values in blind)]
