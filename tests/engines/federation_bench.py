"""A federation in memory: real homes, real sites and a transport that writes down all that the server receives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_fed.client.home import Home, of_run
from secure_fed.client.site import PENDING, SiteClient
from secure_fed.engines.runner import Prepared, found, prepare
from secure_fed.engines.simulated_homes import coordinator_key
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.federation.track import follow
from secure_fed.federation.wire import Header, Parcel
from secure_fed.identity import Roster, SigningKey
from secure_fed.ledger import Reserve, read_ledger
from secure_fed.server.round import Coordinator, Place, RoundResult
from secure_fed.server.training import Held, load_checkpoint

Tamper = Callable[[str, str, Parcel], Parcel | None]


@dataclass
class RecordingTransport:
    """Calls the sites directly; `before` may change or swallow a request, `after` an answer.

    A changed request is signed anew: the tests play a coordinator that is up to no good, not a stranger.
    """

    sites: Mapping[str, SiteClient]
    key: SigningKey
    before: Tamper = lambda site, action, parcel: parcel
    after: Tamper = lambda site, action, parcel: parcel
    sent: list[tuple[str, str, Parcel]] = field(default_factory=list)
    received: list[tuple[str, str, Parcel]] = field(default_factory=list)

    def exchange(self, parcels: Mapping[str, Parcel], optional: Collection[str] = ()) -> Iterator[tuple[str, Parcel]]:
        for site, parcel in parcels.items():
            sent = self.before(site, parcel.action, parcel)
            if sent is None:
                continue
            if sent is not parcel:
                sent = sent.signed(self.key)
            self.sent.append((site, sent.action, sent))
            answer = self.after(site, sent.action, self.sites[site].handle(sent))
            if answer is not None:
                self.received.append((site, sent.action, answer))
                yield site, answer


@dataclass
class Bench:
    """A founded run whose rounds a test drives itself; `round` applies the server's step to `held`."""

    folder: Path
    prepared: Prepared
    sites: dict[str, SiteClient]
    transport: RecordingTransport
    coordinator: Coordinator
    held: Held

    @classmethod
    def make(cls, config: RunConfig) -> Bench:
        folder = Path(config.run_dir)
        prepared = prepare(config)
        found(folder, prepared)
        key = SigningKey.load(coordinator_key(folder))
        transport = RecordingTransport({}, key)
        roster = Roster.load(folder / "roster.json")
        coordinator = Coordinator(prepared.federation, roster, transport, key, public=prepared.public)
        held, _ = load_checkpoint(folder)
        bench = cls(folder, prepared, {}, transport, coordinator, held)
        transport.sites = bench.sites
        for site in prepared.federation.sites:
            bench.restart(site.name)
        return bench

    def restart(self, name: str) -> None:
        """The site as a new process would find it: only its home is left."""
        records = self.prepared.simulated.records[name]
        home, roster = Home(self.folder / "sites" / name), self.folder / "roster.json"
        self.sites[name] = SiteClient(home, self.prepared.config, roster, lambda: records)

    def round(self, step: int = 0, number: int = 0, run: str = "run", *, more: bool = False) -> RoundResult:
        """One round; with `more`, the next one is prepared on the way."""
        following = Place(run, step + 1, number + 1) if more else None
        result = self.coordinator.run_round(Place(run, step, number), self.held.track, self.held.opened, following)
        if result.opened is not None:
            track = follow(self.coordinator.federation, step, self.held.track, result.means)
            self.held = Held(track, result.opened)
        return result

    def take_roster(self) -> None:
        """Let the coordinator see the roster that lies in the folder."""
        roster = Roster.load(self.folder / "roster.json")
        self.coordinator.change_members(Federation(self.prepared.config, sites_of(roster)), roster)

    def home(self, site: str) -> Home:
        return Home(self.folder / "sites" / site)

    def request(self, site: str, action: str, header: Header, **content: Any) -> Parcel:
        """A request of the coordinator's, signed."""
        parcel = Parcel(action, site, header=header.to_bytes(), **content)
        return parcel.signed(self.transport.key)

    def reserves(self, site: str) -> list[Reserve]:
        path = self.folder / "sites" / site / "ledger.jsonl"
        if not path.exists():
            return []
        return [record.body for record in read_ledger(path) if isinstance(record.body, Reserve)]

    def pending(self, site: str, run: str = "run") -> bytes | None:
        return self.home(site).get(of_run(PENDING, run))
