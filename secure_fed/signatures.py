"""Ed25519 verification (RFC 8032), each signature once in a process.

Of every session a site sees the same signatures two or three times, and where one process simulates all sites, each
of them does.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MOST_REMEMBERED = 1 << 15
_remembered: OrderedDict[bytes, None] = OrderedDict()
_guard = threading.Lock()


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) is the Ed25519 signature of `message` by `public` (32 raw bytes).

    What held is remembered by a SHA-256 over all three, so another key, message or signature is another question; to
    pass for one that held it would have to collide. What did not hold is never remembered: a stranger who sends bad
    signatures fills nothing. All three are public, so that the time of an answer tells nothing.
    """
    question = hashlib.sha256(
        b"".join((len(public).to_bytes(8, "big"), public, len(signature).to_bytes(8, "big"), signature, message))
    ).digest()
    if question in _remembered:
        return True
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    with _guard:
        _remembered[question] = None
        if len(_remembered) > MOST_REMEMBERED:
            _remembered.popitem(last=False)
    return True


def forget() -> None:
    """Verify everything anew: for measuring what one site does that shares its process with no other."""
    with _guard:
        _remembered.clear()
