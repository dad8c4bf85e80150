"""Words that members pass each other beside the protocol: a notice for all, in the open, and a sealed note for one.

What they say is the caller's business. A sealed note has one length, so that nobody sees whether it says anything.
"""

from __future__ import annotations

import secrets

from secure_fed.secagg.codes import Code, require

NOTE_BYTES = 128
"""The most bytes of a notice, and of a note."""
_LENGTH_BYTES = 2
_FILL_BYTES = 32
PADDED_BYTES = _LENGTH_BYTES + NOTE_BYTES + _FILL_BYTES


def check_length(note: bytes) -> None:
    """Raise SecAggError(malformed_message) for a notice or note beyond `NOTE_BYTES`."""
    require(len(note) <= NOTE_BYTES, Code.MALFORMED_MESSAGE, f"a note of {len(note)} bytes, {NOTE_BYTES} at most")


def pad(note: bytes) -> bytes:
    """Length, note and random bytes: `PADDED_BYTES` whatever the note is.

    At least 32 bytes are random, so that a hash of the result, which a server sees, tells no note from another.
    """
    check_length(note)
    fill = secrets.token_bytes(PADDED_BYTES - _LENGTH_BYTES - len(note))
    return len(note).to_bytes(_LENGTH_BYTES, "big") + note + fill


def unpad(padded: bytes) -> bytes:
    """The note that `pad` made into `padded`; raises SecAggError(malformed_message) where it cannot be that."""
    require(len(padded) == PADDED_BYTES, Code.MALFORMED_MESSAGE, f"a padded note of {len(padded)} bytes")
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    require(length <= NOTE_BYTES, Code.MALFORMED_MESSAGE, f"a note of {length} bytes, {NOTE_BYTES} at most")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
