"""Fault injection: sites that stop answering, at a stage that chance picks.

Public and reproducible from the run's seed; it exists to show that rounds survive drop-outs.
"""

from __future__ import annotations

import hashlib

from secure_fed.federation.config import RunConfig
from secure_fed.federation.wire import STAGES, Header


def silent_from(config: RunConfig, site: str, header: Header) -> str | None:
    """The stage from which on a site is silent in this attempt, or None: chance `federation.dropout`."""
    key = f"secure_fed faults/{config.seed}/{site}/{header.round}/{header.attempt}"
    digest = hashlib.sha256(key.encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 >= config.federation.dropout:
        return None
    return STAGES[digest[8] % len(STAGES)]


def is_silent(config: RunConfig, site: str, header: Header, action: str) -> bool:
    """Whether the site leaves this message unanswered."""
    stage = silent_from(config, site, header)
    if stage is None or action == "finish":  # the end of a run belongs to none of its rounds
        return False
    return action not in STAGES or STAGES.index(action) >= STAGES.index(stage)
