"""A site changes its signing key in the middle of a run: it is out until the roster names it, and harms nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation_bench import Bench

from secure_fed.client import site as client_site
from secure_fed.client.halt import check_evidence, halt, halted
from secure_fed.client.home import Home
from secure_fed.client.rotation import rotate_key
from secure_fed.errors import LedgerError, RunAborted
from secure_fed.federation.wire import Header, Parcel
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import verify


@pytest.fixture
def make_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides: make_config("method=zero_fill", "federation.rounds=8", *overrides)


class Consortium:
    """Signs the bench's rosters; what a simulation forgets."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.key, self.version = bench, SigningKey.generate(), 0
        self.members: dict[str, Member] = dict(bench.coordinator.roster.members)
        self.publish()

    def publish(self, **keys: bytes) -> Path:
        """The next version, with other keys for these sites."""
        for site, public in keys.items():
            self.members[site] = self.members[site].model_copy(update={"public_key": public.hex()})
        self.version += 1
        coordinator = self.bench.transport.key.public_bytes
        path = self.bench.folder / "roster.json"
        Roster.create(self.members, self.key, coordinator=coordinator, version=self.version).save(path)
        self.bench.take_roster()
        return path


def session_files(home: Home) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.private.glob("session-*")}


def nobody_halted(bench: Bench) -> bool:
    return all(halted(bench.home(site)) is None for site in bench.sites)


def test_rotated_site_takes_part_under_the_next_roster_in_a_round_of_five_exchanges(make_config) -> None:
    bench = Bench.make(make_config())
    consortium = Consortium(bench)
    steady = [bench.round(number, number, more=True).traffic.exchanges for number in (0, 1)]
    assert session_files(bench.home("site02")), "the next round is prepared"
    found = rotate_key(bench.home("site02"))
    roster = consortium.publish(site02=found.public)
    bench.restart("site02")
    rounds = [bench.round(number, number, more=True) for number in (2, 3)]
    assert [*steady, *(result.traffic.exchanges for result in rounds)] == [5, 3, 5, 3]
    assert all((result.survivors, result.attempts, result.traffic.codes) == (5, 1, {}) for result in rounds)
    assert [len(bench.reserves(site)) for site in bench.sites] == [4] * 5
    verdict = verify([bench.folder], roster=roster)
    assert verdict.ok, verdict.first_problem
    assert [len(row.rotations) for row in verdict.rows] == [0, 1, 0, 0, 0]


def test_rotated_site_is_out_until_the_roster_names_its_key_and_the_others_go_on_unhalted(make_config) -> None:
    bench = Bench.make(make_config())
    consortium = Consortium(bench)
    for number in (0, 1):
        bench.round(number, number, more=True)
    found = rotate_key(bench.home("site02"))  # the process of the site goes on
    without = [bench.round(number, number, more=True) for number in (2, 3)]
    assert [result.survivors for result in without] == [4, 4]
    assert {result.traffic.codes["site02"] for result in without} == {"key_not_on_roster"}
    assert len(bench.reserves("site02")) == 2, "a site that is out is charged nothing"
    assert nobody_halted(bench)
    problem = verify([bench.folder]).first_problem
    assert problem.startswith("site02: record")
    assert "publish a roster of a higher version" in problem
    consortium.publish(site02=found.public)
    back = [bench.round(number, number, more=True) for number in (4, 5)]
    assert [result.survivors for result in back] == [5, 5]
    assert [result.traffic.exchanges for result in back] == [6, 3], "five, and one for the checkpoint that it missed"
    assert verify([bench.folder]).ok


def test_what_was_pending_under_the_old_key_is_void_even_from_a_copy(make_config) -> None:
    bench = Bench.make(make_config())
    consortium = Consortium(bench)
    for number in (0, 1):
        bench.round(number, number, more=True)
    home = bench.home("site02")
    copies = session_files(home)
    assert copies
    found = rotate_key(home)
    asked: list[Parcel] = []

    def bring_back(site: str, action: str, parcel: Parcel) -> Parcel:
        if (site, action) == ("site02", "mask"):
            asked.append(parcel)
            for path, content in copies.items():
                path.write_bytes(content)
        return parcel

    bench.transport.before = bring_back
    assert bench.round(2, 2, more=True).traffic.codes["site02"] == "key_not_on_roster"
    assert len(asked) == 1, "the prepared session was asked for"
    consortium.publish(site02=found.public)
    assert session_files(home) == copies
    answer = bench.sites["site02"].handle(asked[0])
    assert (answer.code, answer.body, answer.arrays) == ("no_session", b"", {})
    assert len(bench.reserves("site02")) == 2


@pytest.mark.parametrize("prepared", [False, True])
def test_signatures_of_a_rotated_site_that_speaks_up_all_the_same_reach_no_peer(
    make_config, monkeypatch, prepared
) -> None:
    """Its own check is gone: the honest server drops what the roster's key did not sign, so that no peer sees it."""
    bench = Bench.make(make_config())
    Consortium(bench)
    bench.round(0, 0, more=prepared)
    home = bench.home("site02")
    copies = session_files(home)
    rotate_key(home)
    for path, content in copies.items():
        path.write_bytes(content)
    monkeypatch.setattr(client_site, "require_named", lambda *_: None)
    result = bench.round(1, 1, more=True)
    assert (result.survivors, result.traffic.codes["site02"]) == (4, "bad_signature")
    assert bench.round(2, 2, more=True).survivors == 4
    assert nobody_halted(bench)


def test_update_that_was_charged_and_not_released_goes_out_under_the_new_key_without_a_second_charge(
    make_config,
) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    consortium = Consortium(bench)
    bench.transport.before = lambda site, action, parcel: None if action == "confirm" else parcel
    with pytest.raises(RunAborted):
        bench.round(0, 0, more=True)
    pending = bench.pending("site02")
    assert pending is not None
    found = rotate_key(bench.home("site02"))
    assert bench.pending("site02") == pending
    consortium.publish(site02=found.public)
    bench.transport.before = lambda site, action, parcel: parcel
    assert bench.round(0, 0).survivors == 5
    assert [len(bench.reserves(site)) for site in bench.sites] == [1] * 5
    assert verify([bench.folder]).ok


def test_site_that_rotates_within_a_round_leaves_it_to_the_others(make_config) -> None:
    bench = Bench.make(make_config())
    consortium = Consortium(bench)
    found: list[bytes] = []

    def rotate_before_confirming(site: str, action: str, parcel: Parcel) -> Parcel:
        if (site, action) == ("site02", "confirm") and not found:
            found.append(rotate_key(bench.home("site02")).public)
        return parcel

    bench.transport.before = rotate_before_confirming
    result = bench.round(0, 0, more=True)
    assert (result.survivors, result.traffic.codes) == (5, {"site02": "key_not_on_roster"})
    assert nobody_halted(bench)
    consortium.publish(site02=found[0])
    assert bench.round(1, 1, more=True).survivors == 5
    assert verify([bench.folder]).ok


def test_rotated_site_sends_no_unmasked_update_either(make_config) -> None:
    bench = Bench.make(make_config("secagg=off"))
    rotate_key(bench.home("site02"))
    answer = bench.sites["site02"].handle(bench.request("site02", "plain", Header("run", 0, 0, 0)))
    assert (answer.code, answer.arrays) == ("key_not_on_roster", {})


def test_halted_site_may_rotate_stays_halted_and_its_evidence_holds_with_the_roster_of_its_time(make_config) -> None:
    bench = Bench.make(make_config())
    consortium = Consortium(bench)
    bench.round(0, 0)
    home, before = bench.home("site02"), bench.coordinator.roster
    request = bench.request("site02", "advertise", Header("run", 1, 1, 9))
    shown = halt(home, "site02", "bad_signature", "a test", [request], {})
    found = rotate_key(home)
    roster = consortium.publish(site02=found.public)
    assert halted(home) == shown
    assert bench.round(1, 1).traffic.codes["site02"] == "halted"
    path = home.root / "evidence" / shown.evidence
    assert check_evidence(path, before)["code"] == "bad_signature"
    with pytest.raises(LedgerError, match="the roster does not give"):
        check_evidence(path, Roster.load(roster))
