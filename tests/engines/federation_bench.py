"""A federation in memory: real homes, real sites and a transport that writes down all that the server receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secure_fed.client.home import Home
from secure_fed.client.site import SiteClient
from secure_fed.engines.runner import Prepared, found, prepare
from secure_fed.federation.config import RunConfig
from secure_fed.federation.wire import Header, Parcel
from secure_fed.identity import Roster
from secure_fed.ledger import Reserve, read_ledger
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.round import Coordinator, RoundResult

Tamper = Callable[[str, str, Parcel], Parcel | None]


@dataclass
class RecordingTransport:
    """Calls the sites directly; `before` may change or swallow a request, `after` an answer."""

    sites: Mapping[str, SiteClient]
    before: Tamper = lambda site, action, parcel: parcel
    after: Tamper = lambda site, action, parcel: parcel
    received: list[tuple[str, str, Parcel]] = field(default_factory=list)

    def exchange(self, action: str, parcels: Mapping[str, Parcel]) -> dict[str, Parcel]:
        answers = {}
        for site, parcel in parcels.items():
            sent = self.before(site, action, parcel)
            answer = None if sent is None else self.after(site, action, self.sites[site].handle(action, sent))
            if answer is not None:
                answers[site] = answer
                self.received.append((site, action, answer))
        return answers


@dataclass
class Bench:
    """A founded run whose rounds a test drives itself."""

    folder: Path
    prepared: Prepared
    sites: dict[str, SiteClient]
    transport: RecordingTransport
    coordinator: Coordinator
    model: MultimodalModel

    @classmethod
    def make(cls, config: RunConfig) -> Bench:
        folder = Path(config.run_dir)
        prepared = prepare(config)
        found(folder, prepared)
        roster = Roster.load(folder / "roster.json")

        def client(name: str) -> SiteClient:
            records = prepared.simulated.records[name]
            return SiteClient(Home(folder / "sites" / name), config, roster, lambda model: model.prepare(records))

        sites = {site.name: client(site.name) for site in prepared.federation.sites}
        transport = RecordingTransport(sites)
        coordinator = Coordinator(prepared.federation, roster, transport)
        return cls(folder, prepared, sites, transport, coordinator, prepared.federation.new_model())

    def round(self, step: int = 0, number: int = 0, run: str = "run") -> RoundResult:
        return self.coordinator.run_round(Header(run, step, number, 0), self.model)

    def reserves(self, site: str) -> list[Reserve]:
        path = self.folder / "sites" / site / "ledger.jsonl"
        if not path.exists():
            return []
        return [record.body for record in read_ledger(path) if isinstance(record.body, Reserve)]

    def pending(self, site: str) -> bytes | None:
        return Home(self.folder / "sites" / site).get("pending")
