"""A ledger that changes hands: from one key to the next, in order, with proof, and never back."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path

import pytest
from bookkeeping import bodies, expected_epsilon, forge, genesis, plan, reserve, settle, write
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from secure_fed.errors import LedgerError
from secure_fed.identity import Member, Roster, SigningKey, fingerprint
from secure_fed.ledger import Ledger, Note, Rekey, read_ledger, render, rotations, signing_keys, verify
from secure_fed.ledger import ledger as ledger_module
from secure_fed.ledger.record import make_rekey

REKEYED = Path(__file__).with_name("golden_ledger_rekeyed.jsonl")


@pytest.fixture
def second():
    return SigningKey.generate()


@pytest.fixture
def third():
    return SigningKey.generate()


def _hex(*keys):
    return tuple(key.public_bytes.hex() for key in keys)


def _problem(path, **options):
    return verify([path], **options).first_problem


# -- the file --------------------------------------------------------------------------------------------------


def test_records_after_a_rekey_are_signed_by_the_new_key_and_every_charge_still_counts(tmp_path, key, second):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [*bodies(1), second, *bodies(2)[4:]])
    assert signing_keys(read_ledger(path)) == _hex(key, second)
    verdict = verify([path])
    assert verdict.ok, verdict.first_problem
    assert verdict.rows[0].epsilon == expected_epsilon(2)
    with Ledger.open(path, "site01", second) as ledger:
        assert ledger.append(Note(code="remark", text="still here")).seq == 9


def test_two_rekeys_in_a_row_work(tmp_path, key, second, third):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second, third, reserve(0)])
    records = read_ledger(path)
    assert signing_keys(records) == _hex(key, second, third)
    assert [(r.seq, r.old, r.new) for r in rotations(records)] == [(2, *_hex(key, second)), (3, *_hex(second, third))]
    assert verify([path]).ok


def test_ledger_opens_with_its_present_key_only_and_says_which_that_is(tmp_path, key, second):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second])
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=f"another key, {fingerprint(second.public_bytes)}.*which it replaced"):
        Ledger.open(path, "site01", key)
    with pytest.raises(LedgerError, match="which it never had"):
        Ledger.open(path, "site01", SigningKey.generate())
    assert path.read_bytes() == before


def test_key_that_the_ledger_had_before_never_comes_back(tmp_path, key, second):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second])
    before = path.read_bytes()
    with Ledger.open(path, "site01", second) as ledger:
        for known in (key, second):
            with pytest.raises(LedgerError, match="had the key"):
                ledger.rekey(known)
    assert path.read_bytes() == before
    for again in (key, second):
        forged = forge(tmp_path / "forged.jsonl", "site01", key, [genesis(key), second, (again, second)])
        assert "record 2 hands over to a key that this ledger had before" in _problem(forged)


def test_rekey_is_not_written_by_append_which_would_go_on_with_the_old_key(tmp_path, key, second):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    with Ledger.open(path, "site01", key) as ledger:
        body = make_rekey(site="site01", old_key=_hex(key)[0], prev=ledger.head.hex(), successor=second)
        with pytest.raises(LedgerError, match="only `rekey` changes its key"):
            ledger.append(body)
        assert ledger.append(reserve(0)).seq == 2


def test_rekey_torn_at_any_byte_leaves_the_old_key_in_force_and_one_without_its_line_feed_the_new_one(
    tmp_path, key, second
):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second])
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, len(data) - 1) + 1
    for end in range(start, len(data) - 1, 7):
        path.write_bytes(data[:end])
        with pytest.raises(LedgerError, match="another key"):
            Ledger.open(path, "site01", second)
        with Ledger.open(path, "site01", key) as ledger:
            ledger.rekey(SigningKey.generate())
        assert verify([path]).ok
    path.write_bytes(data[:-1])
    with Ledger.open(path, "site01", second) as ledger:
        ledger.append(reserve(0))
    assert verify([path]).ok


def test_full_disk_leaves_the_old_key_in_force(tmp_path, key, second, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan()])
    before = path.read_bytes()
    with Ledger.open(path, "site01", key) as ledger, monkeypatch.context() as patch:
        patch.setattr(ledger_module.os, "write", _refuse)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.rekey(second)
    assert path.read_bytes() == before
    with Ledger.open(path, "site01", key) as ledger:
        ledger.append(reserve(0))


def _refuse(*_):
    raise OSError(28, "No space left on device")


def test_opening_syncs_what_a_crash_left_unsynced_before_anybody_relies_on_it(tmp_path, key, second, monkeypatch):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second])
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        ledger_module.os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle))
    )
    Ledger.open(path, "site01", second).close()
    assert synced == [path.stat().st_ino]


# -- attacks ---------------------------------------------------------------------------------------------------


def test_record_signed_by_a_replaced_key_is_named(tmp_path, key, second, third):
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [genesis(key), plan(), second, (reserve(0), key)])
    assert "record 3 is signed by a key that site01 had replaced before" in _problem(path)
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [genesis(key), plan(), second, third, (reserve(0), second)])
    assert "record 4 is signed by a key that site01 had replaced before" in _problem(path)
    with pytest.raises(LedgerError, match="record 4 is signed by a key"):
        Ledger.open(path, "site01", third)


def test_record_signed_by_a_stranger_after_a_rekey_is_named(tmp_path, key, second):
    items = [genesis(key), plan(), second, (reserve(0), SigningKey.generate())]
    assert "record 3 is not signed by the key of site01" in _problem(forge(tmp_path / "a.jsonl", "site01", key, items))


def test_new_key_cannot_sign_its_own_appointment_nor_any_record_before_it(tmp_path, key, second):
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [genesis(key), plan(), second])
    appointment = read_ledger(path)[2].body
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [genesis(key), plan(), (appointment, second)])
    assert "record 2 is not signed by the key of site01" in _problem(path)
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [genesis(key), (plan(), second), second])
    assert "record 1 is not signed by the key of site01" in _problem(path)


@pytest.mark.parametrize("wrong", ["site", "old_key", "prev", "signer", "zero"])
def test_rekey_whose_proof_is_not_the_new_keys_for_this_place_is_refused(tmp_path, key, second, wrong):
    first = [genesis(key), plan()]
    prev = read_ledger(forge(tmp_path / "start.jsonl", "site01", key, first))[-1].hash
    said = {"site": "site01", "old_key": _hex(key)[0], "prev": prev}
    stranger = SigningKey.generate()
    said |= {"site": {"site": "site02"}, "old_key": {"old_key": _hex(stranger)[0]}, "prev": {"prev": "ab" * 32}}.get(
        wrong, {}
    )
    body = make_rekey(**said, successor=second)
    if wrong == "signer":  # the old key's holder adopts a key that it does not hold
        body = Rekey(public_key=body.public_key, possession=make_rekey(**said, successor=stranger).possession)
    if wrong == "zero":
        body = Rekey(public_key=body.public_key, possession="00" * 64)
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [*first, body, (reserve(0), second)])
    assert "record 2 hands over to a key whose holder did not sign for it" in _problem(path)
    for signing in (key, second):
        with pytest.raises(LedgerError, match="record 2 hands over"):
            Ledger.open(path, "site01", signing)


def test_rekey_of_one_ledger_fits_no_other_of_the_same_keys(tmp_path, key, second):
    one = read_ledger(forge(tmp_path / "one.jsonl", "site01", key, [genesis(key), plan(), second]))
    items = [genesis(key), plan(run="run-2"), one[2].body]
    assert "record 2 hands over to a key whose" in _problem(forge(tmp_path / "two.jsonl", "site01", key, items))


def test_ledger_does_not_begin_with_a_rekey(tmp_path, key, second):
    path = forge(tmp_path / "ledger.jsonl", "site01", key, [second])
    assert "record 0 is not a genesis record" in _problem(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_of_a_ledger_of_three_keys_is_found_and_its_record_named(tmp_path, data):
    good = REKEYED.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[position]))
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(changed)
    assert f"record {good[:position].count(10)} " in _problem(path)


@pytest.mark.parametrize("gone", [3, 6])
def test_rekey_that_is_cut_out_is_missed(tmp_path, gone):
    lines = REKEYED.read_bytes().splitlines(keepends=True)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    assert f"record {gone} carries seq {gone + 1}" in _problem(path)


def test_proof_of_possession_is_checked_by_the_documentation_alone():
    """What an auditor with another program does: nothing of ours but the file."""
    lines = [json.loads(line) for line in REKEYED.read_bytes().splitlines()]
    old = lines[0]["body"]["public_key"]
    for record in (lines[3], lines[6]):
        new, proof = record["body"]["public_key"], bytes.fromhex(record["body"]["possession"])
        said = {"new_key": new, "old_key": old, "prev": record["prev"], "site": "site01"}
        statement = b"secure_fed/rekey/1\0" + json.dumps(said, separators=(",", ":")).encode()
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(new)).verify(proof, statement)
        old = new


# -- the verdict -----------------------------------------------------------------------------------------------


def _roster(path, keys, version):
    members = {name: Member(public_key=key.public_bytes.hex(), owns=("image",)) for name, key in keys.items()}
    coordinator = SigningKey.generate().public_bytes
    Roster.create(members, SigningKey.generate(), coordinator=coordinator, version=version).save(path)
    return path


@pytest.fixture
def rotated(books, second):
    """A run in which site02 changed its key before its last record."""
    *most, last = bodies()
    books.rewrite("site02", [*most, second, last])
    return books


def test_roster_must_name_the_present_key_and_one_of_before_is_told_from_a_strangers(rotated, second, tmp_path):
    old = rotated.keys["site02"]
    assert "site02: record 7 hands over to the key" in _problem(rotated.folder)
    outdated = _problem(rotated.folder)
    for words in (
        fingerprint(second.public_bytes),
        f"roster version 1 still names {fingerprint(old.public_bytes)}",
        "publish a roster of a higher version",
    ):
        assert words in outdated
    new = _roster(tmp_path / "new.json", {**rotated.keys, "site02": second}, 2)
    verdict = verify([rotated.folder], roster=new)
    assert verdict.ok, verdict.first_problem
    assert verdict.rows[1].epsilon == expected_epsilon()
    foreign = _roster(tmp_path / "foreign.json", {**rotated.keys, "site02": SigningKey.generate()}, 3)
    assert "site02: record 7 names another public key than the roster" in _problem(rotated.folder, roster=foreign)


def test_roster_that_was_published_before_the_site_rotated_does_not_vouch_for_the_new_key(books, second, tmp_path):
    new = _roster(tmp_path / "new.json", {**books.keys, "site02": second}, 2)
    problem = _problem(books.folder, roster=new)
    assert "site02: record 0 names another public key than the roster" in problem
    assert "from before a rotation" in problem


def test_thief_of_the_old_key_who_hands_the_ledger_over_to_itself_is_not_who_the_roster_names(books, second, tmp_path):
    """Both continue from the same records with the same old key: only the roster says which of them is the site."""
    start = bodies()[:4]
    stolen = write(tmp_path / "thief" / "ledger.jsonl", "site02", books.keys["site02"], start)
    home = tmp_path / "home" / "ledger.jsonl"
    home.parent.mkdir()
    home.write_bytes(stolen.read_bytes())
    thief = SigningKey.generate()
    for path, successor in ((stolen, thief), (home, second)):
        with Ledger.open(path, "site02", books.keys["site02"]) as ledger:
            ledger.rekey(successor)
    new = _roster(tmp_path / "new.json", {**books.keys, "site02": second}, 2)
    assert verify([home], roster=new).ok
    assert "record 5 names another public key" in _problem(stolen, roster=new)
    assert "record 5 differs between two ledgers under one key" in verify([home, stolen]).first_problem


def test_books_that_share_only_a_later_key_are_two_books_of_one_key(tmp_path, key, second):
    one = write(tmp_path / "one" / "ledger.jsonl", "site01", key, [plan(), second])
    two = write(tmp_path / "two" / "ledger.jsonl", "site01", second, [plan()])
    for order in ([one, two], [two, one]):
        assert verify(order).problems == ("site01: record 0 differs between two ledgers under one key (also site01)",)
    copy = tmp_path / "copy" / "ledger.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(b"".join(one.read_bytes().splitlines(keepends=True)[:2]))
    assert verify([copy, one]).ok  # one is a beginning of the other


def test_verdict_shows_every_rotation_in_its_table_and_its_json(tmp_path, key, second, third):
    path = write(tmp_path / "ledger.jsonl", "site01", key, [plan(), second, reserve(0), third, settle(0)])
    verdict = verify([path])
    prints = [fingerprint(k.public_bytes) for k in (key, second, third)]
    times = [record.time for record in read_ledger(path) if record.kind == "rekey"]
    assert verdict.to_json()["sites"][0]["rotations"] == [
        {"record": 2, "time": times[0], "from": prints[0], "to": prints[1]},
        {"record": 4, "time": times[1], "from": prints[1], "to": prints[2]},
    ]
    out = StringIO()
    render(verdict, Console(file=out, width=200, color_system=None))
    for seq, time, old, new in ((2, times[0], *prints[:2]), (4, times[1], *prints[1:])):
        assert f"key changed in record {seq} ({time[:10]}): {old} -> {new}" in out.getvalue()


def test_rotations_are_shown_also_where_the_roster_does_not_know_them_yet(rotated):
    assert [rotation.seq for rotation in verify([rotated.folder]).rows[1].rotations] == [7]
