"""What a person sees of a sweep: a live table on a terminal, a line a cell in a log, JSON lines for a program."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secure_fed.sweep.record import GRID, CellError, CellResult, CellRow
from secure_fed.sweep.time_left import Durations, Like, Underway, seconds_left

if TYPE_CHECKING:
    from secure_fed.sweep.cells import Cell
    from secure_fed.sweep.pool import Slot

_LIVE_ERRORS = 3
"""Broken cells that the live table shows; the page has all."""


def label_of(row: CellRow) -> str:
    """A cell in a few words: its method, what its axes say, and what kind of reference it is."""
    said = [row.method]
    for name, value in row.factors.items():
        if value != row.method:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            said.append(f"{name.rpartition('.')[2]}={shown}")
    return " ".join([*said, *([f"({row.kind.replace('_', ' ')})"] if row.kind != GRID else [])])


def as_time(seconds: float | None) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@dataclass
class _Current:
    """A cell that runs."""

    cell: Cell
    worker: int
    began: float
    step: int = 0
    total: int = 0

    def underway(self, now: float) -> Underway:
        share = self.step / self.total if self.total else 0.0
        return Underway(_like(self.cell.row), now - self.began, share)


class Tally:
    """How far a sweep is: counts by method and kind, the cells that run, and the time left.

    expected: the rows of the cells that are known beforehand; total: how many there will be. objective: the metric
    that is shown.
    """

    def __init__(self, expected: Sequence[CellRow], total: int, workers: int, objective: str) -> None:
        self.total, self.workers, self.objective = total, workers, objective
        self.began = time.monotonic()
        self.all: Counter[Like] = Counter(_like(row) for row in expected)
        self.done: Counter[Like] = Counter()
        self.broken: Counter[Like] = Counter()
        self.running: dict[str, _Current] = {}
        self.durations = Durations()
        self.scores: defaultdict[Like, list[float]] = defaultdict(list)
        self._warm: set[int] = set()

    def start(self, cell: Cell, slot: Slot) -> None:
        """A worker was given a cell."""
        self.running[cell.row.id] = _Current(cell, slot.number, time.monotonic())

    def round(self, cell: Cell, step: int, total: int) -> None:
        """A cell's schedule has got so far."""
        self.running[cell.row.id].step, self.running[cell.row.id].total = step, total

    def end(self, cell: Cell, result: CellResult | None) -> None:
        """A cell came to an end, maybe in an earlier sitting; None: it broke."""
        like = _like(cell.row)
        (self.broken if result is None else self.done)[like] += 1
        current = self.running.pop(cell.row.id, None)
        if result is None:
            return
        seconds = result.wall_s
        if current is not None and current.worker in self._warm:
            seconds = time.monotonic() - current.began  # with what passes between two cells
        if current is not None:
            self._warm.add(current.worker)  # its first cell waited for its imports
        self.durations.add(like, seconds)
        value = result.metrics.get(self.objective)
        if value is not None:
            self.scores[like].append(value)

    @property
    def ended(self) -> int:
        """Cells that are finished or broken."""
        return self.done.total() + self.broken.total()

    def elapsed(self) -> float:
        """Seconds of this sitting."""
        return time.monotonic() - self.began

    def left(self) -> float | None:
        """Seconds until all is done; None where nothing is known yet."""
        now = time.monotonic()
        current = [cell.underway(now) for cell in self.running.values()]
        waiting = self.all - self.done - self.broken - Counter(cell.like for cell in current)
        # Of a search only the number is known: what is to come is like what has been.
        unknown = self.total - self.ended - len(current) - waiting.total()
        likes = [*waiting.elements(), *[("", GRID)] * max(0, unknown)]
        return seconds_left(self.durations, likes, current, self.workers)

    def kinds(self) -> list[Like]:
        """Method and kind of all cells known so far, the grid's first."""
        known = [*self.all, *self.done, *self.broken, *(_like(cell.cell.row) for cell in self.running.values())]
        return sorted(dict.fromkeys(known), key=lambda like: like[1] != GRID)


class LiveSweep:
    """A watcher for a person: a table that lives on a terminal, a line for each cell that ends elsewhere."""

    def __init__(self, tally: Tally, name: str, console: Console | None = None) -> None:
        self._tally, self._name = tally, name
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._errors: list[str] = []
        self._found = 0
        self._live: Live | None = None

    def __enter__(self) -> LiveSweep:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self.table, console=self._console, refresh_per_second=2, vertical_overflow="crop"
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say_found()
        if self._live is not None:
            self._live.stop()

    def found(self, cell: Cell, result: CellResult) -> None:
        """A cell was finished before."""
        self._tally.end(cell, result)
        self._found += 1

    def started(self, cell: Cell, slot: Slot) -> None:
        """A worker was given a cell."""
        self._say_found()
        self._tally.start(cell, slot)

    def round(self, cell: Cell, step: int, total: int) -> None:
        """A cell's schedule has got so far."""
        self._tally.round(cell, step, total)

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is finished."""
        self._tally.end(cell, result)
        value = result.metrics.get(self._tally.objective)
        score = "no score" if value is None else f"{value:.3f}"
        spent = "" if result.epsilon_spent is None else f"  eps {result.epsilon_spent:.2f}"
        self._line(f"{label_of(cell.row)}  {self._tally.objective} {score}{spent}  {as_time(result.wall_s)}")

    def broken(self, cell: Cell, error: CellError) -> None:
        """A cell broke."""
        self._tally.end(cell, None)
        text = f"{label_of(cell.row)}: {error.error}: {error.message.splitlines()[0] if error.message else ''}"
        self._errors.append(text)
        self._line(f"broken: {text}")

    def note(self, text: str) -> None:
        """Something to know that is no cell's."""
        self._console.print(text, markup=False)

    def tick(self) -> None:
        """The live table refreshes itself."""

    def _say_found(self) -> None:
        if self._found:
            self.note(f"{self._found} of {self._tally.total} cells are finished already and not run again")
            self._found = 0

    def _line(self, text: str) -> None:
        if self._live is None:
            tally = self._tally
            width = len(str(tally.total))
            self._console.print(
                f"cell {tally.ended:>{width}}/{tally.total}  {text}  left {as_time(tally.left())}", markup=False
            )

    def table(self) -> RenderableType:
        """What a terminal shows: counts, current cells, what broke, and the time."""
        tally, now = self._tally, time.monotonic()
        counts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        counts.add_column("method", no_wrap=True)
        counts.add_column("cells", no_wrap=True)
        for name in ("done", "broken", "running", "left"):
            counts.add_column(name, justify="right")
        counts.add_column("a cell", justify="right", no_wrap=True)
        counts.add_column(tally.objective, justify="right", no_wrap=True)
        current = Counter(_like(cell.cell.row) for cell in tally.running.values())
        for like in tally.kinds():
            broken, left = tally.broken[like], tally.all[like] - tally.done[like] - tally.broken[like] - current[like]
            mean = tally.durations.expected(like)
            counts.add_row(
                like[0],
                "grid" if like[1] == GRID else like[1].replace("_", " "),
                str(tally.done[like]),
                Text(str(broken), style="bold red" if broken else ""),
                str(current[like]),
                str(max(0, left)) if tally.all else "",
                "" if mean is None else f"{mean:.1f} s",
                f"{fmean(tally.scores[like]):.3f}" if tally.scores[like] else "",
            )
        cells = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for running in sorted(tally.running.values(), key=lambda cell: cell.worker):
            rounds = f"round {running.step}/{running.total}" if running.total else "loading"
            cells.add_row(
                Text(f"worker {running.worker}", style="dim"),
                label_of(running.cell.row),
                rounds,
                as_time(now - running.began),
            )
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            Text(self._name, style="bold"),
            f"{tally.ended}/{tally.total}",
            ProgressBar(total=max(1, tally.total), completed=tally.ended, width=24),
            f"{as_time(tally.elapsed())}, left {as_time(tally.left())}",
        )
        errors = [Text(f"broken: {text}", style="red", no_wrap=True, overflow="ellipsis") for text in self._errors]
        return Group(bar, Text(), counts, Text(), cells, *errors[-_LIVE_ERRORS:])


class JsonLines:
    """A watcher for a program: an object for each cell that ends, on standard output; notes on standard error."""

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def found(self, cell: Cell, result: CellResult) -> None:
        """A cell was finished before."""
        self._print({"status": "finished", "earlier": True, **result.model_dump(mode="json", by_alias=True)})

    def started(self, cell: Cell, slot: Slot) -> None:
        """Nothing has ended."""

    def round(self, cell: Cell, step: int, total: int) -> None:
        """Nothing has ended."""

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is finished."""
        self._print({"status": "finished", "earlier": False, **result.model_dump(mode="json", by_alias=True)})

    def broken(self, cell: Cell, error: CellError) -> None:
        """A cell broke."""
        self._print({"status": "broken", "earlier": False, **error.model_dump(mode="json", by_alias=True)})

    def note(self, text: str) -> None:
        """Something to know that is no cell's."""
        print(text, file=sys.stderr)  # noqa: T201 - the command's output

    def tick(self) -> None:
        """Nothing has ended."""

    @staticmethod
    def _print(tree: dict[str, object]) -> None:
        print(json.dumps(tree), flush=True)  # noqa: T201 - the command's output


def _like(row: CellRow) -> Like:
    return row.method, row.kind
