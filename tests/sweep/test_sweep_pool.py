"""Worker processes: what they say, what they must not, and how each of them dies without taking the sweep along."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest
from faulty_worker import BLOCKS, CODE, COMMAND, DEAD_ON_ARRIVAL, DIES, EXITS, FINE, FULL, PRINTS, RAISES
from tiny_sweep import tiny

from secure_fed.errors import ConfigError, RunAborted
from secure_fed.sweep.cells import Cell
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.pool import Broken, Event, Finished, ProcessPool, Round
from secure_fed.sweep.record import CellResult
from secure_fed.sweep.worker import SINGLE_THREADED

LONG = 60.0
"""Seconds after which a test has failed; nothing takes long."""


def cell_with(seed: int) -> Cell:
    return tiny("privacy.epsilon=3", "seed=0,1,2,3,4,5,6,7").cells[seed]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ProcessPool]:
    made = ProcessPool(1, tmp_path, CODE, command=COMMAND)
    yield made
    made.close(kill=True)


def run(pool: ProcessPool, seed: int, folder: Path) -> list[Event]:
    """Events of a cell up to its end."""
    (slot,) = pool.idle()
    pool.submit(slot, cell_with(seed), folder / "cells" / str(seed))
    events: list[Event] = []
    while not events or isinstance(events[-1], Round):
        event = pool.next(LONG)
        assert event is not None, "the worker fell silent"
        events.append(event)
    return events


def begin_to_block(pool: ProcessPool, folder: Path) -> None:
    """A cell that has started a process of its own, and waits for ever."""
    (slot,) = pool.idle()
    pool.submit(slot, cell_with(BLOCKS), folder / "cells" / "blocks")
    assert pool.next(LONG) == Round(cell_with(BLOCKS).row.id, 0, 2)
    assert pool.next(LONG) == Round(cell_with(BLOCKS).row.id, 1, 2)


def result_of(folder: Path, seed: int) -> CellResult:
    return CellResult.model_validate_json((folder / "cells" / str(seed) / "cell.json").read_bytes())


def session_of(leader: int) -> list[int]:
    """Handles of a worker and of all that it started."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [os.pidfd_open(pid) for pid in pids if _session(pid) == leader]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def all_end(handles: Sequence[int]) -> bool:
    ended = [bool(select.select([handle], [], [], LONG)[0]) for handle in handles]
    for handle in handles:
        os.close(handle)
    return all(ended)


def test_a_cell_says_its_rounds_and_its_end(pool: ProcessPool, tmp_path: Path) -> None:
    cell = cell_with(FINE).row.id
    assert run(pool, FINE, tmp_path) == [Round(cell, 0, 2), Finished(cell)]
    (slot,) = pool.idle()
    assert slot.last == cell_with(FINE), "what it holds is known"


def test_a_cell_that_raises_is_broken_and_its_worker_goes_on(pool: ProcessPool, tmp_path: Path) -> None:
    before = pool.pids()
    broken = run(pool, RAISES, tmp_path)[-1]
    assert isinstance(broken, Broken)
    assert (broken.error, broken.message, broken.disk_full) == ("ValueError", "nothing fits\nin two lines", False)
    assert 'raise ValueError("nothing fits' in broken.traceback
    assert isinstance(run(pool, FINE, tmp_path)[-1], Finished)
    assert pool.pids() == before


def test_a_cell_that_exits_is_broken_and_its_worker_goes_on(pool: ProcessPool, tmp_path: Path) -> None:
    broken = run(pool, EXITS, tmp_path)[-1]
    assert isinstance(broken, Broken)
    assert broken.error == "SystemExit"
    assert isinstance(run(pool, FINE, tmp_path)[-1], Finished)


def test_a_cell_without_room_says_that_the_disk_is_full(pool: ProcessPool, tmp_path: Path) -> None:
    broken = run(pool, FULL, tmp_path)[-1]
    assert isinstance(broken, Broken)
    assert broken.disk_full
    assert "No space left on device" in broken.message


def test_a_worker_that_dies_breaks_its_cell_with_its_last_words_and_is_replaced(
    pool: ProcessPool, tmp_path: Path
) -> None:
    before = pool.pids()
    broken = run(pool, DIES, tmp_path)[-1]
    assert isinstance(broken, Broken)
    assert broken.error == "WorkerDied"
    assert broken.message == "the worker ended with exit code 3"
    assert "last words" in broken.traceback
    assert isinstance(run(pool, FINE, tmp_path)[-1], Finished)
    assert pool.pids() != before


def test_a_worker_killed_in_the_midst_of_a_cell_breaks_it_and_hints_at_memory(
    pool: ProcessPool, tmp_path: Path
) -> None:
    pid = pool.pids()[1]
    begin_to_block(pool, tmp_path)
    handles = session_of(pid)
    assert len(handles) == 2
    os.kill(pid, signal.SIGKILL)
    broken = pool.next(LONG)
    assert isinstance(broken, Broken)
    assert "killed by SIGKILL" in broken.message
    assert "launcher.workers" in broken.message
    assert all_end(handles), "what the cell had started lives on"
    assert isinstance(run(pool, FINE, tmp_path)[-1], Finished)


def test_an_idle_worker_that_dies_is_replaced_and_nothing_is_broken(pool: ProcessPool, tmp_path: Path) -> None:
    run(pool, FINE, tmp_path)
    pid = pool.pids()[1]
    os.kill(pid, signal.SIGKILL)
    events = run(pool, PRINTS, tmp_path)  # told before or after it was noticed: it died without a word of this cell
    assert isinstance(events[-1], Finished | Broken)
    assert pool.pids()[1] != pid


def test_what_libraries_print_goes_to_the_log_and_not_into_the_protocol(pool: ProcessPool, tmp_path: Path) -> None:
    assert isinstance(run(pool, PRINTS, tmp_path)[-1], Finished)
    assert isinstance(run(pool, FINE, tmp_path)[-1], Finished)
    log = (tmp_path / "worker-1.log").read_text()
    assert "a library's chatter" in log
    assert "more of it, from C" in log


def test_a_worker_has_one_thread_and_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    core = sorted(os.sched_getaffinity(0))[-1]
    pool = ProcessPool(1, tmp_path, CODE, cores=[core], command=COMMAND)
    try:
        run(pool, FINE, tmp_path)
    finally:
        pool.close(kill=False)
    result = result_of(tmp_path, FINE)
    assert result.data == str([core])
    assert result.run == str(SINGLE_THREADED)


def test_workers_that_cannot_start_abort_with_their_log_instead_of_for_ever(tmp_path: Path) -> None:
    pool = ProcessPool(1, tmp_path, CODE, command=DEAD_ON_ARRIVAL)
    try:
        (slot,) = pool.idle()
        pool.submit(slot, cell_with(FINE), tmp_path / "cells" / "0")
        said = r"(?s)worker 1 ended with exit code 1 before .* 3 did in a row.*no such module"
        with pytest.raises(RunAborted, match=said):
            pool.next(LONG)
    finally:
        pool.close(kill=True)


def test_a_worker_with_other_code_than_the_sweeps_aborts_it(tmp_path: Path) -> None:
    pool = ProcessPool(1, tmp_path, "0.1.0+other", command=COMMAND)
    try:
        with pytest.raises(RunAborted, match=rf"imported secure_fed {CODE}, and this sweep runs 0\.1\.0\+other"):
            pool.next(LONG)
    finally:
        pool.close(kill=True)


def test_closing_kills_workers_in_the_midst_of_a_cell_and_what_they_started(pool: ProcessPool, tmp_path: Path) -> None:
    pid = pool.pids()[1]
    begin_to_block(pool, tmp_path)
    handles = session_of(pid)
    assert len(handles) == 2
    pool.close(kill=True)
    assert all_end(handles)


def test_workers_hold_the_sweeps_lock_as_long_as_they_live(tmp_path: Path) -> None:
    with SweepFolder(tmp_path).locked() as lock:
        pool = ProcessPool(1, tmp_path, CODE, lock=lock, command=COMMAND)
    try:
        with pytest.raises(ConfigError, match="in use"), SweepFolder(tmp_path).locked():
            pass
    finally:
        pool.close(kill=True)
    with SweepFolder(tmp_path).locked():
        pass


def test_workers_end_when_their_parent_is_killed_outright(tmp_path: Path) -> None:
    """Its end closes their input, also in the midst of a cell that never looks up; and with them goes the lock."""
    script = dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from types import SimpleNamespace
        from faulty_worker import CODE, COMMAND
        from secure_fed.sweep.folder import SweepFolder
        from secure_fed.sweep.pool import ProcessPool
        from secure_fed.sweep.record import CellRow
        row = CellRow.model_validate_json({cell_with(BLOCKS).row.model_dump_json()!r})
        cell = SimpleNamespace(row=row, config=row)  # the whole would take seconds to import
        root = Path({str(tmp_path)!r})
        with SweepFolder(root).locked() as lock:
            pool = ProcessPool(1, root, CODE, lock=lock, command=COMMAND)
            pool.submit(pool.idle()[0], cell, root / "cells" / "x")
            while not (root / "cells" / "x" / "blocks").exists():
                pool.next(1)
            print(pool.pids()[1], flush=True)
            sys.stdin.read()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    handle = os.pidfd_open(worker)
    parent.kill()
    parent.communicate()
    assert all_end([handle]), "the worker outlived its parent"
    os.killpg(worker, signal.SIGKILL)  # the child that the cell had started
    with SweepFolder(tmp_path).locked():
        pass
