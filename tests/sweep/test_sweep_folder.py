"""A sweep's folder: one holder at a time, nothing overwritten, and a torn file is no result."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example import example_sweep

from secure_fed.errors import ConfigError, DataError
from secure_fed.files import write_whole
from secure_fed.sweep.folder import SweepFolder, no_room_left
from secure_fed.sweep.record import MANIFEST, RESULT, CellError, CellRow


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return SweepFolder(example_sweep(tmp_path / "sweep", methods=("fin",), seeds=(0,), references=()))


def first(folder: SweepFolder) -> CellRow:
    return folder.manifest().cells[0]


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "deep" / "sweep")
    said = rf"in use by another sweep \(process {os.getpid()} on "
    with folder.locked(), pytest.raises(ConfigError, match=said), SweepFolder(folder.root).locked():
        pass
    with folder.locked():
        assert folder.is_new(), "a lock alone is no sweep"


def test_the_lock_is_held_as_long_as_a_process_lives_that_inherited_it(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    with folder.locked() as lock:
        heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ConfigError, match="in use"), folder.locked():
        pass
    heir.communicate()
    with folder.locked():
        pass


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out() -> None:
    nowhere = SweepFolder(Path("/proc/sweep"))
    with pytest.raises(ConfigError, match=r"sweep\.dir=/proc/sweep cannot be written: .*; give"), nowhere.locked():
        pass


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        SweepFolder(tmp_path / "file").is_new()
    with pytest.raises(ConfigError, match="cannot be written"), SweepFolder(tmp_path / "file").locked():
        pass


def test_a_sweep_never_begins_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no sweep"):
        SweepFolder(tmp_path).is_new()
    assert SweepFolder(tmp_path / "other").is_new()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged: it is no JSON"),
        ("[]", "has schema None"),
        ('{"schema": "secure_fed.sweep/0"}', "has schema 'secure_fed.sweep/0', and this version"),
        ('{"schema": "secure_fed.sweep/1"}', "damaged: name: Field required"),
    ],
)
def test_a_damaged_manifest_or_one_of_another_version_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=said):
        SweepFolder(tmp_path).manifest()


def test_a_folder_without_a_manifest_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a sweep's folder: it has no sweep\.json"):
        SweepFolder(tmp_path).manifest()


def test_a_torn_result_and_one_of_another_cell_are_none(sweep: SweepFolder) -> None:
    row = first(sweep)
    whole = (sweep.cell(row.id) / RESULT).read_text()
    assert sweep.result(row.id) is not None
    for text in ("", whole[: len(whole) // 2], whole.replace(row.id, "0" * 16)):
        (sweep.cell(row.id) / RESULT).write_text(text)
        assert sweep.result(row.id) is None
    assert sweep.result("f" * 16) is None


def test_clearing_a_cell_removes_it_and_follows_no_link_out_of_the_sweep(sweep: SweepFolder, tmp_path: Path) -> None:
    row = first(sweep)
    assert not sweep.clear(row.id).exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    sweep.cell(row.id).symlink_to(elsewhere)
    assert not sweep.clear(row.id).is_symlink()
    assert (elsewhere / "kept").exists()


def test_a_broken_cell_says_so_in_its_folder_also_where_there_was_none(sweep: SweepFolder) -> None:
    row = first(sweep)
    error = CellError(**row.model_dump(), error="ValueError", message="no", traceback="")
    sweep.clear(row.id)
    sweep.save_error(error)
    assert CellError.model_validate_json((sweep.cell(row.id) / "error.json").read_bytes()) == error


def test_cells_that_clearly_do_not_fit_on_the_disk_are_refused(sweep: SweepFolder) -> None:
    free = shutil.disk_usage(sweep.root).free
    sweep.require_room(1, 1)
    with pytest.raises(ConfigError, match=r"3 cells need about \d+ MiB, and \d+ MiB are free at .*: make room"):
        sweep.require_room(3, free)


def test_a_full_disk_is_seen_through_what_was_raised_from_it() -> None:
    with pytest.raises(DataError) as raised:
        _write_without_room()
    assert no_room_left(raised.value)
    assert no_room_left(OSError(errno.EDQUOT, "quota"))
    assert not no_room_left(OSError(errno.EACCES, "no"))
    assert not no_room_left(ValueError())
    assert not no_room_left(None)


def _write_without_room() -> None:
    try:
        Path("/dev/full").write_text("x")  # the kernel's own answer
    except OSError as error:
        raise DataError("cannot be written") from error


def test_a_write_that_fails_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path: Path) -> None:
    """What `cell.json` stands on. The limit is the kernel's: the file can grow to so many bytes and no further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"cell\.json cannot be written: File too large"):
            write_whole(tmp_path / "cell.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
