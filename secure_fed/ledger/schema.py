"""The ledger's schema as a machine reads it: JSON Schema, draft 2020-12, from the very models that parse a record.

It says what one line may hold. What it cannot say (canonical form, chain, signatures, one record against another)
is `docs/ledger.md`'s and `verify`'s.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from secure_fed.identity import SITE_NAME
from secure_fed.ledger.record import BODIES, SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def json_schema() -> dict[str, Any]:
    """The schema of one record: the envelope, and for each kind its body. Plain JSON values."""
    _, bodies = models_json_schema([(body, "validation") for body in BODIES.values()], by_alias=True)
    envelope = {
        "schema": {"const": SCHEMA},
        "seq": {"type": "integer", "minimum": 0},
        "time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"},
        "site": {"type": "string", "pattern": SITE_NAME},
        "kind": {"enum": list(BODIES)},
        "body": {"type": "object"},
        "prev": _HASH,
        "hash": _HASH,
        "signature": {"type": "string", "pattern": "^[0-9a-f]{128}$"},
    }
    return {
        "$schema": DIALECT,
        "title": SCHEMA,
        "description": "One line of a site's ledger. See docs/ledger.md.",
        "type": "object",
        "properties": envelope,
        "required": list(envelope),
        "additionalProperties": False,
        "oneOf": [
            {"properties": {"kind": {"const": kind}, "body": {"$ref": f"#/$defs/{body.__name__}"}}}
            for kind, body in BODIES.items()
        ],
        "$defs": bodies["$defs"],
    }
