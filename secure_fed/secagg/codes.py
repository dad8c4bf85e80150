"""Every code with which the secure aggregation refuses or gives up: fixed text, safe to send to a peer.

A code names the rule that was broken and never a value, because values may speak of patients.
"""

from __future__ import annotations

from enum import StrEnum

from secure_fed.errors import SecAggError


class Code(StrEnum):
    """The reasons a protocol step can fail for; `SecAggError.code` is always one of these."""

    MALFORMED_MESSAGE = "malformed_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    WRONG_STAGE = "wrong_stage"
    WRONG_SESSION = "wrong_session"
    UNKNOWN_MEMBER = "unknown_member"
    DUPLICATE_MEMBER = "duplicate_member"
    DUPLICATE_MESSAGE = "duplicate_message"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    OWN_KEY_CHANGED = "own_key_changed"
    COHORT_TOO_SMALL = "cohort_too_small"
    BELOW_THRESHOLD = "below_threshold"
    SHARE_UNREADABLE = "share_unreadable"
    SHARE_FORGED = "share_forged"
    WRONG_SECRET = "wrong_secret"  # noqa: S105 - the name of a fault, not a password
    WRONG_SHARES = "wrong_shares"
    WRONG_COMPONENTS = "wrong_components"
    NOT_A_SURVIVOR = "not_a_survivor"
    SURVIVOR_UNKNOWN = "survivor_unknown"
    TOO_FEW_SIGNATURES = "too_few_signatures"
    MODEL_NOT_BOUND = "model_not_bound"
    MODEL_MISMATCH = "model_mismatch"
    EQUIVOCATION = "equivocation"
    VECTOR_MISMATCH = "vector_mismatch"
    OUT_OF_RANGE = "out_of_range"
    NOT_FINITE = "not_finite"
    CONTRIBUTOR_MISMATCH = "contributor_mismatch"


HALTING = frozenset({Code.BAD_SIGNATURE, Code.OWN_KEY_CHANGED, Code.MODEL_MISMATCH, Code.EQUIVOCATION})
"""After these a client goes on with nobody: it keeps the evidence and waits for its operator."""


def require(condition: bool, code: Code, detail: str = "") -> None:
    """Raise `SecAggError(code)` unless `condition` holds; `detail` stays on this machine."""
    if not condition:
        raise SecAggError(code, detail)
