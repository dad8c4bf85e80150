"""An optimizer's state, a component at a time, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from secure_fed.models.digest import Vector, encode_vector


@dataclass(frozen=True)
class State:
    """A component's optimizer state: moments [P] float32 and the number of steps taken."""

    steps: int = 0
    moments: Mapping[str, Vector] = field(default_factory=dict)


def state_digest(states: Mapping[str, State]) -> bytes:
    """SHA-256 over each component's name, steps and moments, sorted by name; 32 bytes.

    A component that has taken no step counts as absent: whether its empty state was ever written down says nothing.
    Raises ConfigError for a moment that is not a flat float32 vector.
    """
    begun = {name: state for name, state in states.items() if state.steps or state.moments}
    digest = hashlib.sha256(b"secure_fed optimizer state/1\0" + len(begun).to_bytes(8, "big"))
    for name in sorted(begun):
        state, encoded = begun[name], name.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
        digest.update(state.steps.to_bytes(8, "big") + len(state.moments).to_bytes(4, "big"))
        for moment in sorted(state.moments):
            header, values = encode_vector(moment, state.moments[moment])
            digest.update(header)
            digest.update(values)
    return digest.digest()
