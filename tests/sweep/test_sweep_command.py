"""`secure-fed sweep` as it is used: real cells in real workers, Ctrl-C to the whole foreground group, and going on."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny_sweep import TINY, inodes
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.ledger import verify
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.table import read_results

SWEEP = [*TINY, "privacy.epsilon=3,8", "seed=0,1"]
COMMAND = [sys.executable, "-c", "from secure_fed.cli import main; main()", "sweep", "--json"]


@dataclass(frozen=True)
class Stopped:
    """A sweep of four cells that was stopped with Ctrl-C when its first had ended."""

    folder: Path
    code: int
    lines: list[dict[str, Any]]
    said: str
    workers: list[int]
    finished: dict[str, dict[str, tuple[int, int]]]
    cells: list[str]
    page: str


def workers_of(parent: int) -> list[int]:
    """Handles of the processes that `parent` has started."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                state = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(state[1]) == parent:
                found.append(os.pidfd_open(int(path.name)))
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped") / "sweep"
    process = subprocess.Popen(
        [*COMMAND, *SWEEP, f"sweep.dir={folder}", "launcher.workers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    rest, said = process.communicate()
    assert first, said
    found = SweepFolder(folder)
    finished = {
        row.id: inodes(found.cell(row.id)) for row in found.manifest().cells if found.result(row.id) is not None
    }
    return Stopped(
        folder,
        process.returncode,
        [json.loads(line) for line in [first, *rest.splitlines()]],
        said,
        workers,
        finished,
        sorted(path.name for path in (folder / "cells").iterdir()),
        (folder / "sweep.html").read_text(),
    )


def sweep(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["sweep", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def resumed(stopped: Stopped) -> Result:
    return sweep(f"resume={stopped.folder}", "launcher.workers=1", "--json")


def test_ctrl_c_is_130_and_says_what_is_kept_and_how_to_go_on(stopped: Stopped) -> None:
    assert stopped.code == 130, stopped.said
    last = stopped.lines[-1]
    assert last["ended"] == "interrupted"
    assert 1 <= last["finished"] == len(stopped.finished) < 4
    assert last["left"] == 4 - last["finished"]
    assert f"go on with: secure-fed sweep resume={stopped.folder}" in stopped.said
    assert "Traceback" not in stopped.said


def test_ctrl_c_leaves_no_worker_and_no_half_a_cell(stopped: Stopped) -> None:
    assert len(stopped.workers) == 2
    assert all(select.select([handle], [], [], 0)[0] for handle in stopped.workers)
    assert stopped.cells == sorted(stopped.finished)


def test_ctrl_c_leaves_tables_and_a_page_of_what_is_finished(stopped: Stopped) -> None:
    assert "<html" in stopped.page
    assert next(iter(stopped.finished)) in stopped.page


def test_going_on_finishes_the_sweep_and_touches_nothing_that_was_finished(stopped: Stopped, resumed: Result) -> None:
    assert resumed.exit_code == 0, resumed.stderr
    last = json.loads(resumed.stdout.splitlines()[-1])
    assert (last["finished"], last["broken"], last["left"], last["ended"]) == (4, 0, 0, "done")
    for cell, before in stopped.finished.items():
        now = inodes(stopped.folder / "cells" / cell)
        # What choosing cost is written into the best cells' reports, and into nothing else.
        chosen = {"tuning.json", "epsilon_report.html", "epsilon_report.json", "report.html", "model_card.md"}
        assert {name: now[name] for name in before if name not in chosen} == {
            name: what for name, what in before.items() if name not in chosen
        }


def test_each_cell_is_a_whole_run_whose_ledgers_hold(stopped: Stopped, resumed: Result) -> None:
    results = read_results(stopped.folder)
    assert len(results.finished) == 4
    for cell in results.finished:
        folder = stopped.folder / "cells" / cell.id
        assert verify([folder]).ok
        assert (folder / "report.html").is_file()
        assert cell.epsilon_spent is not None
        assert cell.epsilon_target is not None
        assert 0 < cell.epsilon_spent <= cell.epsilon_target
        assert cell.cpu_s > 0
        assert cell.wall_s > 0
        assert cell.peak_mib > 100


def test_cells_of_one_seed_differ_by_their_factors_and_nothing_else(stopped: Stopped, resumed: Result) -> None:
    from secure_fed.config import load_config

    cells = read_results(stopped.folder).finished
    configs = {
        (cell.epsilon_target, cell.seed): load_config(stopped.folder / "cells" / cell.id).model_dump(
            exclude={"run_dir"}
        )
        for cell in cells
    }
    for seed in (0, 1):
        one, other = configs[3.0, seed], configs[8.0, seed]
        one["privacy"].pop("epsilon")
        other["privacy"].pop("epsilon")
        assert one == other


def test_a_copied_folder_goes_on_where_it_lies(stopped: Stopped, resumed: Result, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(stopped.folder, copy)
    result = sweep(f"resume={copy}")
    assert result.exit_code == 0
    assert "4 of 4 cells are finished already" in result.stderr
    assert result.stdout.splitlines()[-1] == f"sweep: {copy}"
