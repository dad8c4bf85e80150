"""Attacks on the books: whatever is changed, the verdict is negative and names the first wrong record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bookkeeping import (
    DELTA,
    FIRST,
    SECOND,
    N,
    bodies,
    expected_epsilon,
    forge,
    further,
    genesis,
    plan,
    reserve,
    settle,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_fed.accounting import Mechanism, joint_noise_multiplier
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.identity import SigningKey
from secure_fed.ledger import Ledger, Note, Off, PlannedPhase, read_ledger, verify
from secure_fed.ledger.checks import beyond_limit
from secure_fed.ledger.record import NO_PREVIOUS, make_record

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good") / "ledger.jsonl", "site01", KEY, bodies()).read_bytes()


def _problem(path, **options):
    verdict = verify([path], **options)
    assert verdict.ok == (verdict.first_problem is None)
    return verdict.first_problem


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found_and_its_record_named(tmp_path, good, data):
    position = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[position]))
    changed = bytearray(good)
    changed[position] = byte
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(changed)
    record = good[:position].count(b"\n")
    problem = _problem(path)
    assert problem is not None
    assert f"record {record} " in problem


def test_last_line_feed_changed_into_anything_is_found(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    for byte in set(range(256)) - {ord("\n")}:
        path.write_bytes(good[:-1] + bytes([byte]))
        assert "record 7 " in _problem(path)


def test_signature_hash_and_place_of_every_record_count(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    for number, line in enumerate(lines):
        for name in (b'"hash":"', b'"signature":"', b'"prev":"', b'"seq":'):
            at = line.index(name) + len(name)
            other = b"1" if line[at : at + 1] != b"1" else b"2"
            changed = [*lines[:number], line[:at] + other + line[at + 1 :], *lines[number + 1 :]]
            path.write_bytes(b"".join(changed))
            assert f"record {number} " in _problem(path)


@pytest.mark.parametrize("gone", range(7))
def test_record_dropped_from_the_middle_is_missed(tmp_path, good, gone):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    problem = _problem(path)
    assert f"record {gone} carries seq {gone + 1}" in problem


@pytest.mark.parametrize("first", range(6))
def test_swapped_records_are_found(tmp_path, good, first):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    path.write_bytes(b"".join(lines))
    assert f"record {first} carries seq" in _problem(path)


def test_repeated_record_is_found(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[3], *lines[4:]]))
    assert "record 4 carries seq 3" in _problem(path)


def test_record_signed_by_another_key_is_found(tmp_path, good):
    stranger = forge(tmp_path / "other.jsonl", "site01", SigningKey.generate(), [genesis(KEY), *bodies()])
    assert "record 0 is not signed by the key of site01" in _problem(stranger)
    mine = good.splitlines(keepends=True)
    forged = json.loads(mine[3])
    forged["signature"] = json.loads(stranger.read_bytes().splitlines()[3])["signature"]
    path = tmp_path / "ledger.jsonl"
    encoded = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join([*mine[:3], encoded, *mine[4:]]))
    assert "record 3 is not signed by the key of site01" in _problem(path)


def test_two_books_of_one_key_cannot_be_spliced(tmp_path):
    pages = []
    for hour in (12, 13):
        times = [f"2025-06-01T{hour}:00:{i:02d}.000000Z" for i in range(8)]
        path = forge(tmp_path / f"{hour}.jsonl", "site01", KEY, [genesis(KEY), *bodies()], times)
        pages.append(path.read_bytes().splitlines(keepends=True))
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(pages[0][:3] + pages[1][3:]))
    assert "record 3 does not continue the record before it" in _problem(path)


def test_site_cannot_change_within_a_ledger_and_nothing_comes_before_the_first_record(tmp_path):
    time = "2025-06-01T12:00:00.000000Z"
    first = make_record(genesis(KEY), seq=0, time=time, site="site01", prev=NO_PREVIOUS, key=KEY)
    second = make_record(plan(), seq=1, time=time, site="site02", prev=first.hash, key=KEY)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(first.line() + b"\n" + second.line() + b"\n")
    assert "record 1 belongs to 'site02', the ledger to 'site01'" in _problem(path)
    late = make_record(genesis(KEY), seq=0, time=time, site="site01", prev="ab" * 32, key=KEY)
    path.write_bytes(late.line() + b"\n")
    assert "record 0 names a record before the first" in _problem(path)


def test_home_of_a_site_that_the_roster_does_not_know_is_found(books, tmp_path):
    home = write(tmp_path / "home" / "ledger.jsonl", "site09", KEY, bodies())
    problem = _problem(home.parent, roster=books.folder / "roster.json")
    assert "record 0 is by site09, a site that the roster does not know" in problem


def test_signature_in_capitals_is_refused(tmp_path, good):
    line = good.splitlines()[0]
    value = json.loads(line)
    value["signature"] = value["signature"].upper()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    assert "record 0 is not signed" in _problem(path)


def test_same_content_in_another_encoding_is_refused(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    path.write_bytes(lines[0] + json.dumps(json.loads(lines[1])).encode() + b"\n")
    assert "record 1 is not in canonical form" in _problem(path)


def test_torn_last_line_verifies_and_is_flagged(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(good[:-40])
    verdict = verify([path])
    assert verdict.ok
    assert "torn last line, not yet repaired" in verdict.rows[0].flags
    assert verdict.rows[0].records == 7


def test_records_cut_off_the_end_are_not_noticed_and_the_verdict_says_so(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(good.splitlines(keepends=True)[:-3]))
    verdict = verify([path])
    assert verdict.ok
    assert "not noticed" in verdict.to_json()["tail"]


OTHER = Mechanism("poisson_gaussian", 0.5, 0.0625, 16)
OPEN = PlannedPhase(name="encoders", mechanism=None, max_grad_norm=None, rounds=1, components=("fusion",))
MORE_STEPS = Mechanism("poisson_gaussian", 1.5, 0.0625, 17)


CAPPED = Mechanism("truncated_poisson_gaussian", 1.5, 0.0625, 16, batch_cap=50, population=N)
OTHER_CAP = replace(CAPPED, batch_cap=60)
SHRUNK = replace(CAPPED, population=N - 10)
JOINT = Mechanism("poisson_gaussian", joint_noise_multiplier((2.0, 3.0)), 0.0625, 16, component_noise=(2.0, 3.0))


def _plan_with(mechanism):
    first, second = plan().phases
    return plan(phases=(first.model_copy(update={"mechanism": mechanism}), second))


capped, shrunk = _plan_with(CAPPED), _plan_with(SHRUNK)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([reserve(0)], "record 1 uses run run-1, which has no plan"),
        ([plan(), reserve(0, run="run-2")], "record 2 uses run run-2, which has no plan"),
        ([plan(), reserve(0, phase="encoders", mechanism=OTHER)], "record 2 charges noise_multiplier=0.5"),
        ([plan(), reserve(0, mechanism=MORE_STEPS)], "record 2 charges 17 steps, the plan has 16 a round"),
        ([plan(), reserve(0, max_grad_norm=2.0)], "record 2 charges max_grad_norm=2.0"),
        ([plan(), reserve(0, components=("encoder.text",))], "record 2 trains encoder.text"),
        ([plan(), reserve(0, unit="patient")], "record 2 charges with unit='patient'"),
        ([plan(), reserve(0, relation="replace_one")], "record 2 charges with relation='replace_one'"),
        ([plan(), reserve(0, declared_n=2 * N)], "record 2 charges with declared_n=800"),
        ([plan(), reserve(0, expected_batch=64.0)], "record 2 expects batches of 64"),
        ([plan(), reserve(0, max_records_per_unit=4)], "record 2 charges with max_records_per_unit=4"),
        ([plan(), reserve(0, rng="insecure_reproducible")], "record 2 charges rng='insecure_reproducible', the plan"),
        ([plan(rng="dice")], "record 1 plans noise from rng='dice'; known are os_urandom_aes256ctr"),
        ([plan(), reserve(0, sampler="truncated_poisson")], "record 2 charges a poisson_gaussian mechanism with"),
        ([plan(), reserve(0, mechanism=CAPPED)], "record 2 charges a truncated_poisson_gaussian mechanism with"),
        ([capped, reserve(0, mechanism=CAPPED)], "record 2 charges a truncated_poisson_gaussian mechanism with"),
        ([capped, reserve(0, mechanism=OTHER_CAP, sampler="truncated_poisson")], "record 2 charges batch_cap=60"),
        ([shrunk, reserve(0, mechanism=SHRUNK, sampler="truncated_poisson")], "record 2 cuts batches out of 390 units"),
        ([plan(), reserve(0, mechanism=JOINT)], "record 2 charges noise_multiplier="),
        (
            [plan(), reserve(0, sampler="none")],
            "record 2 charges a poisson_gaussian mechanism with sampler='none'",
        ),
        ([plan(rounds=1), reserve(0), reserve(1)], "record 3 is round 2 of phase encoders; 1 were planned"),
        ([plan(), plan(rounds=4)], "record 2 changes the plan of run run-1"),
        ([plan(epsilon=0.5)], "record 1 claims epsilon=0.5 for a plan that costs"),
        ([plan(delta=1e-6)], "record 1 plans with delta=1e-06"),
        ([plan(epsilon=None)], "record 1 claims epsilon=None with these phases without privacy: none"),
        ([plan(phases=(OPEN,))], "record 1 claims epsilon=8.0 with these phases without privacy: ['encoders']"),
        ([plan(phases=plan().phases[:1] * 2)], "record 1 plans two phases of one name"),
        ([plan(phases=(OPEN,), epsilon=None), reserve(0)], "record 2 charges phase encoders, which was planned"),
        ([plan(), reserve(0, phase="decoders")], "record 2 uses phase decoders, which the plan"),
        ([plan(), settle(0)], "record 2 settles round 0 of run run-1, which was never charged"),
        (
            [plan(), Off(run="run-1", step=0, round=0, phase="encoders")],
            "record 2 releases phase encoders without",
        ),
        ([plan(), genesis(KEY)], "record 2 is a second genesis record"),
    ],
)
def test_records_that_contradict_the_plan_are_named(tmp_path, items, words):
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, [genesis(KEY), *items])
    assert words in _problem(path)


def test_charge_that_would_clip_a_patient_in_parts_is_named(tmp_path):
    patients = {"unit": "patient", "max_records_per_unit": 10}
    for batch, words in ((9, "record 2 holds 9 records at one time, and one unit may have 10"), (10, None)):
        items = [genesis(KEY, **patients), plan(), reserve(0, physical_batch=batch, **patients)]
        assert words in (_problem(forge(tmp_path / "ledger.jsonl", "site01", KEY, items)) or [None])


def test_charge_beyond_the_owners_limit_is_named(tmp_path):
    """Nothing within an admitted plan gets there: the check stands on its own, should the rule ever be wrong."""
    first = genesis(KEY, epsilon_limit=expected_epsilon(2) * 0.999)
    path = write(tmp_path / "ledger.jsonl", "site01", KEY, [first, *bodies()])
    assert beyond_limit(read_ledger(path), first).startswith("record 6 brings epsilon to")
    assert beyond_limit(read_ledger(path)[:6], first) is None


def test_plan_repeated_after_a_restart_with_other_versions_is_the_same_plan(tmp_path):
    items = [plan(), reserve(0), plan(versions={"torch": "2.14.0"}), reserve(1, step=0), settle(1, step=0)]
    verdict = verify([write(tmp_path / "ledger.jsonl", "site01", KEY, items)])
    assert verdict.ok
    assert "1 charged again after an interrupted round" in verdict.rows[0].flags
    assert verdict.rows[0].rounds == 2


def test_times_that_go_backwards_are_named(tmp_path):
    times = ["2025-06-01T12:00:00.000000Z", "2025-06-01T11:59:59.000000Z"]
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, [genesis(KEY), plan()], times)
    assert "record 1 is dated" in _problem(path)
    path = forge(tmp_path / "other.jsonl", "site01", KEY, [genesis(KEY), plan()], ["yesterday", "today"])
    assert "record 0 has the time 'yesterday'" in _problem(path)


def test_two_books_under_one_key_that_part_ways_are_found(tmp_path, good):
    one = tmp_path / "one" / "ledger.jsonl"
    two = tmp_path / "two" / "ledger.jsonl"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes(b"".join(good.splitlines(keepends=True)[:4]))
    with Ledger.open(one, "site01", KEY) as ledger:
        ledger.append(settle(0))
    assert verify([one.parent, two.parent]).ok  # one is a beginning of the other
    with Ledger.open(two, "site01", KEY) as ledger:
        ledger.append(Note(code="remark", text="another story"))
    assert "record 4 differs between two ledgers under one key" in verify([one, two]).first_problem


def test_paths_that_hold_no_ledger_are_usage_errors(tmp_path, books):
    with pytest.raises(ConfigError, match="holds no ledger"):
        verify([tmp_path / "absent"])
    with pytest.raises(ConfigError, match="holds no ledger"):
        verify([tmp_path])
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read"):
        verify([books.folder], roster=tmp_path / "absent.json")
    value = json.loads((books.folder / "roster.json").read_text())
    value["version"] = 2
    (tmp_path / "forged.json").write_text(json.dumps(value))
    with pytest.raises(LedgerError, match="not by its consortium key"):
        verify([books.folder], roster=tmp_path / "forged.json")


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00" * 100, b"{}\n", b"[]\n", b"null\n", b'{"a":NaN}\n', b"\xff\n"])
def test_files_that_are_no_ledgers_get_a_negative_verdict_and_no_crash(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    assert "record 0 " in _problem(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_never_crash_the_verifier(tmp_path, good, junk):
    path = tmp_path / "ledger.jsonl"
    lines = good.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], junk, b"\n", *lines[2:]]))
    assert "record 2 " in _problem(path)


def test_epsilon_by_run_separates_runs_on_one_home(tmp_path):
    first = genesis(KEY, epsilon_limit=20.0)
    second = [further([first, *bodies()]), reserve(0, run="run-2")]
    verdict = verify([write(tmp_path / "ledger.jsonl", "site01", KEY, [first, *bodies(), *second])])
    assert verdict.ok, verdict.first_problem
    row = verdict.rows[0]
    assert set(row.epsilon_by_run) == {"run-1", "run-2"}
    assert row.epsilon > row.pld_epsilon > row.epsilon_by_run["run-1"] > row.epsilon_by_run["run-2"] > 0
    assert row.delta == DELTA
    assert (plan().phases[0].mechanism, plan().phases[1].mechanism) == (FIRST, SECOND)
