"""What runs have spent that never became a finished cell: interrupted, broken, or removed before they ran anew.

Their ledgers count like any other. Before a folder is removed, what its ledgers hold goes to `abandoned.jsonl`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from secure_fed.accounting import Mechanism, epsilon
from secure_fed.errors import DataError, LedgerError
from secure_fed.files import sync_folder
from secure_fed.identity import describe
from secure_fed.ledger import Plan, Reserve, Standing, standing
from secure_fed.ledger.chain import Chain, read_chain
from secure_fed.ledger.verify import LEDGER
from secure_fed.sweep.record import ABANDONED, CELLS, CellRow, Charges, Spent, Unbounded

_INSECURE: Unbounded = "insecure_reproducible"


def abandon(folder: Path, cell: Path) -> None:
    """Note what the run in the folder `cell` of a sweep has charged, before that folder is removed.

    The line is on the disk when this returns; a run that charged nothing leaves none. Raises DataError where the
    sweep's `folder` cannot be written.
    """
    found = spent_in(cell)
    if found is None:
        return
    path = folder / ABANDONED
    try:
        _drop_torn_line(path)
        with path.open("ab") as file:
            file.write(found.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}. What {cell} has spent must be noted before it is removed: "
            "make room."
        ) from error


def unfinished(folder: Path, cells: Iterable[CellRow]) -> tuple[Spent, ...]:
    """What was spent beside the finished cells: noted before, or in the folders of `cells`, which did not finish.

    Each run once. Raises DataError where `abandoned.jsonl` is damaged.
    """
    found = {(spent.cell, spent.run): spent for spent in _noted(folder / ABANDONED)}
    for row in cells:
        spent = spent_in(folder / CELLS / row.id)
        if spent is not None:
            found[spent.cell, spent.run] = spent
    return tuple(found.values())


def spent_in(cell: Path) -> Spent | None:
    """What the ledgers of a run folder hold, finished or not; None where nothing was charged.

    A ledger that cannot be read whole may have held anything: then nothing bounds it.
    """
    if cell.is_symlink() or not (cell / "sites").is_dir():
        return None
    run = ""
    unbounded: Unbounded | None = None
    groups: defaultdict[tuple[Mechanism, ...], list[str]] = defaultdict(list)
    deltas: set[float] = set()
    for home in sorted((cell / "sites").iterdir()):
        if not (home / LEDGER).is_file():
            continue
        chain = _chain(home / LEDGER)
        if chain is None or chain.problem is not None:
            unbounded = "damaged_ledger"
            continue
        if not chain.records:
            continue
        books = standing(chain.records)
        run = run or next((other.run for other in books.runs), "")
        unbounded = unbounded or _unbounded(chain, books)
        charged = books.charged()
        if charged:
            groups[charged].append(home.name)
            deltas.add(books.genesis.delta)
    if unbounded is None and not groups:
        return None
    known = {} if unbounded else groups
    charges = tuple(
        Charges(sites=tuple(sites), epsilon=epsilon(charged, min(deltas)), mechanisms=charged)
        for charged, sites in known.items()
    )
    return Spent(cell=cell.name, run=run, unbounded=unbounded, charges=charges)


def _chain(path: Path) -> Chain | None:
    try:
        return read_chain(path)
    except LedgerError:
        return None


def _unbounded(chain: Chain, books: Standing) -> Unbounded | None:
    if books.is_off:
        return "privacy_off"
    charging = [record.body for record in chain.records if isinstance(record.body, Plan | Reserve)]
    if books.charged() and any(body.rng == _INSECURE for body in charging):
        return _INSECURE
    return "no_noise" if any(m.noise_multiplier == 0 for m in books.charged()) else None


def _noted(path: Path) -> list[Spent]:
    """The whole lines of `abandoned.jsonl`; of one that a power cut tore the cell's folder still stands."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            found.append(Spent.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path}, line {number} is damaged: {describe(error)}. It says what runs have spent whose folders are "
                "gone: restore it."
            ) from error
    return found


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
