"""What a site released, on record: signed, hash-chained, written before the noise is drawn, and recomputable.

Neither torch nor flwr is imported in here.
"""

from secure_fed.ledger.chain import Rotation, read_ledger, rotations, signing_keys, spent
from secure_fed.ledger.ledger import Ledger
from secure_fed.ledger.record import (
    Body,
    Genesis,
    Note,
    Off,
    Plan,
    PlannedPhase,
    Record,
    Refusal,
    Rekey,
    Reserve,
    Settle,
)
from secure_fed.ledger.verdict import Row, Verdict, render
from secure_fed.ledger.verify import verify

__all__ = [
    "Body",
    "Genesis",
    "Ledger",
    "Note",
    "Off",
    "Plan",
    "PlannedPhase",
    "Record",
    "Refusal",
    "Rekey",
    "Reserve",
    "Rotation",
    "Row",
    "Settle",
    "Verdict",
    "read_ledger",
    "render",
    "rotations",
    "signing_keys",
    "spent",
    "verify",
]
