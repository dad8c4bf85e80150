"""A bench whose sites can be killed at any write, in the middle of it or right after it, and are started again."""

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

import pytest
from federation_bench import Bench, RecordingTransport

from secure_fed.client import halt as halting
from secure_fed.client import home as homes
from secure_fed.client.home import Home
from secure_fed.client.witness import Witnesses
from secure_fed.federation.wire import Parcel
from secure_fed.ledger import Ledger
from secure_fed.server.round import Coordinator, RoundBurned


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
        def write(path: Path, data: bytes, **how: bool) -> None:
            half = path.with_name(f".{path.name}.torn")
            mortality.write(path, lambda: original(path, data, **how), lambda: half.write_bytes(data[:9]))

        return write

    def drop(self: Home, name: str, *, synced: bool = False) -> None:
        mortality.write(self.root, lambda: dropping(self, name, synced=synced))

    def drop_all(self: Home, prefix: str, keep: str = "") -> None:
        mortality.write(self.root, lambda: dropping_all(self, prefix, keep))

    def append(self: Ledger, handle: int, data: bytes) -> None:
        mortality.write(
            self._path, lambda: appending(self, handle, data), lambda: os.write(handle, data[: len(data) // 2])
        )

    def witness(self: Witnesses, handle: int, data: bytes) -> None:
        mortality.write(
            self.path, lambda: witnessing(self, handle, data), lambda: os.write(handle, data[: len(data) // 2])
        )

    witnessing, dropping, dropping_all, appending = Witnesses._write, Home.drop, Home.drop_all, Ledger._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(homes, "write_durably", durably(homes.write_durably))
        patch.setattr(halting, "write_durably", durably(halting.write_durably))
        patch.setattr(Home, "drop", drop)
        patch.setattr(Home, "drop_all", drop_all)
        patch.setattr(Ledger, "_write", append)
        patch.setattr(Witnesses, "_write", witness)
        yield


@dataclass
class MortalBench(Bench):
    """A bench whose sites may die; one that did is started again at once.

    Its answer is lost; with `redelivers` the request reaches it again, and the second answer counts.
    """

    mortality: Mortality = field(default_factory=Mortality)
    log: list[tuple[str, Parcel, Parcel]] = field(default_factory=list)
    number: int = 0
    redelivers: bool = False

    def restart(self, name: str) -> None:
        super().restart(name)
        site = self.sites[name]
        # The same records for every test in here: to prepare them takes longer than a round.
        if name not in _RECORDS:
            _RECORDS[name] = site._records
        site.__dict__["_records"] = _RECORDS[name]
        self.sites[name] = _Mortal(self, name, site)  # type: ignore[assignment]

    def fork(self, folder: Path, mortality: Mortality) -> MortalBench:
        """The same federation at the same point, in a folder of its own."""
        shutil.copytree(self.folder, folder)
        transport = RecordingTransport({}, self.transport.key)
        old = self.coordinator
        coordinator = Coordinator(
            old.federation, old.roster, transport, self.transport.key, old.attempt, self.prepared.public
        )
        coordinator._prepared = copy.deepcopy(old._prepared)
        coordinator._exchanges.lost = set(old._exchanges.lost)
        bench = MortalBench(
            folder, self.prepared, {}, transport, coordinator, self.held, mortality, list(self.log), self.number
        )
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
