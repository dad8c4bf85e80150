"""Sites that follow the model themselves: three exchanges a round, checkpoints, and what they do when lied to."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.client.halt import check_evidence, halted
from secure_fed.client.home import Home
from secure_fed.client.rotation import rotate_key
from secure_fed.engines.runner import Silent, start
from secure_fed.errors import LedgerError, RunAborted
from secure_fed.federation.announcement import Announcement
from secure_fed.federation.track import Track, follow, means_of
from secure_fed.federation.wire import OK, Header, Parcel, part
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import Note, read_ledger, verify
from secure_fed.secagg import Transcript, pack, unpack, wire_bits
from secure_fed.secagg.messages import Survivors
from secure_fed.server.members import RosterFile
from secure_fed.server.training import Held


@pytest.fixture
def make_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides, **options: make_config("method=zero_fill", "federation.rounds=8", *overrides, **options)


def track_of(bench: Bench, site: str) -> Track:
    stored = bench.home(site).get_tensors("track")
    assert stored is not None
    facts, tensors = stored
    return Track.from_arrays(tensors, "track", facts["steps"])


def notes_of(bench: Bench, site: str) -> list[Note]:
    path = bench.folder / "sites" / site / "ledger.jsonl"
    return [record.body for record in read_ledger(path) if isinstance(record.body, Note)]


def silence(*sites: str):
    return lambda site, action, parcel: None if site in sites else parcel


# -- steady state ----------------------------------------------------------------------------------------------


def test_after_the_first_round_three_exchanges_are_enough(make_config) -> None:
    bench = Bench.make(make_config())
    rounds = [bench.round(number, number, more=True) for number in range(3)]
    assert [result.traffic.exchanges for result in rounds] == [5, 3, 3]
    assert all(result.survivors == 5 for result in rounds)
    later = [action for _, action, _ in bench.transport.sent[25:]]
    assert set(later) == {"mask", "confirm", "unmask"}


def test_a_prepared_round_gives_the_sum_that_a_fresh_one_gives(make_config, tmp_path) -> None:
    tracks = []
    for more in (True, False):
        overrides = ("insecure_reproducible=true", "secagg.value_bits=20")
        bench = Bench.make(make_config(*overrides, folder=tmp_path / str(more)))
        for number in range(2):
            bench.round(number, number, more=more)
        tracks.append(bench.held.track.digest)
    assert tracks[0] == tracks[1]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi"])
def test_every_site_arrives_at_the_servers_model_without_being_sent_one(make_config, strategy) -> None:
    bench = Bench.make(make_config(f"strategy={strategy}"))
    for number in range(3):
        bench.round(number, number, more=True)
    names = {name.split("/")[0] for _, _, parcel in bench.transport.sent for name in parcel.arrays}
    assert names == {"sum"}
    before = bench.held.opened.before
    for site in bench.sites:  # the last step is told with the next round
        assert track_of(bench, site).digest == before.digest
        assert track_of(bench, site).steps == before.steps


def test_a_site_that_drops_out_sends_the_next_round_back_to_five_exchanges_and_is_asked_again(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0, more=True)
    bench.transport.before = lambda site, action, parcel: None if (site, action) == ("site02", "mask") else parcel
    dropped = bench.round(1, 1, more=True)
    bench.transport.before = silence()
    again = bench.round(2, 2, more=True)
    assert (dropped.traffic.exchanges, dropped.survivors) == (3, 4)
    # It did not hear of round 1 either: one exchange more, for its checkpoint.
    assert (again.traffic.exchanges, again.survivors) == (6, 5)


def test_a_site_that_is_gone_for_long_is_not_waited_for_and_comes_back_through_a_signed_checkpoint(make_config) -> None:
    bench = Bench.make(make_config())
    bench.transport.before = silence("site02")
    gone = [bench.round(number, number, more=True) for number in range(3)]
    assert [result.traffic.exchanges for result in gone] == [5, 3, 3]
    bench.transport.before = silence()
    back = [bench.round(number, number, more=True) for number in (3, 4)]
    # In round 3 it is told of round 4, which it joins; the checkpoint is an exchange of its own, once.
    assert [result.survivors for result in back] == [4, 5]
    assert [result.traffic.exchanges for result in back] == [4, 3]
    sent = [
        parcel for site, _, parcel in bench.transport.sent if site == "site02" and part(parcel.arrays, "checkpoint")
    ]
    assert len(sent) == 1
    assert track_of(bench, "site02").digest == track_of(bench, "site01").digest


def test_a_site_that_lost_its_model_asks_for_a_checkpoint(make_config) -> None:
    bench = Bench.make(make_config("strategy=fedadam"))
    bench.round(0, 0, more=True)
    bench.round(1, 1, more=True)
    bench.home("site03").drop("track")
    result = bench.round(2, 2, more=True)
    assert result.survivors == 5
    assert track_of(bench, "site03").digest == track_of(bench, "site01").digest


def test_a_round_whose_preparation_failed_begins_anew(make_config) -> None:
    bench = Bench.make(make_config())
    bench.transport.before = lambda site, action, parcel: (
        replace(parcel, next_body=b"") if action == "confirm" else parcel
    )
    first = bench.round(0, 0, more=True)
    bench.transport.before = silence()
    second = bench.round(1, 1, more=True)
    assert (first.attempts, second.attempts, second.traffic.exchanges, second.survivors) == (1, 1, 5, 5)


def test_keys_of_the_next_round_do_not_survive_a_retry(make_config) -> None:
    bench = Bench.make(make_config())
    failed: list[str] = []

    def lose_confirmations_once(site: str, action: str, parcel: Parcel) -> Parcel | None:
        if action == "confirm" and Header.from_bytes(parcel.header).attempt == 0:
            failed.append(site)
            return None
        return parcel

    bench.transport.before = lose_confirmations_once
    result = bench.round(0, 0, more=True)
    assert (result.attempts, len(failed)) == (2, 5)
    numbers = [
        Header.from_bytes(parcel.header).attempt for _, action, parcel in bench.transport.sent if action == "advertise"
    ]
    assert numbers == [0] * 5 + [2] * 5, "number 1 was the next round's, and is never used again"
    assert bench.round(1, 1).survivors == 5


def other_processor(bench: Bench, change: float) -> None:
    """The coordinator's first model, as another processor would have drawn it."""
    parameters = {name: values + np.float32(change) for name, values in bench.held.track.parameters.items()}
    bench.held = Held(Track(parameters))


def test_a_first_model_that_differs_in_its_last_bits_is_taken_from_the_coordinator(make_config) -> None:
    bench = Bench.make(make_config())
    other_processor(bench, 3e-8)
    assert bench.round(0, 0).survivors == 5
    assert bench.round(1, 1).survivors == 5


def test_a_first_model_that_is_another_one_halts_the_sites(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    other_processor(bench, 1e-3)
    with pytest.raises(RunAborted, match="model_mismatch"):
        bench.round(0, 0)
    assert all(bench.reserves(site) == [] for site in bench.sites)


# -- lies ------------------------------------------------------------------------------------------------------


def lie_about_sums(bench: Bench, parcel: Parcel, *, consistent: bool) -> Parcel:
    """Other sums; if `consistent`, with the hashes of the model that they give."""
    said = Announcement.from_bytes(parcel.announcement)
    outcome = said.outcome
    federation, held = bench.coordinator.federation, bench.held
    bits = wire_bits(len(bench.sites), federation.config.secagg.value_bits)
    sizes = {piece.name: piece.size for piece in federation.slices_at(outcome.step)}
    sums = {}
    for name, packed in part(parcel.arrays, "sum").items():
        levels = (unpack(packed, sizes[name], bits) << (32 - bits)).view(np.int32) >> (32 - bits)
        levels[0] += 1000
        sums[name] = levels
    if consistent:
        survivors = Transcript.from_bytes(bytes.fromhex(outcome.transcript)).survivors
        means = means_of(federation, outcome.step, survivors, sums)
        track = follow(federation, outcome.step, held.opened.before, means)
        said = said.model_copy(update={"model_hash": track.model_hash.hex(), "state_hash": track.state_hash.hex()})
    arrays = {f"sum/{name}": pack(levels.view(np.uint32), bits) for name, levels in sums.items()}
    return replace(parcel, announcement=said.to_bytes(), arrays=arrays)


def test_sums_that_do_not_give_the_announced_model_halt_the_site_with_signed_evidence(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)

    def lie(site: str, action: str, parcel: Parcel) -> Parcel:
        told = site == "site01" and action == "advertise"
        return lie_about_sums(bench, parcel, consistent=False) if told else parcel

    bench.transport.before = lie
    result = bench.round(1, 1)
    assert result.survivors == 4
    assert result.traffic.codes["site01"] == "model_diverged"
    found = halted(bench.home("site01"))
    assert found is not None
    path = bench.folder / "sites" / "site01" / "evidence" / found.evidence
    content = check_evidence(path, bench.coordinator.roster)
    assert (content["code"], content["requests"][0]["action"]) == ("model_diverged", "advertise")
    assert path.with_suffix(".safetensors").is_file(), "the claimed sums are part of the evidence"
    assert len(bench.reserves("site01")) == 1, "a lie costs no budget"
    assert [note.code for note in notes_of(bench, "site01")] == ["site_halted"]


def test_evidence_that_was_changed_or_that_the_coordinator_did_not_sign_proves_nothing(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)
    bench.transport.before = lambda site, action, parcel: (
        lie_about_sums(bench, parcel, consistent=False) if (site, action) == ("site01", "advertise") else parcel
    )
    bench.round(1, 1)
    folder = bench.folder / "sites" / "site01" / "evidence"
    path = next(folder.glob("*.json"))
    tree = json.loads(path.read_bytes())
    tree["code"] = "bad_signature"
    path.write_text(json.dumps(tree))
    with pytest.raises(LedgerError, match="changed after the site signed it"):
        check_evidence(path, bench.coordinator.roster)
    roster = bench.coordinator.roster
    other = Roster.create(roster.members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes)
    path.write_text(json.dumps({**tree, "code": "model_diverged"}))
    with pytest.raises(LedgerError, match="this coordinator did not sign"):
        check_evidence(path, other)


def test_a_halted_site_takes_part_in_nothing_until_its_operator_gives_a_reason(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)
    bench.transport.before = lambda site, action, parcel: (
        lie_about_sums(bench, parcel, consistent=False) if (site, action) == ("site01", "advertise") else parcel
    )
    bench.round(1, 1)
    bench.transport.before = silence()
    bench.restart("site01")  # a new process does not forget it
    assert bench.round(2, 2).traffic.codes["site01"] == "halted"

    home, runner = str(bench.folder / "sites" / "site01"), CliRunner()
    shown = runner.invoke(app, ["site", "status", home])
    assert shown.exit_code == 1
    assert "model_diverged" in shown.output
    evidence = next((bench.folder / "sites" / "site01" / "evidence").glob("*.json"))
    told = runner.invoke(app, ["site", "evidence", str(evidence), "--roster", str(bench.folder / "roster.json")])
    assert told.exit_code == 0, told.output
    assert runner.invoke(app, ["site", "resume", home, "--reason", "  "]).exit_code == 2
    result = runner.invoke(
        app, ["site", "resume", home, "--reason", "the coordinator restored a backup; agreed by phone"]
    )
    assert result.exit_code == 0, result.output
    assert runner.invoke(app, ["site", "resume", home, "--reason", "again"]).exit_code == 2
    assert "agreed by phone" in notes_of(bench, "site01")[-1].text
    assert runner.invoke(app, ["site", "status", home]).exit_code == 0
    assert bench.round(3, 3).survivors == 5


def test_a_site_that_was_shown_another_model_than_its_peers_halts_when_they_sign_theirs(make_config) -> None:
    """The lie is consistent in itself: only the peers' signatures of the next round show it."""
    bench = Bench.make(make_config())
    bench.round(0, 0)
    bench.transport.before = lambda site, action, parcel: (
        lie_about_sums(bench, parcel, consistent=True) if (site, action) == ("site01", "advertise") else parcel
    )
    split = bench.round(1, 1)
    assert split.survivors == 4, "its signed basis is not the others'"
    bench.transport.before = silence()
    result = bench.round(2, 2)
    assert result.traffic.codes["site01"] == "model_mismatch"
    assert halted(bench.home("site01")) is not None


def test_a_forged_checkpoint_halts_the_site(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)
    bench.home("site01").drop("track")
    bench.round(1, 1)
    bench.home("site01").drop("track")

    def forge(site: str, action: str, parcel: Parcel) -> Parcel:
        arrays = {
            name: np.nextafter(array, np.float32(9)) if name == "checkpoint/model/fusion" else array
            for name, array in parcel.arrays.items()
        }
        return replace(parcel, arrays=arrays)

    bench.transport.before = forge
    assert bench.round(2, 2).traffic.codes["site01"] == "model_mismatch"
    assert halted(bench.home("site01")) is not None


def test_a_checkpoint_needs_the_signatures_of_a_threshold_of_members(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)
    bench.round(1, 1)
    bench.home("site01").drop("track")

    def thin(site: str, action: str, parcel: Parcel) -> Parcel:
        if site != "site01" or not parcel.announcement:
            return parcel
        said = Announcement.from_bytes(parcel.announcement)
        transcript = Transcript.from_bytes(bytes.fromhex(said.outcome.transcript))
        few = dict(list(transcript.signatures.items())[:-3])
        weak = replace(transcript, signatures=few).to_bytes().hex()
        outcome = said.outcome.model_copy(update={"transcript": weak})
        return replace(parcel, announcement=said.model_copy(update={"outcome": outcome}).to_bytes())

    bench.transport.before = thin
    result = bench.round(2, 2)
    assert result.traffic.codes["site01"] == "too_few_signatures"
    assert result.survivors == 4


def test_a_server_cannot_take_a_site_back_to_an_older_model(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(0, 0)
    older = bench.held
    bench.round(1, 1)
    bench.round(2, 2)
    bench.held = older
    with pytest.raises(RunAborted, match="stale_model"):
        bench.round(1, 3)
    assert all(len(bench.reserves(site)) == 3 for site in bench.sites)


def test_a_second_survivor_list_halts_the_site_and_both_lists_are_kept(make_config) -> None:
    bench = Bench.make(make_config())
    site = bench.sites["site01"]
    answers: list[Parcel] = []

    def equivocate(name: str, action: str, parcel: Parcel) -> Parcel:
        if (name, action) == ("site01", "unmask"):
            first = next(p for s, a, p in bench.transport.sent if (s, a) == ("site01", "confirm"))
            listed = Survivors.from_bytes(first.body)
            other = replace(listed, survivors=tuple(n for n in listed.survivors if n != "site05"))
            answers.append(site.handle(replace(first, body=other.to_bytes()).signed(bench.transport.key)))
        return parcel

    bench.transport.before = equivocate
    result = bench.round(0, 0)
    assert [answer.code for answer in answers] == ["equivocation"]
    assert answers[0].body == b""
    assert result.traffic.codes["site01"] == "halted", "no share leaves a site that was lied to"
    found = halted(bench.home("site01"))
    path = bench.folder / "sites" / "site01" / "evidence" / found.evidence
    content = check_evidence(path, bench.coordinator.roster)
    assert [request["action"] for request in content["requests"]] == ["confirm", "confirm"]
    assert content["requests"][0]["body"] != content["requests"][1]["body"]


# -- the roster changes ----------------------------------------------------------------------------------------


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


def test_a_revoked_member_is_out_from_the_next_round_on_and_prepared_keys_are_void(make_config) -> None:
    bench = Bench.make(make_config("federation.sites=6", "federation.ownership=1:1:4"))
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


def test_a_site_takes_no_older_roster_and_none_of_another_consortium(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
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


def test_a_member_that_the_roster_does_not_name_answers_with_a_code(make_config) -> None:
    bench = Bench.make(make_config("federation.sites=6", "federation.ownership=1:1:4"))
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
    make_config, monkeypatch, tmp_path
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
    config = make_config("federation.sites=6", "federation.ownership=1:1:4", "federation.rounds=4", folder=folder)
    start(config, Meddler(1, meddle))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["exchanges"] for line in lines] == [5, 3, 5, 3]
    assert [line["survivors"] for line in lines] == [6, 6, 5, 5]
    assert verify([folder]).ok
    page = (folder / "report.html").read_text()
    assert "the key was replaced by" in page


def test_a_roster_that_forgets_a_member_stops_the_run_with_the_way_out(make_config) -> None:
    bench = Bench.make(make_config("federation.sites=6", "federation.ownership=1:1:4"))
    consortium = Consortium(bench)
    members = RosterFile(bench.folder / "roster.json", bench.prepared.config)
    del consortium.members["site06"]
    consortium.publish(2)
    with pytest.raises(RunAborted, match=r"drops site06 without a word.*revoked"):
        members()
