"""Bad days at a site, for real: a disk that is full, two processes on one home, and words that must not get out."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap

import pytest
from bookkeeping import bodies, genesis, plan, reserve, write

from secure_fed.errors import ConfigError, LedgerError
from secure_fed.ledger import Ledger, Note, read_ledger, verify
from secure_fed.ledger.free_text import telltale


def _child(body, *arguments):
    """The beginning of a process of its own that has `path`, `key` (of a PEM) and the builders at hand."""
    head = f"""
        import sys
        sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
        from pathlib import Path
        from bookkeeping import reserve
        from secure_fed.errors import LedgerError
        from secure_fed.identity import SigningKey
        from secure_fed.ledger import Ledger
        path, key = Path(sys.argv[1]), SigningKey.load(Path(sys.argv[2]))
    """
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body), *map(str, arguments)]


@pytest.fixture
def pem(tmp_path, key):
    key.save(tmp_path / "private" / "key.pem")
    return tmp_path / "private" / "key.pem"


def _run(command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_file_that_may_not_grow_refuses_the_charge_and_keeps_the_ledger_whole(tmp_path, key, pem):
    """The kernel itself stops the write within the record: RLIMIT_FSIZE."""
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    body = """
        import resource
        unlimited = resource.RLIM_INFINITY
        ledger = Ledger.open(path, "site01", key)
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, unlimited))
        for _ in range(2):
            try:
                ledger.append(reserve(0))
            except LedgerError as error:
                print(error)
        print("UNCHANGED", path.read_bytes() == before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        with Ledger.open(path, "site01", key) as again:
            print("GOES ON", again.append(reserve(0)).seq, len(again.spent()))
    """
    done = _run(_child(body, path, pem))
    assert done.returncode == 0, done.stderr
    refused, closed, *rest = done.stdout.splitlines()
    assert "File too large" in refused
    assert "Nothing was charged; make room on the disk and go on." in refused
    assert "is closed; open it again" in closed
    assert rest == ["UNCHANGED True", "GOES ON 2 1"]
    assert verify([path]).ok


def test_full_file_system_refuses_the_charge_and_keeps_the_ledger_whole(tmp_path, key, pem):
    """A file system of a few kilobytes, in a mount namespace of its own; only root may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    source = write(tmp_path / "ledger.jsonl", "site01", key, [plan(rounds=99)])
    body = """
        with (path.parent / "rubbish").open("wb", buffering=0) as rubbish:
            try:
                while rubbish.write(b"x" * 512):
                    pass
            except OSError:
                pass
        charged = 0
        with Ledger.open(path, "site01", key) as ledger:
            try:
                while charged < 99:
                    ledger.append(reserve(charged))
                    charged += 1
            except LedgerError as error:
                print(error)
        print("WHOLE", path.read_bytes().endswith(b"}\\n"))
        (path.parent / "rubbish").unlink()
        with Ledger.open(path, "site01", key) as again:
            print("CHARGED", sum(record.kind == "reserve" for record in again.records) - charged)
            print("GOES ON", again.append(reserve(charged)).seq - charged)
    """
    script = 'mount -t tmpfs -o size=16k none "$0" && cp "$1" "$0" && shift && exec "$@"'
    mounted = ["unshare", "--mount", "sh", "-c", script, disk, source]
    if _run([*mounted, "true"]).returncode:
        pytest.skip("no mounts here: the test above has the same claim by another limit")
    done = _run([*mounted, *_child(body, disk / "ledger.jsonl", pem)])
    assert done.returncode == 0, done.stderr
    refused, *rest = done.stdout.splitlines()
    assert "No space left on device" in refused
    assert rest == ["WHOLE True", "CHARGED 0", "GOES ON 2"]
    assert not any(disk.iterdir())  # it was mounted for that process alone


FORK = multiprocessing.get_context("fork")  # processes of their own, without a second's imports each


def _write_five(path, key, name):
    for number in range(5):
        while True:
            try:
                with Ledger.open(path, "site01", key) as ledger:
                    ledger.append(Note(code="remark", text=f"{name}.{number}"))
                break
            except LedgerError as error:
                if "open in another process" not in str(error):
                    raise
                os.sched_yield()


def test_processes_on_one_home_take_turns_and_lose_nothing(tmp_path, key):
    """Four processes, each wanting five records: whoever finds the ledger open is refused, and comes back."""
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    running = [FORK.Process(target=_write_five, args=(path, key, name)) for name in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    records = read_ledger(path)
    told = [record.body.text for record in records if isinstance(record.body, Note)]
    assert sorted(told) == sorted(f"{name}.{number}" for name in range(4) for number in range(5))
    assert [record.seq for record in records] == list(range(22))
    assert verify([path]).ok


def _charge_and_stay(path, key, pipe):
    held = Ledger.open(path, "site01", key)
    held.append(reserve(1))
    pipe.send("held")
    pipe.recv()  # never comes


def test_process_that_is_killed_gives_the_ledger_back_with_what_it_charged(tmp_path, key):
    path = write(tmp_path / "ledger.jsonl", "site01", key, bodies(1))
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_charge_and_stay, args=(path, key, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(LedgerError, match="open in another process"):
        Ledger.open(path, "site01", key)
    process.kill()
    process.join(60)
    with Ledger.open(path, "site01", key) as ledger:
        assert ledger.records[-1].body == reserve(1)


# -- words that must not get out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/home/anna/films",
        "see /var/log/syslog for more",
        "disk (/srv) was full",
        "root=/data/2025/x",
        "'/etc/passwd'",
        "moved to ~/films",
        "moved to ~anna/films",
        "$HOME/films",
        "%USERPROFILE%\\films",
        "C:\\Users\\anna",
        "d:/films",
        "\\\\server\\share\\films",
        "//server/share",
        "file:///films",
        "mailed https://intranet.example/ticket",
        "ssh://films",
    ],
)
def test_note_with_a_path_or_an_address_is_refused_and_nothing_is_written(tmp_path, key, text):
    with Ledger.create(tmp_path / "ledger.jsonl", "site01", key, genesis(key)) as ledger:
        with pytest.raises(ConfigError, match="holds the path or address"):
            ledger.append(Note(code="remark", text=text))
        assert len(ledger) == 1
        ledger.append(Note(code="remark", text="the operator looked at it"))  # the ledger is still good


@pytest.mark.parametrize(
    "text",
    [
        "2 of 3 sites and/or the coordinator",
        "about ~3/4 of the rounds, 1/2 of it, N/A",
        "schema secure_fed.ledger/1, sum(x)/N, +/-, / and //",
        "after server_lied, evidence SHA-256 " + "ab" * 32 + ": seen on 31/01/2026 at 12:00",
        "ratio 3:4; e.g. C: the clip",
        "",
    ],
)
def test_note_with_a_slash_that_is_no_path_is_written(tmp_path, key, text):
    with Ledger.create(tmp_path / "ledger.jsonl", "site01", key, genesis(key)) as ledger:
        assert ledger.append(Note(code="remark", text=text)).seq == 1


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("gpu-07.hospital.example", "on GPU-07 at noon", True),
        ("gpu-07.hospital.example", "on gpu-07.hospital.example.", True),
        ("gpu-07", "on gpu-071 and on my-gpu-07", False),
        ("localhost", "bound to localhost", False),
        ("x", "x marks the spot", False),
    ],
)
def test_note_with_this_machines_name_is_refused_as_a_whole_word(monkeypatch, name, text, found):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert (telltale(text) is not None) == found
    assert telltale(text, host=False) is None


def test_repair_after_a_crash_is_written_whatever_the_machine_is_called(tmp_path, key, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    path.write_bytes(path.read_bytes()[:-50])
    monkeypatch.setattr(socket, "gethostname", lambda: "crash")
    with Ledger.open(path, "site01", key) as ledger:
        assert ledger.records[-1].body.code == "torn_line_removed"
