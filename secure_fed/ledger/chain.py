"""Reading a ledger file: whole lines into a checked chain, and what lies behind the last whole line.

Nothing here writes. A chain shows any change inside it; records cut off its end it cannot show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from secure_fed.accounting import Mechanism, merge
from secure_fed.errors import LedgerError
from secure_fed.identity import fingerprint
from secure_fed.ledger.prefixes import Prefix, VerifiedPrefixes
from secure_fed.ledger.record import (
    NO_PREVIOUS,
    TIME_FORMAT,
    Genesis,
    Record,
    Rekey,
    Reserve,
    parse_line,
    proves_possession,
    signed_by,
)

_VERIFIED = VerifiedPrefixes()


@dataclass(frozen=True)
class Rotation:
    """A change of the signing key: `seq` and `time` of its record, and the public keys before and after it (hex)."""

    seq: int
    time: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (fingerprint(bytes.fromhex(key)) for key in (self.old, self.new))
        return f"key changed in record {self.seq} ({self.time[:10]}): {old} -> {new}"


def rotations(records: Sequence[Record]) -> tuple[Rotation, ...]:
    """Every change of the signing key, in order. The records are a chain that was checked."""
    keys = signing_keys(records)
    changes = [record for record in records if isinstance(record.body, Rekey)]
    return tuple(
        Rotation(record.seq, record.time, old, new)
        for record, old, new in zip(changes, keys[:-1], keys[1:], strict=True)
    )


def signing_keys(records: Sequence[Record]) -> tuple[str, ...]:
    """The public keys (hex) that signed a checked chain, in order; the last one is in force. None in an empty one."""
    return tuple(record.body.public_key for record in records if isinstance(record.body, Genesis | Rekey))


@dataclass(frozen=True)
class Chain:
    """What a ledger file holds.

    `records`: the good ones from the start. `problem`: what is wrong with the record behind them (numbered
    `len(records)`), or None. `whole_bytes`: the length up to the end of the last good line; `torn`: the bytes
    of a line that was never finished; `unended`: the last record is whole but its line feed is missing.
    """

    records: tuple[Record, ...]
    problem: str | None
    whole_bytes: int
    torn: bytes = b""
    unended: bool = False

    @property
    def genesis(self) -> Genesis:
        """The first record's body; only a chain with records has one."""
        body = self.records[0].body
        assert isinstance(body, Genesis)  # noqa: S101 - read_chain admits no other first record
        return body


def read_chain(path: Path) -> Chain:
    """Read and check a ledger, up to the first wrong record.

    Signatures are checked against the key that the genesis record names and then against those that rekey records
    hand over to; whose keys these are, a roster says. What this process has verified before and finds unchanged,
    byte for byte, is not verified again: a run that opens its ledger every round would take time with the square
    of its length. Raises LedgerError only where the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"The ledger {path} cannot be read: {error.strerror}.") from error
    known = _VERIFIED.of(path, data)
    records, keys = list(known.records), list(known.keys)
    chain = _continue(records, keys, data, known.length)
    if len(records) > len(known.records) and not chain.unended:
        _VERIFIED.keep(path, data, Prefix(chain.whole_bytes, chain.records, tuple(keys)))
    return chain


def _continue(records: list[Record], keys: list[str], data: bytes, whole: int) -> Chain:
    """Check the lines behind the first `whole` bytes, which hold `records`; both lists grow."""
    *lines, tail = data[whole:].split(b"\n")
    for line in lines:
        problem = _append_checked(records, keys, line)
        if problem:
            return Chain(tuple(records), problem, whole)
        whole += len(line) + 1
    if not tail:
        return Chain(tuple(records), None, whole)
    if not _closed_object(tail):
        return Chain(tuple(records), None, whole, torn=tail)
    problem = _append_checked(records, keys, tail)
    if problem:
        return Chain(tuple(records), problem, whole)
    return Chain(tuple(records), None, whole + len(tail), unended=True)


def _closed_object(tail: bytes) -> bool:
    """Whether an unended last line reaches the end of its JSON object, or beyond.

    A torn write leaves the beginning of a record, at most all of it: a closed object must be a good record.
    """
    try:
        json.JSONDecoder().raw_decode(tail.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _append_checked(records: list[Record], keys: list[str], line: bytes) -> str | None:
    """Append the line's record where it continues the chain; else say what is wrong with it.

    `keys` are the `signing_keys` of the records, kept beside them.
    """
    try:
        record = parse_line(line)
    except LedgerError as error:
        return str(error)
    problem = _link_problem(records, record) or _signature_problem(keys, record) or _rekey_problem(keys, record)
    if problem is None:
        records.append(record)
        keys += signing_keys([record])
    return problem


def _link_problem(records: list[Record], record: Record) -> str | None:
    if record.seq != len(records):
        return f"carries seq {record.seq}: a record is missing, repeated or moved"
    if not _is_time(record.time):
        return f"has the time {record.time!r}, which is not of the form 2025-01-31T12:00:00.000000Z"
    if (record.kind == "genesis") != (not records):
        return "is not a genesis record" if not records else "is a second genesis record"
    if not records:
        return None if record.prev == NO_PREVIOUS else "names a record before the first"
    last = records[-1]
    if record.prev != last.hash:
        return "does not continue the record before it: prev is another record's hash"
    if record.site != last.site:
        return f"belongs to {record.site!r}, the ledger to {last.site!r}"
    if record.time < last.time:
        return f"is dated {record.time}, before the record above it ({last.time}): the clock went backwards"
    return None


def _is_time(text: str) -> bool:
    try:
        return datetime.strptime(text, TIME_FORMAT).strftime(TIME_FORMAT) == text
    except ValueError:
        return False


def _signature_problem(keys: list[str], record: Record) -> str | None:
    *replaced, current = keys or signing_keys([record])  # _link_problem lets nothing but a genesis record begin
    if signed_by(record, bytes.fromhex(current)):
        return None
    if any(signed_by(record, bytes.fromhex(key)) for key in replaced):
        return f"is signed by a key that {record.site} had replaced before"
    return f"is not signed by the key of {record.site}"


def _rekey_problem(keys: list[str], record: Record) -> str | None:
    if not isinstance(record.body, Rekey):
        return None
    if record.body.public_key in keys:
        return "hands over to a key that this ledger had before: a replaced key never comes back"
    if not proves_possession(record, keys[-1]):
        return "hands over to a key whose holder did not sign for it, at this place of this ledger"
    return None


def read_ledger(path: Path) -> list[Record]:
    """All records, checked against the key that the ledger names itself; a torn last line is left out.

    Raises LedgerError naming the first wrong record, or where the file holds none.
    """
    chain = read_chain(path)
    if chain.problem is not None:
        raise LedgerError(f"The ledger {path}: record {len(chain.records)} {chain.problem}.")
    if not chain.records:
        raise LedgerError(f"The ledger {path} holds no whole record.")
    return list(chain.records)


def spent(records: Iterable[Record], run: str | None = None) -> tuple[Mechanism, ...]:
    """What was charged, merged: every reserve counts, whatever became of its round. `run` limits it to one
    run.
    """
    bodies = (record.body for record in records)
    return merge(b.mechanism for b in bodies if isinstance(b, Reserve) and run in (None, b.run))
