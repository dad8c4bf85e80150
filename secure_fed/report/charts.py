"""The pictures of a run: budget against rounds, AUROC against rounds, and who stayed to the end of a round.

Rounds count from 1 in pictures, from 0 in files. Colours come from the page's style sheet, by class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from secure_fed.report import formats
from secure_fed.report.assessment import ANY, Score, rate_lines
from secure_fed.report.budget import Budget, Curve
from secure_fed.report.run_folder import Step, Summary
from secure_fed.report.svg import (
    Frame,
    axes,
    document,
    element,
    end_labels,
    frame,
    polyline,
    steps,
)

COLOURS = 6
"""How many colours the style sheet has: c0 is the first."""
CHANCE = 0.5


def budget_chart(budget: Budget, summary: Summary, last_round: int) -> str | None:
    """Epsilon spent after each round, a line for each group of sites that spent alike, under the limit."""
    curves = [curve for curve in budget.curves if all(map(math.isfinite, curve.epsilon))]
    limit = summary.epsilon_target
    if not curves:
        return None
    highest = max([curve.total for curve in curves] + ([limit] if limit else []))
    area = frame((0, last_round + 1), (0, highest * 1.08 or 1.0), right=128)
    parts = axes(area, "round", "ε spent")
    if limit:
        y = area.y(limit)
        parts.append(element("line", class_="limit", x1=area.x.start, x2=area.x.stop, y1=y, y2=y))
        text = f"limit {formats.limit(limit)}"
        parts.append(element("text", text, class_="limit-text", x=area.x.start + 6, y=y - 6))
    labels = []
    # Many lines: only the most and the least are told apart. The largest is drawn last, on top of the others.
    named = set(range(len(curves))) if len(curves) <= COLOURS else {0, len(curves) - 1}
    for index, curve in reversed(list(enumerate(curves))):
        class_ = f"c{index % COLOURS}" if index in named else "other"
        spent = f"ε {formats.epsilon(curve.total)}"
        title = f"{', '.join(curve.sites)}: {spent}"
        parts.append(polyline(_spending(area, curve, last_round), class_, title))
        if index in named:
            labels.append((area.y(curve.total), formats.ranges(curve.sites, limit=15), spent, class_))
    parts += end_labels(area.x.stop, labels, area.y.stop, area.y.start)
    return document(area.width, area.height, "Privacy budget spent against rounds", parts)


def curve_chart(points: Sequence[tuple[float, float]], delta: float, whole: float, epsilon: float) -> str | None:
    """Epsilon against delta (logarithmic), its value at the ledger's `delta`, and the delta of `whole` = 1/N.

    From `whole` on, a guarantee allows one whole unit to be published. None without two points to join.
    """
    if len(points) < 2:
        return None
    logs = [math.log10(value) for value, _ in points]
    highest = max(max(value for _, value in points), epsilon)
    area = frame((min(logs), max(logs)), (0, highest * 1.08 or 1.0), width=720, height=300, right=28)
    parts = axes(area, "δ (logarithmic)", "ε", x_text=lambda power: formats.small(10.0**power))
    places = [(area.x(x), area.y(y)) for x, (_, y) in zip(logs, points, strict=True)]
    parts.append(polyline(places, "c0", "ε at each δ"))
    parts += _marker(area, whole, f"1/N = {formats.small(whole)}", area.y.stop + 12, "chance")
    parts += _marker(
        area, delta, f"δ = {formats.small(delta)}: ε = {formats.epsilon(epsilon)}", area.y.stop + 30, "limit"
    )
    if area.x.low <= math.log10(delta) <= area.x.high:
        x, y = area.x(math.log10(delta)), area.y(epsilon)
        parts.append(element("circle", class_="dot c0", cx=x, cy=y, r=4.0, title=f"ε = {epsilon:.4f}"))
    return document(area.width, area.height, "ε as a function of δ", parts)


def _marker(area: Frame, delta: float, text: str, y: float, class_: str) -> list[str]:
    """A line down the chart at a delta, where it lies within, with its text beside it where there is room."""
    place = math.log10(delta)
    if not area.x.low <= place <= area.x.high:
        return []
    x = area.x(place)
    right = x < (area.x.start + area.x.stop) / 2
    where: dict[str, Any] = {"x": x + 7} if right else {"x": x - 7, "text_anchor": "end"}
    return [
        element("line", class_=class_, x1=x, x2=x, y1=area.y.start, y2=area.y.stop),
        element("text", text, class_=f"{class_}-text", y=y, **where),
    ]


def _spending(area: Frame, curve: Curve, last_round: int) -> list[tuple[float, float]]:
    points = [
        (0.0, 0.0),
        *((number + 1.0, value) for number, value in zip(curve.rounds, curve.epsilon, strict=True)),
    ]
    if points[-1][0] < last_round + 1:
        points.append((last_round + 1.0, curve.total))
    return [(area.x(x), area.y(y)) for x, y in steps(points)]


def auroc_chart(rows: Sequence[Step], modalities: Sequence[str]) -> str | None:
    """Macro AUROC with everything and with each modality missing, phases shaded behind."""
    lines = auroc_lines(rows, modalities)
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return None
    low = min(CHANCE, min(values))
    high = max(values)
    margin = max(0.02, (high - low) * 0.06)
    first, last = rows[0].round + 1, rows[-1].round + 1
    area = frame((min(1, first), max(last, first + 1)), (low - margin, min(1.0, high + margin)), right=118, top=44)
    parts = [*_phases(area, rows), *axes(area, "round", "AUROC, macro")]
    y = area.y(CHANCE)
    parts.append(element("line", class_="chance", x1=area.x.start, x2=area.x.stop, y1=y, y2=y))
    parts.append(element("text", "chance", class_="chance-text", x=area.x.stop - 4, y=y - 5, text_anchor="end"))
    labels = []
    for index, (name, points) in reversed(list(enumerate(lines.items()))):
        class_ = f"c{index % COLOURS}" + (" strong" if index == 0 else "")
        places = [(area.x(number), area.y(value)) for number, value in points]
        parts.append(polyline(places, class_, f"{name}: {points[-1][1]:.3f} after round {points[-1][0]}"))
        if len(points) <= 40:
            parts += [
                element("circle", class_=f"dot {class_}", cx=x, cy=place, r=2.2, title=f"round {n}: {value:.3f}")
                for (x, place), (n, value) in zip(places, points, strict=True)
            ]
        labels.append((places[-1][1], name, f"{points[-1][1]:.3f}", class_))
    parts += end_labels(area.x.stop, labels, area.y.stop, area.y.start)
    return document(area.width, area.height, "AUROC against rounds", parts)


def rates_chart(summary: Summary, score: Score) -> str | None:
    """A macro score against the share of records that lack a modality at test, a line for each."""
    lines = rate_lines(summary, score)
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return None
    chance = CHANCE if score == "AUROC" else summary.auprc_chance or 0.0
    low, high = min(chance, *values), max(values)
    margin = max(0.02, (high - low) * 0.06)
    area = frame((0, 100), (max(0.0, low - margin), min(1.0, high + margin)), right=118)
    parts = axes(area, "% of records that lack it", f"{score}, macro")
    y = area.y(chance)
    parts.append(element("line", class_="chance", x1=area.x.start, x2=area.x.stop, y1=y, y2=y))
    parts.append(element("text", "chance", class_="chance-text", x=area.x.stop - 4, y=y - 5, text_anchor="end"))
    labels = []
    for index, (modality, points) in reversed(list(enumerate(lines.items(), start=1))):
        # A modality has the colour that its line has in the chart over rounds; the first there is everything's.
        class_ = f"c{index % COLOURS}"
        places = [(area.x(100 * rate), area.y(value)) for rate, value in points]
        name = "one of them" if modality == ANY else modality
        parts.append(polyline(places, class_, f"{name}: {points[-1][1]:.3f} where everybody lacks it"))
        parts += [
            element("circle", class_=f"dot {class_}", cx=x, cy=place, r=2.2, title=f"{100 * rate:g} %: {value:.3f}")
            for (x, place), (rate, value) in zip(places, points, strict=True)
        ]
        labels.append((places[-1][1], name, f"{points[-1][1]:.3f}", class_))
    parts += end_labels(area.x.stop, labels, area.y.stop, area.y.start)
    return document(area.width, area.height, f"{score} against the share of records that lack a modality", parts)


def auroc_lines(rows: Sequence[Step], modalities: Sequence[str]) -> Mapping[str, list[tuple[int, float]]]:
    """Name of the line -> (round from 1, AUROC) where it was evaluated."""
    lines = {"all present": [(row.round + 1, row.auroc_macro) for row in rows]}
    for name in modalities:
        lines[f"no {name}"] = [(row.round + 1, row.auroc_macro_missing.get(name)) for row in rows]
    kept = {
        name: [(number, value) for number, value in points if value is not None and not math.isnan(value)]
        for name, points in lines.items()
    }
    return {name: points for name, points in kept.items() if points}


def _phases(area: Frame, rows: Sequence[Step]) -> list[str]:
    """A band for each stretch of rounds that ran the same phases, named on top where there is room."""
    parts = []
    for index, (phases, stretch) in enumerate(groupby(rows, key=lambda row: row.phases)):
        covered = list(stretch)
        begin = max(area.x.start, area.x(covered[0].round + 0.5))
        end = min(area.x.stop, area.x(covered[-1].round + 1.5))
        name = " + ".join(phases) or "no phase"
        title = f"{name}: rounds {covered[0].round + 1} to {covered[-1].round + 1}"
        parts.append(
            element(
                "rect",
                title=title,
                class_=f"band band{index % 2}",
                x=begin,
                y=area.y.stop,
                width=max(0.0, end - begin),
                height=area.y.start - area.y.stop,
            )
        )
        if end - begin > 5.8 * len(name):
            middle = (begin + end) / 2
            parts.append(element("text", name, class_="band-text", x=middle, y=area.y.stop - 6, text_anchor="middle"))
    return parts


def survivors_chart(rows: Sequence[Step], summary: Summary) -> str | None:
    """Who began and who finished each round; None where nobody was ever away."""
    if all(row.survivors >= summary.sites for row in rows):
        return None
    last = rows[-1].round + 1
    most = max([summary.sites, *(row.participants for row in rows)])
    area = frame((0, last + 0.5), (0, most * 1.06), width=1100, height=230, right=118)
    parts = axes(area, "round", "sites", whole=True)
    width = min(26.0, (area.x.stop - area.x.start) / (last + 0.5) * 0.72)
    for row in rows:
        left = area.x(row.round + 1) - width / 2
        title = f"round {row.round + 1}: {row.participants} of {summary.sites} began, {row.survivors} stayed"
        stages = (
            ("stayed", 0, row.survivors),
            ("lost", row.survivors, row.participants),
            ("away", row.participants, summary.sites),
        )
        for class_, low, high in stages:
            if high > low:
                top = area.y(high)
                parts.append(
                    element(
                        "rect",
                        title=title,
                        class_=class_,
                        x=left,
                        y=top,
                        width=width,
                        height=area.y(low) - top,
                    )
                )
        if row.survivors < summary.sites and width > 11:
            y = area.y(row.survivors) + 13
            parts.append(
                element("text", str(row.survivors), class_="inside", x=left + width / 2, y=y, text_anchor="middle")
            )
    threshold = summary.secagg.threshold
    if summary.secagg.mode == "on" and threshold:
        y = area.y(threshold)
        parts.append(element("line", class_="limit", x1=area.x.start, x2=area.x.stop, y1=y, y2=y))
        parts.append(element("text", "threshold", class_="limit-text", x=area.x.stop + 8, y=y - 2))
        parts.append(element("text", f"{threshold} sites", class_="limit-text", x=area.x.stop + 8, y=y + 12))
    return document(area.width, area.height, "Participants and survivors per round", parts)
