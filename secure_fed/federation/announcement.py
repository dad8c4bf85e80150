"""What the coordinator says about the model at the beginning of a round, in bytes that it signs with the request.

A site believes none of it: it recomputes the step from the sums and compares.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secure_fed.errors import SecAggError
from secure_fed.federation.wire import Header
from secure_fed.identity import canonical_json

SUM, CHECKPOINT, MODEL, PUBLIC = "sum", "checkpoint", "model", "public"
"""Prefixes of the arrays beside it: opened sums (packed), the track before them, the whole model, the public set."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Outcome(_Strict):
    """The last opened round: from which track it went on, and who signed that.

    `transcript` (hex) holds at least t signatures of survivors over a session that bound `model_hash` and
    `state_hash`, the track before the step: with it the track travels as a checkpoint for who joins late.
    """

    run: str
    step: Count
    round: Count
    attempt: Count
    roster: Hash
    transcript: Hex
    model_hash: Hash
    state_hash: Hash
    steps: dict[str, Count]

    @property
    def header(self) -> Header:
        """The session that was opened."""
        return Header(self.run, self.step, self.round, self.attempt)


class Announcement(_Strict):
    """The model of a round, by hash, and the outcome that led to it (None at the beginning).

    `round` is that round: who is told of the next session ahead of time hears of the model of the round before.
    `public_set`: SHA-256 of the run's public set, where its method needs one. Signed beside the arrays, it tells a
    coordinator that sends another set from a request of another run that somebody delivers again.
    """

    server_step: Literal["verified", "unverified"]
    round: Count
    model_hash: Hash
    state_hash: Hash
    public_set: Hash | None
    outcome: Outcome | None

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Announcement:
        """Read strictly; raises SecAggError(malformed_message)."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise SecAggError("malformed_message", "announcement") from error
