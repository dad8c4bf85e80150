"""Scales, axes and text of hand-built SVG: the page's style sheet colours them, in light, dark and print.

Nothing here knows what is drawn; every text and attribute is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

LABEL_HEIGHT = 15.0
"""Least distance between the baselines of two labels, in user units."""


@dataclass(frozen=True)
class Scale:
    """Linear map of [low, high] to [start, stop] in user units."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Where `value` lies, in user units."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart: its scales, and its size with margins."""

    x: Scale
    y: Scale
    width: float
    height: float


def frame(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    width: float = 540,
    height: float = 330,
    right: float = 104,
    top: float = 30,
) -> Frame:
    """A frame of `width` x `height` whose right margin of `right` is for labels of lines."""
    return Frame(Scale(*x, 44, width - right), Scale(*y, height - 46, top), width, height)


def element(name: str, text: str | None = None, *, title: str | None = None, **attributes: object) -> str:
    """One SVG element; `title` becomes its tooltip, `class_` class and `text_anchor` text-anchor."""
    pairs = (
        (key.rstrip("_").replace("_", "-"), number(value) if isinstance(value, float) else str(value))
        for key, value in attributes.items()
    )
    head = f"<{name}" + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    inside = (f"<title>{escape(title)}</title>" if title else "") + (escape(text) if text is not None else "")
    return f"{head}>{inside}</{name}>" if inside else f"{head}/>"


def document(width: float, height: float, title: str, parts: Iterable[str], class_: str = "") -> str:
    """The whole picture; `title` is what a screen reader says.

    Of two pictures of the same, the style sheet shows class `wide` or `narrow`, by the window.
    """
    named = f'class="{class_}" ' if class_ else ""
    return (
        f'<svg {named}viewBox="0 0 {number(width)} {number(height)}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def axes(
    area: Frame, x_label: str, y_label: str, *, whole: bool = False, x_text: Callable[[float], str] = "{:.0f}".format
) -> list[str]:
    """Grid lines with their values (only whole ones where they count things), whole numbers below, both labels.

    `x_text` writes a number below the axis.
    """
    left, right, bottom = area.x.start, area.x.stop, area.y.start
    parts = []
    values = [tick for tick in ticks(area.y.low, area.y.high, 6) if not whole or tick == int(tick)]
    digits = max((decimals(tick) for tick in values), default=0)
    for tick in values:
        y = area.y(tick)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(element("text", f"{tick:.{digits}f}", class_="tick", x=left - 7, y=y + 3.5, text_anchor="end"))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    for tick in ticks(area.x.low, area.x.high, 8):
        if tick == int(tick):
            x = area.x(tick)
            parts.append(element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
            parts.append(element("text", x_text(tick), class_="tick", x=x, y=bottom + 17, text_anchor="middle"))
    middle = (left + right) / 2
    parts.append(element("text", x_label, class_="label", x=middle, y=bottom + 36, text_anchor="middle"))
    parts.append(element("text", y_label, class_="label", x=4.0, y=14.0))
    return parts


MARKS = 4
"""How many marks can be told apart."""


def mark(shape: int, x: float, y: float, radius: float, title: str, class_: str) -> str:
    """A dot of one of `MARKS` shapes, of about one area: disc, square, triangle, diamond."""
    if shape == 0:
        return element("circle", title=title, class_=class_, cx=x, cy=y, r=radius)
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0.0, -1.35), (1.3, 0.95), (-1.3, 0.95)],
        3: [(0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)],
    }[shape]
    points = " ".join(f"{number(x + radius * across)},{number(y + radius * down)}" for across, down in corners)
    return element("polygon", title=title, class_=class_, points=points)


def polyline(points: Sequence[tuple[float, float]], class_: str, title: str) -> str:
    """A line through points in user units."""
    path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return element("polyline", title=title, class_=f"line {class_}", points=path)


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A staircase: each value holds until the next x."""
    stairs = [points[0]]
    for x, y in points[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    return stairs


def end_labels(x: float, labels: Sequence[tuple[float, str, str, str]], low: float, high: float) -> list[str]:
    """Labels (y, name, value, class) of lines at their right ends, pushed apart within [low, high].

    The name stands above its value; both keep their order from top to bottom.
    """
    ordered = sorted(labels)
    gap = 2 * LABEL_HEIGHT
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + gap if places else low))
    overflow = places[-1] - high if places else 0.0
    for index in reversed(range(len(places))):
        if overflow > 0:
            limit = places[index + 1] - gap if index + 1 < len(places) else high
            places[index] = min(places[index], limit)
    parts = []
    for place, (y, name, value, class_) in zip(places, ordered, strict=True):
        parts.append(element("path", class_=f"leader {class_}", d=_leader(x, y, place)))
        parts.append(element("text", name, class_=f"end {class_}", x=x + 14, y=place - 1))
        parts.append(element("text", value, class_="end value", x=x + 14, y=place + LABEL_HEIGHT - 3))
    return parts


def _leader(x: float, y: float, place: float) -> str:
    return f"M{number(x + 2)} {number(y)}L{number(x + 11)} {number(place + 2)}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers within [low, high]."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def decimals(value: float) -> int:
    """Decimals that a round number needs, four at the most: 0.005 must not read as 0.01."""
    return len(f"{value:.4f}".rstrip("0").partition(".")[2])


def number(value: float) -> str:
    """A coordinate with at most two decimals, so that pages stay small and comparable."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
