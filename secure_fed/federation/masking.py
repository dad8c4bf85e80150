"""The masked sum's parameters and layout for one attempt, derived alike by client and server.

Neither side takes a threshold, a floor or an owner from a message.
"""

from __future__ import annotations

from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Header
from secure_fed.identity import Roster
from secure_fed.secagg import ComponentSpec, SecAggParams, SessionContext, VectorSchema


def secagg_params(federation: Federation) -> SecAggParams:
    """Threshold, floors and ring of a run; raises ConfigError where they cannot hold."""
    config = federation.config
    return SecAggParams(
        members=len(federation.sites),
        threshold=federation.threshold,
        max_corrupt=config.federation.corrupt,
        min_cohort=federation.threshold,
        value_bits=config.secagg.value_bits,
        clip=config.secagg.clip,
        min_contributors=config.federation.min_contributors,
    )


def session_context(federation: Federation, roster: Roster, header: Header) -> SessionContext:
    """What one attempt at one round stands on."""
    specs = tuple(ComponentSpec(part.name, part.size, part.owners) for part in federation.slices_at(header.step))
    return SessionContext(
        params=secagg_params(federation),
        schema=VectorSchema(specs),
        run=header.run,
        round=header.round,
        attempt=header.attempt,
        roster_hash=roster.digest(),
        policy_hash=federation.digest(),
        public_keys={name: bytes.fromhex(member.public_key) for name, member in roster.members.items()},
    )
