"""Sites that follow the model themselves: three exchanges a round, checkpoints, and what they do when lied to."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench
from puppeteer import lie_about_sums
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.client.halt import check_evidence, evidence_of, halted
from secure_fed.client.home import of_run
from secure_fed.errors import LedgerError, RunAborted
from secure_fed.federation.announcement import Announcement
from secure_fed.federation.track import Track
from secure_fed.federation.wire import Header, Parcel, part
from secure_fed.identity import Roster, SigningKey
from secure_fed.ledger import Note, read_ledger
from secure_fed.secagg import Transcript
from secure_fed.secagg.messages import Survivors
from secure_fed.server.training import Held


def track_of(bench: Bench, site: str) -> Track:
    stored = bench.home(site).get_tensors(of_run("track", "run"))
    assert stored is not None
    facts, tensors = stored
    return Track.from_arrays(tensors, "track", facts["steps"])


def notes_of(bench: Bench, site: str) -> list[Note]:
    path = bench.folder / "sites" / site / "ledger.jsonl"
    return [record.body for record in read_ledger(path) if isinstance(record.body, Note)]


def silence(*sites: str):
    return lambda site, action, parcel: None if site in sites else parcel


# -- steady state ----------------------------------------------------------------------------------------------


def test_after_the_first_round_three_exchanges_are_enough(steady_config) -> None:
    bench = Bench.make(steady_config())
    rounds = [bench.round(number, number, more=True) for number in range(3)]
    assert [result.traffic.exchanges for result in rounds] == [5, 3, 3]
    assert all(result.survivors == 5 for result in rounds)
    later = [action for _, action, _ in bench.transport.sent[25:]]
    assert set(later) == {"mask", "confirm", "unmask"}


def test_a_prepared_round_gives_the_sum_that_a_fresh_one_gives(steady_config, tmp_path) -> None:
    tracks = []
    for more in (True, False):
        overrides = ("insecure_reproducible=true", "secagg.value_bits=20")
        bench = Bench.make(steady_config(*overrides, folder=tmp_path / str(more)))
        for number in range(2):
            bench.round(number, number, more=more)
        tracks.append(bench.held.track.digest)
    assert tracks[0] == tracks[1]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi"])
def test_every_site_arrives_at_the_servers_model_without_being_sent_one(steady_config, strategy) -> None:
    bench = Bench.make(steady_config(f"strategy={strategy}"))
    for number in range(3):
        bench.round(number, number, more=True)
    names = {name.split("/")[0] for _, _, parcel in bench.transport.sent for name in parcel.arrays}
    assert names == {"sum"}
    before = bench.held.opened.before
    for site in bench.sites:  # the last step is told with the next round
        assert track_of(bench, site).digest == before.digest
        assert track_of(bench, site).steps == before.steps


def test_a_site_that_drops_out_sends_the_next_round_back_to_five_exchanges_and_is_asked_again(steady_config) -> None:
    bench = Bench.make(steady_config())
    bench.round(0, 0, more=True)
    bench.transport.before = lambda site, action, parcel: None if (site, action) == ("site02", "mask") else parcel
    dropped = bench.round(1, 1, more=True)
    bench.transport.before = silence()
    again = bench.round(2, 2, more=True)
    assert (dropped.traffic.exchanges, dropped.survivors) == (3, 4)
    # It did not hear of round 1 either: one exchange more, for its checkpoint.
    assert (again.traffic.exchanges, again.survivors) == (6, 5)


def test_a_site_that_is_gone_for_long_is_not_waited_for_and_comes_back_through_a_signed_checkpoint(
    steady_config,
) -> None:
    bench = Bench.make(steady_config())
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


def test_a_site_that_lost_its_model_asks_for_a_checkpoint(steady_config) -> None:
    bench = Bench.make(steady_config("strategy=fedadam"))
    bench.round(0, 0, more=True)
    bench.round(1, 1, more=True)
    bench.home("site03").drop(of_run("track", "run"))
    result = bench.round(2, 2, more=True)
    assert result.survivors == 5
    assert track_of(bench, "site03").digest == track_of(bench, "site01").digest


def test_a_round_whose_preparation_failed_begins_anew(steady_config) -> None:
    bench = Bench.make(steady_config())
    bench.transport.before = lambda site, action, parcel: (
        replace(parcel, next_body=b"") if action == "confirm" else parcel
    )
    first = bench.round(0, 0, more=True)
    bench.transport.before = silence()
    second = bench.round(1, 1, more=True)
    assert (first.attempts, second.attempts, second.traffic.exchanges, second.survivors) == (1, 1, 5, 5)


def test_keys_of_the_next_round_do_not_survive_a_retry(steady_config) -> None:
    bench = Bench.make(steady_config())
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


def test_a_first_model_that_differs_in_its_last_bits_is_taken_from_the_coordinator(steady_config) -> None:
    bench = Bench.make(steady_config())
    other_processor(bench, 3e-8)
    assert bench.round(0, 0).survivors == 5
    assert bench.round(1, 1).survivors == 5


def test_a_first_model_that_is_another_one_halts_the_sites(steady_config) -> None:
    bench = Bench.make(steady_config("secagg.max_attempts=1"))
    other_processor(bench, 1e-3)
    with pytest.raises(RunAborted, match="model_mismatch"):
        bench.round(0, 0)
    assert all(bench.reserves(site) == [] for site in bench.sites)


# -- lies ------------------------------------------------------------------------------------------------------


def lied_to(bench: Bench) -> Bench:
    """After two rounds, in the second of which site01 was told sums that do not give the announced model."""
    bench.round(0, 0)
    bench.transport.before = lambda site, action, parcel: (
        lie_about_sums(bench, parcel, consistent=False) if (site, action) == ("site01", "advertise") else parcel
    )
    bench.round(1, 1)
    return bench


def test_sums_that_do_not_give_the_announced_model_halt_the_site_with_signed_evidence(steady_config) -> None:
    bench = Bench.make(steady_config())
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


def test_evidence_that_was_changed_or_that_the_coordinator_did_not_sign_proves_nothing(steady_config) -> None:
    bench = lied_to(Bench.make(steady_config()))
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


def test_evidence_that_a_crash_kept_from_the_disk_is_laid_out_again(steady_config) -> None:
    bench = lied_to(Bench.make(steady_config()))
    path = next((bench.folder / "sites" / "site01" / "evidence").glob("*.json"))
    whole = path.read_bytes()
    path.unlink()
    assert evidence_of(bench.home("site01")) == path
    assert path.read_bytes() == whole
    check_evidence(path, bench.coordinator.roster)


def test_a_halted_site_takes_part_in_nothing_until_its_operator_gives_a_reason(steady_config) -> None:
    bench = lied_to(Bench.make(steady_config()))
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


def test_a_site_that_was_shown_another_model_than_its_peers_halts_when_they_sign_theirs(steady_config) -> None:
    """The lie is consistent in itself: only the peers' signatures of the next round show it."""
    bench = Bench.make(steady_config())
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


def test_a_forged_checkpoint_halts_the_site(steady_config) -> None:
    bench = Bench.make(steady_config())
    bench.round(0, 0)
    bench.home("site01").drop(of_run("track", "run"))
    bench.round(1, 1)
    bench.home("site01").drop(of_run("track", "run"))

    def forge(site: str, action: str, parcel: Parcel) -> Parcel:
        arrays = {
            name: np.nextafter(array, np.float32(9)) if name == "checkpoint/model/fusion" else array
            for name, array in parcel.arrays.items()
        }
        return replace(parcel, arrays=arrays)

    bench.transport.before = forge
    assert bench.round(2, 2).traffic.codes["site01"] == "model_mismatch"
    assert halted(bench.home("site01")) is not None


def test_a_checkpoint_needs_the_signatures_of_a_threshold_of_members(steady_config) -> None:
    bench = Bench.make(steady_config())
    bench.round(0, 0)
    bench.round(1, 1)
    bench.home("site01").drop(of_run("track", "run"))

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


def test_a_server_cannot_take_a_site_back_to_an_older_model(steady_config) -> None:
    bench = Bench.make(steady_config("secagg.max_attempts=1"))
    bench.round(0, 0)
    older = bench.held
    bench.round(1, 1)
    bench.round(2, 2)
    bench.held = older
    with pytest.raises(RunAborted, match="stale_model"):
        bench.round(1, 3)
    assert all(len(bench.reserves(site)) == 3 for site in bench.sites)


def test_a_second_survivor_list_halts_the_site_and_both_lists_are_kept(steady_config) -> None:
    bench = Bench.make(steady_config())
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
