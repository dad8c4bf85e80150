"""A site's own ledger, open for appending: one process at a time, every record on disk before `append`
returns.

The file is only ever appended to; the sole exception is a line that a crash left unfinished.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from secure_fed.accounting import Mechanism
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.files import sync_folder
from secure_fed.identity import SigningKey, fingerprint
from secure_fed.ledger.chain import read_chain, signing_keys, spent
from secure_fed.ledger.free_text import telltale
from secure_fed.ledger.record import (
    NO_PREVIOUS,
    TIME_FORMAT,
    Body,
    Genesis,
    Note,
    Record,
    Rekey,
    make_record,
    make_rekey,
)

# A clock set back by less (leap smearing, NTP) is waited out by repeating the last time; more needs a person.
CLOCK_TOLERANCE = timedelta(minutes=5)
# Keys are sorted, so every record begins like this, torn or whole.
_FIRST_BYTES = b'{"body":{'


class Ledger:
    """Open with `open_or_create`, `create` or `open`; usable as a context manager; safe to share between threads.

    A failed append leaves the file at its last whole record and this object closed: what reached the disk
    after a failed sync is unknown, so the file is read again by the next `open`.
    """

    def __init__(self, path: Path, site: str, key: SigningKey, handle: int) -> None:
        """Use `create` or `open`."""
        self._path = path
        self._site = site
        self._key = key
        self._handle: int | None = handle
        self._guard = threading.Lock()
        self._records: list[Record] = []

    @classmethod
    def create(cls, path: Path, site: str, key: SigningKey, genesis: Genesis) -> Ledger:
        """Begin a ledger at a path that holds none (or only the torn first line of a crash).

        Raises LedgerError where it holds one, is open elsewhere, or `genesis` names another key.
        """
        if bytes.fromhex(genesis.public_key) != key.public_bytes:
            raise LedgerError(f"The genesis record of {site} names another public key than the one that signs.")
        ledger = cls(path, site, key, _open_locked(path, os.O_CREAT))
        try:
            chain = read_chain(path)
            if chain.records or chain.problem is not None:
                raise LedgerError(f"The ledger {path} exists already; open it instead.")
            if not chain.torn.startswith(_FIRST_BYTES[: len(chain.torn)]):
                raise LedgerError(f"The file {path} is no ledger and is not overwritten; move it away.")
            os.ftruncate(ledger._file(), 0)
            ledger.append(genesis)
            sync_folder(path.parent)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, path: Path, site: str, key: SigningKey) -> Ledger:
        """Open an existing ledger, verify all of it, and repair a torn last line (a note record says so).

        Raises LedgerError naming the first wrong record, where the ledger is another site's or goes by another
        key, or where another process has it open.
        """
        ledger = cls(path, site, key, _open_locked(path, 0))
        try:
            ledger._load()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open_or_create(cls, path: Path, site: str, key: SigningKey, genesis: Genesis) -> Ledger:
        """Open the ledger, or begin it where there is none yet."""
        if cls.is_begun(path):
            return cls.open(path, site, key)
        return cls.create(path, site, key, genesis)

    @staticmethod
    def is_begun(path: Path) -> bool:
        """Whether there is a ledger, good or bad: not where no file is, nor only what a crash left of its birth."""
        if not path.exists():
            return False
        chain = read_chain(path)
        return bool(chain.records) or chain.problem is not None

    def append(self, body: Body) -> Record:
        """Sign, write and sync one record; when this returns it survives a power cut.

        Raises LedgerError where the disk refuses it (nothing is added, nothing may be released on it), where
        the ledger is closed, where the clock went backwards, or for a change of the key, which `rekey` writes;
        ConfigError for a note that names a path or this machine.
        """
        return self.append_all([body])[0]

    def append_all(self, bodies: Sequence[Body]) -> tuple[Record, ...]:
        """Several records at once: where the disk refuses, none of them is added. Raises as `append`.

        Only a crash in the middle of the write can leave the first of them without the others.
        """
        for body in bodies:
            self._require_plain(body)
        with self._guard:
            return self._append(bodies)

    def rekey(self, successor: SigningKey) -> Record:
        """Hand over to another key: it signs from the next record on. Durable as `append`.

        `successor` is on disk already: when this returns, nothing else can continue the ledger. Raises LedgerError
        as `append`, and for a key that this ledger had before.
        """
        with self._guard:
            self._file()
            keys = signing_keys(self._records)
            if successor.public_bytes.hex() in keys:
                raise LedgerError(f"The ledger {self._path} had the key {successor!r} before: make a fresh one.")
            prev = self._records[-1].hash
            (record,) = self._append([make_rekey(site=self._site, old_key=keys[-1], prev=prev, successor=successor)])
            self._key = successor
            return record

    @property
    def records(self) -> tuple[Record, ...]:
        """All records so far."""
        return tuple(self._records)

    @property
    def genesis(self) -> Genesis:
        """The guarantee that this ledger counts."""
        body = self._records[0].body
        assert isinstance(body, Genesis)  # noqa: S101 - create and open admit no other first record
        return body

    @property
    def head(self) -> bytes:
        """The last record's hash, 32 bytes: with the length, what a witness keeps."""
        return bytes.fromhex(self._records[-1].hash)

    def __len__(self) -> int:
        return len(self._records)

    def spent(self, run: str | None = None) -> tuple[Mechanism, ...]:
        """What was charged so far, in all runs or in one."""
        return spent(self._records, run)

    def close(self) -> None:
        """Let another process open the ledger. Closing twice is harmless."""
        if self._handle is not None:
            os.close(self._handle)  # gives up the lock too
            self._handle = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_plain(self, body: Body) -> None:
        if isinstance(body, Rekey):
            raise LedgerError(f"The ledger {self._path}: only `rekey` changes its key; it holds the new one.")
        found = telltale(body.text) if isinstance(body, Note) else None
        if found is not None:
            raise ConfigError(
                f"The note holds {found}, and auditors outside will read it: a record is never changed afterwards. "
                "Say it without; nothing was written."
            )

    def _append(self, bodies: Sequence[Body]) -> tuple[Record, ...]:
        handle, time = self._file(), self._now()
        prev = self._records[-1].hash if self._records else NO_PREVIOUS
        added: list[Record] = []
        for seq, body in enumerate(bodies, len(self._records)):
            added.append(make_record(body, seq=seq, time=time, site=self._site, prev=prev, key=self._key))
            prev = added[-1].hash
        self._write(handle, b"".join(record.line() + b"\n" for record in added))
        self._records += added
        return tuple(added)

    def _load(self) -> None:
        chain = read_chain(self._path)
        if chain.problem is not None:
            raise LedgerError(
                f"The ledger {self._path}: record {len(chain.records)} {chain.problem}. "
                "It cannot be continued; keep the file for an auditor."
            )
        if not chain.records:
            raise LedgerError(f"The ledger {self._path} holds no whole record: begin it anew.")
        first = chain.records[0]
        if first.site != self._site:
            raise LedgerError(f"The ledger {self._path} belongs to {first.site!r}, not to {self._site!r}.")
        *replaced, current = signing_keys(chain.records)
        if current != self._key.public_bytes.hex():
            known = "which it replaced" if self._key.public_bytes.hex() in replaced else "which it never had"
            raise LedgerError(
                f"The ledger {self._path} goes by another key, {fingerprint(bytes.fromhex(current))}, than "
                f"{self._key!r}, {known}: put that key back."
            )
        self._records = list(chain.records)
        os.fsync(self._file())  # a crash may have come between a record's write and its sync; now it counts
        if chain.unended:
            self._write(self._file(), b"\n")
        if chain.torn:
            os.ftruncate(self._file(), chain.whole_bytes)
            digest = hashlib.sha256(chain.torn).hexdigest()
            text = f"a crash left {len(chain.torn)} bytes of an unfinished record, SHA-256 {digest}"
            self._append([Note(code="torn_line_removed", text=text)])

    def _file(self) -> int:
        if self._handle is None:
            raise LedgerError(f"The ledger {self._path} is closed; open it again.")
        return self._handle

    def _now(self) -> str:
        now = datetime.now(UTC)
        if not self._records:
            return now.strftime(TIME_FORMAT)
        last = datetime.strptime(self._records[-1].time, TIME_FORMAT).replace(tzinfo=UTC)
        if now < last - CLOCK_TOLERANCE:
            raise LedgerError(
                f"The clock went backwards: it shows {now:{TIME_FORMAT}}, the last record of {self._path} is "
                f"of {self._records[-1].time}. Set the clock; nothing was written."
            )
        return max(now, last).strftime(TIME_FORMAT)

    def _write(self, handle: int, data: bytes) -> None:
        """Add `data` whole and synced, or put the file back to its length before and close the ledger."""
        before = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        except OSError as error:
            try:
                os.ftruncate(handle, before)
                state = "it was put back to its last whole record"
            except OSError:
                state = "its last line is torn and will be repaired at the next opening"
            self.close()
            raise LedgerError(
                f"The ledger {self._path} could not be written ({error.strerror}): {state}. "
                "Nothing was charged; make room on the disk and go on."
            ) from error


def _open_locked(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
    except OSError as error:
        raise LedgerError(f"The ledger {path} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise LedgerError(
            f"The ledger {path} is open in another process: one process at a time may use a site's home. "
            "Wait for it to end, or give this run another home."
        ) from error
    return handle
