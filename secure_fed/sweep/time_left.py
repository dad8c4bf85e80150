"""How long a sweep will still take, from how long cells like those that are left have taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Like = tuple[str, str]
"""Cells that take about equally long: method and kind."""


@dataclass(frozen=True)
class Underway:
    """A cell that runs: how long so far in seconds, and what part of its schedule is behind it."""

    like: Like
    elapsed: float
    share: float


class Durations:
    """Seconds that finished cells took, by what they were like."""

    def __init__(self) -> None:
        self._sums: dict[Like, tuple[int, float]] = {}

    def add(self, like: Like, seconds: float) -> None:
        """A cell like this took so long."""
        count, total = self._sums.get(like, (0, 0.0))
        self._sums[like] = (count + 1, total + seconds)

    def expected(self, like: Like) -> float | None:
        """Mean of those alike; else of the same kind, else of the same method, else of all; None: nothing is known."""
        for alike in (
            lambda other: other == like,
            lambda other: other[1] == like[1],
            lambda other: other[0] == like[0],
            lambda other: True,
        ):
            matching = [entry for other, entry in self._sums.items() if alike(other)]
            if matching:
                return sum(total for _, total in matching) / sum(count for count, _ in matching)
        return None


def seconds_left(
    durations: Durations, waiting: Iterable[Like], underway: Iterable[Underway], workers: int
) -> float | None:
    """Seconds until the last cell ends when `workers` share what is left evenly; None where nothing is known yet.

    Never less than what the longest of the running cells still needs.
    """
    running = list(underway)
    rests = [_rest(durations, cell) for cell in running]
    totals = [durations.expected(cell.like) or _projected(cell) for cell in running]
    fallback = max((total for total in totals if total is not None), default=None)
    work = 0.0
    for like in waiting:
        expected = durations.expected(like) or fallback
        if expected is None:
            return None
        work += expected
    known = [rest for rest in rests if rest is not None]
    if len(known) < len(rests):
        return None
    return max([(work + sum(known)) / max(1, workers), *known], default=0.0)


def _projected(cell: Underway) -> float | None:
    """What a running cell takes in all if its rounds go on as they went."""
    return cell.elapsed / cell.share if cell.share > 0 else None


def _rest(durations: Durations, cell: Underway) -> float | None:
    expected = durations.expected(cell.like) or _projected(cell)
    return None if expected is None else max(0.0, expected - cell.elapsed)
