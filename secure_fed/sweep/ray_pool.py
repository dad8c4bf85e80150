"""Workers as Ray actors, here or in a cluster: each takes one core, imports once and stays for all its cells.

The sweep's folder has to be on a file system that every node sees.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from pathlib import Path
from typing import Any

from secure_fed.errors import ConfigError, RunAborted
from secure_fed.sweep.cells import Cell
from secure_fed.sweep.config import LauncherConfig
from secure_fed.sweep.folder import is_sweep
from secure_fed.sweep.pool import Broken, Event, Round, Slot, command_for, event_of, require_code
from secure_fed.sweep.worker import SINGLE_THREADED, run_cell, warm_up

_PATIENCE_S = 5.0
_START_S = 180.0


class _Actor:
    """A worker; `position` is answered while a cell runs."""

    def __init__(self, folder: str, code: str) -> None:
        self._folder, self._code = folder, code
        self._position: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Import what cells need; raises ConfigError or RunAborted where this node cannot serve the sweep."""
        if not is_sweep(Path(self._folder)):
            raise ConfigError(
                f"a node does not see {self._folder}: launcher=ray needs a sweep.dir on a file system that all nodes "
                "share"
            )
        require_code(warm_up(), self._code)

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run a cell and return its last event."""
        self.prepare()
        said: deque[dict[str, Any]] = deque(maxlen=1)

        def emit(event: dict[str, Any]) -> None:
            said.append(event)
            self._position = event if event["event"] == "round" else None

        run_cell(command, emit)
        return said.pop()

    def position(self) -> dict[str, Any] | None:
        """The last round of the cell that runs."""
        return self._position


class RayPool:
    """As many actors as asked for, or as the cluster has cores for."""

    def __init__(self, workers: int | None, folder: Path, code: str, launcher: LauncherConfig) -> None:
        """Join the cluster at `launcher.address`, or start Ray here; raises ConfigError where neither works.

        workers: None: as many as the cluster's CPUs and memory hold. folder, code: the sweep's.
        """
        address, memory_gib = launcher.address, launcher.memory_gib
        # Before the import, which reads them: nothing is told to anybody outside, and no advice is printed.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"launcher=ray needs Ray ({error}); install it, or give launcher=processes") from error
        _require_somebody_at(address)
        self._ray, self._folder, self._code, self._memory = ray, folder, code, int(memory_gib * 2**30)
        try:
            ray.init(
                address=address,
                num_cpus=workers if address is None else None,
                log_to_driver=False,
                include_dashboard=False if address is None else None,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"launcher.address={address}: {error}; start Ray there, or leave it out") from error
        found = ray.cluster_resources()
        fitting = min(int(found.get("CPU", 1)), int(found.get("memory", self._memory) / self._memory))
        self._slots = [Slot(number) for number in range(1, max(1, workers or fitting) + 1)]
        self._actors = {slot.number: self._actor() for slot in self._slots}
        self._running: dict[Any, Slot] = {}
        self._steps: dict[str, int] = {}
        self._events: deque[Event] = deque()
        self._require_ready()

    def workers(self) -> int:
        """How many cells run at a time."""
        return len(self._slots)

    def idle(self) -> list[Slot]:
        """Actors without a cell."""
        return [slot for slot in self._slots if slot.busy is None]

    def submit(self, slot: Slot, cell: Cell, folder: Path) -> None:
        """Run a cell on an idle actor, in a folder that does not exist yet."""
        slot.busy = slot.last = cell
        self._running[self._actors[slot.number].run.remote(command_for(cell, folder))] = slot

    def next(self, timeout: float) -> Event | None:
        """What happened next, waiting `timeout` seconds at the most; raises RunAborted where no actor can start."""
        if not self._events:
            ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
            if ended:
                self._events.append(self._end_of(ended[0]))
            else:
                self._events.extend(self._rounds())
        return self._events.popleft() if self._events else None

    def close(self, kill: bool) -> None:
        """End all actors, with `kill` in the midst of their cells."""
        if not kill and self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running))
        actors, self._actors = list(self._actors.values()), {}
        for actor in actors:
            self._ray.kill(actor)
        if actors:
            self._ray.shutdown()

    def _actor(self) -> Any:
        remote = self._ray.remote(_Actor)
        options = {"num_cpus": 1, "memory": self._memory, "max_concurrency": 2}
        return remote.options(**options, runtime_env={"env_vars": SINGLE_THREADED}).remote(
            str(self._folder), self._code
        )

    def _end_of(self, reference: Any) -> Event:
        from ray.exceptions import RayError, RayTaskError

        slot = self._running.pop(reference)
        cell, slot.busy = slot.busy, None
        assert cell is not None  # noqa: S101 - it was given one
        try:
            return event_of(self._ray.get(reference))
        except RayTaskError as error:
            raise error.cause from error  # the cell's own errors are events: this node cannot serve
        except RayError as error:
            self._actors[slot.number], slot.last = self._actor(), None
            return Broken(cell.row.id, "WorkerDied", f"the worker died: {str(error).splitlines()[0]}", str(error))

    def _require_ready(self) -> None:
        """Wait until all actors have imported; raises ConfigError or RunAborted where one cannot serve the sweep."""
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            self._ray.get([actor.prepare.remote() for actor in self._actors.values()], timeout=_START_S)
        except RayTaskError as error:
            self.close(kill=True)
            raise error.cause from error
        except GetTimeoutError as error:
            self.close(kill=True)
            raise ConfigError(
                f"launcher=ray: {len(self._slots)} workers of one CPU and {self._memory / 2**30:g} GiB each have not "
                f"come within {_START_S:g} s; give fewer, launcher.workers=N"
            ) from error
        except RayError as error:
            self.close(kill=True)
            raise RunAborted(f"launcher=ray: no worker can start: {error}") from error

    def _rounds(self) -> list[Round]:
        """How far the cells have got that have gone on since; an actor that imports or died is not waited for."""
        asked = [self._actors[slot.number].position.remote() for slot in self._running.values()]
        answered, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0.1) if asked else ([], [])
        rounds = []
        for reference in answered:
            try:
                position = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                continue  # its cell's own end tells
            event = event_of(position) if position else None
            if isinstance(event, Round) and self._steps.get(event.cell) != event.step:
                self._steps[event.cell] = event.step
                rounds.append(event)
        return rounds


def _require_somebody_at(address: str | None) -> None:
    """Raise ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(
            f"launcher.address={address}: {error.strerror or error}; start Ray there, or leave it out"
        ) from error
