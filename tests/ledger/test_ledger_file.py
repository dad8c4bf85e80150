"""The ledger's file: appended only, synced before `append` returns, repaired after a crash, locked."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from bookkeeping import FIRST, SECOND, bodies, genesis, plan, reserve, settle, write

from secure_fed.errors import LedgerError
from secure_fed.identity import SigningKey
from secure_fed.ledger import Ledger, Note, Refusal, read_ledger
from secure_fed.ledger import ledger as ledger_module


def _python(script, *arguments):
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_records_come_back_as_written_and_in_order(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, bodies())
    records = read_ledger(path)
    assert [r.kind for r in records] == ["genesis", "plan", *["reserve", "reserve", "settle"] * 2]
    assert [r.seq for r in records] == list(range(8))
    assert [r.body for r in records[1:]] == bodies()
    assert path.read_bytes() == b"".join(r.line() + b"\n" for r in records)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_is_the_documented_canonical_json(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    value = json.loads(path.read_bytes().splitlines()[1])
    assert list(value) == ["body", "hash", "kind", "prev", "schema", "seq", "signature", "site", "time"]
    assert value["schema"] == "secure_fed.ledger/1"
    assert value["body"]["phases"][0]["mechanism"] == {
        "kind": "poisson_gaussian",
        "noise_multiplier": 1.5,
        "sample_rate": 0.0625,
        "steps": 16,
    }


def test_reopened_ledger_goes_on_with_the_chain(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), reserve(0)])
    before = path.read_bytes()
    with Ledger.open(path, "site01", key) as ledger:
        ledger.append(settle(0))
        ledger.append(Refusal(code="budget_exhausted", run="run-1", round=1))
        assert len(ledger) == 5
        assert ledger.head.hex() == ledger.records[-1].hash
        assert ledger.genesis.public_key == key.public_bytes.hex()
    assert path.read_bytes().startswith(before)
    assert len(read_ledger(path)) == 5


def test_every_reserve_is_spent_whatever_became_of_it(tmp_path, key):
    items = [
        plan(),
        reserve(0),
        reserve(0, "translators"),
        settle(0, outcome="discarded"),
        reserve(1, step=0),
    ]
    path = write(tmp_path / "ledger.jsonl", "site01", key, items)
    with Ledger.open(path, "site01", key) as ledger:
        spent = {m.noise_multiplier: m.steps for m in ledger.spent()}
        assert spent == {1.5: 2 * FIRST.steps, 2.0: SECOND.steps}
        assert ledger.spent("run-1") == ledger.spent()
        assert ledger.spent("another run") == ()


def test_append_syncs_before_it_returns(tmp_path, key, monkeypatch):
    synced = []
    real = os.fsync

    def watch(handle):
        synced.append(os.fstat(handle).st_size)
        real(handle)

    with Ledger.create(tmp_path / "ledger.jsonl", "site01", key, genesis(key)) as ledger:
        monkeypatch.setattr(ledger_module.os, "fsync", watch)
        ledger.append(plan())
        assert synced == [(tmp_path / "ledger.jsonl").stat().st_size]


def test_new_ledger_survives_a_power_cut_under_its_name(tmp_path, key, monkeypatch):
    folders = []
    monkeypatch.setattr(ledger_module, "sync_folder", folders.append)
    Ledger.create(tmp_path / "ledger.jsonl", "site01", key, genesis(key)).close()
    assert folders == [tmp_path]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    key = SigningKey.generate()
    path = write(tmp_path_factory.mktemp("small") / "ledger.jsonl", "site01", key, [plan(), reserve(0)])
    return key, path.read_bytes()


def test_last_line_torn_at_any_byte_is_repaired_with_a_note(tmp_path, small):
    key, data = small
    start = data.rindex(b"\n", 0, len(data) - 1) + 1
    path = tmp_path / "ledger.jsonl"
    for end in range(start + 1, len(data) - 1):
        path.write_bytes(data[:end])
        assert len(read_ledger(path)) == 2  # readers leave the torn line out
        if (end - start) % 11 != 1:
            continue  # every repair is synced to the disk, which takes longer than all the rest
        with Ledger.open(path, "site01", key) as ledger:
            note = ledger.records[-1].body
            assert isinstance(note, Note)
            assert note.code == "torn_line_removed"
            assert f"{end - start} bytes" in note.text
        assert path.read_bytes().startswith(data[:start])
        assert len(read_ledger(path)) == 3


def test_record_that_lacks_only_its_line_feed_stays_charged(tmp_path, small):
    key, data = small
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(data[:-1])
    with Ledger.open(path, "site01", key) as ledger:
        assert len(ledger.spent()) == 1
        assert len(ledger) == 3
    assert path.read_bytes() == data


def test_crash_at_the_very_first_record_lets_the_ledger_begin_anew(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [genesis(key)])
    for end in (0, 5, 200):
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(LedgerError, match="no whole record"):
            Ledger.open(path, "site01", key)
        Ledger.open_or_create(path, "site01", key, genesis(key)).close()
        assert len(read_ledger(path)) == 1


def test_ledger_is_begun_once_and_then_opened(tmp_path, key):
    path = tmp_path / "ledger.jsonl"
    for expected in (2, 3):
        with Ledger.open_or_create(path, "site01", key, genesis(key)) as ledger:
            ledger.append(Note(code="remark", text="here"))
            assert len(ledger) == expected
    path.write_bytes(path.read_bytes().replace(b"here", b"HERE"))
    with pytest.raises(LedgerError, match="record 1 was changed"):
        Ledger.open_or_create(path, "site01", key, genesis(key))


def test_threads_of_one_process_share_a_ledger(tmp_path, key):
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, "site01", key, genesis(key)) as ledger, ThreadPoolExecutor(4) as pool:
        seqs = list(pool.map(lambda i: ledger.append(Note(code="remark", text=str(i))).seq, range(40)))
    assert sorted(seqs) == list(range(1, 41))
    assert len(read_ledger(path)) == 41


def test_existing_ledger_and_foreign_file_are_not_overwritten(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, "site01", key, genesis(key))
    assert path.read_bytes() == before
    other = tmp_path / "notes.txt"
    other.write_text("shopping list")
    with pytest.raises(LedgerError, match="is no ledger"):
        Ledger.create(other, "site01", key, genesis(key))
    assert other.read_text() == "shopping list"


@pytest.mark.parametrize("line", [0, 1])
def test_any_other_damage_is_refused_and_names_the_record(tmp_path, small, line):
    key, data = small
    lines = data.split(b"\n")
    lines[line] = lines[line].replace(b"site01", b"site02", 1)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(LedgerError, match=f"record {line} was changed"):
        Ledger.open(path, "site01", key)
    with pytest.raises(LedgerError, match=f"record {line} was changed"):
        read_ledger(path)


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_full_disk_adds_nothing_and_says_so(tmp_path, key, monkeypatch, failing):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    before = path.read_bytes()
    ledger = Ledger.open(path, "site01", key)
    real_write = os.write

    def full(handle, data=b""):
        if data:
            real_write(handle, bytes(data[:50]))  # the disk fills up within the record
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.os, failing, full)
        with pytest.raises(LedgerError, match="No space left on device"):
            ledger.append(reserve(0))
        assert path.read_bytes() == before
        with pytest.raises(LedgerError, match="closed"):
            ledger.append(reserve(0))
    with Ledger.open(path, "site01", key) as again:
        assert again.append(reserve(0)).seq == 2
    assert len(read_ledger(path)) == 3


def test_short_writes_are_continued(tmp_path, key, monkeypatch):
    real = os.write
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setattr(ledger_module.os, "write", lambda handle, data: real(handle, bytes(data[:7])))
    Ledger.create(path, "site01", key, genesis(key)).close()
    assert len(read_ledger(path)) == 1


def test_disk_that_refuses_even_the_way_back_leaves_a_line_that_the_next_opening_repairs(tmp_path, key, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    ledger = Ledger.open(path, "site01", key)
    real_write = os.write

    def tear(handle, data):
        real_write(handle, bytes(data[:50]))
        raise OSError(errno.EIO, "Input/output error")

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.os, "write", tear)
        patch.setattr(ledger_module.os, "ftruncate", refuse)
        with pytest.raises(LedgerError, match="will be repaired"):
            ledger.append(reserve(0))
    with Ledger.open(path, "site01", key) as again:
        assert again.records[-1].kind == "note"
        assert again.spent() == ()


def test_second_opening_is_refused_while_the_first_is_open(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    with Ledger.open(path, "site01", key):
        with pytest.raises(LedgerError, match="open in another process"):
            Ledger.open(path, "site01", key)
        script = (
            "import sys; from pathlib import Path; from secure_fed.errors import LedgerError\n"
            "from secure_fed.identity import SigningKey; from secure_fed.ledger import Ledger\n"
            "try: Ledger.open(Path(sys.argv[1]), 'site01', SigningKey.generate())\n"
            "except LedgerError as error: print(error)\n"
        )
        assert "open in another process" in _python(script, str(path))
    Ledger.open(path, "site01", key).close()


def test_ledger_of_another_site_or_key_is_refused(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    with pytest.raises(LedgerError, match="belongs to 'site01', not to 'site02'"):
        Ledger.open(path, "site02", key)
    with pytest.raises(LedgerError, match="another key"):
        Ledger.open(path, "site01", SigningKey.generate())
    with pytest.raises(LedgerError, match="another public key"):
        Ledger.create(tmp_path / "new.jsonl", "site01", SigningKey.generate(), genesis(key))


def _clock(monkeypatch, shift):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + shift

    monkeypatch.setattr(ledger_module, "datetime", Clock)


def test_clock_that_went_back_is_refused_and_nothing_is_written(tmp_path, key, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    before = path.read_bytes()
    with Ledger.open(path, "site01", key) as ledger:
        _clock(monkeypatch, -timedelta(hours=1))
        with pytest.raises(LedgerError, match="clock went backwards"):
            ledger.append(reserve(0))
        assert path.read_bytes() == before
        _clock(monkeypatch, timedelta(0))
        ledger.append(reserve(0))


def test_small_step_back_of_the_clock_repeats_the_last_time(tmp_path, key, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    with Ledger.open(path, "site01", key) as ledger:
        _clock(monkeypatch, -timedelta(seconds=30))
        assert ledger.append(reserve(0)).time == ledger.records[-2].time


def test_missing_folder_is_named(tmp_path, key):
    with pytest.raises(LedgerError, match=r"nowhere.*cannot be opened"):
        Ledger.create(tmp_path / "nowhere" / "ledger.jsonl", "site01", key, genesis(key))
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(tmp_path / "absent.jsonl", "site01", key)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"delta": 0.01}, "delta"),
        ({"epsilon_limit": -1.0}, "epsilon_limit"),
        ({"epsilon_limit": float("inf")}, "epsilon_limit"),
        ({"declared_n": 0}, "declared_n"),
        ({"unit": "study"}, "unit"),
        ({"relation": "shuffled"}, "relation"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_malformed_genesis_is_refused_before_anything_is_written(key, change, word):
    with pytest.raises(ValueError, match=word):
        genesis(key, **change)


def test_accounting_and_ledger_import_neither_torch_nor_flwr():
    script = (
        "import sys, secure_fed.ledger, secure_fed.accounting, secure_fed.identity\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'flwr', 'opacus', 'ray')])"
    )
    assert _python(script).strip() == "[]"
