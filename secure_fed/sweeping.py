"""The `sweep` command behind its door: read, check, run or resume, and write what came out, however it ends."""

from __future__ import annotations

import json
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from secure_fed.errors import ConfigError, DataError
from secure_fed.sweep.cells import Sweep, code_version, described, read_sweep
from secure_fed.sweep.draws import draw, drawn_before, write_candidates
from secure_fed.sweep.folder import SweepFolder, no_room_left
from secure_fed.sweep.loop import Listed, Outcome, Source, discard_torn, run_sweep
from secure_fed.sweep.machine import free_memory, usable_cores, worker_count
from secure_fed.sweep.page import write_page
from secure_fed.sweep.pool import Pool, ProcessPool
from secure_fed.sweep.record import Manifest
from secure_fed.sweep.rewriting import rewrite
from secure_fed.sweep.search import Search, require_optuna
from secure_fed.sweep.table import read_results, write_tables
from secure_fed.sweep.watching import JsonLines, LiveSweep, Tally, label_of

INTERRUPTED = 130
_ABORTED = 4
_BROKEN_SHOWN = 5
_CELL_BYTES = 2 * 2**20
"""About what a cell of experiment=small leaves on the disk; larger ones are only found when they are written."""


def sweep_command(arguments: Sequence[str], *, as_json: bool, dry_run: bool = False, show: bool = False) -> int:
    """Run or resume a sweep, list its cells (`dry_run`), or show its configuration (`show`); returns the exit code."""
    if show:
        print(described(arguments), end="")  # noqa: T201 - the command's output
        return 0
    sweep, folder = _asked_for(arguments)
    if sweep.config.search is not None:
        require_optuna()
    folder.is_new()  # before a lock is left among other files
    if dry_run:
        _list(sweep, as_json)
        return 0
    with folder.locked() as lock:
        # Asked again: another process may have begun, and ended, in the meantime.
        sweep = _begin(folder, sweep) if folder.is_new() else _go_on(folder, sweep)
        return _run(folder, sweep, lock, as_json)


def _asked_for(arguments: Sequence[str]) -> tuple[Sweep, SweepFolder]:
    """The sweep that the arguments describe, or that lies in the folder they resume, and its folder."""
    resumed = [item.partition("=")[2] for item in arguments if item.startswith("resume=") and item != "resume=null"]
    if not resumed:
        sweep = read_sweep(arguments)
        return sweep, SweepFolder(Path(sweep.config.dir).expanduser())
    rest = [item for item in arguments if not item.startswith("resume=")]
    if len(resumed) > 1 or any(item.partition("=")[0].partition(".")[0] != "launcher" for item in rest):
        raise ConfigError(
            f"resume={resumed[0]} goes on with a sweep as it was configured and takes nothing else but launcher.*; it "
            f"was given {' '.join(arguments)}"
        )
    folder = SweepFolder(Path(resumed[0]).expanduser())
    manifest = folder.manifest()
    _require_code(folder, manifest)
    return read_sweep([*manifest.arguments, *rest]), folder


def _begin(folder: SweepFolder, sweep: Sweep) -> Sweep:
    """Write what a new sweep is, with its draws where its cells are drawn."""
    candidates = sweep.cells if sweep.manifest.tuning == "repeat_select" else ()
    if candidates:
        sweep = draw(sweep)
    folder.require_room(_total(sweep), _CELL_BYTES)
    if candidates:
        write_candidates(folder.root, candidates)
    folder.save_manifest(sweep.manifest)
    return sweep


def _go_on(folder: SweepFolder, sweep: Sweep) -> Sweep:
    """The sweep with the draws of the folder; raises ConfigError where the folder holds another."""
    manifest = folder.manifest()
    _require_code(folder, manifest)
    if sweep.manifest.tuning == manifest.tuning == "repeat_select":
        sweep = drawn_before(sweep, manifest)
    differences = _differences(manifest, sweep.manifest)
    if differences:
        raise ConfigError(
            f"{folder.root} holds another sweep: {'; '.join(differences)}. Give another sweep.dir, or go on with that "
            f"one with `secure-fed sweep {_to_resume(folder)}`"
        )
    return sweep


def _require_code(folder: SweepFolder, manifest: Manifest) -> None:
    if manifest.code != code_version():
        raise ConfigError(
            f"{folder.root} was begun with secure_fed {manifest.code}, and this is {code_version()}: cells of two "
            "versions are not comparable. Check out that version to go on, or sweep anew in another folder; "
            "`secure-fed report` and `secure-fed compare` still read it"
        )


def _differences(before: Manifest, now: Manifest) -> list[str]:
    """What tells two sweeps apart, in words; the order of arguments and where they run do not."""
    fields = ("name", "base", "axes", "references", "objective", "tuning", "repeat_select", "page", "confidence")
    found = []
    for name in (*fields, "search_trials", "data"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            found.append(f"{name} was {_short(old)} and is {_short(new)}")
    missing = [row for row in before.cells if row.id not in {other.id for other in now.cells}]
    fresh = [row for row in now.cells if row.id not in {other.id for other in before.cells}]
    for text, rows in (("gone", missing), ("new", fresh)):
        if rows and now.search_trials is None:
            cells = "cell is" if len(rows) == 1 else "cells are"
            found.append(f"{len(rows)} {cells} {text}, such as {label_of(rows[0])}")
    return found


def _to_resume(folder: SweepFolder) -> str:
    """The argument that goes on with a sweep, as a shell takes it."""
    return shlex.quote(f"resume={folder.root}")


def _short(value: object) -> str:
    if isinstance(value, tuple) and value and hasattr(value[0], "name"):
        return "; ".join(f"{axis.name}={','.join(map(str, axis.values))}" for axis in value)
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "nothing"


def _run(folder: SweepFolder, sweep: Sweep, lock: int, as_json: bool) -> int:
    total = _total(sweep)
    pool = _pool(folder, sweep, total, lock)
    tally = Tally([cell.row for cell in sweep.cells], total, pool.workers(), sweep.config.objective)
    with _stoppable() as stop:
        live = JsonLines() if as_json else LiveSweep(tally, sweep.config.name)
        try:
            with live as watcher:
                if not as_json:
                    watcher.note(f"{sweep.config.name}: {total} cells, {pool.workers()} at a time, in {folder.root}")
                discard_torn(folder, folder.manifest().cells, watcher)
                source = _source(folder, sweep)
                outcome = run_sweep(folder, source, pool, watcher, stop=stop, refresh=lambda: _refresh(folder.root))
        finally:
            pool.close(kill=True)
        return _end(folder, outcome, total, as_json)


def _source(folder: SweepFolder, sweep: Sweep) -> Source:
    if sweep.config.search is None:
        return Listed(sweep.cells)
    return Search(folder.root, sweep)


def _total(sweep: Sweep) -> int:
    search = sweep.config.search
    # Of a search the cells that are known beforehand are its references.
    return len(sweep.cells) + (0 if search is None else search.trials * len(search.seeds))


def _pool(folder: SweepFolder, sweep: Sweep, cells: int, lock: int) -> Pool:
    launcher, code, cores = sweep.launcher, sweep.manifest.code, usable_cores()
    workers = worker_count(launcher, cells, len(cores), free_memory())
    if launcher.name == "ray":
        from secure_fed.sweep.ray_pool import RayPool

        return RayPool(launcher.workers if launcher.address else workers, folder.root, code, launcher)
    return ProcessPool(workers, folder.root, code, cores=cores if launcher.pin else (), lock=lock)


def _refresh(folder: Path) -> None:
    """Tables and page of what is finished so far; tuning is decided at the end."""
    write_tables(folder)
    write_page(folder)


def _end(folder: SweepFolder, outcome: Outcome, total: int, as_json: bool) -> int:
    """Write what came out and say it; the exit code."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    page: Path | None = None
    try:
        page = rewrite(folder.root)
    except (OSError, DataError) as error:
        if not no_room_left(error):
            raise
        console.print(f"tables and page were not written: {error}", style="red", markup=False)
    left = max(0, total - outcome.finished - outcome.broken)
    if outcome.ended != "done":
        reason, first = (
            ("interrupted", "") if outcome.ended == "interrupted" else ("the disk is full", "make room, then ")
        )
        console.print(
            f"{reason}: {outcome.finished} of {total} cells are finished and kept; {first}go on with: secure-fed sweep "
            f"{_to_resume(folder)}",
            style="yellow",
            markup=False,
        )
    if as_json:
        print(  # noqa: T201 - the command's output
            json.dumps(
                {
                    "sweep": str(folder.root),
                    "ended": outcome.ended,
                    "finished": outcome.finished,
                    "broken": outcome.broken,
                    "left": left,
                    "page": None if page is None else str(page),
                }
            )
        )
    else:
        _say(folder, outcome, left, page)
    codes = {"done": 1 if outcome.broken else 0, "interrupted": INTERRUPTED, "disk_full": _ABORTED}
    return codes[outcome.ended]


def _say(folder: SweepFolder, outcome: Outcome, left: int, page: Path | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    parts = [f"{outcome.finished} {'cell' if outcome.finished == 1 else 'cells'} finished"]
    if outcome.broken:
        parts.append(f"{outcome.broken} broken")
    if left:
        parts.append(f"{left} left")
    console.print(", ".join(parts))
    if outcome.broken:
        broken = read_results(folder.root).broken
        for error in broken[:_BROKEN_SHOWN]:
            message = error.message.splitlines()[0] if error.message else ""
            console.print(f"broken: {label_of(error)}: {error.error}: {message}", style="red", markup=False)
        more = f", and {len(broken) - _BROKEN_SHOWN} more" if len(broken) > _BROKEN_SHOWN else ""
        console.print(f"cells/<id>/error.json says more{more}; they run again with {_to_resume(folder)}", markup=False)
    if page is not None:
        for what, path in (("table", folder.root / "sweep.csv"), ("page", page)):
            console.print(f"{what}: {path}", markup=False)
    print(f"sweep: {folder.root}")  # noqa: T201 - the last line, for scripts


def _list(sweep: Sweep, as_json: bool) -> None:
    """The cells that would run."""
    if as_json:
        print(json.dumps({"cells": [cell.row.model_dump(mode="json") for cell in sweep.cells]}))  # noqa: T201
        return
    console = Console(soft_wrap=True, highlight=False)
    names = list(dict.fromkeys(name for cell in sweep.cells for name in cell.row.factors))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("id", "kind", *names):
        table.add_column(name.rpartition(".")[2], no_wrap=True)
    for cell in sweep.cells:
        values = (cell.row.factors.get(name, "") for name in names)
        table.add_row(cell.row.id, cell.row.kind.replace("_", " "), *map(str, values))
    console.print(table)
    console.print(f"{_extent(sweep)}; nothing was run")


def _extent(sweep: Sweep) -> str:
    """How many cells would run, of which kinds."""
    if sweep.config.search is not None:
        return f"up to {_total(sweep)} cells, those of a search among them"
    if sweep.manifest.tuning == "repeat_select":
        return f"{len(sweep.cells)} candidates, of which about {sweep.config.repeat_select.mean:g} are drawn"
    kinds = Counter(cell.row.kind.replace("_", " ") for cell in sweep.cells)
    return f"{len(sweep.cells)} cells ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask to stop, which the yielded function tells; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
