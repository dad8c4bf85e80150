"""An anchor: a site's signed word on how long its ledger is and which record comes last, for others to keep.

A chain cannot show that its end was cut off or that it was written anew; an anchor in other hands can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secure_fed.errors import LedgerError
from secure_fed.identity import (
    SignatureHex,
    SigningKey,
    SiteName,
    canonical_json,
    describe,
    domain_separated,
    verify_signature,
)
from secure_fed.ledger.record import Hash, Record

SCHEMA: Literal["secure_fed.anchor/1"] = "secure_fed.anchor/1"
DOMAIN = "anchor/1"


class Anchor(BaseModel):
    """`length` records, the last of them with the hash `head`: said and signed by `site`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_name: Literal["secure_fed.anchor/1"] = Field(default=SCHEMA, alias="schema")
    site: SiteName
    length: Annotated[int, Field(ge=1)]
    head: Hash
    signature: SignatureHex

    @classmethod
    def from_line(cls, line: bytes) -> Anchor:
        """Read `to_line`'s form strictly; raises LedgerError on anything else, another key order included."""
        try:
            anchor = cls.model_validate_json(line)
        except ValidationError as error:
            raise LedgerError(f"is no anchor: {describe(error)}") from error
        if anchor.to_line() != line:
            raise LedgerError("is an anchor in another form than the canonical one")
        return anchor

    def to_line(self) -> bytes:
        """Canonical JSON, without a line feed."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    def statement(self) -> bytes:
        """What the site signs."""
        return _statement(self.site, self.length, self.head)

    def signed_by(self, public: bytes) -> bool:
        """Whether the signature is by `public` (32 bytes)."""
        return verify_signature(public, self.statement(), bytes.fromhex(self.signature))

    def agrees(self, records: Sequence[Record]) -> bool:
        """Whether a ledger's records continue what the anchor saw: long enough, and the same record in its place."""
        return len(records) >= self.length and records[self.length - 1].hash == self.head


def make_anchor(site: str, length: int, head: bytes, key: SigningKey) -> Anchor:
    """The anchor of a ledger of `length` records whose last has the SHA-256 `head` (32 bytes)."""
    signature = key.sign(_statement(site, length, head.hex())).hex()
    tree = {"schema": SCHEMA, "site": site, "length": length, "head": head.hex(), "signature": signature}
    return Anchor.model_validate_json(json.dumps(tree))


def _statement(site: str, length: int, head: str) -> bytes:
    return domain_separated(DOMAIN, canonical_json({"site": site, "length": length, "head": head}))
