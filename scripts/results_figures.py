"""The pictures of `docs/results.md`: curves as SVG files that stand alone, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from results_studies import BASELINE, Study, Table, difference

from secure_fed.report.charts import COLOURS
from secure_fed.report.page import resource
from secure_fed.report.svg import Frame, axes, document, element, end_labels, frame, polyline

_WIDTH, _HEIGHT = 680.0, 360.0
_RATE = "auroc_rate.any."
_HUNDREDTHS = 100.0
"""Axes have whole numbers only, so shares are drawn in hundredths and written as shares."""


@dataclass(frozen=True)
class Point:
    """A mean at x, with its interval where it has one."""

    x: float
    mean: float
    low: float | None
    high: float | None


def standalone(picture: str) -> str:
    """An SVG of our own as a file: its namespace, and the page's colours for light and dark on a ground of its own."""
    variables, _, rest = resource("report.css").partition("* { box-sizing")
    rules = [line for line in rest.splitlines() if line.startswith("svg ")]
    ground = "svg { font-family: system-ui, sans-serif; background: var(--paper); }"
    style = "\n".join([variables.strip(), ground, *rules])
    head, _, body = picture.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">\n<style>\n{style}\n</style>\n{body}\n'


def curves(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[Point]], *, zero: bool) -> str | None:
    """Lines over shares in [0, 1] with their intervals; `zero`: the line of no difference. None without a line."""
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    ends = [end for points in lines.values() for p in points for end in (p.mean, p.low, p.high) if end is not None]
    if zero:
        ends.append(0.0)
    margin = (max(ends) - min(ends)) * 0.06 or 0.01
    area = frame((-2, 102), (min(ends) - margin, max(ends) + margin), width=_WIDTH, height=_HEIGHT, right=150)
    parts = axes(area, x_label, y_label, x_text=lambda value: f"{value / _HUNDREDTHS:g}")
    if zero:
        y = area.y(0.0)
        parts.append(element("line", class_="chance", x1=area.x.start, x2=area.x.stop, y1=y, y2=y))
    labels = []
    for number, (name, points) in enumerate(lines.items()):
        parts += _line(area, name, points, f"c{number % COLOURS}", (number - (len(lines) - 1) / 2) * 3.0)
        last = points[-1]
        text = f"{last.mean:+.3f}" if zero else f"{last.mean:.3f}"
        labels.append((area.y(last.mean), name, text.replace("-", "−"), f"c{number % COLOURS}"))
    parts += end_labels(area.x.stop, labels, area.y.stop, area.y.start)
    return standalone(document(area.width, area.height, title, parts))


def _line(area: Frame, name: str, points: Sequence[Point], colour: str, aside: float) -> list[str]:
    """`aside`: marks of different lines at one x stand beside each other."""
    places = [(area.x(_HUNDREDTHS * point.x) + aside, area.y(point.mean)) for point in points]
    parts = [polyline(places, colour, name)]
    for (x, y), point in zip(places, points, strict=True):
        if point.low is not None and point.high is not None:
            low, high = area.y(point.low), area.y(point.high)
            parts.append(element("line", class_=f"line {colour}", x1=x, x2=x, y1=low, y2=high, opacity=0.45))
        parts.append(element("circle", class_=f"dot {colour}", cx=x, cy=y, r=3.0, title=f"{name}: {point.mean:+.3f}"))
    return parts


def gain_curves(study: Study, tables: Sequence[Table], factor: str, metric: str) -> dict[str, list[Point]]:
    """Row -> its paired differences to the baseline, over a numeric factor."""
    found: dict[str, list[Point]] = {}
    for x, table in _along(tables, factor):
        base = table.row(BASELINE)
        if base is None:
            continue
        for row in table.rows:
            result = difference(base, row, metric, study.confidence)
            if row is not base and result is not None:
                found.setdefault(row.name, []).append(Point(x, result.difference, result.low, result.high))
    return found


def _along(tables: Sequence[Table], factor: str) -> list[tuple[float, Table]]:
    found = []
    for table in tables:
        value = dict(table.setting.factors).get(factor)
        if isinstance(value, int | float):
            found.append((float(value), table))
    return sorted(found, key=lambda pair: pair[0])


def rate_curves(study: Study, table: Table, names: Sequence[str]) -> dict[str, list[Point]]:
    """Row -> its AUROC where a share of the records lacks one modality by lot (`auroc_rate.any.<rate>`)."""
    found: dict[str, list[Point]] = {}
    for row in (row for row in table.rows if row.name in names):
        keys = {key for cell in row.cells.values() for key in cell.metrics if key.startswith(_RATE)}
        for key in sorted(keys, key=_rate):
            if (mean := row.interval(key, study.confidence)) is not None:
                found.setdefault(row.name, []).append(Point(_rate(key), mean.mean, None, None))
    return found


def _rate(key: str) -> float:
    return float(key.removeprefix(_RATE))
