"""Sweeps of real cells that take about a second each: four sites, two rounds, 200 patients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from secure_fed.sweep.cells import Cell, Sweep, read_sweep
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.pool import Slot
from secure_fed.sweep.record import CellError, CellResult

TINY = (
    "experiment=small",
    "data.patients=200",
    "federation.sites=4",
    "federation.ownership='1:0:3'",
    "federation.corrupt=0",
    "federation.rounds=2",
    "method.classify.steps=2",
    "method.classify.learning_rate=1",
    "~sweep.references.non_private",
    "~sweep.references.single_site",
    "sweep.page.series=null",
    "sweep.page.panels=null",
    "method=zero_fill",
)
"""Without a swept key: give privacy.epsilon and seed."""


@cache
def tiny(*overrides: str) -> Sweep:
    """A checked sweep, composed once."""
    return read_sweep([*TINY, *overrides])


class Recorder:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.errors: dict[str, CellError] = {}
        self.on_start = lambda cell, slot: None
        self.on_round = lambda cell, step: None

    def found(self, cell: Cell, result: CellResult) -> None:
        self.calls.append(("found", cell.row.id))

    def started(self, cell: Cell, slot: Slot) -> None:
        self.calls.append(("started", cell.row.id))
        self.on_start(cell, slot)

    def round(self, cell: Cell, step: int, total: int) -> None:
        self.calls.append((f"round {step}/{total}", cell.row.id))
        self.on_round(cell, step)

    def finished(self, cell: Cell, result: CellResult) -> None:
        self.calls.append(("finished", cell.row.id))

    def broken(self, cell: Cell, error: CellError) -> None:
        self.calls.append(("broken", cell.row.id))
        self.errors[cell.row.id] = error

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self) -> None:
        pass

    def of(self, what: str) -> list[str]:
        return [cell for said, cell in self.calls if said == what]


def begun(root: Path, sweep: Sweep) -> SweepFolder:
    """A folder with the sweep's manifest, as the command makes it before the first cell."""
    folder = SweepFolder(root)
    root.mkdir(parents=True)
    folder.save_manifest(sweep.manifest)
    return folder


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file below: what was written anew has others."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ids(cells: Sequence[Cell]) -> list[str]:
    return [cell.row.id for cell in cells]
