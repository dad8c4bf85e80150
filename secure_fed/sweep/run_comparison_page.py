"""The comparison of runs as one self-contained page: scores with intervals, curves over missing rates, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from secure_fed.files import write_whole
from secure_fed.report import formats
from secure_fed.report.charts import COLOURS
from secure_fed.report.page import Figure, resource, templates
from secure_fed.report.svg import Scale, axes, decimals, document, element, end_labels, frame, polyline, ticks
from secure_fed.sweep.forest import Row, forest
from secure_fed.sweep.run_comparison import Difference, RunComparison
from secure_fed.sweep.run_comparison_text import (
    difference_text,
    headline,
    rate_means,
    rate_modalities,
    score_text,
    tables,
)

_ROW, _PLOT, _NUMBERS, _TOP = 22.0, 660.0, 190.0, 26.0
_MOST_LETTERS = 44
"""So many letters of a row's name fit beside a plot."""


def write_page(found: RunComparison, path: Path) -> Path:
    """Write the page and return its path; raises DataError where it cannot be written."""
    environment = templates().overlay(loader=jinja2.PackageLoader("secure_fed.sweep"))
    summaries = [summary for group in found.groups for summary in group.summaries]
    page = environment.get_template("compare_runs.html.j2").render(
        c=found,
        f=formats,
        style=Markup(resource("report.css")),  # noqa: S704 - our own file
        title=formats.listed(list(dict.fromkeys(group.first.method for group in found.groups))),
        runs=len(summaries),
        void=[summary.name for summary in summaries if summary.insecure_reproducible],
        off=any(summary.privacy == "off" for summary in summaries),
        headline=headline(found),
        figures=_figures(found),
        tables=tables(found),
    )
    return write_whole(path, page)


def _figures(found: RunComparison) -> list[Figure]:
    drawn = [
        (
            "Macro AUROC on the hold-out",
            score_plot(found),
            "A dot is a row's score, its line the 95 % interval: of a single run a bootstrap over the hold-out's "
            "patients, of several seeds Student's over the runs.",
            True,
        ),
        (
            "Paired differences in AUROC",
            difference_plot(found),
            "Over common seeds, on the same patients and under the same privacy. Orange: the interval leaves out 0.",
            True,
        ),
        *(
            (
                f"AUROC when {'one modality by lot' if modality == 'any' else modality} is missing",
                rate_plot(found, modality),
                "By the share of the hold-out's records that lack it; the same records for every row.",
                False,
            )
            for modality in rate_modalities(found)
        ),
    ]
    return [Figure(title, Markup(svg), caption, wide) for title, svg, caption, wide in drawn if svg]  # noqa: S704 - ours


def score_plot(found: RunComparison) -> str:
    """Every row's score and interval, a block of rows a view; empty without a score."""
    blocks = [
        [
            (number, group.label, score)
            for number, group in enumerate(found.groups)
            if (score := group.score(view, "auroc"))
        ]
        for view in found.views
    ]
    ends = [end for rows in blocks for *_, s in rows for end in (s.mean, s.low, s.high) if end is not None]
    if not ends:
        return ""
    margin = (max(ends) - min(ends)) * 0.05 or 0.01
    left = 24 + 6.8 * max(len(_short(label)) for rows in blocks for _, label, _ in rows)
    scale = Scale(min(ends) - margin, max(ends) + margin, left, left + _PLOT)
    bottom = _TOP + _ROW * sum(len(rows) + 1 for rows in blocks if rows)
    marks = ticks(scale.low, scale.high, 8)
    digits = max(map(decimals, marks), default=0)
    parts = []
    for mark in marks:
        x = scale(mark)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=_TOP - 8, y2=bottom))
        parts.append(element("text", f"{mark:.{digits}f}", class_="tick", x=x, y=bottom + 17, text_anchor="middle"))
    y = _TOP
    for view, rows in zip(found.views, blocks, strict=True):
        if rows:
            parts.append(element("text", view.title, class_="label", x=left - 14, y=y + 4, text_anchor="end"))
            y += _ROW
        for number, label, score in rows:
            colour, text = f"c{number % COLOURS}", score_text(score)
            title = f"{label}, {view.title}: {text}"
            parts.append(
                element("text", _short(label), title=title, class_="row", x=left - 14, y=y + 4, text_anchor="end")
            )
            if score.low is not None and score.high is not None:
                low, high = scale(score.low), scale(score.high)
                parts.append(element("line", class_=f"line {colour}", x1=low, x2=high, y1=y, y2=y))
            parts.append(element("circle", title=title, class_=f"dot {colour}", cx=scale(score.mean), cy=y, r=4.5))
            parts.append(element("text", text, class_="end", x=scale.stop + 14, y=y + 4))
            y += _ROW
    return document(scale.stop + _NUMBERS, bottom + 26, "Macro AUROC of every row, by view", parts)


def difference_plot(found: RunComparison) -> str:
    """All paired differences in AUROC around 0; empty without any."""
    rows = [
        Row(
            f"{_subject(item)}, {item.view.title}",
            item.paired.difference,
            item.paired.low,
            item.paired.high,
            difference_text(item),
            item.verdict in ("higher", "lower"),
        )
        for item in found.differences
        if item.kind == "auroc"
    ]
    return forest(rows, "AUROC: lower ← 0 → higher") if rows else ""


def _subject(item: Difference) -> str:
    """`fin − zero_fill, ε 3`: what both have in common is said once."""
    method, _, setting = item.label.partition(", ")
    other, _, same = item.against.partition(", ")
    if setting and setting == same:
        return f"{method} − {other}, {setting}"
    return f"{item.label} − {item.against}"


def rate_plot(found: RunComparison, modality: str) -> str:
    """AUROC over the share of records that lack `modality`, a line a row; empty without a point."""
    lines = [(number, group.label, rate_means(group, modality)) for number, group in enumerate(found.groups)]
    lines = [line for line in lines if line[2]]
    scores = [score for *_, points in lines for _, score in points]
    if not scores:
        return ""
    margin = (max(scores) - min(scores)) * 0.06 or 0.01
    names = [_short(label) for _, label, _ in lines]
    right = 30 + 6.6 * max(len(name) for name in names)
    height = max(330.0, 100 + 31.0 * len(lines))
    area = frame((-3, 103), (min(scores) - margin, max(scores) + margin), width=436 + right, height=height, right=right)
    parts = axes(area, "% of records without it", "AUROC, macro")
    labels = []
    for (number, label, points), name in zip(lines, names, strict=True):
        colour = f"c{number % COLOURS}"
        places = [(area.x(100 * rate), area.y(score)) for rate, score in points]
        parts.append(polyline(places, colour, label))
        parts += _marks(places, [f"{label}, {100 * rate:g} %: {score:.3f}" for rate, score in points], colour)
        labels.append((places[-1][1], name, formats.score(points[-1][1]), colour))
    parts += end_labels(area.x.stop, labels, area.y.stop, area.y.start)
    return document(area.width, area.height, f"AUROC by the share of records without {modality}", parts)


def _marks(places: Sequence[tuple[float, float]], titles: Sequence[str], colour: str) -> list[str]:
    return [
        element("circle", class_=f"dot {colour}", cx=x, cy=y, r=2.6, title=title)
        for (x, y), title in zip(places, titles, strict=True)
    ]


def _short(label: str) -> str:
    return label if len(label) <= _MOST_LETTERS else f"{label[: _MOST_LETTERS - 1]}…"
