"""What travels between the coordinator and a site, before Flower wraps it: a header, bytes, and arrays.

A site's answer is a code and bytes; nothing else about a site is ever in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from secure_fed.errors import SecAggError

OK = "ok"
STAGES = ("advertise", "share", "mask", "confirm", "unmask")
"""The exchanges of one attempt at one round, in order."""


@dataclass(frozen=True)
class Header:
    """Which attempt at which round this is. `step` is the place in the schedule, `round` only ever grows."""

    run: str
    step: int
    round: int
    attempt: int

    def to_bytes(self) -> bytes:
        """The header as JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read strictly; raises SecAggError(malformed_message)."""
        try:
            tree = json.loads(data)
            header = cls(**tree)
        except (ValueError, TypeError) as error:
            raise SecAggError("malformed_message", "round header") from error
        numbers = (header.step, header.round, header.attempt)
        if not isinstance(header.run, str) or any(type(n) is not int or n < 0 for n in numbers):
            raise SecAggError("malformed_message", "round header")
        return header


@dataclass(frozen=True)
class Parcel:
    """A message's content: `code` is `ok` or a fixed error code, `arrays` are float32 vectors by name.

    `site` is whom a request is for: in simulation one node may stand for several sites.
    """

    code: str = OK
    site: str = ""
    header: bytes = b""
    body: bytes = b""
    arrays: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return len(self.header) + len(self.body) + sum(array.nbytes for array in self.arrays.values())


class Transport(Protocol):
    """How the coordinator reaches sites; an engine provides it."""

    def exchange(self, action: str, parcels: Mapping[str, Parcel]) -> dict[str, Parcel]:
        """Send each site its parcel and gather the answers; a site that did not answer is absent."""
