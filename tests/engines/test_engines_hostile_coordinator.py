"""A coordinator that signs what it likes: what no site does for it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench
from puppeteer import Made, Puppeteer, announced, draw_instead_of_training

from secure_fed.client import following
from secure_fed.client.halt import check_evidence, halted, resume
from secure_fed.client.home import Home, of_run
from secure_fed.client.journal import Journal
from secure_fed.errors import RunAborted, SecAggError
from secure_fed.federation.masking import session_context
from secure_fed.federation.track import Track
from secure_fed.federation.wire import OK, STAGES, Header, Parcel
from secure_fed.secagg import ClientSession, Code
from secure_fed.secagg.messages import Advertise, Advertisements, Survivors
from secure_fed.server.round import Place, RoundResult
from secure_fed.server.training import Held

CODES = {
    *Code,
    *("ok", "halted", "silent", "unsigned_request", "unknown_action", "stale_round", "stale_model", "no_session"),
    *("refused", "refused_by_policy", "budget_exhausted", "needs_checkpoint", "unknown_roster"),
    *("bad_sums", "bad_model", "model_diverged", "ledger_behind", "internal_error"),
}
SITE = "site01"


@pytest.fixture
def make_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides, **options: make_config("method=zero_fill", "federation.rounds=8", *overrides, **options)


@pytest.fixture
def quick(monkeypatch) -> Made:
    """A little noise instead of training, charged as ever; (site, round) -> its last update."""
    return draw_instead_of_training(monkeypatch)


def everything(site: str, action: str, parcel: Parcel) -> Parcel:
    return parcel


def codes_of(bench: Bench, site: str, action: str) -> list[str]:
    return [answer.code for name, asked, answer in bench.transport.received if (name, asked) == (site, action)]


# -- the same update twice -------------------------------------------------------------------------------------


def test_the_same_updates_opened_with_and_without_the_victim_give_it_away_and_a_round_is_opened_once(
    make_config, quick, monkeypatch
) -> None:
    """Naive: a site without a journal that keeps its update. The two means differ by the victim's contribution."""

    def opened_twice(bench: Bench) -> tuple[RoundResult, RoundResult]:
        first = bench.round(0, 0)
        bench.held = replace(bench.held, opened=None, track=before)
        bench.transport.before = lambda site, action, parcel: None if site == SITE else parcel
        return first, bench.round(0, 0)

    with monkeypatch.context() as naive:
        drop = Home.drop
        naive.setattr(Home, "drop", lambda self, name, **how: name.startswith("pending") or drop(self, name, **how))
        for rule in ("begin", "require_unreleased", "release"):
            naive.setattr(Journal, rule, lambda self, header: None)
        bench = Bench.make(make_config("secagg.max_attempts=1"))
        before = bench.held.track
        first, second = opened_twice(bench)
        weights, secagg = bench.prepared.federation.weights, bench.prepared.config.secagg
        for name, update in quick[SITE, 0].items():
            total, rest = (
                result.means[name].astype(np.float64) * sum(weights[site] for site in result.contributors[name])
                for result in (first, second)
            )
            level = secagg.clip / (2 ** (secagg.value_bits - 1) - 1)
            assert np.abs((total - rest) / weights[SITE] - update).max() < 12 * level, "up to the rounding"
            assert np.abs(update).max() > 1000 * level

    folder = bench.folder.parent / "ours"
    bench = Bench.make(make_config("secagg.max_attempts=1", folder=folder))
    before = bench.held.track
    with pytest.raises(RunAborted, match="stale_round"):
        opened_twice(bench)


def test_an_update_that_is_masked_again_cannot_be_released_in_its_first_session(make_config, quick) -> None:
    """The same stored update under two session numbers: the second one makes the first one void."""
    bench = Bench.make(make_config())
    puppeteer = Puppeteer(bench)
    first, second = puppeteer.open(0, 0), puppeteer.open(0, 1)
    puppeteer.through(*first, "advertise", "share", "mask", "confirm")
    request = puppeteer.ask(*first, SITE)
    puppeteer.through(*second, "advertise", "share", "mask")
    assert bench.sites[SITE].handle(request).code == "no_session"
    puppeteer.through(*second, "confirm", "unmask")
    assert second[1].sums()["fusion"] is not None
    assert bench.sites[SITE].handle(request).code == "stale_round"
    assert all(len(bench.reserves(site)) == 1 for site in bench.sites)


def test_a_session_prepared_ahead_and_released_first_shuts_the_round_before_it(make_config, quick) -> None:
    bench = Bench.make(make_config())
    puppeteer = Puppeteer(bench)
    now, ahead = puppeteer.open(0, 0), puppeteer.open(1, 1)
    puppeteer.through(*now, "advertise", "share")
    for site in now[1].participants:
        request = puppeteer.ask(*now, site, next_header=ahead[0].to_bytes())
        answer = bench.sites[site].handle(request)
        now[1].receive(site, answer.body, answer.arrays)
        ahead[1].receive(site, answer.next_body)
    now[1].advance()
    ahead[1].advance()
    puppeteer.through(*ahead, "share", "mask", "confirm", "unmask")
    answers = puppeteer.stage(*now)
    assert {answer.code for answer in answers.values()} == {"stale_round"}
    assert all([record.round for record in bench.reserves(site)] == [0, 1] for site in bench.sites)
    assert not (quick[SITE, 0]["fusion"] == quick[SITE, 1]["fusion"]).any(), "two rounds, two draws of noise"


def test_a_coordinator_that_goes_back_to_an_earlier_round_gets_no_second_charge_for_it(make_config, quick) -> None:
    bench = Bench.make(make_config())
    puppeteer = Puppeteer(bench)
    for attempt, round_ in enumerate((0, 1, 0, 1)):
        header, session = puppeteer.open(round_, attempt)
        with contextlib.suppress(SecAggError):
            puppeteer.through(header, session, "advertise", "share", "mask")
    assert [record.round for record in bench.reserves(SITE)] == [0, 1]


def test_whatever_rounds_are_asked_for_no_phase_is_charged_more_often_than_was_planned(make_config, quick) -> None:
    bench = Bench.make(make_config("federation.rounds=2", "federation.spare_rounds=1"))
    puppeteer = Puppeteer(bench)
    codes: Counter[str] = Counter()
    for attempt, round_ in enumerate((0, 5, 6, 7, 99, 100)):
        header, session = puppeteer.open(round_, attempt)
        puppeteer.through(header, session, "advertise", "share")
        codes.update(answer.code for answer in puppeteer.stage(header, session).values())
    assert all(len(bench.reserves(site)) == 3 for site in bench.sites)
    assert codes == {OK: 15, "budget_exhausted": 15}


# -- models ----------------------------------------------------------------------------------------------------


def test_a_round_whose_model_was_never_announced_is_not_trained(make_config, quick) -> None:
    """The session is ready, prepared on the way; what is missing is the word on which model it is about."""
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(0, 0, more=True)

    def silently(site: str, action: str, parcel: Parcel) -> Parcel:
        return replace(parcel, announcement=b"", arrays={}) if action == "mask" else parcel

    bench.transport.before = silently
    assert bench.coordinator._prepared is not None
    with pytest.raises(RunAborted):
        bench.round(1, 1)
    assert codes_of(bench, SITE, "mask") == [OK, "model_not_bound"]
    assert all([record.round for record in bench.reserves(site)] == [0] for site in bench.sites)


def test_a_site_that_lost_its_model_and_is_shown_an_old_one_halts_over_its_peers_signatures(make_config, quick) -> None:
    """The old checkpoint is attested, so it is taken; no update leaves under it, and the site halts."""
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(0, 0)
    bench.round(1, 1)
    old = bench.held
    bench.round(2, 2)
    bench.home(SITE).drop(of_run("track", "run"))
    said = announced(bench, 3, old)
    puppeteer = Puppeteer(bench)
    header, session = puppeteer.open(3, bench.coordinator.attempt)
    for site in session.participants:
        request = puppeteer.ask(header, session, site)
        if site == SITE:
            request = bench.request(
                site, "advertise", header, announcement=said.announcement, arrays=said.with_checkpoint()
            )
        answer = bench.sites[site].handle(request)
        assert answer.code == OK
        if site == SITE:
            shown = answer.body
        else:
            session.receive(site, answer.body)
    assert Advertise.from_bytes(shown).basis == old.track.digest
    listed = Advertisements((shown, *(session._advertisements[name] for name in sorted(session._advertisements))))
    answer = bench.sites[SITE].handle(bench.request(SITE, "share", header, body=listed.to_bytes()))
    assert (answer.code, answer.body) == ("model_mismatch", b"")
    assert halted(bench.home(SITE)) is not None
    assert [record.round for record in bench.reserves(SITE)] == [0, 1, 2]


@pytest.mark.parametrize("harm", ["not finite", "oversized"])
def test_a_model_out_of_shape_costs_a_naive_site_its_budget_and_ours_nothing(
    make_config, quick, monkeypatch, tmp_path, harm
) -> None:
    """Naive: what the server sends is taken as it is. A release over such a model is charged and says nothing."""

    def attacked(folder: str) -> Bench:
        bench = Bench.make(make_config("secagg.max_attempts=1", "strategy=flower", folder=tmp_path / folder))
        good = bench.held.track.parameters
        spoilt = {
            name: np.full_like(values, np.nan) if harm == "not finite" else np.zeros(2 * len(values), np.float32)
            for name, values in good.items()
        }
        with contextlib.suppress(RunAborted):
            bench.coordinator.run_round(Place("run", 0, 0), Track(spoilt))
        return bench

    with monkeypatch.context() as naive:
        naive.setattr(following, "check_shape", lambda federation, track: track)
        naive.setattr(Track, "load_into", lambda self, model: model)
        bench = attacked("naive")
        assert all(len(bench.reserves(site)) == 1 for site in bench.sites)
    bench = attacked("ours")
    assert all(bench.reserves(site) == [] for site in bench.sites)
    assert codes_of(bench, SITE, "advertise") == ["bad_model"]


# -- what comes back -------------------------------------------------------------------------------------------


def spoilt(bench: Bench, rng: random.Random, due: Parcel) -> Parcel:
    """The request with a good signature and another content: fields of others, cut, flipped, or made up."""
    real = [parcel for _, _, parcel in bench.transport.sent] or [due]
    parts = ("header", "body", "announcement", "next_header", "next_body")
    for name in rng.sample(parts, rng.randint(1, 2)):
        raw = getattr(rng.choice([due, rng.choice(real)]), rng.choice([name, name, name, *parts]))
        if raw and rng.random() < 0.4:
            place = rng.randrange(len(raw))
            flipped = raw[:place] + bytes([raw[place] ^ rng.randint(1, 255)])
            raw = rng.choice([raw[:place], flipped + raw[place + 1 :], flipped])
        due = replace(due, **{name: raw})
    if rng.random() < 0.2:
        numbers = rng.choice([0, 1, 99]), rng.choice([0, 1, 3, 10**30]), rng.randrange(bench.coordinator.attempt + 1)
        due = replace(due, header=Header("run", *numbers).to_bytes())
    if rng.random() < 0.2:
        due = replace(due, action=rng.choice([*STAGES, "plain", "hello", "no such thing"]))
    arrays = dict(rng.choice(real).arrays)
    if arrays and rng.random() < 0.5:
        name = rng.choice(sorted(arrays))
        odd = arrays[name][:-1], arrays[name].astype(np.float64), np.zeros((2, 2), np.complex64)
        due = replace(due, arrays={**arrays, name: rng.choice(odd)})
    return due.signed(bench.transport.key)


def test_whatever_the_coordinator_signs_is_answered_by_a_fixed_code_and_no_other_word(make_config, quick) -> None:
    """Before every request of eight rounds, others of its kind that went wrong in some way."""
    bench = Bench.make(make_config("strategy=fedadam", "federation.rounds=9"))
    rng, codes = random.Random(11), Counter[str]()

    def spoil(site: str, action: str, parcel: Parcel) -> Parcel:
        for _ in range(20 * (site == SITE)):
            answer = bench.sites[SITE].handle(spoilt(bench, rng, parcel))
            codes[answer.code] += 1
            assert answer.code in CODES, answer.code
            if answer.code != OK:
                assert answer == Parcel(code=answer.code), "a code, and nothing beside it"
            if halted(bench.home(SITE)) is not None:  # its operator sends it on, so that more can be tried
                resume(bench.home(SITE), "again")
        return parcel

    bench.transport.before = spoil
    for number in range(8):
        bench.round(number, number, more=True)
    assert len(codes) > 8, codes
    assert codes[OK] < sum(codes.values()) / 3, codes
    rounds = [record.round for record in bench.reserves(SITE)]
    assert len(rounds) == len(set(rounds)), "nothing was charged twice"


# -- two messages at once, and what a lie leaves behind ---------------------------------------------------------


@pytest.mark.parametrize("twins", [1, 2], ids=["threads", "processes"])
def test_two_lists_at_the_same_moment_do_not_get_two_signatures(make_config, quick, monkeypatch, twins) -> None:
    """The home is one; two messages that reach it together are answered one after the other."""
    bench = Bench.make(make_config())
    meeting, confirm = threading.Barrier(2), ClientSession.confirm

    def together(self, message):
        if self.name == SITE:
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(0.5)
        return confirm(self, message)

    monkeypatch.setattr(ClientSession, "confirm", together)
    answers: list[Parcel] = []

    def twice(site: str, action: str, parcel: Parcel) -> Parcel | None:
        if (site, action) != (SITE, "confirm"):
            return parcel
        listed = Survivors.from_bytes(parcel.body)
        other = replace(parcel, body=replace(listed, survivors=listed.survivors[:4]).to_bytes())
        doors = [bench.sites[SITE], bench.sites[SITE]]
        if twins == 2:
            bench.restart(SITE)
            doors[1] = bench.sites[SITE]
        threads = [
            threading.Thread(target=lambda door=door, sent=sent: answers.append(door.handle(sent)))
            for door, sent in zip(
                doors, (parcel.signed(bench.transport.key), other.signed(bench.transport.key)), strict=True
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return None

    bench.transport.before = twice
    bench.round(0, 0)
    assert sorted(answer.code for answer in answers) == ["equivocation", OK]


def test_a_next_round_that_cannot_be_prepared_leaves_the_round_under_way_as_it_is(make_config, quick) -> None:
    bench = Bench.make(make_config())

    def beyond(site: str, action: str, parcel: Parcel) -> Parcel:
        if not parcel.next_header:
            return parcel
        return replace(parcel, next_header=replace(Header.from_bytes(parcel.next_header), step=99).to_bytes())

    bench.transport.before = beyond
    result = bench.round(0, 0, more=True)
    assert (result.attempts, result.survivors) == (1, 5)


def test_evidence_of_a_second_advertisement_holds_both(make_config, quick) -> None:
    bench = Bench.make(make_config())
    puppeteer = Puppeteer(bench)
    header, session = puppeteer.open(0, 0)
    puppeteer.through(header, session, "advertise")
    first = puppeteer.ask(header, session, SITE)
    assert bench.sites[SITE].handle(first).code == OK
    context = session_context(bench.coordinator.federation, bench.coordinator.roster, header)
    other = ClientSession(context, "site05", bench.home("site05").signing_key().sign).advertise(bench.held.track.digest)
    listed = [raw for name, raw in sorted(session._advertisements.items()) if name != "site05"]
    second = bench.request(SITE, "share", header, body=Advertisements((*listed, other)).to_bytes())
    assert bench.sites[SITE].handle(second).code == "equivocation"
    found = halted(bench.home(SITE))
    path = bench.folder / "sites" / SITE / "evidence" / found.evidence
    check_evidence(path, bench.coordinator.roster)
    assert session._advertisements["site05"].hex() in path.read_text()


def test_a_first_model_cannot_be_walked_away_from_what_the_configuration_draws(make_config) -> None:
    """Each announcement differs from the last in its last bits, as another processor's draw would."""
    bench = Bench.make(make_config())
    start = bench.held.track.parameters
    track = bench.held.track
    for attempt in range(4):
        moved = {name: (values + np.float32(9e-7)).astype(np.float32) for name, values in track.parameters.items()}
        track = Track(moved)
        said = announced(bench, 0, Held(track))
        header = Header("run", 0, 0, attempt)
        content = {"announcement": said.announcement, "arrays": said.with_checkpoint()}
        if bench.sites[SITE].handle(bench.request(SITE, "advertise", header, **content)).code != OK:
            break
    own = bench.home(SITE).get_tensors(of_run("track", "run"))[1]
    assert all(np.abs(own[f"track/model/{name}"] - start[name]).max() < 2e-6 for name in start)
