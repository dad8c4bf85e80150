"""The roster changes during a run: members are revoked, keys rotate, and nobody goes back to an older one."""

from __future__ import annotations

import json

import pytest
from federation_bench import Bench

from secure_fed.client.home import Home
from secure_fed.client.rotation import rotate_key
from secure_fed.engines.runner import Silent, start
from secure_fed.errors import RunAborted
from secure_fed.federation.wire import OK, Header
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import verify
from secure_fed.server.members import RosterFile


class Consortium:
    """Signs the bench's rosters; what a simulation forgets."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.key = SigningKey.generate()
        self.members = dict(bench.coordinator.roster.members)
        self.revoked: dict[str, Member] = {}
        self.publish(1)

    def revoke(self, site: str) -> None:
        self.revoked[site] = self.members.pop(site)

    def publish(self, version: int) -> None:
        coordinator = self.bench.transport.key.public_bytes
        roster = Roster.create(self.members, self.key, coordinator=coordinator, version=version, revoked=self.revoked)
        roster.save(self.bench.folder / "roster.json")
        self.bench.take_roster()


def test_a_revoked_member_is_out_from_the_next_round_on_and_prepared_keys_are_void(steady_config) -> None:
    bench = Bench.make(steady_config("federation.sites=6", "federation.ownership=1:1:4"))
    consortium = Consortium(bench)
    bench.round(0, 0, more=True)
    assert bench.round(1, 1, more=True).traffic.exchanges == 3
    consortium.revoke("site06")
    consortium.publish(2)
    result = bench.round(2, 2, more=True)
    assert (result.traffic.exchanges, result.survivors) == (5, 5)
    assert all("site06" not in sites for sites in result.contributors.values())
    assert not any(site == "site06" for site, _, _ in bench.transport.sent[-25:])
    assert bench.round(3, 3, more=True).traffic.exchanges == 3, "the outcome under the old roster was followed"
    assert bench.home("site06").get("journal") is not None


def test_a_site_takes_no_older_roster_and_none_of_another_consortium(steady_config) -> None:
    bench = Bench.make(steady_config("secagg.max_attempts=1"))
    consortium = Consortium(bench)
    consortium.publish(2)
    bench.round(0, 0)
    consortium.publish(1)
    with pytest.raises(RunAborted, match="refused_by_policy"):
        bench.round(1, 1)
    consortium.key = SigningKey.generate()
    consortium.publish(3)
    with pytest.raises(RunAborted, match="refused_by_policy"):
        bench.round(1, 1)
    assert all(len(bench.reserves(site)) == 1 for site in bench.sites)


def test_a_member_that_the_roster_does_not_name_answers_with_a_code(steady_config) -> None:
    bench = Bench.make(steady_config("federation.sites=6", "federation.ownership=1:1:4"))
    consortium = Consortium(bench)
    revoked = bench.sites["site06"]
    consortium.revoke("site06")
    consortium.publish(2)
    answer = revoked.handle(bench.request("site06", "advertise", Header("run", 0, 0, 0)))
    assert (answer.code, answer.body) == ("refused", b"")
    assert answer.code != OK


class Meddler(Silent):
    """Watches a run and does something to its folder after a given step."""

    def __init__(self, step: int, meddle) -> None:
        self.step, self.meddle = step, meddle

    def round(self, line: dict) -> None:
        if line["step"] == self.step:
            self.meddle()


def test_a_run_in_which_a_member_is_revoked_and_another_rotates_its_key_ends_with_a_report_that_verifies(
    steady_config, monkeypatch, tmp_path
) -> None:
    folder = tmp_path / "run"
    signed_with: list[SigningKey] = []
    create = Roster.create

    def remember(members, key, **options):
        signed_with.append(key)
        return create(members, key, **options)

    def meddle() -> None:
        old = Roster.load(folder / "roster.json")
        members = dict(old.members)
        new = rotate_key(Home(folder / "sites" / "site02"))
        members["site02"] = members["site02"].model_copy(update={"public_key": new.public.hex()})
        revoked = {"site06": members.pop("site06")}
        coordinator = bytes.fromhex(old.coordinator)
        create(members, signed_with[0], coordinator=coordinator, version=2, revoked=revoked).save(
            folder / "roster.json"
        )

    monkeypatch.setattr(Roster, "create", remember)
    config = steady_config("federation.sites=6", "federation.ownership=1:1:4", "federation.rounds=4", folder=folder)
    start(config, Meddler(1, meddle))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["exchanges"] for line in lines] == [5, 3, 5, 3]
    assert [line["survivors"] for line in lines] == [6, 6, 5, 5]
    assert verify([folder]).ok
    page = (folder / "report.html").read_text()
    assert "the key was replaced by" in page


def test_a_roster_that_forgets_a_member_stops_the_run_with_the_way_out(steady_config) -> None:
    bench = Bench.make(steady_config("federation.sites=6", "federation.ownership=1:1:4"))
    consortium = Consortium(bench)
    members = RosterFile(bench.folder / "roster.json", bench.prepared.config)
    del consortium.members["site06"]
    consortium.publish(2)
    with pytest.raises(RunAborted, match=r"drops site06 without a word.*revoked"):
        members()
