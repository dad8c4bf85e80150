"""Running a sweep: hand cells to idle workers, keep what became of each, and stop in a usable state.

Finished cells are never run again; a broken one is kept with its error, and the rest goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from secure_fed.errors import DataError, SecureFedError
from secure_fed.federation.config import RunConfig
from secure_fed.sweep.folder import SweepFolder, no_room_left
from secure_fed.sweep.pool import Broken, Event, Finished, Pool, Round, Slot
from secure_fed.sweep.record import RESULT, CellError, CellResult, CellRow
from secure_fed.sweep.spent import abandon

if TYPE_CHECKING:
    from secure_fed.sweep.cells import Cell

_POLL_S = 0.25
_REFRESH_S = 60.0
_REFRESH_SHARE = 0.02
"""Tables and page are rewritten every minute, but take no more than this part of the time."""


Ended = Literal["done", "interrupted", "disk_full"]


class Source(Protocol):
    """Where cells come from: a list, or a search that decides by what came of the earlier ones."""

    def next(self, slot: Slot) -> Cell | None:
        """A cell for this worker, each once; None: none now. Finished ones may be given, and are not run again."""

    def finished(self, cell: Cell, result: CellResult | None) -> None:
        """What came of a cell that `next` gave; None: it broke."""

    def exhausted(self) -> bool:
        """Whether `next` will give no more cells, whatever comes of those that run."""


class Watcher(Protocol):
    """Who watches a sweep."""

    def found(self, cell: Cell, result: CellResult) -> None:
        """A cell was finished before."""

    def started(self, cell: Cell, slot: Slot) -> None:
        """A worker was given a cell."""

    def round(self, cell: Cell, step: int, total: int) -> None:
        """A cell's schedule has got so far."""

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is finished."""

    def broken(self, cell: Cell, error: CellError) -> None:
        """A cell broke."""

    def note(self, text: str) -> None:
        """Something to know that is no cell's."""

    def tick(self) -> None:
        """Time has passed."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended; `finished` counts earlier cells too."""

    finished: int
    broken: int
    ended: Ended


_Data = tuple[str, str]


class Listed:
    """A source of cells in a list: the grid with its references, or what repeat_select drew.

    A worker is given a cell whose data it holds, else one of data that no other worker was given last.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._waiting: dict[_Data, deque[Cell]] = {}
        for cell in cells:
            self._waiting.setdefault(data_of(cell.config), deque()).append(cell)
        self._held: dict[int, _Data] = {}

    def next(self, slot: Slot) -> Cell | None:
        """A cell for this worker; the earliest of the data most alike to its own."""
        if not self._waiting:
            return None
        own = data_of(slot.last.config) if slot.last is not None else None
        others = {data for number, data in self._held.items() if number != slot.number}

        def distance(data: _Data) -> tuple[bool, bool, bool]:
            return data != own, own is None or data[0] != own[0], data in others

        data = min(self._waiting, key=distance)
        cells = self._waiting[data]
        cell = cells.popleft()
        if not cells:
            del self._waiting[data]
        self._held[slot.number] = data
        return cell

    def finished(self, cell: Cell, result: CellResult | None) -> None:
        """Nothing follows from it."""

    def exhausted(self) -> bool:
        """Whether all were given."""
        return not self._waiting


def data_of(config: RunConfig) -> _Data:
    """What a worker keeps between cells: (data set and seed, how it is split among sites). Alike: not made again."""
    data = f"{config.data.model_dump_json()} {config.seed}"
    return data, f"{config.federation.model_dump_json(exclude={'rounds', 'spare_rounds'})} {config.privacy.unit}"


def run_sweep(
    folder: SweepFolder,
    source: Source,
    pool: Pool,
    watcher: Watcher,
    *,
    stop: Callable[[], bool] = lambda: False,
    refresh: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a source's cells to their end, or until `stop` says so or the disk is full; the pool is closed afterwards.

    refresh: rewrites tables and page. Raises RunAborted where no worker can start; what is finished stands then too.
    """
    run = _Running(folder, source, pool, watcher, refresh)
    try:
        ended = run.to_the_end(stop)
    except (OSError, DataError) as error:
        if not no_room_left(error):
            raise
        watcher.note(str(error))
        ended = "disk_full"
    finally:
        pool.close(kill=True)
    for cell in run.running:
        try:
            discard(folder, cell)
        except (OSError, DataError) as error:  # the way on removes it
            watcher.note(f"cells/{cell} was not removed: {error}")
    return Outcome(run.finished, run.broken, ended)


def discard(folder: SweepFolder, cell: str) -> Path:
    """Remove a cell that is not finished, once what its ledgers charged is noted; returns the path, now free."""
    if folder.cell(cell).exists():
        abandon(folder.root, folder.cell(cell))
    return folder.clear(cell)


def discard_torn(folder: SweepFolder, cells: Iterable[CellRow], watcher: Watcher) -> None:
    """Remove cells whose `cell.json` is no whole record of them: they run again."""
    for row in cells:
        if folder.result(row.id) is None and (folder.cell(row.id) / RESULT).exists():
            watcher.note(f"cells/{row.id}/{RESULT} is damaged or not of this cell, which runs again")
            discard(folder, row.id)


class _Running:
    """A sweep under way: which cells run, and how many came to an end."""

    def __init__(
        self, folder: SweepFolder, source: Source, pool: Pool, watcher: Watcher, refresh: Callable[[], None]
    ) -> None:
        self._folder, self._source, self._pool, self._watcher = folder, source, pool, watcher
        self._refresh, self._refresh_at, self._news = refresh, time.monotonic() + _REFRESH_S, False
        self.running: dict[str, Cell] = {}
        self.finished = self.broken = 0

    def to_the_end(self, stop: Callable[[], bool]) -> Ended:
        while not stop():
            self._hand_out()
            if not self.running:
                if self._source.exhausted():
                    return "done"
                raise SecureFedError("the search gives no cell and waits for none: resume the sweep")
            event = self._pool.next(_POLL_S)
            # A site answers with a fixed code, so what stopped a cell may not say that it was the disk.
            if isinstance(event, Broken) and (event.disk_full or self._folder.is_full()):
                self._watcher.note(f"cell {event.cell}: {event.message}")
                return "disk_full"
            if event is not None:
                self._take(event)
            self._watcher.tick()
            self._refresh_now_and_then()
        return "interrupted"

    def _hand_out(self) -> None:
        for slot in self._pool.idle():
            while (cell := self._source.next(slot)) is not None:
                result = self._folder.result(cell.row.id)
                if result is None:
                    self._submit(slot, cell)
                    break
                self.finished += 1
                self._watcher.found(cell, result)
                self._source.finished(cell, result)

    def _submit(self, slot: Slot, cell: Cell) -> None:
        path = discard(self._folder, cell.row.id)
        self.running[cell.row.id] = cell
        self._pool.submit(slot, cell, path)
        self._watcher.started(cell, slot)

    def _take(self, event: Event) -> None:
        cell = self.running[event.cell]
        match event:
            case Round():
                self._watcher.round(cell, event.step, event.total)
            case Finished():
                result = self._folder.result(event.cell)
                if result is None:
                    text = (
                        f"the worker wrote no {RESULT} that {self._folder.root} shows; is it on a shared file system?"
                    )
                    self._note_broken(cell, Broken(event.cell, "DataError", text, ""))
                    return
                del self.running[event.cell]
                self.finished, self._news = self.finished + 1, True
                self._watcher.finished(cell, result)
                self._source.finished(cell, result)
            case Broken():
                self._note_broken(cell, event)

    def _note_broken(self, cell: Cell, event: Broken) -> None:
        error = CellError(**cell.row.model_dump(), error=event.error, message=event.message, traceback=event.traceback)
        self._folder.save_error(error)
        del self.running[event.cell]
        self.broken, self._news = self.broken + 1, True
        self._watcher.broken(cell, error)
        self._source.finished(cell, None)

    def _refresh_now_and_then(self) -> None:
        began = time.monotonic()
        if not self._news or began < self._refresh_at:
            return
        try:
            self._refresh()
        except SecureFedError as error:
            if no_room_left(error):
                raise
            # It is raised when the sweep has ended; until then cells go on.
            self._watcher.note(f"tables and page wait: {error}")
        ended = time.monotonic()
        self._news, self._refresh_at = False, ended + max(_REFRESH_S, (ended - began) / _REFRESH_SHARE)
