"""The pictures of a comparison of runs: scores, paired differences, and curves over missing rates.

Each is drawn twice, for a wide and for a narrow window. A row has one colour, mark and dash in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secure_fed.report import formats
from secure_fed.report.charts import COLOURS
from secure_fed.report.svg import MARKS, Frame, axes, document, element, end_labels, frame, mark, polyline
from secure_fed.sweep.forest import Block, Row, colour_of, forest, shortened
from secure_fed.sweep.run_comparison import Difference, RunComparison
from secure_fed.sweep.run_comparison_text import difference_text, rate_means, score_text

_MOST_LETTERS = 44
"""So many letters of a row's name fit beside a plot."""
_NARROW, _LEGEND_ROW, _SAMPLE = 388.0, 19.0, 34.0
"""Width of a telephone's page; height of a line below the plot, and length of the piece of curve in it."""


@dataclass(frozen=True)
class _Line:
    """A row's curve: (share of records, AUROC). number: its place among all rows."""

    number: int
    label: str
    points: Sequence[tuple[float, float]]

    @property
    def colour(self) -> str:
        return f"c{self.number % COLOURS}"

    @property
    def dash(self) -> str:
        """Six colours tell six rows apart; the next six are dashed otherwise, and marked otherwise."""
        return f"{self.colour} d{shape_of(self.number)}"

    @property
    def last(self) -> float:
        return self.points[-1][1]


def shape_of(number: int) -> int:
    """Mark and dash of the row with this number: others where its colour is used again."""
    return number // COLOURS % MARKS


def score_plot(found: RunComparison) -> str:
    """Every row's score and interval, a block of rows a view; empty without a score."""
    blocks = []
    for view in found.views:
        scores = [(number, group.label, group.score(view, "auroc")) for number, group in enumerate(found.groups)]
        rows = [
            Row(label, s.mean, s.low, s.high, score_text(s), f"c{number % COLOURS}", shape_of(number))
            for number, label, s in scores
            if s is not None
        ]
        if rows:
            blocks.append(Block(view.title, rows))
    return forest(blocks, "Macro AUROC of every row, by view") if blocks else ""


def difference_plot(found: RunComparison) -> str:
    """All paired differences in AUROC around 0; empty without any."""
    rows = [
        Row(
            f"{_subject(item)}, {item.view.title}",
            item.paired.difference,
            item.paired.low,
            item.paired.high,
            difference_text(item),
            colour_of(item.verdict in ("higher", "lower")),
        )
        for item in found.differences
        if item.kind == "auroc"
    ]
    title = f"Paired differences in AUROC: {formats.plural(len(rows), 'row')}"
    return forest([Block("", rows)], title, "AUROC: lower ← 0 → higher", zero=True) if rows else ""


def _subject(item: Difference) -> str:
    """`fin − zero_fill, ε 3`: what both have in common is said once."""
    method, _, setting = item.label.partition(", ")
    other, _, same = item.against.partition(", ")
    if setting and setting == same:
        return f"{method} − {other}, {setting}"
    return f"{item.label} − {item.against}"


def rate_plot(found: RunComparison, modality: str) -> str:
    """AUROC over the share of records that lack `modality`, a line a row; empty without a point."""
    rows = [_Line(number, group.label, rate_means(group, modality)) for number, group in enumerate(found.groups)]
    lines = [line for line in rows if line.points]
    if not lines:
        return ""
    title = f"AUROC by the share of records without {modality}"
    return _labelled(lines, title) + _with_legend(lines, title)


def _labelled(lines: Sequence[_Line], title: str) -> str:
    """The names at the ends of the curves."""
    names = [shortened(line.label, _MOST_LETTERS) for line in lines]
    right = 30 + 6.6 * max(map(len, names))
    height = max(330.0, 100 + 31.0 * len(lines))
    area = frame((-3, 103), _reach(lines), width=436 + right, height=height, right=right)
    labels = [
        (area.y(line.last), name, formats.score(line.last), line.colour)
        for line, name in zip(lines, names, strict=True)
    ]
    parts = [*_curves(area, lines), *end_labels(area.x.stop, labels, area.y.stop, area.y.start)]
    return document(area.width, area.height, title, parts, class_="wide")


def _with_legend(lines: Sequence[_Line], title: str) -> str:
    """The names below the plot, in the order in which the curves end."""
    area = frame((-3, 103), _reach(lines), width=_NARROW, height=300, right=8)
    parts = _curves(area, lines)
    y = area.height + 16
    for line in sorted(lines, key=lambda line: -line.last):
        parts.append(polyline([(0.0, y - 4), (_SAMPLE, y - 4)], line.dash, line.label))
        parts.append(_dot(line, _SAMPLE / 2, y - 4, line.label))
        parts.append(
            element("text", shortened(line.label, _MOST_LETTERS), title=line.label, class_="row", x=_SAMPLE + 10, y=y)
        )
        parts.append(element("text", formats.score(line.last), class_="end value", x=_NARROW, y=y, text_anchor="end"))
        y += _LEGEND_ROW
    return document(_NARROW, y, title, parts, class_="narrow")


def _reach(lines: Sequence[_Line]) -> tuple[float, float]:
    scores = [score for line in lines for _, score in line.points]
    margin = (max(scores) - min(scores)) * 0.06 or 0.01
    return min(scores) - margin, max(scores) + margin


def _curves(area: Frame, lines: Sequence[_Line]) -> list[str]:
    parts = axes(area, "% of records without it", "AUROC, macro")
    for line in lines:
        places = [(area.x(100 * rate), area.y(score)) for rate, score in line.points]
        parts.append(polyline(places, line.dash, line.label))
        parts += [
            _dot(line, x, y, f"{line.label}, {100 * rate:g} %: {score:.3f}")
            for (x, y), (rate, score) in zip(places, line.points, strict=True)
        ]
    return parts


def _dot(line: _Line, x: float, y: float, tip: str) -> str:
    return mark(shape_of(line.number), x, y, 3.0, tip, f"dot {line.colour}")
