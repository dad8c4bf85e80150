"""CSV files as released, plain or gzipped, read row by row; and what is wrong with files, with a place to look.

A fault never repeats what a cell or a report holds: it may be printed, and mailed to somebody.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from secure_fed.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where something stands. `shown` is the file's name without patients in it; `file` may hold an id."""

    file: Path
    shown: str
    line: int | None = None

    def at(self, line: int) -> Place:
        """A line of the same file, counted from 1."""
        return Place(self.file, self.shown, line)

    def __str__(self) -> str:
        return self.shown if self.line is None else f"{self.shown}, line {self.line}"


@dataclass(frozen=True)
class Fault:
    """Something wrong, fit to be shown to anybody."""

    place: Place
    problem: str


@dataclass
class Faults:
    """Raises DataError at the first fault, naming the file; or collects them all, for `data check`."""

    collect: bool = False
    found: list[Fault] = field(default_factory=list)

    def add(self, place: Place, problem: str) -> None:
        """Note what is wrong at `place`. Raises DataError unless faults are collected."""
        if not self.collect:
            line = "" if place.line is None else f", line {place.line}"
            raise DataError(f"{place.file}{line}: {problem}")
        self.found.append(Fault(place, problem))


@dataclass(frozen=True)
class Row:
    """One row of a table: its stripped cells by column, and where it stands."""

    place: Place
    cells: Mapping[str, str]


def find_table(root: Path, name: str) -> Path | None:
    """`root`/`name`, or the same with .gz; None where neither is there."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def read_table(path: Path, columns: Sequence[str], faults: Faults) -> Iterator[Row]:
    """The rows of a CSV in UTF-8 with a header line that has `columns` in any order, others being passed on too.

    A row with too many or too few cells, or that is not UTF-8, is a fault and left out; a missing column, or a file
    that cannot be read on, is a fault and ends the table.
    """
    place = Place(path, path.name)
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not _fits(header, columns, place.at(1), faults):
            return
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                faults.add(place.at(lines.number), f"is not CSV ({error})")
                continue
            here = place.at(lines.number)
            if lines.take_damage():
                faults.add(here, "is not UTF-8: save the file as UTF-8")
            elif len(cells) != len(header):
                if any(cell.strip() for cell in cells):
                    faults.add(here, f"has {len(cells)} cells where the header has {len(header)}")
            else:
                yield Row(here, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    except csv.Error as error:
        faults.add(place.at(1), f"is not CSV ({error})")
    except (OSError, EOFError, zlib.error) as error:
        faults.add(place.at(lines.number), f"cannot be read on ({_reason(error)}): fetch the file again")


def read_text(place: Place, faults: Faults) -> str | None:
    """A UTF-8 text file, whole; None, and a fault, where it cannot be read."""
    try:
        return place.file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.add(place, f"cannot be read ({_reason(error)})")
    except UnicodeDecodeError as error:
        faults.add(place.at(error.object[: error.start].count(b"\n") + 1), "is not UTF-8: save the file as UTF-8")
    return None


class _Lines:
    """The lines of a file as csv.reader wants them, decoded one by one; `number` is the last one's."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self._damaged = False
        self._lines = self._read(path)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def take_damage(self) -> bool:
        """Whether a line since the last call was not UTF-8."""
        damaged, self._damaged = self._damaged, False
        return damaged

    def _read(self, path: Path) -> Iterator[str]:
        with _opened(path) as file:
            for line in file:
                self.number += 1
                try:
                    yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                except UnicodeDecodeError:
                    self._damaged = True
                    yield line.decode("utf-8", errors="replace")


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # it reads alike


def _fits(header: list[str], columns: Sequence[str], place: Place, faults: Faults) -> bool:
    missing = [name for name in columns if name not in header]
    twice = sorted({name for name in columns if header.count(name) > 1})
    if missing:
        faults.add(place, f"has no column {', '.join(map(repr, missing[:6]))}")
    elif twice:
        faults.add(place, f"names the column {twice[0]!r} twice")
    return not missing and not twice


def _reason(error: Exception) -> str:
    """What the system says, without the path that OSError's own text repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
