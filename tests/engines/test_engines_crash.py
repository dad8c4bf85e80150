"""A site is killed at every write of two rounds and comes back: nothing twice, nothing lost, and the run goes on.

A kill leaves a torn file or a finished one, and nothing that the dying process does afterwards reaches the disk.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mortal_bench import MortalBench, Mortality, mortal

from secure_fed.client.halt import halted
from secure_fed.client.home import of_run
from secure_fed.client.training import LocalTraining
from secure_fed.config import compose_config, freeze
from secure_fed.federation.wire import OK, Header, Parcel
from secure_fed.secagg.messages import Advertise, Confirm, Masked, Survivors

OVERRIDES = (
    "data.patients=240",
    "federation.sites=4",
    "federation.ownership=0:0:4",
    "federation.rounds=12",
    "federation.corrupt=0",
    "method=zero_fill",
    "method.classify.steps=1",
    "method.classify.learning_rate=1",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is learnt does not matter here: a little noise instead of training, charged as ever."""

    def drawn(self, phase, model, context, header, planned):
        generator = np.random.default_rng(self.noise.derive(f"{header.round}").seed())
        names = [name for name in phase.components if self.federation.contributes(self.site, name)]
        sizes = self.federation.model.component_sizes()
        return {name: generator.normal(0, 0.01, sizes[name]).astype(np.float32) for name in names}

    monkeypatch.setattr(LocalTraining, "_descend", drawn)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> MortalBench:
    """Before the first round."""
    folder = tmp_path_factory.mktemp("crash") / "run"
    with mortal(Mortality()):
        return MortalBench.make(freeze(compose_config(list(OVERRIDES)), folder))


@pytest.fixture(scope="module")
def steady(founded, tmp_path_factory: pytest.TempPathFactory) -> MortalBench:
    """After the first round, with the keys of the next one made."""
    mortality = Mortality()
    with mortal(mortality):
        bench = founded.fork(tmp_path_factory.mktemp("crash") / "steady", mortality)
        bench.go_on(1)
    return bench


def check(bench: MortalBench) -> None:
    """What must hold however often sites died, from all that ever left them and from what they have on disk."""
    answered = [(site, Header.from_bytes(request.header), request, answer) for site, request, answer in bench.log]
    good = [item for item in answered if item[3].code == OK]
    advertised = [answer.body for _, _, request, answer in good if request.action == "advertise"]
    advertised += [answer.next_body for _, _, request, answer in good if request.action == "mask" and answer.next_body]
    items = [Advertise.from_bytes(body) for body in advertised]
    once([(item.sender, item.kid) for item in items], "session number")
    once([key for item in items for key in (item.cipher_key, item.mask_key)], "key")
    once([commitment for item in items for commitment in item.commitments.values()], "seed")
    masked = [(site, header, Masked.from_bytes(a.body)) for site, header, r, a in good if r.action == "mask"]
    once([(site, message.sid) for site, _, message in masked], "masked vector under one session id")
    signed = [(site, Confirm.from_bytes(a.body).sid) for site, _, r, a in good if r.action == "confirm"]
    once(signed, "list of survivors")
    once([(site, header.round) for site, header, r, _ in good if r.action == "unmask"], "release of a round")
    for site in bench.sites:
        charged = [record.round for record in bench.reserves(site)]
        left = {header.round for name, header, _ in masked if name == site}
        assert left <= set(charged), f"{site}: an update left that was not charged"
        assert len(charged) - len(set(charged)) <= (site in bench.mortality.killed), f"{site}: {charged}"
        assert halted(bench.home(site)) is None, f"{site} halted, and nobody lied"
        models = {(record.round, record.model_hash) for record in bench.reserves(site)}
        assert len(models) == len(set(charged)), "two models in one round"


def once(values: list[Any], what: str) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    assert not twice, f"a {what} served twice: {twice}"


def ends_well(bench: MortalBench) -> None:
    """The last round is one of all sites, prepared on the way, over one model."""
    last = bench.round(bench.number, bench.number, more=True)
    assert (last.survivors, last.traffic.exchanges) == (4, 3)
    tracks = {
        bench.home(site).get_tensors(of_run("track", "run"))[1]["track/model/fusion"].tobytes() for site in bench.sites
    }
    assert len(tracks) == 1


APART = pytest.mark.parametrize(
    "apart", [pytest.param(5, id="every fifth write"), pytest.param(1, id="every write", marks=pytest.mark.slow)]
)
"""Which writes to die at, and the last. A round has 16 of them, so the fifths of two rounds are of different kinds.

The charge, the kept update, the masked vector, the signed list and the release are among them.
"""


def killed_at_writes(start: MortalBench, folder: Path, marked: Mapping[str, str], apart: int) -> None:
    """Two rounds for each of these writes of them, at which the marked sites die, and two more; then look at it all."""
    count = Mortality()
    with mortal(count):
        start.fork(folder / "count", count).go_on(2)
    last = count.writes["site02"] - 1
    assert last >= 25
    for at in sorted({*range(0, last, apart), last}):
        mortality = Mortality(marked, at)
        try:
            with mortal(mortality):
                bench = start.fork(folder / str(at), mortality)
                bench.redelivers = len(marked) == 1
                bench.go_on(2)
                assert mortality.killed == set(marked)
                bench.go_on(1)
                check(bench)
                ends_well(bench)
        except BaseException as error:
            error.add_note(f"killed at write {at}")
            raise
        shutil.rmtree(bench.folder)


@APART
def test_a_site_killed_at_any_write_of_the_first_two_rounds_comes_back_and_does_nothing_twice(
    founded, tmp_path, apart
) -> None:
    """It is sent once more what it may have answered already; the others go on, with it or without."""
    killed_at_writes(founded, tmp_path, {"site02": "torn"}, apart)


@APART
def test_sites_all_killed_at_any_write_of_two_steady_rounds_come_back_and_do_nothing_twice(
    steady, tmp_path, apart
) -> None:
    """The attempt fails and is made again, or the round is burned."""
    marked = {f"site0{number}": ("torn", "done")[number % 2] for number in range(1, 5)}
    killed_at_writes(steady, tmp_path, marked, apart)


def other_survivors(request: Parcel) -> Parcel:
    """The coordinator's second list of survivors, without site04."""
    listed = Survivors.from_bytes(request.body)
    others = tuple(name for name in listed.survivors if name != "site04")
    return replace(request, body=replace(listed, survivors=others).to_bytes(), next_header=b"", next_body=b"")


def test_a_site_killed_while_it_halts_has_halted_or_releases_nothing_for_that_round(steady, tmp_path) -> None:
    """A second list of survivors comes; the site dies at any write of its halt, and is asked for its shares."""
    halts = []
    for at in range(20):
        mortality = Mortality()
        with mortal(mortality):
            bench = steady.fork(tmp_path / str(at), mortality)

            def lie(site: str, action: str, parcel: Parcel, bench=bench, mortality=mortality, at=at) -> Parcel:
                if (site, action) == ("site02", "unmask"):
                    request = next(p for s, a, p in bench.transport.sent if (s, a) == ("site02", "confirm"))
                    mortality.marked, mortality.at = {"site02": "torn"}, mortality.writes["site02"] + at
                    bench.sites["site02"].handle(other_survivors(request).signed(bench.transport.key))
                return parcel

            bench.transport.before = lie
            bench.go_on(1)
            bench.transport.before = lambda site, action, parcel: parcel
            unmasked = [answer for site, request, answer in bench.log if (site, request.action) == ("site02", "unmask")]
            assert [answer.code == OK for answer in unmasked] == [True, *[False] * (len(unmasked) - 1)], "round 0 only"
            halts.append(halted(bench.home("site02")) is not None)
            bench.go_on(1)
        if not mortality.killed:
            break
    assert not mortality.killed, "every write was tried"
    assert halts[-1]
    assert len(halts) > 4


@pytest.mark.parametrize("name", ["journal", "track", "pending", "session"])
def test_a_site_with_a_broken_file_answers_with_a_code_and_the_others_go_on(steady, tmp_path, name) -> None:
    mortality = Mortality()
    with mortal(mortality):
        bench = steady.fork(tmp_path / "run", mortality)
        if name == "pending":  # it is there only between a mask and its unmask
            bench.home("site02").put(of_run("pending", "run"), b"an update")
        for path in (bench.folder / "sites" / "site02" / "private").glob(f"{name}*.bin"):
            path.write_bytes(path.read_bytes()[:-1])
        charged, before = len(bench.reserves("site02")), len(bench.log)
        result = bench.round(1, 1, more=True)
    answers = [answer for site, _, answer in bench.log[before:] if site == "site02"]
    assert result.survivors == 3
    assert {answer.code for answer in answers} <= {"refused", OK, "no_session"}
    assert answers[0].code == "refused"
    assert len(bench.reserves("site02")) == charged
    assert halted(bench.home("site02")) is None


def put_back(bench: MortalBench, copied: Path) -> None:
    """site02's whole home as it was when it was copied."""
    home = bench.folder / "sites" / "site02"
    shutil.rmtree(home)
    shutil.copytree(copied, home)
    bench.restart("site02")


def test_a_home_put_back_whole_halts_before_it_charges_and_what_it_says_until_then_is_a_named_limit(
    steady, tmp_path
) -> None:
    """Its peers have what it said of its ledger. Until they tell it, it would release the same shares once more."""
    mortality = Mortality()
    with mortal(mortality):
        bench = steady.fork(tmp_path / "run", mortality)
        copied = tmp_path / "copy"

        def copy_home(site: str, action: str, parcel: Parcel) -> Parcel:
            if (site, action) == ("site02", "unmask") and not copied.exists():
                shutil.copytree(bench.folder / "sites" / "site02", copied)
            return parcel

        bench.transport.before = copy_home
        bench.go_on(2)
        first = [(r, a) for site, r, a in bench.log if (site, r.action) == ("site02", "unmask")][-2]
        put_back(bench, copied)
        assert [record.round for record in bench.reserves("site02")] == [0, 1], "the charge of round 2 is forgotten"
        again = bench.sites["site02"].handle(first[0])
        assert again.body == first[1].body, "the same shares over the same list: nothing new is told"
        bench.go_on(2)
        found = halted(bench.home("site02"))
        assert found is not None
        assert found.code == "ledger_behind"
        assert [record.round for record in bench.reserves("site02")] == [0, 1], (
            "nothing is charged on a ledger that lost"
        )
        assert bench.round(bench.number, bench.number, more=True).survivors == 3


def test_a_home_put_back_whole_signs_a_second_list_which_alone_opens_nothing(steady, tmp_path) -> None:
    """It counts as one of the C corrupt members; t signatures over either list are what holds."""
    mortality = Mortality()
    with mortal(mortality):
        bench = steady.fork(tmp_path / "run", mortality)
        copied, told = tmp_path / "copy", []

        def lie(site: str, action: str, parcel: Parcel) -> Parcel:
            if (site, action) == ("site02", "confirm"):
                shutil.copytree(bench.folder / "sites" / "site02", copied)
                bench.sites["site02"].handle(other_survivors(parcel).signed(bench.transport.key))
                put_back(bench, copied)
                told.append(parcel)
            return parcel

        bench.transport.before = lie
        bench.go_on(1)
    signed = [a for site, r, a in bench.log if (site, r.action) == ("site02", "confirm") and r.header == told[0].header]
    assert [answer.code for answer in signed] == [OK, OK]
    bodies = {Confirm.from_bytes(answer.body).signature for answer in signed}
    assert len(bodies) == 2
    assert 2 * bench.coordinator.federation.threshold > len(bench.sites)
    assert halted(bench.home("site02")) is None, "its ledger lost nothing: witnesses keep charges, not lists"
