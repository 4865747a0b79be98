"""The benchmark's page: one file with its tables and its worst cases, which needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.pictures import encode, to_bytes
from triplaneturbo.storage import write_text

from .judge import AZIMUTHS, Measured
from .table import COLUMNS, cells, heads, named_rows

WORST = 100  # cases a split

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left }
tr.own { font-weight: 600 }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; image-rendering: pixelated } figcaption { font-size: 12px }
"""

Case = tuple[str, Measured, Float[Tensor, "V h w 3"]]


def write_page(path: Path, report: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Write the tables of `report`, and for every split its prompts, those with the lowest IoU first.

    cases: split, mesh and exact pictures. Of several meshes of a prompt the worst is shown.
    """
    parts = [_table(report)]
    for split in report["splits"]:
        worst: dict[str, tuple[Measured, Tensor]] = {}
        for name, m, true in sorted(cases, key=lambda case: case[1].numbers.iou):
            if name == split:
                worst.setdefault(m.prompt, (m, true))
        shown = "all" if len(worst) <= WORST else f"the worst {WORST} of"
        parts.append(f"<h2>{split}: {shown} {len(worst)} prompts, the worst first</h2><div class='cases'>")
        parts += [_figure(*case) for case in list(worst.values())[:WORST]]
        parts.append("</div>")
    views = ", ".join(f"{a}°" for a in AZIMUTHS)
    write_text(
        path,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>shapeworld</title>"
        f"<style>{_STYLE}</style><h1>Meshes against exact solids</h1>"
        f"<p>In the pictures: above the exact solid, below the mesh, from azimuth {views}.</p>" + "\n".join(parts),
    )


def _table(report: Mapping[str, Any]) -> str:
    arrows = {"more": " ↑", "less": " ↓", "": ""}
    better = {column.head: arrows[column.better] for column in COLUMNS}
    lines = ["<div class='wide'><table><tr><th>split, controls</th>"]
    lines += [f"<th>{head}{better.get(head, '')}</th>" for head in heads()] + ["</tr>"]
    for split in report["splits"]:
        for i, (name, row) in enumerate(named_rows(split, report)):
            kind = "" if i else " class='own'"
            lines.append(f"<tr{kind}><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return "".join([*lines, "</table></div>"])


def _figure(m: Measured, true: Float[Tensor, "V h w 3"]) -> str:
    rows = torch.stack([to_bytes(true), m.pictures])
    sheet = rows.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)
    picture = base64.b64encode(encode(sheet.contiguous(), "png")).decode()
    numbers = {column.measure: getattr(m.numbers, column.measure) for column in COLUMNS}
    said = ", ".join(
        f"{column.head} {cell}"
        for column, cell in zip(COLUMNS, [c for c in cells(numbers) if c], strict=True)
        if cell != "-"
    )
    prompt = html.escape(m.prompt)
    return (
        f"<figure><img alt='{prompt}' src='data:image/png;base64,{picture}'>"
        f"<figcaption><b>{prompt}</b>, training {m.training}, seed {m.seed}: {said}</figcaption></figure>"
    )
