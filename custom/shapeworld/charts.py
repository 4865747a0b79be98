"""A chart of a table: one line a row, a dot for its mean, a bar for its interval, ticks for its trainings."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#1f6fb4", "#d1602a", "#3c8c40", "#7a4fa3")
_LEFT, _RIGHT, _LINE, _TOP, _WIDTH = 300, 30, 26, 60, 900  # pixels


@dataclass(frozen=True)
class Dot:
    """What is drawn of a row in one of the series. interval: of the mean. each: the value of every training."""

    row: str
    series: str
    mean: float
    interval: Sequence[float] | None
    each: Sequence[float]


def dot_chart(dots: Sequence[Dot], title: str) -> Image.Image:
    """Values from 0 to 1 on a common axis, series in their order below each other."""
    rows, series = (list(dict.fromkeys(getattr(dot, name) for dot in dots)) for name in ("row", "series"))
    step = _LINE * len(series)
    bottom = _TOP + step * len(rows)
    image = Image.new("RGB", (_WIDTH, bottom + 40), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(value, 0.0), 1.0)

    draw.text((12, 8), title, "black", font)
    for number, name in enumerate(series):
        draw.text((_LEFT + 160 * number, 8), name, COLORS[number % len(COLORS)], font)
    for tenth in range(0, 11, 2):
        x = across(tenth / 10)
        draw.line([(x, _TOP - 8), (x, bottom)], "#dddddd")
        draw.text((x, bottom + 8), f"{tenth / 10:g}", "#555555", font, anchor="ma")
    for number, name in enumerate(rows):
        draw.text((12, _TOP + step * (number + 0.5)), name, "black", font, anchor="lm")
    for dot in dots:
        color = COLORS[series.index(dot.series) % len(COLORS)]
        y = _TOP + step * rows.index(dot.row) + _LINE * (series.index(dot.series) + 0.5)
        if dot.interval is not None:
            draw.line([(across(dot.interval[0]), y), (across(dot.interval[1]), y)], color, 3)
        for value in dot.each:
            draw.line([(across(value), y - 8), (across(value), y + 8)], color, 1)
        draw.ellipse([across(dot.mean) - 5, y - 5, across(dot.mean) + 5, y + 5], fill=color)
    return image
