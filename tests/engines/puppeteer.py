"""What the tests of hostile coordinators and networks share: a coordinator by hand, and updates drawn, not learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench

from secure_fed.client.training import LocalTraining
from secure_fed.federation.announcement import Announcement
from secure_fed.federation.masking import session_context
from secure_fed.federation.track import follow, means_of
from secure_fed.federation.wire import OK, Header, Parcel, part
from secure_fed.secagg import ServerSession, Transcript, pack, unpack, wire_bits
from secure_fed.server.announced import Announced
from secure_fed.server.training import Held

Made = dict[tuple[str, int], dict[str, np.ndarray]]
"""(site, round) -> its last update."""


def draw_instead_of_training(patch: pytest.MonkeyPatch) -> Made:
    """A little noise for every update, charged as ever: what is learnt does not matter to these tests."""
    made: Made = {}

    def drawn(self, phase, model, context, header, planned):
        generator = np.random.default_rng(self.noise.derive("test").seed())
        names = [name for name in phase.uploads() if self.federation.contributes(self.site, name)]
        sizes = self.federation.model.component_sizes()
        update = {name: generator.normal(0, 0.05, sizes[name]).astype(np.float32) for name in names}
        made[self.site.name, header.round] = update
        return update

    patch.setattr(LocalTraining, "_descend", drawn)
    return made


def announced(bench: Bench, number: int, held: Held) -> Announced:
    """What a coordinator that holds this says when round `number` begins."""
    return Announced.make(bench.coordinator.federation, held.track, held.opened, number)


class Puppeteer:
    """Plays the coordinator's sessions itself, a stage at a time, as many at once as it likes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def open(self, round_: int, attempt: int) -> tuple[Header, ServerSession]:
        header = Header("run", 0, round_, attempt)
        context = session_context(self.bench.coordinator.federation, self.bench.coordinator.roster, header)
        session = ServerSession(context, self.bench.held.track.digest)
        session.bind_model(self.bench.held.track.digest)
        return header, session

    def ask(self, header: Header, session: ServerSession, site: str, **more) -> Parcel:
        """The stage's request; the model is announced with what begins a round."""
        action = str(session.stage)
        content: dict = {"body": session.request(site), **more}
        if action in {"advertise", "mask"}:
            said = announced(self.bench, header.round, self.bench.held)
            content |= {"announcement": said.announcement, "arrays": dict(said.arrays)}
        return self.bench.request(site, action, header, **content)

    def stage(self, header: Header, session: ServerSession, *silent: str) -> dict[str, Parcel]:
        """One exchange with everybody but the silent; the answers."""
        answers = {}
        for site in session.participants:
            if site not in silent:
                answers[site] = self.bench.sites[site].handle(self.ask(header, session, site))
                if answers[site].code == OK:
                    session.receive(site, answers[site].body, answers[site].arrays)
        return answers

    def through(self, header: Header, session: ServerSession, *stages: str, silent: tuple[str, ...] = ()) -> None:
        for stage in stages:
            assert session.stage == stage
            self.stage(header, session, *silent)
            session.advance()


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
