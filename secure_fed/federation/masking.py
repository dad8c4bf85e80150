"""The masked sum's parameters and layout for one attempt, derived alike by client and server.

Neither side takes a threshold, a floor or an owner from a message.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Header
from secure_fed.identity import Roster
from secure_fed.secagg import ComponentSpec, KRegular, SecAggParams, SessionContext, VectorSchema, k_regular


def secagg_params(federation: Federation, step: int | None = None) -> SecAggParams:
    """Threshold, floors, graph and ring of a run, or of one step; raises ConfigError where they cannot hold.

    The floors that owners opted for are those of the step's slices, or of all where no step is given.
    """
    config = federation.config
    names = federation.dp_only if step is None else {part.name for part in federation.slices_at(step)}
    lowered = federation.dp_only & names
    return SecAggParams(
        members=len(federation.sites),
        threshold=federation.threshold,
        max_corrupt=config.federation.corrupt,
        min_cohort=federation.min_cohort,
        value_bits=config.secagg.value_bits,
        clip=config.secagg.clip,
        min_contributors=config.federation.min_contributors,
        floors={name: federation.floor(name) for name in sorted(lowered)},
        dp_only=lowered,
        graph=_graph(federation),
    )


def _graph(federation: Federation) -> KRegular | None:
    if federation.config.secagg.graph == "complete":
        return None
    members = len(federation.sites)
    dropped = members - federation.min_cohort
    return k_regular(members, federation.config.federation.corrupt / members, dropped / members)


class Membership:
    """A roster and what follows from it. All of it is public, and the same for as long as the roster stands."""

    _MOST_CONTEXTS = 4  # the session under way, the next one, and the one whose outcome is announced

    def __init__(self, roster: Roster, federation: Federation) -> None:
        self.roster = roster
        self.federation = federation
        self._contexts: OrderedDict[Header, SessionContext] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        """The roster's digest, hex."""
        return self.roster.digest().hex()

    def context(self, header: Header) -> SessionContext:
        """The `session_context` of one attempt; made once, for a site asks for it at every message."""
        if header not in self._contexts:
            self._contexts[header] = session_context(self.federation, self.roster, header)
            if len(self._contexts) > self._MOST_CONTEXTS:
                self._contexts.popitem(last=False)
        return self._contexts[header]


def session_context(federation: Federation, roster: Roster, header: Header) -> SessionContext:
    """What one attempt at one round stands on."""
    specs = tuple(ComponentSpec(part.name, part.size, part.owners) for part in federation.slices_at(header.step))
    return SessionContext(
        params=secagg_params(federation, header.step),
        schema=VectorSchema(specs),
        run=header.run,
        round=header.round,
        attempt=header.attempt,
        roster_hash=roster.digest(),
        policy_hash=federation.digest(),
        public_keys={name: bytes.fromhex(member.public_key) for name, member in roster.members.items()},
    )
