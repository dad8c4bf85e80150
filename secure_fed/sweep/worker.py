"""A worker of a sweep: `python -m secure_fed.sweep.worker` imports once and runs cell after cell for its parent.

JSON lines come in on standard input and go out on the standard output it was started with; what libraries print goes
to its log. It ends at once when its input ends: then its parent is dead.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from secure_fed.sweep.record import CellRow

Emit = Callable[[dict[str, Any]], None]
"""Takes one event for the parent; called from the thread that runs the cell."""

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
SINGLE_THREADED = dict.fromkeys(_THREADS, "1")
"""A worker's environment: libraries read it when they are imported, and two cores of workers are all the threads."""


def main() -> None:
    """Serve the parent until it closes the input."""
    commands, answers = _take_over_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, waiting), daemon=True).start()

    def emit(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    emit({"event": "ready", "code": warm_up()})
    while True:
        run_cell(json.loads(waiting.get()), emit)


@functools.cache
def warm_up() -> str:
    """Import what cells need, on one thread, once; returns the version of the code that was imported."""
    import torch

    import secure_fed.engines.runner
    import secure_fed.sweep.collect  # noqa: F401 - imported for later
    from secure_fed.sweep.identity import code_version

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    return code_version()


def run_cell(command: dict[str, Any], emit: Emit) -> None:
    """Run the cell that `command_for` described; emits its rounds, then that it is finished or what it raised."""
    cell = command["row"]["id"]
    try:
        _run(command, emit)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a cell raises must not stop the others
        from secure_fed.sweep.folder import no_room_left

        emit(
            {
                "event": "broken",
                "cell": cell,
                "error": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
                "disk_full": no_room_left(error),
            }
        )
    else:
        emit({"event": "finished", "cell": cell})


def _run(command: dict[str, Any], emit: Emit) -> None:
    from secure_fed.config import validate
    from secure_fed.engines.runner import start
    from secure_fed.sweep.collect import collect
    from secure_fed.sweep.folder import save_result

    row = CellRow.model_validate(command["row"])
    folder = Path(command["folder"])
    config = validate({**command["config"], "run_dir": str(folder)})
    # One more step evaluates the final model at the sites.
    total = config.federation.rounds + (config.evaluation.name == "federated")
    _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    start(config, _Rounds(row.id, total, emit))
    result = collect(
        folder,
        row,
        wall_s=round(time.perf_counter() - wall, 3),
        cpu_s=round(time.process_time() - cpu, 3),
        peak_mib=_peak_mib(),
    )
    save_result(folder, result)


class _Rounds:
    """An observer that tells the parent of each round."""

    def __init__(self, cell: str, total: int, emit: Emit) -> None:
        self._cell, self._total, self._emit = cell, total, emit

    def begin(self, config: object, done: int, notes: Sequence[str] = ()) -> None:
        """The cell has been found to work and trains."""
        self._emit({"event": "round", "cell": self._cell, "step": done, "total": self._total})

    def round(self, line: dict[str, Any]) -> None:
        """A round ended."""
        self._emit({"event": "round", "cell": self._cell, "step": line["step"] + 1, "total": self._total})


def _take_over_streams() -> tuple[TextIO, TextIO]:
    """The parent's two pipes; everybody else reads nothing and prints to the log, which standard error is."""
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    return commands, answers


def _listen(commands: TextIO, waiting: queue.SimpleQueue[str]) -> None:
    for line in commands:
        waiting.put(line)
    # In the midst of a cell too: nobody would ever read of its end, and its folder is removed on the way on.
    os._exit(0)


def _reset_peak() -> None:
    """Let the kernel count the peak of memory from here; where it cannot, it is the peak of all cells so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_mib() -> float:
    """Most resident memory since `_reset_peak`, in MiB."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


if __name__ == "__main__":
    main()
