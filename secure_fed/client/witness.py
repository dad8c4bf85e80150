"""What a site keeps of the others' ledgers and they of its own, and how it finds that its own is not what it was.

Peers return a site's last anchor to it, sealed, before it charges anything; its home remembers one of its own too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from secure_fed.client.home import Home
from secure_fed.errors import LedgerError, SecAggError
from secure_fed.files import sync_folder
from secure_fed.identity import SigningKey
from secure_fed.ledger import Anchor, Ledger, Record, make_anchor, read_ledger, signing_keys
from secure_fed.ledger.anchor import SCHEMA

LEDGER_BEHIND = "ledger_behind"
"""The site itself signed that its ledger was longer than it is, or had another record in that place."""
_HEAD = "ledger-head"
_LENGTH_BYTES, _SIGNATURE_AT, _PACKED_BYTES = 8, 40, 104
_WAY_OUT = (
    "Put the newest copy of the whole home back; a ledger that was cut or replaced alone may be put back alone. If no "
    "copy has those records, this home has come to its end: begin a new one with a new key, keep this one for the "
    "auditors, set lifetime_claim: false and take off by hand what the anchors' run may have charged"
)


class LedgerBehind(SecAggError):
    """`anchors`: who had them -> anchors of this site's ledger, signed by it, that the ledger does not continue."""

    def __init__(self, site: str, records: Sequence[Record], anchors: Mapping[str, Anchor]) -> None:
        self.site = site
        self.records = records
        self.anchors = dict(anchors)
        told = "; ".join(f"{who} has length {item.length}, head {item.head[:16]}" for who, item in anchors.items())
        super().__init__(LEDGER_BEHIND, f"the ledger of {site} has {len(records)} records, and {told}. {_WAY_OUT}")

    @property
    def worst(self) -> Anchor:
        """The longest of them."""
        return max(self.anchors.values(), key=lambda anchor: anchor.length)

    def facts(self) -> dict[str, Any]:
        """What goes into the evidence: the anchors as lines, this site's keys as its ledger has them, its own head."""
        return {
            "anchors": {who: anchor.to_line().decode() for who, anchor in self.anchors.items()},
            "keys": list(signing_keys(self.records)),
            "ledger": {"length": len(self.records), "head": self.records[-1].hash if self.records else None},
        }


# -- on the way --------------------------------------------------------------------------------------------------


def packed(anchor: Anchor) -> bytes:
    """Length, head and signature in 104 bytes, as a notice or a note carries them; whose it is both sides know."""
    head, signature = bytes.fromhex(anchor.head), bytes.fromhex(anchor.signature)
    return anchor.length.to_bytes(_LENGTH_BYTES, "big") + head + signature


def unpacked(site: str, data: bytes) -> Anchor | None:
    """The anchor of `site` in 104 bytes, signed or not; None where there cannot be one."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    if len(data) != _PACKED_BYTES or not length:
        return None
    head, signature = data[_LENGTH_BYTES:_SIGNATURE_AT].hex(), data[_SIGNATURE_AT:].hex()
    return Anchor.model_validate(
        {"schema": SCHEMA, "site": site, "length": length, "head": head, "signature": signature}
    )


# -- this site's own ledger --------------------------------------------------------------------------------------


def remembered(home: Home) -> Anchor | None:
    """The last anchor of its own ledger that this home keeps under `private/`, or a peer proved to it."""
    stored = home.get(_HEAD)
    return None if stored is None else Anchor.from_line(stored)


def remember(home: Home, anchor: Anchor) -> None:
    """Go on from this anchor: from now on a ledger that does not continue it is refused."""
    if home.get(_HEAD) != anchor.to_line():
        home.put(_HEAD, anchor.to_line())


def require_whole(home: Home, site: str, records: Sequence[Record]) -> None:
    """Raise LedgerBehind where these records do not continue what the home remembers."""
    last = remembered(home)
    if last is not None and not last.agrees(records):
        raise LedgerBehind(site, records, {site: last})


@contextmanager
def watched(home: Home, site: str, key: SigningKey, ledger: Ledger) -> Iterator[Ledger]:
    """A ledger that was just opened: held against what the home remembers, and remembered when the block is left."""
    require_whole(home, site, ledger.records)
    try:
        yield ledger
    finally:
        remember(home, make_anchor(site, len(ledger), ledger.head, key))


def records_of(home: Home) -> tuple[Record, ...]:
    """The ledger's records, none where it has not begun; raises LedgerError where it is damaged."""
    return tuple(read_ledger(home.ledger_path)) if Ledger.is_begun(home.ledger_path) else ()


def own_anchor(home: Home, site: str) -> Anchor | None:
    """This site's word on its ledger as it is now, None where it has not begun.

    Raises LedgerBehind where the home remembers a longer one or another, LedgerError where it is damaged.
    """
    records = records_of(home)
    require_whole(home, site, records)
    if not records:
        return None
    with home.ledger_path.open("rb") as file:
        os.fsync(file.fileno())  # a crash may have come between a record's write and its sync; now others will count it
    anchor = make_anchor(site, len(records), bytes.fromhex(records[-1].hash), home.signing_key())
    remember(home, anchor)
    return anchor


def require_ahead(home: Home, site: str, notes: Mapping[str, bytes]) -> None:
    """Hold the ledger against the anchors that peers returned, peer -> note; before anything is charged.

    Only what this site signed counts, with any key that its ledger has had: nobody can stop it with an invention.
    Raises LedgerBehind, after the home has learnt the longest of them.
    """
    records = records_of(home)
    keys = {bytes.fromhex(key) for key in signing_keys(records)} | {home.signing_key().public_bytes}
    against = {}
    for peer, note in notes.items():
        if not note:
            continue
        anchor = unpacked(site, note)
        if anchor is not None and anchor.agrees(records):
            continue
        if anchor is None or not any(anchor.signed_by(key) for key in keys):
            home.log(f"witness: {peer} returned what is no anchor that this site signed")
            continue
        against[peer] = anchor
    if against:
        behind = LedgerBehind(site, records, against)
        remember(home, behind.worst)
        raise behind


# -- the others' ledgers -----------------------------------------------------------------------------------------


class Witnesses:
    """The anchors of other sites that this one was told, in `witness.jsonl`: one a line, only ever appended to.

    They are public: a length, a hash and a signature. A line that a crash left unfinished is removed before the next
    one is written; any other line that is no anchor stays where it is and counts for nothing.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def path(self) -> Path:
        """The file; there is none before the first anchor."""
        return self._home.root / "witness.jsonl"

    def all(self) -> tuple[Anchor, ...]:
        """Every anchor that was kept, in the order in which they came."""
        return tuple(anchor for line in self._lines() if (anchor := _anchor(line)) is not None)

    def latest(self, site: str) -> Anchor | None:
        """The longest anchor of a site, the last of them where two are as long; None where none was kept."""
        return _longest(anchor for anchor in self.all() if anchor.site == site)

    def keep(self, anchors: Iterable[Anchor]) -> None:
        """Append what is new; when this returns it survives a power cut. Raises LedgerError where the disk refuses."""
        known = set(self._lines())
        fresh = dict.fromkeys(line for anchor in anchors if (line := anchor.to_line()) not in known)
        if not fresh:
            return
        begun = self.path.exists()
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _repair(handle)
                self._write(handle, b"".join(line + b"\n" for line in fresh))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise LedgerError(
                f"{self.path} could not be written ({error.strerror}): this site cannot witness for the others; make "
                "room on the disk and go on"
            ) from error
        if not begun:
            sync_folder(self.path.parent)

    def answer(self, notices: Mapping[str, bytes], keys: Mapping[str, bytes]) -> dict[str, bytes]:
        """Keep what the others say of their ledgers, and give each the longest other anchor that it said before.

        Args:
            notices: member -> notice, empty where its ledger has not begun.
            keys: member -> its public key (32 bytes) on the roster.

        Returns: member -> note. It goes to members that agree too: only they can compare what lies before their end.
        """
        kept = self.all()
        fresh, answers = [], {}
        for member, notice in notices.items():
            said = self._said(member, notice, keys[member])
            known = _longest(anchor for anchor in kept if anchor.site == member and anchor != said)
            if known is not None:
                answers[member] = packed(known)
                if said is None or said.length <= known.length:
                    length = 0 if said is None else said.length
                    self._home.log(f"witness: {member} says length {length}, and said {known.length} before")
            if said is not None:
                fresh.append(said)
        self.keep(fresh)
        return answers

    def _said(self, member: str, notice: bytes, public: bytes) -> Anchor | None:
        """The anchor in a notice; one that is none, or not the member's, is logged and must not stop the others."""
        if not notice:
            return None
        anchor = unpacked(member, notice)
        if anchor is None or not anchor.signed_by(public):
            self._home.log(f"witness: the notice of {member} is no anchor that it signed; it is not kept")
            return None
        return anchor

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []

    def _write(self, handle: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]


def _repair(handle: int) -> None:
    """Finish a last line that lacks only its line feed, cut off one that is torn."""
    size = os.fstat(handle).st_size
    data = os.pread(handle, size, 0)
    tail = data[data.rfind(b"\n") + 1 :]
    if tail and _anchor(tail) is not None:
        os.write(handle, b"\n")
    elif tail:
        os.ftruncate(handle, size - len(tail))


@lru_cache(maxsize=1 << 15)  # the same lines are read again for every session
def _anchor(line: bytes) -> Anchor | None:
    try:
        return Anchor.from_line(line)
    except LedgerError:
        return None


def _longest(anchors: Iterable[Anchor]) -> Anchor | None:
    longest = None
    for anchor in anchors:
        if longest is None or anchor.length >= longest.length:
            longest = anchor
    return longest
