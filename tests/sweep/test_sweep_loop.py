"""Handing out cells and keeping what becomes of them: real worker processes, whose cells fail as their seeds say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_worker import BLOCKS, CODE, COMMAND, DEAD_ON_ARRIVAL, DIES, FINE, FULL, PRINTS, RAISES, TORN
from tiny_sweep import Recorder, begun, ids, inodes, tiny

from secure_fed.errors import DataError, RunAborted, SecureFedError
from secure_fed.files import write_whole
from secure_fed.sweep import loop
from secure_fed.sweep.cells import Cell, Sweep
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.loop import Listed, Outcome, discard_torn, run_sweep
from secure_fed.sweep.pool import ProcessPool, Slot
from secure_fed.sweep.record import CellError, CellResult


def sweep_of(*seeds: int) -> Sweep:
    return tiny("privacy.epsilon=3", f"seed={','.join(map(str, seeds))}")


def seed_of(sweep: Sweep, seed: int) -> str:
    return next(cell.row.id for cell in sweep.cells if cell.row.seed == seed)


def run(
    folder: SweepFolder,
    sweep: Sweep,
    watcher: Recorder,
    *,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
    refresh: Callable[[], None] = lambda: None,
    source: loop.Source | None = None,
) -> Outcome:
    pool = ProcessPool(workers, folder.root, CODE, command=COMMAND)
    return run_sweep(folder, source or Listed(sweep.cells), pool, watcher, stop=stop, refresh=refresh)


@pytest.fixture
def watcher() -> Recorder:
    return Recorder()


# -- broken cells --------------------------------------------------------------------------------------------


def test_cells_that_raise_or_kill_their_worker_do_not_stop_the_rest(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(RAISES, DIES, FINE, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    assert run(folder, sweep, watcher, workers=2) == Outcome(finished=2, broken=2, ended="done")
    assert sorted(watcher.of("finished")) == sorted([seed_of(sweep, FINE), seed_of(sweep, PRINTS)])
    raised = CellError.model_validate_json((folder.cell(seed_of(sweep, RAISES)) / "error.json").read_bytes())
    assert (raised.error, raised.seed) == ("ValueError", RAISES)
    assert "Traceback" in raised.traceback
    assert watcher.errors[seed_of(sweep, DIES)].error == "WorkerDied"
    assert (folder.cell(seed_of(sweep, DIES)) / "config.yaml").exists(), "what it left is there to be looked at"


def test_a_cell_that_is_said_to_be_finished_without_a_result_is_broken(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(TORN, FINE)
    folder = begun(tmp_path / "sweep", sweep)
    assert run(folder, sweep, watcher) == Outcome(finished=1, broken=1, ended="done")
    assert "shared file system" in watcher.errors[seed_of(sweep, TORN)].message


def test_workers_that_cannot_start_abort_the_sweep_and_keep_what_is_finished(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    run(folder, sweep_of(FINE), watcher)
    before = inodes(folder.cell(seed_of(sweep, FINE)))
    pool = ProcessPool(1, folder.root, CODE, command=DEAD_ON_ARRIVAL)
    with pytest.raises(RunAborted, match="no such module"):
        run_sweep(folder, Listed(sweep.cells), pool, watcher)
    assert inodes(folder.cell(seed_of(sweep, FINE))) == before


# -- a disk that fills up ------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_sweep_and_loses_nothing_that_is_finished(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, FULL, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    assert run(folder, sweep, watcher) == Outcome(finished=1, broken=0, ended="disk_full")
    assert watcher.of("started") == [seed_of(sweep, FINE), seed_of(sweep, FULL)], "no other cell is tried"
    assert folder.result(seed_of(sweep, FINE)) is not None
    assert not folder.cell(seed_of(sweep, FULL)).exists(), "its room is free, and it is not broken: it runs again"
    assert "No space left on device" in watcher.notes[0]


def test_a_cell_that_breaks_while_the_disk_is_full_counts_as_stopped_by_it(
    tmp_path: Path, watcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site tells its coordinator a fixed code and no reason, so the cell's error is that it was aborted."""
    sweep = sweep_of(RAISES, FINE)
    folder = begun(tmp_path / "sweep", sweep)
    monkeypatch.setattr("secure_fed.sweep.folder._NEXT_TO_NOTHING", 2**60)
    assert run(folder, sweep, watcher) == Outcome(finished=0, broken=0, ended="disk_full")


def test_a_disk_that_is_full_for_the_tables_stops_the_sweep_too(
    tmp_path: Path, watcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_REFRESH_S", 0.0)
    sweep = sweep_of(FINE, BLOCKS)

    def refresh() -> None:
        try:
            Path("/dev/full").write_text("the kernel's own answer")
        except OSError as error:
            raise DataError("sweep.csv cannot be written") from error

    folder = begun(tmp_path / "sweep", sweep)
    outcome = run(folder, sweep, watcher, refresh=refresh)
    assert outcome == Outcome(finished=1, broken=0, ended="disk_full")
    assert watcher.notes == ["sweep.csv cannot be written"]


def test_any_other_fault_of_the_tables_is_said_and_cells_go_on(
    tmp_path: Path, watcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_REFRESH_S", 0.0)
    sweep = sweep_of(FINE, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)

    def refresh() -> None:
        write_whole(folder.root / "missing" / "sweep.csv", "")

    assert run(folder, sweep, watcher, refresh=refresh) == Outcome(finished=2, broken=0, ended="done")
    assert watcher.notes[0].startswith("tables and page wait: ")


# -- stopping and going on -----------------------------------------------------------------------------------


def test_stopping_keeps_what_is_finished_and_removes_what_is_not(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, BLOCKS, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    blocked = seed_of(sweep, BLOCKS)
    outcome = run(folder, sweep, watcher, stop=lambda: ("round 1/2", blocked) in watcher.calls)
    assert outcome == Outcome(finished=1, broken=0, ended="interrupted")
    assert folder.result(seed_of(sweep, FINE)) is not None
    assert not folder.cell(blocked).exists()


def test_going_on_runs_what_is_missing_or_broken_and_touches_nothing_else(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, RAISES, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    run(folder, sweep_of(FINE, RAISES), watcher)
    finished = folder.cell(seed_of(sweep, FINE))
    before = inodes(finished)
    again = Recorder()
    assert run(folder, sweep, again) == Outcome(finished=2, broken=1, ended="done")
    assert again.of("found") == [seed_of(sweep, FINE)]
    assert sorted(again.of("started")) == sorted([seed_of(sweep, RAISES), seed_of(sweep, PRINTS)])
    assert inodes(finished) == before


def test_a_cell_with_a_torn_result_runs_again_and_says_so(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    run(folder, sweep, Recorder())
    torn = folder.cell(seed_of(sweep, FINE)) / "cell.json"
    torn.write_bytes(torn.read_bytes()[:100])
    discard_torn(folder, folder.manifest().cells, watcher)
    assert not torn.exists()
    assert watcher.notes == [f"cells/{torn.parent.name}/cell.json is damaged or not of this cell, which runs again"]
    assert run(folder, sweep, watcher) == Outcome(finished=2, broken=0, ended="done")
    assert watcher.of("started") == [torn.parent.name]


def test_what_an_interrupted_cell_charged_is_noted_before_it_is_removed(tmp_path: Path, finished_run: Path) -> None:
    sweep = sweep_of(FINE)
    folder = begun(tmp_path / "sweep", sweep)
    cell = sweep.cells[0].row.id
    folder.cell(cell).parent.mkdir()
    (folder.cell(cell)).symlink_to(finished_run)
    loop.discard(folder, cell)
    assert not (folder.root / "abandoned.jsonl").exists(), "a link is no cell of ours"
    shutil.copytree(finished_run, folder.cell(cell))
    loop.discard(folder, cell)
    assert cell in (folder.root / "abandoned.jsonl").read_text()
    assert not folder.cell(cell).exists()


def test_tables_are_rewritten_now_and_then_but_only_where_something_is_new(
    tmp_path: Path, watcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_REFRESH_S", 0.0)
    sweep = sweep_of(FINE, PRINTS)
    seen: list[int] = []
    folder = begun(tmp_path / "sweep", sweep)
    run(folder, sweep, watcher, refresh=lambda: seen.append(len(watcher.of("finished"))))
    assert seen == [1, 2]


# -- sources -------------------------------------------------------------------------------------------------


class Chain:
    """A search in miniature: the next cell is only known when the last has come to its end."""

    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self._cells, self._free = list(cells), True
        self.results: list[CellResult | None] = []

    def next(self, slot: Slot) -> Cell | None:
        if not self._free or not self._cells:
            return None
        self._free = False
        return self._cells.pop(0)

    def finished(self, cell: Cell, result: CellResult | None) -> None:
        self._free = True
        self.results.append(result)

    def exhausted(self) -> bool:
        return not self._cells


def test_a_search_is_told_of_each_end_before_it_gives_the_next_cell(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE, RAISES, PRINTS)
    folder = begun(tmp_path / "sweep", sweep)
    source = Chain(sweep.cells)
    assert run(folder, sweep, watcher, workers=2, source=source) == Outcome(finished=2, broken=1, ended="done")
    assert [result is not None for result in source.results] == [True, False, True]
    assert watcher.of("started") == ids(sweep.cells)


def test_a_source_that_waits_for_nothing_is_an_error_and_not_for_ever(tmp_path: Path, watcher: Recorder) -> None:
    sweep = sweep_of(FINE)

    class Waiting(Chain):
        def next(self, slot: Slot) -> Cell | None:
            return None

    with pytest.raises(SecureFedError, match="waits for none"):
        run(begun(tmp_path / "sweep", sweep), sweep, watcher, source=Waiting(sweep.cells))


def test_a_worker_gets_cells_of_the_data_it_holds_and_two_workers_get_different_data() -> None:
    sweep = tiny("privacy.epsilon=1,3,8", "seed=0,1,2")
    source, slots = Listed(sweep.cells), (Slot(1), Slot(2))
    given: dict[int, list[int]] = {1: [], 2: []}
    while not source.exhausted():
        for slot in slots:
            cell = source.next(slot)
            if cell is not None:
                slot.last = cell
                given[slot.number].append(cell.row.seed)
    assert given == {1: [0, 0, 0, 2, 2], 2: [1, 1, 1, 2]}
    assert source.next(slots[0]) is None
