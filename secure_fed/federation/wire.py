"""What travels between the coordinator and a site, before Flower wraps it: a signed request, and an answer.

A site's answer is a code and the protocol's own bytes; nothing else about a site is ever in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secure_fed.errors import SecAggError
from secure_fed.identity import SigningKey, canonical_json, domain_separated, verify_signature

OK = "ok"
NEEDS_CHECKPOINT = "needs_checkpoint"
"""A site cannot reach the announced model from what it knows: it asks for a signed checkpoint."""
NEEDS_PUBLIC_SET = "needs_public_set"
"""A site does not hold the public set that the configuration names: it asks for it, once."""
PRESENT = frozenset({OK, NEEDS_CHECKPOINT, NEEDS_PUBLIC_SET})
"""Codes of a site that is there and would take part."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
STAGES = ("advertise", "share", "mask", "confirm", "unmask")
"""The stages of one session, in order. In steady state the first two ride on the round before."""
REQUEST_DOMAIN = "request/1"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Header:
    """Which session this is. `step` is the place in the schedule, `round` only ever grows.

    `attempt` numbers the sessions of the whole run: it grows from one to the next, whatever their rounds, so that
    the keys of a round may be made while the one before is under way.
    """

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
        # A run's name is put on ledgers and into file names: what either would choke on is no name.
        named = isinstance(header.run, str) and _RUN.fullmatch(header.run) is not None
        if not named or any(type(n) is not int or n < 0 for n in numbers):
            raise SecAggError("malformed_message", "round header")
        return header


@dataclass(frozen=True)
class Parcel:
    """A message's content.

    Attributes:
        action: what is asked: a stage, `plain`, or `hello`. Empty in answers.
        site: whom a request is for: in simulation one node may stand for several sites.
        code: `ok` or a fixed error code; answers only.
        header, body: the session and the stage's message.
        announcement: what the coordinator says about the model, with the message that begins a round.
        next_header, next_body: the session of the next round and its message, riding along.
        arrays: sums, checkpoint, model or public set (requests), masked slices (answers), by name.
        signature: the coordinator's Ed25519 signature over all of a request.
    """

    action: str = ""
    site: str = ""
    code: str = OK
    header: bytes = b""
    body: bytes = b""
    announcement: bytes = b""
    next_header: bytes = b""
    next_body: bytes = b""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    signature: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of payload."""
        parts = (self.header, self.body, self.announcement, self.next_header, self.next_body)
        return sum(map(len, parts)) + sum(array.nbytes for array in self.arrays.values())

    def statement(self, arrays_hash: str | None = None) -> bytes:
        """What the coordinator signs: every field, the bulky ones by their SHA-256."""
        tree = {
            "action": self.action,
            "site": self.site,
            "header": self.header.hex(),
            "body": hashlib.sha256(self.body).hexdigest(),
            "announcement": self.announcement.hex(),
            "next_header": self.next_header.hex(),
            "next_body": hashlib.sha256(self.next_body).hexdigest(),
            "arrays": arrays_hash if arrays_hash is not None else hash_arrays(self.arrays),
        }
        return domain_separated(REQUEST_DOMAIN, canonical_json(tree))

    def signed(self, key: SigningKey, arrays_hash: str | None = None) -> Parcel:
        """The request with the coordinator's signature; `arrays_hash` saves hashing what all sites get."""
        return replace(self, signature=key.sign(self.statement(arrays_hash)))

    def is_signed_by(self, public: bytes) -> bool:
        """Whether the holder of `public` (32 bytes) made this request."""
        return verify_signature(public, self.statement(), self.signature)


def hash_arrays(arrays: Mapping[str, Array]) -> str:
    """SHA-256, hex, over name, dtype, shape and little-endian bytes of every array, sorted by name."""
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        head = canonical_json([name, whole.dtype.str, list(whole.shape)])
        state.update(len(head).to_bytes(8, "big") + head)
        state.update(whole.data if whole.size else b"")
    return state.hexdigest()


def part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays under `prefix/`, without it."""
    start = prefix + "/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


class Transport(Protocol):
    """How the coordinator reaches sites; an engine provides it."""

    def exchange(self, parcels: Mapping[str, Parcel], optional: Collection[str] = ()) -> Iterator[tuple[str, Parcel]]:
        """Send each site its parcel and yield (site, answer) as they come; who does not answer in time is absent.

        Nobody waits for the `optional` ones once the others have answered. One answer is held at a time, so that
        the coordinator's memory does not grow with the cohort.
        """
