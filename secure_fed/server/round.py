"""One round at the coordinator: the exchanges of its session, retries, and the next round's keys on the way.

It sees masked vectors and opened sums, and derives owners and weights from the roster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from secure_fed.errors import BudgetExhausted, LedgerError, RunAborted, SecAggError
from secure_fed.federation.announcement import Outcome
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import session_context
from secure_fed.federation.public_set import PublicSet
from secure_fed.federation.track import Track, contributors_of, counts_of, means_of
from secure_fed.federation.wire import OK, Array, Header, Parcel, Transport
from secure_fed.identity import Roster, SigningKey
from secure_fed.ledger import Anchor
from secure_fed.secagg import ServerSession, Stage, pack, wire_bits
from secure_fed.server.announced import Announced, Opened
from secure_fed.server.exchanges import Exchanges, Traffic, asked
from secure_fed.strategies import Vector


@dataclass(frozen=True)
class RoundResult:
    """The weighted mean of each opened slice, float32 [size], or the sum of its counts, int64 [size].

    A slice below its floor is in `kept`.
    `opened` is what the sites recompute the step from; None with secagg=off.
    """

    header: Header
    attempts: int
    participants: int
    survivors: int
    means: Mapping[str, Vector]
    counts: Mapping[str, Array]
    contributors: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...]
    traffic: Traffic
    opened: Opened | None


class RoundBurned(Exception):
    """The round failed after shares were asked for: it is over, its charge stays, a new one begins."""

    def __init__(self, code: str, traffic: Traffic) -> None:
        super().__init__(code)
        self.code = code
        self.traffic = traffic


@dataclass(frozen=True)
class Place:
    """A place in the schedule under the next round number."""

    run: str
    step: int
    round: int


class Coordinator:
    """Runs rounds over a transport; holds no secret but its signing key, and no update.

    `attempt` is the next unused session number of the run; `public` the set for sites that do not hold it yet.
    """

    def __init__(
        self,
        federation: Federation,
        roster: Roster,
        transport: Transport,
        key: SigningKey,
        attempt: int = 0,
        public: PublicSet | None = None,
    ) -> None:
        self.federation = federation
        self.roster = roster
        self.attempt = attempt
        self._public = public
        self._exchanges = Exchanges(transport, key)
        self._prepared: tuple[Header, ServerSession] | None = None

    def change_members(self, federation: Federation, roster: Roster) -> None:
        """Go on under a new roster; keys and shares that were prepared under the old one are void."""
        self.federation, self.roster, self._prepared = federation, roster, None

    def run_round(
        self, place: Place, track: Track, opened: Opened | None = None, following: Place | None = None
    ) -> RoundResult:
        """One round of the schedule over the model in `track`.

        `opened` is the last round's, for the sites to follow; `following` is the round to prepare on the way.
        Retries with fresh keys over the same stored updates while nothing was opened. Raises RoundBurned where
        something was, BudgetExhausted where sites have no budget left for it, RunAborted when the attempts are used up.
        """
        announced = Announced.make(self.federation, track, opened, place.round, self._public)
        traffic = Traffic()
        if self.federation.config.secagg.mode == "off":
            return self._plain_round(place, announced, traffic)
        limit = self.federation.config.secagg.max_attempts
        for tried in range(limit):
            try:
                return self._attempt(place, announced, following, tried, traffic)
            except SecAggError as error:
                self._prepared = None
                failure = error
        exhausted = sorted(site for site, code in traffic.codes.items() if code == "budget_exhausted")
        if len(exhausted) > self.federation.config.federation.corrupt:  # fewer may be lying
            raise BudgetExhausted(
                f"round {place.round} found {', '.join(exhausted)} without budget for its phase, and too few others"
            )
        answered = ", ".join(f"{site}: {code}" for site, code in sorted(traffic.codes.items())) or "all answered"
        raise RunAborted(
            f"round {place.round} failed in all {limit} attempts: {failure} (last answers: {answered}); nothing "
            "was opened, the ledgers stand. Continue with `secure-fed run resume=...` when enough sites are back, "
            "or raise secagg.max_attempts"
        )

    def finish(self, place: Place) -> list[Anchor]:
        """Tell every site that the run is over, so that it frees what was planned and not charged; best effort.

        Returns the last anchors of the ledgers of those that answered, each as its site signed it.
        """
        header = Header(place.run, place.step, place.round, self.attempt)
        self.attempt += 1
        sites = (site.name for site in self.federation.sites)
        requests = {name: Parcel("finish", name, OK, header.to_bytes()) for name in sites}
        anchors = []
        for site, answer in self._exchanges.send(Traffic(), requests, {}, requests.keys()):
            try:
                anchor = Anchor.from_line(answer.body)
            except LedgerError:
                continue  # a site without a ledger, or one that says something else
            public = bytes.fromhex(self.roster.members[site].public_key)
            if anchor.site == site and anchor.signed_by(public):
                anchors.append(anchor)
        return anchors

    # -- secure ----------------------------------------------------------------------------------------

    def _attempt(
        self, place: Place, announced: Announced, following: Place | None, tried: int, traffic: Traffic
    ) -> RoundResult:
        prepared = self._take_prepared(place)
        header, session = prepared or self._begin(place, announced, traffic)
        participants = len(session.participants)
        session.bind_model(announced.track.digest)
        upcoming = None if following is None else self._open_session(following, announced.track)
        try:
            self._mask(header, session, announced, upcoming, traffic, told=prepared is None)
            survivors = len(session.answered)
            session.advance()
            self._confirm(header, session, upcoming, traffic)
            session.advance()
            self._exchange(session, self._requests("unmask", header, session), traffic)
            session.advance()
        except SecAggError as error:
            if session.released:
                self._prepared = None
                raise RoundBurned(error.code, traffic) from error
            raise
        self._prepared = upcoming
        return self._result(header, session, announced.track, tried + 1, participants, survivors, traffic)

    def _take_prepared(self, place: Place) -> tuple[Header, ServerSession] | None:
        """The session that was prepared during the round before, if nobody who is there was left out of it."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return None
        header, session = prepared
        here = {site.name for site in self.federation.sites} - self._exchanges.lost
        fits = (header.run, header.step, header.round) == (place.run, place.step, place.round)
        return prepared if fits and session.stage is Stage.MASK and here <= set(session.participants) else None

    def _open_session(self, place: Place, basis: Track) -> tuple[Header, ServerSession]:
        header = Header(place.run, place.step, place.round, self.attempt)
        self.attempt += 1
        context = session_context(self.federation, self.roster, header)
        return header, ServerSession(context, basis.digest, self.federation.config.secagg.threads)

    def _begin(self, place: Place, announced: Announced, traffic: Traffic) -> tuple[Header, ServerSession]:
        """Stages 1 and 2 of a fresh session, in two exchanges of their own."""
        header, session = self._open_session(place, announced.track)
        requests = self._requests("advertise", header, session, announced)
        self._exchange(session, requests, traffic, announced, optional=self._exchanges.lost)
        session.advance()
        self._exchange(session, self._requests("share", header, session), traffic)
        session.advance()
        return header, session

    def _mask(
        self,
        header: Header,
        session: ServerSession,
        announced: Announced,
        upcoming: tuple[Header, ServerSession] | None,
        traffic: Traffic,
        told: bool,
    ) -> None:
        """Stage 3, and stage 1 of the next round: also for members that are not in this one.

        `told` says whether the participants heard of the model when the session began.
        """
        requests = self._requests("mask", header, session, None if told else announced)
        absent: set[str] = set()
        if upcoming is not None:
            requests = _with_next(requests, upcoming[0], dict.fromkeys(requests, b""))
            absent = set(upcoming[1].participants) - set(requests)
            requests |= self._requests("advertise", *upcoming, announced, only=absent)
        answers = self._exchange(session, requests, traffic, announced, optional=absent)
        if upcoming is not None:
            self._close_prepared(upcoming[1], answers, absent)

    def _confirm(
        self, header: Header, session: ServerSession, upcoming: tuple[Header, ServerSession] | None, traffic: Traffic
    ) -> None:
        """Stage 4, and stage 2 of the next round."""
        requests = self._requests("confirm", header, session)
        absent: set[str] = set()
        if upcoming is not None and upcoming[1].stage is Stage.SHARE:
            bodies = {site: upcoming[1].request(site) for site in upcoming[1].participants}
            requests = _with_next(requests, upcoming[0], {s: bodies[s] for s in requests if s in bodies})
            absent = set(bodies) - set(requests)
            requests |= self._requests("share", *upcoming, only=absent)
        answers = self._exchange(session, requests, traffic, optional=absent)
        if upcoming is not None and upcoming[1].stage is Stage.SHARE:
            self._close_prepared(upcoming[1], answers, absent)

    def _close_prepared(self, session: ServerSession, answers: Mapping[str, Parcel], absent: Collection[str]) -> None:
        """Take what rode along. Too little of it fails the prepared session only: the next round begins anew."""
        for site, answer in answers.items():
            body = answer.body if site in absent else answer.next_body
            if body and site in session.participants:
                session.receive(site, body)
        try:
            session.advance()
        except SecAggError:
            return  # its stage is FAILED now, which `_take_prepared` sees

    def _requests(
        self,
        action: str,
        header: Header,
        session: ServerSession,
        announced: Announced | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Parcel]:
        """The stage's request to each participant. What is said about the model goes with what begins a round."""
        said = b"" if announced is None else announced.announcement
        sites = session.participants if only is None else sorted(only)
        return {site: Parcel(action, site, OK, header.to_bytes(), session.request(site), said) for site in sites}

    def _exchange(
        self,
        session: ServerSession,
        requests: Mapping[str, Parcel],
        traffic: Traffic,
        announced: Announced | None = None,
        optional: Collection[str] = (),
    ) -> dict[str, Parcel]:
        """Send the requests and hand the session what comes.

        The good answers are returned without their arrays, which nobody keeps.
        """
        answers = asked(partial(self._gather, session, traffic), requests, announced, optional)
        traffic.codes |= session.faults
        return {site: answer for site, answer in answers.items() if answer.code == OK}

    def _gather(
        self,
        session: ServerSession,
        traffic: Traffic,
        requests: Mapping[str, Parcel],
        arrays: Mapping[str, Array],
        optional: Collection[str],
    ) -> Iterator[tuple[str, Parcel]]:
        """Each vector is added to the sum as it arrives, and let go."""
        for site, answer in self._exchanges.send(traffic, requests, arrays, optional):
            if answer.code == OK and requests[site].action == session.stage:
                session.receive(site, answer.body, answer.arrays)
            yield site, replace(answer, arrays={})

    def _result(
        self,
        header: Header,
        session: ServerSession,
        track: Track,
        attempts: int,
        participants: int,
        survivors: int,
        traffic: Traffic,
    ) -> RoundResult:
        totals = session.sums()
        sums = {name: total.values for name, total in totals.items() if total is not None}
        transcript = session.transcript()
        means = means_of(self.federation, header.step, transcript.survivors, sums)
        outcome = Outcome(
            run=header.run,
            step=header.step,
            round=header.round,
            attempt=header.attempt,
            roster=self.roster.digest().hex(),
            transcript=transcript.to_bytes().hex(),
            model_hash=track.model_hash.hex(),
            state_hash=track.state_hash.hex(),
            steps=track.steps,
        )
        contributors = contributors_of(self.federation, header.step, transcript.survivors)
        kept = tuple(name for name, total in totals.items() if total is None)
        opened = Opened(outcome, self._packed(sums), track)
        counts = counts_of(self.federation, header.step, sums)
        return RoundResult(
            header, attempts, participants, survivors, means, counts, contributors, kept, traffic, opened
        )

    def _packed(self, sums: Mapping[str, Array]) -> dict[str, Array]:
        bits = wire_bits(len(self.federation.sites), self.federation.config.secagg.value_bits)
        return {name: pack(total.view(np.uint32), bits) for name, total in sums.items()}

    # -- comparison only -------------------------------------------------------------------------------

    def _plain_round(self, place: Place, announced: Announced, traffic: Traffic) -> RoundResult:
        """secagg=off: the coordinator sees every site's update."""
        header = Header(place.run, place.step, place.round, self.attempt)
        self.attempt += 1
        requests = {
            site.name: Parcel("plain", site.name, OK, header.to_bytes(), b"", announced.announcement)
            for site in self.federation.sites
        }
        answers = asked(partial(self._exchanges.send, traffic), requests, announced)
        good = {site: answer for site, answer in answers.items() if answer.code == OK}
        if not good:
            raise RunAborted(f"round {place.round}: no site answered ({traffic.codes}); nothing was aggregated")
        means: dict[str, Vector] = {}
        counts: dict[str, Array] = {}
        contributors: dict[str, tuple[str, ...]] = {}
        weights = self.federation.weights
        for piece in self.federation.slices_at(place.step):
            names = tuple(sorted(site for site in good if site in piece.owners))
            if names and piece.counts:
                counted = np.stack([good[site].arrays[piece.name] for site in names])
                counts[piece.name] = counted.sum(axis=0, dtype=np.int64)
                contributors[piece.name] = names
            elif names:
                weighted = [weights[site] * good[site].arrays[piece.name] for site in names]
                total = sum(weights[site] for site in names)
                means[piece.name] = (np.sum(weighted, axis=0) / total).astype(np.float32)
                contributors[piece.name] = names
        kept = tuple(p.name for p in self.federation.slices_at(place.step) if p.name not in contributors)
        return RoundResult(header, 1, len(requests), len(good), means, counts, contributors, kept, traffic, None)


def _with_next(requests: Mapping[str, Parcel], upcoming: Header, bodies: Mapping[str, bytes]) -> dict[str, Parcel]:
    """The requests, with the next round's message riding along for those in `bodies`."""
    raw = upcoming.to_bytes()
    return {
        site: replace(request, next_header=raw, next_body=bodies[site]) if site in bodies else request
        for site, request in requests.items()
    }
