"""What a person sees of a sweep, and what is said of the time left."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_sweep import tiny

from secure_fed.sweep.cells import Cell
from secure_fed.sweep.pool import Slot
from secure_fed.sweep.record import CellError, CellResult, CellRow
from secure_fed.sweep.time_left import Durations, Underway, seconds_left
from secure_fed.sweep.watching import JsonLines, LiveSweep, Tally, as_time, label_of

FIN, ZERO = ("fin", "grid"), ("zero_fill", "grid")


def result_of(cell: Cell, auroc: float | None = 0.75, wall_s: float = 10.0) -> CellResult:
    return CellResult(
        **cell.row.model_dump(),
        metrics={"auroc_macro": auroc},
        epsilon_spent=2.5,
        charges=(),
        phases=(),
        rounds=2,
        rounds_burned=0,
        wall_s=wall_s,
        cpu_s=wall_s,
        peak_mib=500,
        bytes_up=0,
        bytes_down=0,
        insecure_reproducible=False,
        model_sha256="0" * 64,
        data="synthetic_cxr",
        run="r",
    )


def cells() -> tuple[Cell, ...]:
    return tiny("privacy.epsilon=3,8", "seed=0,1").cells


def tally() -> Tally:
    return Tally([cell.row for cell in cells()], 4, 2, "auroc_macro")


# -- time left -----------------------------------------------------------------------------------------------


def measured(**seconds: float) -> Durations:
    durations = Durations()
    for method, value in seconds.items():
        durations.add((method, "grid"), value)
    return durations


@pytest.mark.parametrize(
    ("waiting", "underway", "workers", "left"),
    [
        ([], [], 2, 0.0),
        ([FIN] * 4, [], 2, 40.0),
        # Each by what its likes took, not by the mean of all.
        ([FIN, ZERO], [], 1, 24.0),
        ([], [Underway(FIN, 15.0, 0.5)], 2, 5.0),
        # The last cell cannot be shared.
        ([], [Underway(FIN, 0.0, 0.0), Underway(ZERO, 4.0, 0.9)], 2, 20.0),
        # It takes longer than its likes did: any moment now.
        ([], [Underway(ZERO, 9.0, 0.9)], 2, 0.0),
        # Nothing like it was measured: another method's reference of the same kind, then anything.
        ([("fin", "non_private")], [], 1, 20.0),
        ([("car_mfl", "grid")], [], 1, 12.0),
    ],
)
def test_time_left_is_counted_from_cells_alike(
    waiting: list[tuple[str, str]], underway: list[Underway], workers: int, left: float
) -> None:
    assert seconds_left(measured(fin=20.0, zero_fill=4.0), waiting, underway, workers) == pytest.approx(left)


def test_before_the_first_cell_has_ended_its_rounds_tell_and_before_them_nothing_is_said() -> None:
    nothing = Durations()
    assert seconds_left(nothing, [FIN], [], 1) is None
    assert seconds_left(nothing, [FIN], [Underway(FIN, 3.0, 0.0)], 1) is None
    assert seconds_left(nothing, [FIN], [Underway(FIN, 3.0, 0.25)], 1) == pytest.approx(9.0 + 12.0)


likes = st.sampled_from([FIN, ZERO, ("fin", "non_private")])


@given(st.lists(likes, max_size=8), likes, st.integers(1, 8), st.dictionaries(likes, st.floats(0.1, 1e4), min_size=1))
def test_time_left_grows_with_what_waits_and_shrinks_with_workers(
    waiting: list[tuple[str, str]], one_more: tuple[str, str], workers: int, seconds: dict[tuple[str, str], float]
) -> None:
    durations = Durations()
    for like, value in seconds.items():
        durations.add(like, value)
    left = seconds_left(durations, waiting, [], workers)
    more, faster = (
        seconds_left(durations, [*waiting, one_more], [], workers),
        seconds_left(durations, waiting, [], workers + 1),
    )
    assert left is not None
    assert more is not None
    assert faster is not None
    assert faster <= left < more


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "?"), (0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_times_read_as_a_person_says_them(seconds: float | None, said: str) -> None:
    assert as_time(seconds) == said


def test_the_first_cell_of_a_worker_counts_without_its_imports() -> None:
    counted = tally()
    first, second, *_ = cells()
    counted.start(first, Slot(1))
    counted.running[first.row.id].began -= 100.0
    counted.end(first, result_of(first, wall_s=10.0))
    assert counted.durations.expected(ZERO) == 10.0
    counted.start(second, Slot(1))
    counted.running[second.row.id].began -= 14.0
    counted.end(second, result_of(second, wall_s=10.0))
    assert counted.durations.expected(ZERO) == pytest.approx(12.0, abs=0.1), "what passes between two cells counts"


# -- what is shown -------------------------------------------------------------------------------------------


def test_the_table_shows_what_is_done_broken_running_and_left() -> None:
    counted = tally()
    live = LiveSweep(counted, "my sweep", Console(file=io.StringIO(), force_terminal=False))
    done, broken, running, _ = cells()
    for cell, slot in ((done, Slot(1)), (broken, Slot(2))):
        live.started(cell, slot)
    live.finished(done, result_of(done))
    live.broken(broken, CellError(**broken.row.model_dump(), error="ValueError", message="no\nmore", traceback=""))
    live.started(running, Slot(1))
    live.round(running, 1, 2)
    console = Console(file=io.StringIO(), width=100)
    console.print(live.table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split()[:3] == ["my", "sweep", "2/4"]
    assert "left" in lines[0]
    header, row = (next(line.split() for line in lines if line.startswith(name)) for name in ("method", "zero_fill"))
    assert header == ["method", "cells", "done", "broken", "running", "left", "a", "cell", "auroc_macro"]
    assert row == ["zero_fill", "grid", "1", "1", "1", "1", "10.0", "s", "0.750"]
    assert any(line.startswith("worker 1  zero_fill epsilon=8 ownership=1:0:3 seed=0  round 1/2") for line in lines)
    assert any(line.startswith("broken: zero_fill epsilon=3 ownership=1:0:3 seed=1: ValueError: no") for line in lines)


def test_a_log_gets_a_line_a_cell_with_its_figures_and_the_time_left() -> None:
    file = io.StringIO()
    with LiveSweep(tally(), "my sweep", Console(file=file, width=200)) as live:
        earlier, first, second, third = cells()
        live.found(earlier, result_of(earlier))
        live.started(first, Slot(1))
        live.finished(first, result_of(first))
        live.started(second, Slot(1))
        live.finished(second, result_of(second, auroc=None))
        live.started(third, Slot(1))
        live.broken(third, CellError(**third.row.model_dump(), error="WorkerDied", message="it died", traceback=""))
    lines = file.getvalue().splitlines()
    assert lines[0] == "1 of 4 cells are finished already and not run again"
    assert lines[1].startswith(
        "cell 2/4  zero_fill epsilon=3 ownership=1:0:3 seed=1  auroc_macro 0.750  eps 2.50  10 s"
    )
    assert "left " in lines[1]
    assert "no score" in lines[2]
    assert lines[3].startswith("cell 4/4  broken: zero_fill epsilon=8 ownership=1:0:3 seed=1: WorkerDied: it died")


def test_json_lines_are_a_record_for_each_cell_that_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as watcher:
        earlier, first, second, _ = cells()
        watcher.found(earlier, result_of(earlier))
        watcher.started(first, Slot(1))
        watcher.finished(first, result_of(first))
        watcher.broken(second, CellError(**second.row.model_dump(), error="E", message="", traceback=""))
        watcher.note("said aside")
    out, err = capsys.readouterr()
    trees = [json.loads(line) for line in out.splitlines()]
    assert [(tree["id"], tree["status"], tree["earlier"]) for tree in trees] == [
        (earlier.row.id, "finished", True),
        (first.row.id, "finished", False),
        (second.row.id, "broken", False),
    ]
    assert err == "said aside\n"


def test_a_cell_is_named_by_what_is_swept() -> None:
    row = CellRow(
        id="0" * 16,
        kind="non_private",
        factors={"method": "fin", "privacy.max_grad_norm": 0.5, "seed": 1},
        method="fin",
        ownership="5:1:4",
        seed=1,
        privacy="off",
        secagg="on",
        epsilon_target=None,
        delta=None,
    )
    assert label_of(row) == "fin max_grad_norm=0.5 seed=1 (non private)"
