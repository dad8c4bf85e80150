"""A site is killed at every write of two rounds and comes back: nothing twice, nothing lost, and the run goes on.

A kill leaves a torn file or a finished one, and nothing that the dying process does afterwards reaches the disk.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_bench import Bench, RecordingTransport

from secure_fed.client import halt as halting
from secure_fed.client import home as homes
from secure_fed.client.halt import halted
from secure_fed.client.home import Home
from secure_fed.client.training import LocalTraining
from secure_fed.config import compose_config, freeze
from secure_fed.federation.wire import OK, Header, Parcel
from secure_fed.ledger import Ledger
from secure_fed.methods.base import owns
from secure_fed.secagg.messages import Advertise, Confirm, Masked, Release
from secure_fed.server.round import Coordinator, RoundBurned

OVERRIDES = (
    "data.patients=240",
    "federation.sites=5",
    "federation.ownership=1:1:3",
    "federation.rounds=12",
    "federation.corrupt=0",
    "method=zero_fill",
    "method.classify.steps=1",
    "method.classify.learning_rate=1",
)


class Killed(BaseException):
    """The process is gone; nobody catches this but the test's operator."""


@dataclass
class Mortality:
    """Counts each site's writes; kills the sites in `marked` at their write number `at`, once each.

    `marked` says how: "torn" in the middle of the write, "done" right after it.
    """

    marked: Mapping[str, str] = field(default_factory=dict)
    at: int = -1
    writes: Counter[str] = field(default_factory=Counter)
    dead: set[str] = field(default_factory=set)
    killed: set[str] = field(default_factory=set)

    def write(self, path: Path, whole: Callable[[], Any], torn: Callable[[], Any] = lambda: None) -> Any:
        name = next((part for part in path.parts if part.startswith("site0")), "")
        if name in self.dead:
            raise Killed
        doomed = name in self.marked.keys() - self.killed and self.writes[name] == self.at
        self.writes[name] += 1
        if not doomed:
            return whole()
        self.killed.add(name)
        self.dead.add(name)
        (torn if self.marked[name] == "torn" else whole)()
        raise Killed


@contextmanager
def mortal(mortality: Mortality) -> Iterator[None]:
    """Every way in which a site writes goes through `mortality`. Syncing is left out: there is no power cut here."""

    def durably(original: Callable[..., None]) -> Callable[..., None]:
        def write(path: Path, data: bytes, *, overwrite: bool) -> None:
            half = path.with_name(f".{path.name}.torn")
            mortality.write(path, lambda: original(path, data, overwrite=overwrite), lambda: half.write_bytes(data[:9]))

        return write

    def drop(self: Home, name: str) -> None:
        mortality.write(self.root, lambda: dropping(self, name))

    def drop_all(self: Home, prefix: str, keep: str = "") -> None:
        mortality.write(self.root, lambda: dropping_all(self, prefix, keep))

    def append(self: Ledger, handle: int, data: bytes) -> None:
        mortality.write(
            self._path, lambda: appending(self, handle, data), lambda: os.write(handle, data[: len(data) // 2])
        )

    dropping, dropping_all, appending = Home.drop, Home.drop_all, Ledger._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(homes, "write_durably", durably(homes.write_durably))
        patch.setattr(halting, "write_durably", durably(halting.write_durably))
        patch.setattr(Home, "drop", drop)
        patch.setattr(Home, "drop_all", drop_all)
        patch.setattr(Ledger, "_write", append)
        yield


@dataclass
class MortalBench(Bench):
    """A bench whose sites may die; one that did is started again at once.

    Its answer is lost; with `redelivers` the request reaches it again, and the second answer counts.
    """

    mortality: Mortality = field(default_factory=Mortality)
    log: list[tuple[str, Parcel, Parcel]] = field(default_factory=list)
    number: int = 1
    redelivers: bool = False

    def restart(self, name: str) -> None:
        super().restart(name)
        site, load = self.sites[name], self.sites[name]._load_records
        site._load_records = lambda model: _prepared(name, load, model)
        self.sites[name] = _Mortal(self, name, site)  # type: ignore[assignment]

    def fork(self, folder: Path, mortality: Mortality) -> MortalBench:
        """The same federation at the same point, in a folder of its own."""
        shutil.copytree(self.folder, folder)
        transport = RecordingTransport({}, self.transport.key)
        old = self.coordinator
        coordinator = Coordinator(old.federation, old.roster, transport, self.transport.key, old.attempt)
        coordinator._prepared, coordinator._lost = copy.deepcopy(old._prepared), set(old._lost)
        bench = MortalBench(folder, self.prepared, {}, transport, coordinator, self.held, mortality, list(self.log))
        transport.sites = bench.sites
        for name in self.sites:
            bench.restart(name)
        return bench

    def go_on(self, rounds: int) -> None:
        """That many opened rounds, however many it takes."""
        while rounds:
            try:
                self.round(self.number, self.number, more=True)
                rounds -= 1
            except RoundBurned:
                pass
            self.number += 1


_RECORDS: dict[str, Any] = {}


def _prepared(name: str, load: Callable[[Any], Any], model: Any) -> Any:
    """The same records for every test in here: to prepare them takes longer than a round."""
    if name not in _RECORDS:
        _RECORDS[name] = load(model)
    return _RECORDS[name]


@dataclass
class _Mortal:
    bench: MortalBench
    name: str
    site: Any

    def handle(self, parcel: Parcel) -> Parcel | None:
        try:
            return self._answer(parcel)
        except Killed:
            self.bench.mortality.dead.discard(self.name)
            self.bench.restart(self.name)
        # Whoever carries the messages delivers all of this session's once more, the last one included.
        reborn, header = self.bench.sites[self.name], parcel.header
        earlier = [sent for site, sent, _ in self.bench.log if site == self.name and sent.header == header]
        answers = [reborn._answer(sent) for sent in (*earlier, parcel)]
        return answers[-1] if self.bench.redelivers else None

    def _answer(self, parcel: Parcel) -> Parcel:
        answer = self.site.handle(parcel)
        self.bench.log.append((self.name, parcel, answer))
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is learnt does not matter here: a little noise instead of training, charged as ever."""

    def drawn(self, phase, model, noise, planned):
        generator = np.random.default_rng(noise.seed())
        names = [name for name in phase.components if owns(name, self.site.owned)]
        sizes = self.federation.model.component_sizes()
        return {name: generator.normal(0, 0.01, sizes[name]).astype(np.float32) for name in names}

    monkeypatch.setattr(LocalTraining, "_descend", drawn)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> MortalBench:
    """After a first round, with the keys of the next one made."""
    folder = tmp_path_factory.mktemp("crash") / "run"
    with mortal(Mortality()):
        bench = MortalBench.make(freeze(compose_config(list(OVERRIDES)), folder))
        bench.round(0, 0, more=True)
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
    released = [
        (site, header.round) for site, header, r, a in good if r.action == "unmask" and Release.from_bytes(a.body)
    ]
    once(released, "release of a round")
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
    assert (last.survivors, last.traffic.exchanges) == (5, 3)
    tracks = {bench.home(site).get_tensors("track")[1]["track/model/fusion"].tobytes() for site in bench.sites}
    assert len(tracks) == 1


@pytest.mark.parametrize(
    "marked",
    [{"site02": "torn", "site04": "done"}, {f"site0{n}": ("torn", "done")[n % 2] for n in range(1, 6)}],
    ids=["some", "all"],
)
def test_a_site_that_is_killed_at_any_write_of_two_rounds_comes_back_and_does_nothing_twice(
    steady, tmp_path, marked
) -> None:
    """Some: the others go on without them. All: the attempt fails, or the round is burned."""
    count = Mortality()
    with mortal(count):
        steady.fork(tmp_path / "count", count).go_on(2)
    assert count.writes["site02"] > 25
    for at in range(count.writes["site02"]):
        mortality = Mortality(marked, at)
        try:
            with mortal(mortality):
                bench = steady.fork(tmp_path / str(at), mortality)
                bench.redelivers = len(marked) < 5
                bench.go_on(2)
                assert mortality.killed == set(marked)
                bench.go_on(1)
                check(bench)
                ends_well(bench)
        except BaseException as error:
            error.add_note(f"killed at write {at}")
            raise
        shutil.rmtree(bench.folder)
