"""A forest plot: one difference and its interval a row, around the line of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secure_fed.report.svg import Scale, decimals, document, element, ticks

_ROW, _LABELS, _PLOT, _NUMBERS, _TOP = 24.0, 380.0, 470.0, 210.0, 26.0
_MOST_LETTERS = 58
"""So many letters of a row's name fit beside the plot."""


@dataclass(frozen=True)
class Row:
    """A row: its name, the difference with its interval (None: one pair), the figures as text, and whether it stands
    out from noise. `strong` rows are drawn apart, as the sum of others.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    text: str
    beyond_noise: bool
    strong: bool = False


def forest(rows: Sequence[Row], axis: str) -> str:
    """The picture as SVG; `axis` says what lies to the left and right of 0. Needs at least one row."""
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    reach = (max(*ends, 0.0) - min(*ends, 0.0)) or 0.01
    scale = Scale(min(*ends, 0.0) - reach * 0.05, max(*ends, 0.0) + reach * 0.05, _LABELS, _LABELS + _PLOT)
    bottom = _TOP + _ROW * len(rows)
    marks = ticks(scale.low, scale.high, 6)
    digits = max(map(decimals, marks), default=0)
    parts = [element("text", axis, class_="label", x=_LABELS + _PLOT / 2, y=14.0, text_anchor="middle")]
    for mark in marks:
        x = scale(mark)
        parts.append(element("line", class_="axis" if mark == 0 else "grid", x1=x, x2=x, y1=_TOP, y2=bottom))
        parts.append(
            element(
                "text", f"{mark:+.{digits}f}" if mark else "0", class_="tick", x=x, y=bottom + 17, text_anchor="middle"
            )
        )
    zero = scale(0.0)
    parts.append(element("line", class_="chance", x1=zero, x2=zero, y1=_TOP, y2=bottom))
    for place, row in enumerate(rows):
        parts += _row(row, _TOP + _ROW * (place + 0.5), scale)
    return document(_LABELS + _PLOT + _NUMBERS, bottom + 26, f"{axis}: {len(rows)} rows", parts)


def _row(row: Row, y: float, scale: Scale) -> list[str]:
    colour = "c1" if row.beyond_noise else "c0"
    name = row.name if len(row.name) <= _MOST_LETTERS else f"{row.name[: _MOST_LETTERS - 1]}…"
    title = f"{row.name}: {row.text}"
    parts = [element("text", name, title=title, class_="row", x=_LABELS - 14, y=y + 4, text_anchor="end")]
    if row.low is not None and row.high is not None:
        width = "line strong" if row.strong else "line"
        parts.append(element("line", class_=f"{width} {colour}", x1=scale(row.low), x2=scale(row.high), y1=y, y2=y))
    radius = 6.0 if row.strong else 4.5
    parts.append(element("circle", title=title, class_=f"dot {colour}", cx=scale(row.value), cy=y, r=radius))
    parts.append(element("text", row.text, class_="end", x=_LABELS + _PLOT + 14, y=y + 4))
    return parts
