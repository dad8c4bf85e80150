"""The protocol sessions under way at a site: the round's own and the next one's, each stored after every step.

A stored state serves one step. What a step made leaves the site only after the state behind it is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from secure_fed.client.home import Home, of_run
from secure_fed.errors import SecAggError
from secure_fed.federation.wire import Header, Parcel
from secure_fed.secagg import ClientSession, SessionContext, Stage
from secure_fed.secagg.client_state import ClientState
from secure_fed.secagg.encoding import decode, encode

_SESSION = "session"
_DOMAIN = "stored-session"
_REQUEST = ("action", "site", "header", "body", "announcement", "next_header", "next_body", "signature")

Answer = TypeVar("Answer")
Who = tuple[str, Callable[[bytes], bytes]]
"""A member's name and what signs for it."""


class Sessions:
    """The sessions of one home, by run and by their number in it."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def begin(
        self, context: SessionContext, who: Who, header: Header, basis: bytes, keep: Header | None, notice: bytes
    ) -> bytes:
        """A new session's advertisement. Others of its run are forgotten, but for `keep`, the round under way."""
        session = ClientSession(context, *who)
        body = session.advertise(basis, notice)
        kept = "" if keep is None else _name(keep.run, keep.attempt)
        self._home.drop_all(f"{of_run(_SESSION, context.run)}-", keep=kept)
        self._store(context, session, None)
        return body

    def stage(self, context: SessionContext, who: Who) -> Stage:
        """Which message of this session comes next; raises SecAggError(no_session) where there is none."""
        return self._load(context, who)[0].stage

    def notes(self, context: SessionContext, who: Who, delivery: bytes) -> dict[str, bytes]:
        """Dealer -> its note, from the delivery that this session masks on next; a bad one ends the session."""
        session, earlier = self._load(context, who)
        try:
            return session.notes(delivery)
        except SecAggError:
            self._store(context, session, earlier)
            raise

    def step(
        self,
        context: SessionContext,
        who: Who,
        make: Callable[[ClientSession], Answer],
        *,
        request: Parcel | None = None,
    ) -> Answer:
        """Let the session make its next message and store what it has become, also where it failed.

        `request` is kept as evidence beside the state: two different ones prove equivocation.
        """
        session, earlier = self._load(context, who)
        try:
            return make(session)
        finally:
            # A step that failed has erased its secrets: what is stored must be that state too.
            self._store(context, session, earlier or request)

    def end(
        self, context: SessionContext, who: Who, make: Callable[[ClientSession], Answer], journal: Callable[[], None]
    ) -> Answer:
        """Let the session make its last message and forget it; `journal` notes, synced, that the message may leave.

        What is left of an ended session is an empty state: it is not stored first to be dropped then. Where the step
        or the journal fails the session stays, as what the step made of it.
        """
        session, request = self._load(context, who)
        try:
            answer = make(session)
            journal()
        except BaseException:
            self._store(context, session, request)
            raise
        self._home.drop(_name(context.run, context.attempt), synced=True)
        return answer

    def confirmed(self, header: Header) -> Parcel | None:
        """The request whose survivors this site signed in a session, if any."""
        stored = self._home.get(_name(header.run, header.attempt))
        return None if stored is None else _split(stored)[1]

    def advertisements(self, header: Header) -> Mapping[str, bytes]:
        """Member -> its signed advertisement, as this site took it in a session; empty where there is none."""
        stored = self._home.get(_name(header.run, header.attempt))
        return {} if stored is None else ClientState.from_bytes(_split(stored)[0]).peers

    def forget_all(self) -> None:
        """Drop every session: their keys, shares and commitments are void."""
        self._home.drop_all(f"{_SESSION}-")

    def _load(self, context: SessionContext, who: Who) -> tuple[ClientSession, Parcel | None]:
        stored = self._home.get(_name(context.run, context.attempt))
        if stored is None:
            raise SecAggError("no_session", "the site has no such session under way")
        state, request = _split(stored)
        return ClientSession.from_bytes(state, context, *who), request

    def _store(self, context: SessionContext, session: ClientSession, request: Parcel | None) -> None:
        kept = [] if request is None else [getattr(request, name) for name in _REQUEST]
        self._home.put(_name(context.run, context.attempt), encode(_DOMAIN, [session.to_bytes(), kept]))


def _name(run: str, attempt: int) -> str:
    return f"{of_run(_SESSION, run)}-{attempt}"


def _split(stored: bytes) -> tuple[bytes, Parcel | None]:
    state, kept = decode(_DOMAIN, stored)  # type: ignore[misc]
    if not kept:
        return state, None  # type: ignore[return-value]
    return state, Parcel(**dict(zip(_REQUEST, kept, strict=True)))  # type: ignore[arg-type, return-value]
