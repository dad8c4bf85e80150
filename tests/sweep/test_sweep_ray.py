"""Cells as Ray actors: the same results, a worker that dies, and what a cluster must offer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from tiny_sweep import Recorder, begun, tiny

from secure_fed.errors import ConfigError, RunAborted
from secure_fed.sweep.cells import Cell, Sweep
from secure_fed.sweep.config import LauncherConfig
from secure_fed.sweep.loop import Listed, Outcome, run_sweep
from secure_fed.sweep.pool import Slot
from secure_fed.sweep.ray_pool import RayPool

HERE = LauncherConfig(name="ray", workers=None, memory_gib=1.0, pin=False, address=None)


def sweep_of() -> Sweep:
    return tiny("privacy.epsilon=3,8", "seed=0")


def pid_of(pool: RayPool, slot: Slot) -> int:
    import ray

    return int(ray.get(pool._actors[slot.number].__ray_call__.remote(lambda _self: os.getpid())))


@pytest.mark.slow
def test_actors_persist_over_cells_and_one_that_dies_breaks_only_its_cell(tmp_path: Path) -> None:
    sweep = sweep_of()
    folder = begun(tmp_path / "sweep", sweep)
    pool = RayPool(1, folder.root, sweep.manifest.code, HERE)
    watcher = Recorder()
    pids: list[int] = []

    def kill_the_first(cell: Cell, slot: Slot) -> None:
        pids.append(pid_of(pool, slot))
        if cell.row.id == sweep.cells[0].row.id:
            os.kill(pids[-1], signal.SIGKILL)

    watcher.on_start = kill_the_first
    assert run_sweep(folder, Listed(sweep.cells), pool, watcher) == Outcome(finished=1, broken=1, ended="done")
    assert watcher.errors[sweep.cells[0].row.id].error == "WorkerDied"
    assert pids[0] != pids[1]

    again = RayPool(1, folder.root, sweep.manifest.code, HERE)
    assert run_sweep(folder, Listed(sweep.cells), again, Recorder()) == Outcome(finished=2, broken=0, ended="done")
    result = folder.result(sweep.cells[0].row.id)
    assert result is not None
    assert result.epsilon_spent is not None


@pytest.mark.slow
def test_a_node_that_does_not_see_the_folder_or_has_other_code_is_an_error_before_the_first_cell(
    tmp_path: Path,
) -> None:
    sweep = sweep_of()
    folder = begun(tmp_path / "sweep", sweep)
    with pytest.raises(ConfigError, match="a file system that all nodes share"):
        RayPool(1, tmp_path / "elsewhere", sweep.manifest.code, HERE)
    with pytest.raises(RunAborted, match=r"imported secure_fed .* and this sweep runs other"):
        RayPool(1, folder.root, "other", HERE)


def test_a_cluster_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    launcher = HERE.model_copy(update={"address": "127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"launcher\.address=127\.0\.0\.1:1: "):
        RayPool(None, tmp_path, "", launcher)


def test_without_ray_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="launcher=processes"):
        RayPool(1, tmp_path, "", HERE)
