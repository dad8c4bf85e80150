"""A network without any key, and members that answer what they like: nobody halts, nobody is charged twice."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench
from puppeteer import Made, draw_instead_of_training, lie_about_sums

from secure_fed.client.halt import halted, resume
from secure_fed.errors import BudgetExhausted, RunAborted
from secure_fed.federation.track import Track
from secure_fed.federation.wire import OK, Parcel

SITE = "site01"


@pytest.fixture
def make_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides, **options: make_config("method=zero_fill", "federation.rounds=8", *overrides, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> Made:
    return draw_instead_of_training(monkeypatch)


def everything(site: str, action: str, parcel: Parcel) -> Parcel:
    return parcel


# -- the network -----------------------------------------------------------------------------------------------


def test_a_network_that_repeats_old_messages_changes_nothing_and_halts_nobody(make_config) -> None:
    """Signed requests of earlier stages, of earlier rounds and to other sites, before every message; no key needed."""
    bench = Bench.make(make_config())
    rng, answered = random.Random(4), Counter[str]()

    def again(site: str, action: str, parcel: Parcel) -> Parcel:
        for name, _, old in rng.sample(bench.transport.sent, min(4, len(bench.transport.sent))):
            for to in (name, rng.choice(sorted(bench.sites))):
                answer = bench.sites[to].handle(old)
                answered[answer.code] += 1
                assert (answer.code == OK) <= (to == name), "an answer to a request to another"
        return parcel

    bench.transport.before = again
    results = [bench.round(number, number, more=True) for number in range(4)]
    assert all(result.survivors == 5 for result in results)
    assert [result.traffic.exchanges for result in results] == [5, 3, 3, 3]
    assert answered[OK] == 0, answered
    assert answered["unsigned_request"] > 100
    for site in bench.sites:
        assert halted(bench.home(site)) is None
        assert [record.round for record in bench.reserves(site)] == [0, 1, 2, 3]


def test_a_site_that_loses_messages_on_the_way_is_never_taken_for_one_that_was_lied_to(make_config) -> None:
    """Away for a round, told of the next on the way, and away again when that is masked. Nobody lied."""
    bench = Bench.make(make_config())
    bench.transport.before = lambda site, action, parcel: None if site == SITE else parcel
    bench.round(0, 0, more=True)
    bench.round(1, 1, more=True)
    bench.transport.before = everything
    bench.round(2, 2, more=True)
    bench.transport.before = lambda site, action, parcel: None if (site, action) == (SITE, "mask") else parcel
    bench.round(3, 3, more=True)
    bench.transport.before = everything
    result = bench.round(4, 4, more=True)
    assert halted(bench.home(SITE)) is None
    assert result.survivors == 5


def test_a_network_that_loses_and_repeats_messages_halts_nobody(make_config) -> None:
    """One site's messages, one in three of them, for twelve rounds; no key needed."""
    bench = Bench.make(make_config("federation.rounds=16"))
    rng = random.Random(7)

    def lossy(site: str, action: str, parcel: Parcel) -> Parcel | None:
        mine = [old for name, _, old in bench.transport.sent if name == SITE]
        if site == SITE and mine and rng.random() < 0.5:
            bench.sites[SITE].handle(rng.choice(mine))
        return None if site == SITE and rng.random() < 1 / 3 else parcel

    bench.transport.before = lossy
    for number in range(12):
        bench.round(number, number, more=True)
        assert halted(bench.home(SITE)) is None, f"round {number}"
    rounds = [record.round for record in bench.reserves(SITE)]
    assert len(rounds) == len(set(rounds))


def test_the_first_announcement_delivered_again_later_halts_nobody(make_config) -> None:
    """The first model came with it, because another processor had drawn it; the site has moved on since."""
    bench = Bench.make(make_config())
    drawn = {
        name: (values + np.float32(5e-7)).astype(np.float32) for name, values in bench.held.track.parameters.items()
    }
    bench.held = replace(bench.held, track=Track(drawn))
    bench.transport.before = lambda site, action, parcel: None if (site, action) == (SITE, "unmask") else parcel
    bench.round(0, 0)
    first = [p for site, action, p in bench.transport.sent if (site, action) == (SITE, "advertise") and p.arrays][-1]
    bench.round(1, 1)
    assert bench.sites[SITE].handle(first).code != OK
    assert halted(bench.home(SITE)) is None


# -- what comes after a lie ------------------------------------------------------------------------------------


def test_a_site_that_resumes_after_a_lie_follows_again_even_where_the_others_cannot_go_on_without_it(
    make_config,
) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(0, 0)
    bench.transport.before = lambda site, action, parcel: (
        lie_about_sums(bench, parcel, consistent=True) if (site, action) == (SITE, "advertise") else parcel
    )
    bench.round(1, 1)
    bench.transport.before = lambda site, action, parcel: None if site == "site05" else parcel
    with pytest.raises(RunAborted):
        bench.round(2, 2)
    assert halted(bench.home(SITE)) is not None
    resume(bench.home(SITE), "the coordinator was repaired; agreed by phone")
    assert bench.round(2, 3).survivors == 4


# -- members ---------------------------------------------------------------------------------------------------


def test_one_member_that_says_its_budget_is_used_up_does_not_end_a_phase_for_all(make_config) -> None:
    """C = 1: one liar and one that is away. The round fails; it is not skipped as if nobody could go on."""
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.transport.before = lambda site, action, parcel: None if site == "site05" else parcel
    bench.transport.after = lambda site, action, parcel: Parcel(code="budget_exhausted") if site == SITE else parcel
    with pytest.raises((RunAborted, BudgetExhausted)) as caught:
        bench.round(0, 0)
    assert caught.type is RunAborted


def test_a_members_code_reaches_nobodys_screen_unless_it_is_a_code(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.transport.before = lambda site, action, parcel: None if site == "site05" else parcel
    bench.transport.after = lambda site, action, parcel: (
        Parcel(code="\n\x1b[2J all is well") if site == SITE else parcel
    )
    with pytest.raises(RunAborted) as caught:
        bench.round(0, 0)
    assert "\x1b" not in str(caught.value)
