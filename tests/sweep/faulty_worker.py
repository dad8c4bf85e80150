"""A worker whose cells do what their seed says instead of training: all else of it is the real one.

Run as a script by a `ProcessPool`; its one argument is the version of the code that it claims to be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from secure_fed.sweep import worker
from secure_fed.sweep.folder import save_result
from secure_fed.sweep.pool import WORKER
from secure_fed.sweep.record import CellResult, CellRow

FINE, RAISES, BLOCKS, FULL, DIES, PRINTS, EXITS, TORN = range(8)
"""Seeds."""

CODE = "0.1.0"
COMMAND = (*WORKER[:2], __file__)
DEAD_ON_ARRIVAL = (*WORKER[:2], "-c", "raise SystemExit('no such module')")


def cell(command: dict[str, Any], emit: worker.Emit) -> None:
    row, folder = CellRow.model_validate(command["row"]), Path(command["folder"])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("begun\n")
    emit({"event": "round", "cell": row.id, "step": 0, "total": 2})
    match row.seed:
        case seed if seed == RAISES:
            raise ValueError("nothing fits\nin two lines")
        case seed if seed == BLOCKS:
            # A child of its own too, as a data loader would have.
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            (folder / "blocks").write_text("")
            emit({"event": "round", "cell": row.id, "step": 1, "total": 2})
            threading.Event().wait()
        case seed if seed == FULL:
            with open("/dev/full", "w") as file:
                file.write("no room")
        case seed if seed == DIES:
            os.write(2, b"last words\n")
            os._exit(3)
        case seed if seed == PRINTS:
            sys.stdout.write("a library's chatter\n")
            os.write(1, b"more of it, from C\n")
            assert sys.stdin.read() == ""
        case seed if seed == EXITS:
            raise SystemExit("a library that takes itself for a program")
        case seed if seed == TORN:
            (folder / "cell.json").write_text('{"id": "')
            return
    threads = {name: os.environ.get(name) for name in worker.SINGLE_THREADED}
    result = CellResult(
        **row.model_dump(),
        metrics={"auroc_macro": 0.5},
        epsilon_spent=1.0,
        charges=(),
        phases=(),
        rounds=2,
        rounds_burned=0,
        wall_s=0.1,
        cpu_s=0.1,
        peak_mib=worker._peak_mib(),
        bytes_up=0,
        bytes_down=0,
        insecure_reproducible=False,
        model_sha256="0" * 64,
        data=str(sorted(os.sched_getaffinity(0))),
        run=str(threads),
    )
    save_result(folder, result)


if __name__ == "__main__":
    worker.warm_up = lambda: (sys.argv[1:] or [CODE])[0]
    worker._run = cell
    worker.main()
