"""What a site released, on record: signed, hash-chained, written before the noise is drawn, and recomputable.

Neither torch nor flwr is imported in here.
"""

from secure_fed.ledger.anchor import Anchor, make_anchor
from secure_fed.ledger.anchoring import ANCHORS, WITNESS, read_anchors
from secure_fed.ledger.budget import Standing, standing
from secure_fed.ledger.chain import Rotation, read_ledger, rotations, signing_keys, spent
from secure_fed.ledger.ledger import Ledger
from secure_fed.ledger.record import (
    Body,
    Close,
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
    "ANCHORS",
    "WITNESS",
    "Anchor",
    "Body",
    "Close",
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
    "Standing",
    "Verdict",
    "make_anchor",
    "read_anchors",
    "read_ledger",
    "render",
    "rotations",
    "signing_keys",
    "spent",
    "standing",
    "verify",
]
