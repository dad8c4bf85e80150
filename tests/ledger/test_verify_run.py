"""A run folder's verdict: rosters, summaries, missing books, runs without privacy."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest
from bookkeeping import N, bodies, expected_epsilon, forge, further, genesis, plan, reserve, settle, write

from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import Off, PlannedPhase, verify

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good") / "ledger.jsonl", "site01", KEY, bodies()).read_bytes()


def _problem(path, **options):
    return verify([path], **options).first_problem


def test_run_folder_holds_and_gives_the_epsilon_of_its_records(books):
    verdict = verify([books.folder])
    assert verdict.ok, verdict.first_problem
    assert [row.site for row in verdict.rows] == ["site01", "site02", "site03"]
    assert all(row.epsilon == expected_epsilon() for row in verdict.rows)
    assert all(row.rdp_epsilon > row.epsilon for row in verdict.rows)
    assert verdict.epsilon_max == expected_epsilon()
    assert verdict.roster == "the run's own, not given from outside"
    assert verdict.rows[0].flags == ()


def test_roster_from_outside_is_used_and_named(books, tmp_path):
    books.roster.save(tmp_path / "consortium.json")
    verdict = verify([books.folder], roster=tmp_path / "consortium.json")
    assert verdict.ok
    assert verdict.roster == "given from outside"


def test_run_rewritten_by_somebody_with_own_keys_fails_against_the_roster_from_outside(books, tmp_path):
    outside = tmp_path / "consortium.json"
    books.roster.save(outside)
    keys = {name: SigningKey.generate() for name in books.keys}
    for name, key in keys.items():
        books.ledger(name).unlink()
        write(books.ledger(name), name, key, bodies())
    members = {
        name: Member(public_key=key.public_bytes.hex(), owns=("image",), declared_n=N) for name, key in keys.items()
    }
    Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes).save(
        books.folder / "roster.json"
    )
    assert verify([books.folder]).ok  # the run's own roster proves nothing here, and the verdict says whose it is
    assert "site01: record 0 names another public key than the roster" in _problem(books.folder, roster=outside)


def test_sites_own_roster_that_was_changed_is_found(books):
    path = books.folder / "roster.json"
    value = json.loads(path.read_text())
    value["members"]["site02"]["declared_n"] = 4000
    path.write_text(json.dumps(value))
    assert "not by its consortium key" in _problem(books.folder)


def test_declared_n_that_differs_from_the_roster_is_found(books):
    books.rewrite("site02", [genesis(books.keys["site02"], declared_n=4000), plan()])
    assert "site02: record 0 declares n=4000, the roster 400" in _problem(books.folder)


def test_missing_ledger_and_swapped_ledgers_are_found(books):
    shutil.copy(books.ledger("site01"), books.ledger("site02"))
    assert "site02: record 0 is by site01" in _problem(books.folder)
    shutil.rmtree(books.folder / "sites" / "site02")
    assert "site02: belongs to the run, but its ledger.jsonl is missing" in _problem(books.folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": {"site01": 0.5}}, "claims epsilon 0.5 for site01"),
        ({"epsilon": {}}, "claims epsilon None for site01"),
        ({"epsilon": [1.0]}, "is malformed"),
        ({"epsilon_max": 0.5}, "epsilon_max is 0.5"),
        ({"delta": 1e-6}, "delta is 1e-06"),
    ],
)
def test_summary_that_the_ledgers_do_not_bear_out_is_found(books, changes, words):
    books.summary(**changes)
    assert words in _problem(books.folder)


def test_summary_epsilon_lowered_by_a_hundred_thousandth_is_found(books):
    value = expected_epsilon()
    books.summary(epsilon={"site01": value, "site02": value * (1 - 1e-5), "site03": value})
    assert "summary.json: claims epsilon" in _problem(books.folder)
    assert "site02" in _problem(books.folder)


def test_summary_that_names_a_site_without_a_ledger_is_found(books):
    books.summary(epsilon={f"site0{i}": expected_epsilon() for i in (1, 2, 3, 4)})
    assert "names site04" in _problem(books.folder)


def test_interrupted_run_without_summary_verifies(books):
    (books.folder / "summary.json").unlink()
    assert verify([books.folder]).ok


def test_summary_that_hides_insecure_randomness_is_found_and_honest_one_is_flagged(books):
    rng = "insecure_reproducible"
    items = [body.model_copy(update={"rng": rng}) if hasattr(body, "rng") else body for body in bodies()]
    books.rewrite("site01", items)
    assert "denies insecure_reproducible" in _problem(books.folder)
    books.summary(insecure_reproducible=True)
    verdict = verify([books.folder])
    assert verdict.ok
    assert "INSECURE RANDOMNESS (reproducible noise)" in verdict.rows[0].flags


def test_run_without_privacy_has_infinite_epsilon_and_is_flagged(tmp_path):
    phase = PlannedPhase(name="encoders", mechanism=None, max_grad_norm=None, rounds=1, components=("fusion",))
    first = genesis(KEY, epsilon_limit=None, lifetime_claim=False)
    off = Off(run="run-1", step=0, round=0, phase="encoders")
    items = [first, plan(phases=(phase,), epsilon=None), off, settle(0)]
    verdict = verify([write(tmp_path / "ledger.jsonl", "site01", KEY, items)])
    assert verdict.ok
    row = verdict.rows[0]
    assert row.epsilon == math.inf
    assert row.flags == ("PRIVACY OFF in 1 releases", "no lifetime claim")
    assert verdict.to_json()["sites"][0]["privacy_off"] is True
    json.dumps(verdict.to_json(), allow_nan=False)


def test_summary_of_a_run_without_privacy_may_claim_nothing(books):
    for name, key in books.keys.items():
        items = [genesis(key, epsilon_limit=None), Off(run="run-1", step=0, round=0, phase="encoders"), settle(0)]
        books.rewrite(name, items if name != "site03" else items[:1])
    books.summary(privacy="off", epsilon={}, epsilon_max=None, delta=None)
    verdict = verify([books.folder])
    assert verdict.ok, verdict.first_problem
    assert "PRIVACY OFF in 1 releases" in verdict.rows[0].flags
    books.summary(privacy="off", epsilon={"site01": 1.0}, epsilon_max=None, delta=None)
    assert "claims epsilon 1.0 for site01, its ledger gives inf" in _problem(books.folder)


def test_summary_of_one_run_on_a_home_of_several_is_compared_with_that_run(books):
    for name, key in books.keys.items():
        items = [genesis(key, epsilon_limit=20.0), *bodies()]
        books.rewrite(name, [*items, further(items), reserve(0, run="run-2")])
    books.summary(run="run-1")
    assert verify([books.folder]).ok
    books.summary()
    assert "claims epsilon" in _problem(books.folder)


def _contradictory(*_, accountant="pld", **__):
    return 2.0 if accountant == "pld" else 1.0


def test_accountants_that_contradict_each_other_fail_the_verdict(tmp_path, good, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(good)
    monkeypatch.setattr(sys.modules["secure_fed.ledger.recompute"], "epsilon", _contradictory)
    assert "record 7 ends at a PLD epsilon of" in _problem(path)


def test_ledger_that_cannot_be_read_is_a_negative_verdict_without_a_path(books, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    verdict = verify([books.folder])
    assert "site01: record 0 cannot be read: Permission denied" in verdict.problems
    assert str(books.folder) not in json.dumps(verdict.to_json())


def test_release_without_privacy_under_a_limit_is_a_breach(tmp_path):
    phase = PlannedPhase(name="encoders", mechanism=None, max_grad_norm=None, rounds=1, components=("fusion",))
    items = [
        genesis(KEY),
        plan(phases=(phase,), epsilon=None),
        Off(run="run-1", step=0, round=0, phase="encoders"),
    ]
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, items)
    assert "record 2 brings epsilon to inf" in _problem(path)
