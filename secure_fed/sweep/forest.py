"""A forest plot: a figure and its interval a row, wide with names beside the plot, and narrow with them above it.

Both pictures are in the page, and its style sheet shows the one that fits the window.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from secure_fed.report.svg import Scale, decimals, document, element, mark, ticks

_WIDTH, _FIGURES, _ROW, _TOP = 1060.0, 200.0, 23.0, 26.0
_MOST_LETTERS = 58
"""So many letters of a row's name fit beside the plot; narrow, a name takes as many lines as it needs."""

_NARROW, _LETTERS, _LINE, _STRIP, _EDGE = 388.0, 36, 15.0, 22.0, 12.0
"""Width of a telephone's page, letters beside a row's figures, height of a line of text and of a row's marks."""


@dataclass(frozen=True)
class Row:
    """A row: its name, the figure with its interval (None: one pair or run), and both as text.

    `colour` is a class of the style sheet, `shape` that of the mark. `strong` rows are drawn apart, as the sum of
    others.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    text: str
    colour: str
    shape: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under a title, which may be empty."""

    title: str
    rows: Sequence[Row]


def colour_of(beyond_noise: bool) -> str:
    """A difference that stands out from noise is orange, any other blue."""
    return "c1" if beyond_noise else "c0"


def forest(blocks: Sequence[Block], title: str, axis: str = "", *, zero: bool = False) -> str:
    """Both pictures as SVG; `title` is what a screen reader says, `axis` stands above the plot.

    With `zero` the rows are differences, and a line marks none. Needs at least one row.
    """
    return _wide(blocks, title, axis, zero) + _narrow(blocks, title, axis, zero)


def _wide(blocks: Sequence[Block], title: str, axis: str, zero: bool) -> str:
    rows = [row for block in blocks for row in block.rows]
    left = 24 + 6.8 * max(len(shortened(row.name)) for row in rows)
    scale = _scale(rows, zero, left, _WIDTH - _FIGURES)
    titled = sum(bool(block.title) for block in blocks)
    bottom = _TOP + _ROW * (len(rows) + titled)
    parts = [*_axis(axis, (scale.start + scale.stop) / 2), *_grid(scale, bottom, zero, 8)]
    y = _TOP + _ROW / 2
    for block in blocks:
        if block.title:
            parts.append(element("text", block.title, class_="label", x=left - 14, y=y + 4, text_anchor="end"))
            y += _ROW
        for row in block.rows:
            name, tip = shortened(row.name), _tip(block, row)
            parts.append(element("text", name, title=tip, class_="row", x=left - 14, y=y + 4, text_anchor="end"))
            parts += _marks(row, tip, y, scale)
            parts.append(element("text", row.text, class_="end", x=scale.stop + 14, y=y + 4))
            y += _ROW
    return document(_WIDTH, bottom + 26, title, parts, class_="wide")


def _narrow(blocks: Sequence[Block], title: str, axis: str, zero: bool) -> str:
    rows = [row for block in blocks for row in block.rows]
    scale = _scale(rows, zero, _EDGE, _NARROW - _EDGE)
    parts = []
    y = _TOP + _LINE
    for block in blocks:
        if block.title:
            parts.append(element("text", block.title, class_="label", x=0.0, y=y + 4))
            y += _LINE + 8
        for row in block.rows:
            tip = _tip(block, row)
            parts.append(element("text", row.text, class_="end", x=_NARROW, y=y, text_anchor="end"))
            for line in textwrap.wrap(row.name, _LETTERS):
                parts.append(element("text", line, title=tip, class_="row", x=0.0, y=y))
                y += _LINE
            parts += _marks(row, tip, y - 3, scale)
            y += _STRIP
    bottom = y - _LINE
    head = [*_axis(axis, _NARROW / 2), *_grid(scale, bottom, zero, 4)]
    return document(_NARROW, bottom + 26, title, head + parts, class_="narrow")


def _scale(rows: Sequence[Row], zero: bool, start: float, stop: float) -> Scale:
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    ends += [0.0] if zero else []
    margin = (max(ends) - min(ends)) * 0.05 or 0.01
    return Scale(min(ends) - margin, max(ends) + margin, start, stop)


def _axis(text: str, x: float) -> list[str]:
    return [element("text", text, class_="label", x=x, y=14.0, text_anchor="middle")] if text else []


def _grid(scale: Scale, bottom: float, zero: bool, most: int) -> list[str]:
    values = ticks(scale.low, scale.high, most)
    digits = max(map(decimals, values), default=0)
    sign = "+" if zero else ""
    parts = []
    for value in values:
        x, text = scale(value), f"{value:{sign}.{digits}f}".replace("-", "−") if value else "0"
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=_TOP - 6, y2=bottom))
        parts.append(element("text", text, class_="tick", x=x, y=bottom + 17, text_anchor="middle"))
    if zero:
        x = scale(0.0)
        parts.append(element("line", class_="chance", x1=x, x2=x, y1=_TOP - 6, y2=bottom))
    return parts


def _marks(row: Row, tip: str, y: float, scale: Scale) -> list[str]:
    parts = []
    if row.low is not None and row.high is not None:
        class_ = f"line {'strong ' if row.strong else ''}{row.colour}"
        parts.append(element("line", class_=class_, x1=scale(row.low), x2=scale(row.high), y1=y, y2=y))
    parts.append(mark(row.shape, scale(row.value), y, 6.0 if row.strong else 4.5, tip, f"dot {row.colour}"))
    return parts


def _tip(block: Block, row: Row) -> str:
    return f"{row.name}{f', {block.title}' if block.title else ''}: {row.text}"


def shortened(name: str, most: int = _MOST_LETTERS) -> str:
    """`name` in `most` letters, without its middle: what tells the views of one difference apart stands at its end."""
    end = most // 3
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
