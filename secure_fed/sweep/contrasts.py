"""What the page compares with what, seed by seed: references, lines, and the other choices that were swept.

A difference is called visible only where the interval of its paired differences leaves out 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from secure_fed.sweep.page_data import (
    EPSILON,
    Frontier,
    Group,
    Layout,
    choice_name,
    kind_name,
    line_name,
    place_name,
    short,
)
from secure_fed.sweep.statistics import Paired, paired
from secure_fed.sweep.table import Results

NON_PRIVATE, SINGLE_SITE = "non_private", "single_site"
MOST_PLACES = 4
"""Up to so many panels a sentence names each, and they are compared with each other."""

Verdict = Literal["lower", "higher", "alike", "unknown"]


@dataclass(frozen=True)
class Comparison:
    """`subject` minus `against` in each panel and at each x of the layout; None where one of the two is absent.

    subjects: a panel each, as the best line need not be the same one everywhere. along: False where x is what differs.
    """

    question: str
    subjects: tuple[str, ...]
    against: str
    results: tuple[tuple[Paired | None, ...], ...]
    along: bool = True

    @property
    def known(self) -> list[Paired]:
        """All its differences."""
        return [result for panel in self.results for result in panel if result is not None]


def verdict(result: Paired | None) -> Verdict:
    """`higher` or `lower` where the paired interval leaves out 0, `alike` where it holds 0.

    `unknown` without an interval: one common seed, or none.
    """
    if result is None or result.low is None or result.high is None:
        return "unknown"
    if result.low > 0:
        return "higher"
    return "lower" if result.high < 0 else "alike"


def comparisons(results: Results, picture: Frontier) -> list[Comparison]:
    """What privacy costs, what each swept choice changes, whether a site alone is as good: those that can be told."""
    found = [
        *_against_reference(results, picture, NON_PRIVATE, "What privacy costs"),
        *_between_lines(results, picture),
        *_along_choices(results, picture),
        *_between_panels(results, picture),
        *_against_reference(results, picture, SINGLE_SITE, "Whether joining pays"),
    ]
    return [comparison for comparison in found if comparison.known]


def champion(picture: Frontier, panel: int, metric: str) -> list[Group]:
    """The groups of the line that is best on average over a panel, along x; empty where none has a score.

    One line for the whole panel: the best at each x anew would add the luck of choosing to every difference.
    """
    lines: dict[int | None, list[Group]] = {}
    for group in picture.grid:
        if panel in group.panels and group.scores(metric):
            lines.setdefault(group.series, []).append(group)
    # A line that lacks its hard cells would look better than it is: the longest lines compete.
    longest = max(map(len, lines.values()), default=0)
    complete = [line for line in lines.values() if len(line) == longest]
    return max(complete, key=lambda line: average(line, metric), default=[])


def average(line: Sequence[Group], metric: str) -> float:
    """The mean over a line's groups of their means."""
    means = [sum(scores.values()) / len(scores) for scores in (group.scores(metric) for group in line)]
    return sum(means) / len(means)


def compare(first: Group | None, second: Group | None, results: Results) -> Paired | None:
    """The objective of `second` minus that of `first`, over the seeds that both have."""
    if first is None or second is None:
        return None
    metric = results.manifest.objective
    return paired(first.scores(metric), second.scores(metric), results.manifest.confidence)


def _against_reference(results: Results, picture: Frontier, kind: str, question: str) -> list[Comparison]:
    """The best line of each panel against the reference that has its factors.

    Where lines are budgets every one is told: the largest is no choice that was found to be good.
    """
    layout, panels = picture.layout, range(len(picture.layout.places))
    if layout.series == EPSILON:
        every = [
            [[g for g in picture.grid if panel in g.panels and g.series == series] for panel in panels]
            for series in range(len(layout.lines))
        ]
    else:
        every = [[champion(picture, panel, results.manifest.objective) for panel in panels]]
    against = "the same without privacy" if kind == NON_PRIVATE else kind_name(kind)
    found = []
    for lines in every:
        rows = []
        for line in lines:
            # Without privacy on both sides nothing would be told about what it costs.
            told = [group for group in line if kind != NON_PRIVATE or group.cells[0].privacy == "dp"]
            at = {group.x: compare(picture.reference(kind, group), group, results) for group in told}
            rows.append(tuple(at.get(x) for x in range(len(layout.xs))))
        subjects = tuple(_line(layout, line[0]) if line else "" for line in lines)
        found.append(Comparison(question, subjects, against, tuple(rows)))
    return found


def _between_lines(results: Results, picture: Frontier) -> list[Comparison]:
    """Each line against the first, which presets make the plainest."""
    layout = picture.layout
    if layout.series is None:
        return []

    def rows(series: int) -> _Rows:
        return _table(layout, lambda panel, x: _difference(results, picture, (panel, x, 0), (panel, x, series)))

    return [
        Comparison(
            _question(layout.series),
            (line_name(layout, series),) * len(layout.places),
            line_name(layout, 0),
            rows(series),
        )
        for series in range(1, len(layout.lines))
    ]


def _along_choices(results: Results, picture: Frontier) -> list[Comparison]:
    """Each choice along x against the first, on the best line of a panel; of numbers only where there are no lines."""
    layout = picture.layout
    if layout.x is None or (layout.numeric and layout.series is not None):
        return []
    best = [_best_series(results, picture, panel) for panel in range(len(layout.places))]

    def rows(chosen: int) -> _Rows:
        def cell(panel: int, x: int) -> Paired | None:
            return (
                _difference(results, picture, (panel, 0, best[panel]), (panel, x, best[panel])) if x == chosen else None
            )

        return _table(layout, cell)

    return [
        Comparison(
            _question(layout.x),
            tuple(_with_line(layout, choice_name(layout.x, layout.xs[chosen]), series) for series in best),
            choice_name(layout.x, layout.xs[0]),
            rows(chosen),
            along=False,
        )
        for chosen in range(1, len(layout.xs))
    ]


def _between_panels(results: Results, picture: Frontier) -> list[Comparison]:
    """Each panel against the first, on the line that is best in the first."""
    layout = picture.layout
    if not 1 < len(layout.places) <= MOST_PLACES:
        return []
    best = _best_series(results, picture, 0)

    def rows(other: int) -> _Rows:
        def cell(panel: int, x: int) -> Paired | None:
            return _difference(results, picture, (0, x, best), (panel, x, best)) if panel == other else None

        return _table(layout, cell)

    return [
        Comparison(
            f"What {' and '.join(map(short, layout.panels))} changes",
            (_with_line(layout, place_name(layout, other), best),) * len(layout.places),
            place_name(layout, 0),
            rows(other),
        )
        for other in range(1, len(layout.places))
    ]


_Rows = tuple[tuple[Paired | None, ...], ...]


def _table(layout: Layout, cell: Callable[[int, int], Paired | None]) -> _Rows:
    """A result for each panel and x."""
    return tuple(tuple(cell(panel, x) for x in range(len(layout.xs))) for panel in range(len(layout.places)))


def _difference(
    results: Results, picture: Frontier, first: tuple[int, int, int | None], second: tuple[int, int, int | None]
) -> Paired | None:
    """Between two groups of the grid, by (panel, x, series)."""

    def group(panel: int, x: int, series: int | None) -> Group | None:
        return next((found for found in picture.at(panel, x) if found.series == series), None)

    return compare(group(*first), group(*second), results)


def _best_series(results: Results, picture: Frontier, panel: int) -> int | None:
    line = champion(picture, panel, results.manifest.objective)
    return line[0].series if line else None


def _question(factor: str) -> str:
    return "Whether imputation helps" if factor == "method" else f"What {short(factor)} changes"


def _line(layout: Layout, group: Group) -> str:
    return "the model" if layout.series is None else line_name(layout, group.series)


def _with_line(layout: Layout, choice: str, series: int | None) -> str:
    """A choice and the line on which it was looked at."""
    return choice if series is None else f"{choice} (on {line_name(layout, series)})"
