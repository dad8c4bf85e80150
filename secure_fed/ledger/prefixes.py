"""What this process has verified already: the beginning of a ledger file need not be parsed and verified twice.

Only the bytes are believed: a beginning is known by its SHA-256, never by its path, size or time of change.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from secure_fed.ledger.record import Record

# Two and a half kilobytes each: what is kept stays near a hundred megabytes, however many homes a process has.
MOST_RECORDS = 40_000


@dataclass(frozen=True)
class Prefix:
    """Whole lines that hold: how many bytes, their records, and the keys that signed them, in order."""

    length: int
    records: tuple[Record, ...]
    keys: tuple[str, ...]


NOTHING = Prefix(0, (), ())


class VerifiedPrefixes:
    """Prefixes by path, the least used dropped first. Safe to share between threads."""

    def __init__(self, most_records: int = MOST_RECORDS) -> None:
        self._most = most_records
        self._known: OrderedDict[Path, tuple[bytes, Prefix]] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, path: Path, data: bytes) -> Prefix:
        """The beginning of `data` that was verified before: NOTHING where a byte of it is another now."""
        with self._guard:
            digest, prefix = self._known.get(path, (b"", NOTHING))
            if prefix.length:
                self._known.move_to_end(path)
        if prefix.length > len(data) or _digest(data, prefix.length) != digest:
            return NOTHING
        return prefix

    def keep(self, path: Path, data: bytes, prefix: Prefix) -> None:
        """Remember that the first `prefix.length` bytes of `data` hold."""
        digest = _digest(data, prefix.length)
        with self._guard:
            self._known[path] = (digest, prefix)
            self._known.move_to_end(path)
            kept = sum(len(known.records) for _, known in self._known.values())
            while kept > self._most:
                kept -= len(self._known.popitem(last=False)[1][1].records)


def _digest(data: bytes, length: int) -> bytes:
    return hashlib.sha256(memoryview(data)[:length]).digest()
