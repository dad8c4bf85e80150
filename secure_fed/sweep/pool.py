"""Workers that run cells: what a pool is, and the one of processes on this machine.

A worker that dies takes its cell with it, and another takes its place; it never takes the sweep with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from secure_fed.errors import RunAborted
from secure_fed.sweep.worker import SINGLE_THREADED

if TYPE_CHECKING:
    from secure_fed.sweep.cells import Cell

WORKER = (sys.executable, "-P", "-m", "secure_fed.sweep.worker")
"""-P: whatever lies in the working directory is not imported."""

_LOG_TAIL = 20
_FAILED_STARTS = 3
"""So many workers in a row that die before they are ready: the next would too."""


@dataclass(frozen=True)
class Round:
    """A cell's schedule has got so far; step 0: it was found to work and trains."""

    cell: str
    step: int
    total: int


@dataclass(frozen=True)
class Finished:
    """A cell is finished: its `cell.json` is written."""

    cell: str


@dataclass(frozen=True)
class Broken:
    """A cell raised, or its worker died. disk_full: for want of room on the disk, so that others would too."""

    cell: str
    error: str
    message: str
    traceback: str
    disk_full: bool = False


Event = Round | Finished | Broken


@dataclass
class Slot:
    """A worker's place: `last` is the cell whose data it still holds, `busy` the one it runs."""

    number: int
    last: Cell | None = None
    busy: Cell | None = None


class Pool(Protocol):
    """Workers, here or in a cluster."""

    def workers(self) -> int:
        """How many cells run at a time."""

    def idle(self) -> list[Slot]:
        """Workers without a cell."""

    def submit(self, slot: Slot, cell: Cell, folder: Path) -> None:
        """Run a cell on an idle worker, in a folder that does not exist yet."""

    def next(self, timeout: float) -> Event | None:
        """What happened next, waiting `timeout` seconds at the most; raises RunAborted where no worker can start."""

    def close(self, kill: bool) -> None:
        """End all workers, with `kill` in the midst of their cells; nothing of theirs runs on afterwards."""


def command_for(cell: Cell, folder: Path) -> dict[str, Any]:
    """What a worker is told of a cell, as plain values."""
    return {
        "row": cell.row.model_dump(mode="json"),
        "config": cell.config.model_dump(mode="json"),
        "folder": str(folder),
    }


def require_code(found: str, wanted: str) -> None:
    """Raise RunAborted where a worker imported another version of secure_fed than the sweep's."""
    if found != wanted:
        raise RunAborted(
            f"a worker imported secure_fed {found}, and this sweep runs {wanted}: the sources were changed since it "
            "began, or a node has others; put them back and resume the sweep, or sweep anew in another folder"
        )


def event_of(tree: dict[str, Any]) -> Event:
    """A worker's line as an event."""
    fields = {key: value for key, value in tree.items() if key != "event"}
    match tree["event"]:
        case "round":
            return Round(**fields)
        case "finished":
            return Finished(**fields)
        case _:
            return Broken(**fields)


@dataclass
class _Worker:
    """One process and what it said so far."""

    slot: Slot
    process: subprocess.Popen[str]
    log: Path
    ready: bool = False
    told: str = ""


class ProcessPool:
    """Worker processes on this machine that import once, one thread and, if asked, one core each.

    They live in sessions of their own, so that Ctrl-C reaches their parent alone, and end when it does.
    """

    def __init__(
        self,
        workers: int,
        logs: Path,
        code: str,
        *,
        cores: Sequence[int] = (),
        lock: int | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        """Start `workers` processes that print to `logs`/worker-N.log.

        code: the version of secure_fed that they have to import. cores: worker n runs on the n-th of them only, in
        turn; none: anywhere. lock: a descriptor of the sweep's lock that they hold too.
        """
        self._command, self._logs, self._code = tuple(command), logs, code
        self._cores, self._lock = tuple(cores), lock
        self._said: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self._workers: dict[int, _Worker] = {}
        self._failed_starts = 0
        try:
            for number in range(1, workers + 1):
                self._start(Slot(number))
        except BaseException:
            self.close(kill=True)
            raise

    def workers(self) -> int:
        """How many cells run at a time."""
        return len(self._workers)

    def idle(self) -> list[Slot]:
        """Workers without a cell; one that is still importing counts, and begins with it."""
        return [worker.slot for worker in self._workers.values() if worker.slot.busy is None]

    def submit(self, slot: Slot, cell: Cell, folder: Path) -> None:
        """Run a cell on an idle worker, in a folder that does not exist yet."""
        slot.busy = slot.last = cell
        _tell(self._workers[slot.number], json.dumps(command_for(cell, folder)) + "\n")

    def next(self, timeout: float) -> Event | None:
        """What happened next, waiting `timeout` seconds at the most; raises RunAborted where no worker can start."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                worker, line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if self._workers.get(worker.slot.number) is not worker:
                continue  # the last words of one that was replaced
            event = self._replace(worker) if line is None else self._understand(worker, line)
            if event is not None:
                return event

    def close(self, kill: bool) -> None:
        """End all workers, with `kill` in the midst of their cells; nothing of theirs runs on afterwards."""
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            if kill:
                _kill(worker.process)
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()  # type: ignore[union-attr]  # asked for
        for worker in workers:
            worker.process.wait()

    def pids(self) -> dict[int, int]:
        """Process ids by worker."""
        return {number: worker.process.pid for number, worker in self._workers.items()}

    def _start(self, slot: Slot) -> None:
        log = self._logs / f"worker-{slot.number}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, running this package
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **SINGLE_THREADED},
                encoding="utf-8",
                start_new_session=True,
                pass_fds=() if self._lock is None else (self._lock,),
            )
        worker = _Worker(slot, process, log)
        self._workers[slot.number] = worker
        if self._cores and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it may have died already, which its reader tells
                os.sched_setaffinity(process.pid, {self._cores[(slot.number - 1) % len(self._cores)]})
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()

    def _read(self, worker: _Worker) -> None:
        pipe = worker.process.stdout
        assert pipe is not None  # noqa: S101 - asked for
        with contextlib.suppress(ValueError, OSError):  # closed under its reader
            for line in pipe:
                self._said.put((worker, line))
        self._said.put((worker, None))

    def _understand(self, worker: _Worker, line: str) -> Event | None:
        if not line.endswith("\n"):
            return None  # it died while it spoke
        tree = json.loads(line)
        if tree["event"] == "ready":
            require_code(tree["code"], self._code)
            worker.ready, self._failed_starts = True, 0
            return None
        event = event_of(tree)
        if isinstance(event, Finished | Broken):
            worker.slot.busy = None
        return event

    def _replace(self, worker: _Worker) -> Broken | None:
        """A new process in the place of one that has ended; its cell, if it had begun one, is broken."""
        _kill(worker.process)  # what its cell had started lives on otherwise
        code, slot = worker.process.wait(), worker.slot
        cell, slot.busy, slot.last = slot.busy, None, None
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _FAILED_STARTS:
                raise RunAborted(
                    f"worker {slot.number} {_died(code)} before it could run a cell, as {_FAILED_STARTS} did in a row; "
                    f"its log {worker.log} ends:\n{_tail(worker.log)}"
                )
        self._start(slot)
        if cell is None:
            return None
        if not worker.ready:
            slot.busy = slot.last = cell
            _tell(self._workers[slot.number], worker.told)
            return None
        return Broken(cell.row.id, "WorkerDied", f"the worker {_died(code)}", _tail(worker.log))


def _tell(worker: _Worker, line: str) -> None:
    worker.told = line
    pipe = worker.process.stdin
    assert pipe is not None  # noqa: S101 - asked for
    # Of a worker that has died its reader tells: the cell is broken then, not lost.
    with contextlib.suppress(BrokenPipeError):
        pipe.write(line)
        pipe.flush()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        # The whole session: whatever a cell started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


def _died(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ": if nobody did that, memory ran out; give launcher.workers=N with fewer" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:])
    except OSError:
        return ""
