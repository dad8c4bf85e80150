"""What a site does when it is lied to: it stops, keeps the signed evidence, and waits for its operator.

Nothing that arrives in a message ends the halt; `secure-fed site resume` does, with a reason on the ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.numpy import save as save_tensors

from secure_fed.client.books import open_ledger
from secure_fed.client.home import Home
from secure_fed.errors import ConfigError, LedgerError, SecureFedError
from secure_fed.federation.wire import Array, Parcel, hash_arrays
from secure_fed.files import write_durably
from secure_fed.identity import Roster, canonical_json, domain_separated, verify_signature
from secure_fed.ledger import Anchor, Note

SCHEMA = "secure_fed.evidence/1"
DOMAIN = "evidence/1"
HALTED = "halted"
_FILE = "halt"
_LONGEST_REASON = 600
_BYTES = ("header", "body", "announcement", "next_header", "next_body", "signature")


@dataclass(frozen=True)
class Halt:
    """Why and when a site stopped, and where the evidence lies: its file name and SHA-256 (hex)."""

    code: str
    time: str
    evidence: str
    sha256: str


def halted(home: Home) -> Halt | None:
    """The halt that is in force, None where the site is free to take part."""
    stored = home.get(_FILE)
    return Halt(**json.loads(stored)["halt"]) if stored else None


def evidence_of(home: Home) -> Path | None:
    """The evidence file of the halt that is in force, laid out again if a crash kept it from the disk."""
    stored = home.get(_FILE)
    if stored is None:
        return None
    tree = json.loads(stored)
    return _lay_out(home, Halt(**tree["halt"]), tree["evidence"].encode())


def _lay_out(home: Home, found: Halt, raw: bytes) -> Path:
    path = home.root / "evidence" / found.evidence
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, raw, overwrite=False)
    return path


def halt(home: Home, site: str, code: str, detail: str, requests: Sequence[Parcel], facts: dict[str, Any]) -> Halt:
    """Write the evidence, then the halt, each synced. `requests` are the coordinator's, as it signed them.

    The ledger gets a note too, if it can be opened; evidence and halt do not depend on that.
    """
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    folder = home.root / "evidence"
    folder.mkdir(mode=0o700, exist_ok=True)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "site": site,
        "time": time,
        "code": code,
        "detail": detail,
        "facts": facts,
        "requests": [_as_json(request) for request in requests],
    }
    key = home.signing_key()
    content["public_key"] = key.public_bytes.hex()
    content["signature"] = key.sign(domain_separated(DOMAIN, canonical_json(content))).hex()
    raw = canonical_json(content) + b"\n"
    name = f"{time}-{code}.json"
    found = Halt(code, time, name, hashlib.sha256(raw).hexdigest())
    # The halt first, with the evidence in it: no crash lets a site that was lied to go on, or costs the proof.
    home.put(_FILE, json.dumps({"halt": vars(found), "evidence": raw.decode()}).encode())
    arrays: dict[str, Array] = {}
    for index, request in enumerate(requests):
        arrays |= {f"{index}/{name}": array for name, array in request.arrays.items()}
    if arrays:
        write_durably(folder / f"{time}-{code}.safetensors", save_tensors(arrays), overwrite=False)
    _lay_out(home, found, raw)
    _note(home, "site_halted", f"{code}; evidence {found.evidence}, SHA-256 {found.sha256}")
    return found


def resume(home: Home, reason: str) -> Halt:
    """End the halt, with the operator's reason on the ledger first; open sessions are forgotten.

    Raises ConfigError where the site is not halted or the reason is empty or too long, LedgerError where the
    ledger cannot be written: the site stays halted then.
    """
    with home.alone():
        found = halted(home)
        if found is None:
            raise ConfigError(f"{home.root} is not halted: nothing to resume")
        told = " ".join(reason.split())
        if not told or len(told) > _LONGEST_REASON:
            raise ConfigError(
                f"the reason has {len(told)} characters; say in 1 to {_LONGEST_REASON} why the site may go on"
            )
        text = f"after {found.code}, evidence SHA-256 {found.sha256}: {told}"
        evidence_of(home)
        with open_ledger(home, home.policy()) as ledger:
            ledger.append(Note(code="site_resumed", text=text))
        home.drop_all("session-")
        home.drop_all("track-")  # it may be what the lie led to; a signed checkpoint leads back
        home.drop(_FILE)
        return found


def check_evidence(path: Path, roster: Roster) -> dict[str, Any]:
    """The content of an evidence file whose signatures hold: the site's over all, the coordinator's on each request.

    Where it shows anchors of the site's own ledger, those hold too.

    Raises LedgerError naming what does not hold.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        signature = bytes.fromhex(content.pop("signature"))
        public = bytes.fromhex(content["public_key"])
        requests = [_from_json(item) for item in content["requests"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is no evidence file: {error}") from error
    member = roster.members.get(content["site"])
    if member is None or bytes.fromhex(member.public_key) != public:
        raise LedgerError(f"{path} is signed with a key that the roster does not give {content['site']!r}")
    if not verify_signature(public, domain_separated(DOMAIN, canonical_json(content)), signature):
        raise LedgerError(f"{path} was changed after the site signed it")
    for request, arrays_hash in requests:
        if not verify_signature(bytes.fromhex(roster.coordinator), request.statement(arrays_hash), request.signature):
            raise LedgerError(f"{path} holds a {request.action} request that this coordinator did not sign")
    _check_anchors(path, content)
    return content


def _check_anchors(path: Path, content: dict[str, Any]) -> None:
    """Raise LedgerError unless this site signed every anchor that its ledger is said not to continue."""
    facts = content["facts"]
    try:
        anchors = {who: Anchor.from_line(line.encode()) for who, line in facts.get("anchors", {}).items()}
        keys = [bytes.fromhex(key) for key in [content["public_key"], *facts.get("keys", [])]]
    except (ValueError, AttributeError, TypeError, LedgerError) as error:
        raise LedgerError(f"{path} holds something else than anchors: {error}") from error
    for who, anchor in anchors.items():
        if anchor.site != content["site"] or not any(anchor.signed_by(key) for key in keys):
            raise LedgerError(f"{path} holds an anchor from {who} that {content['site']} did not sign")


def _as_json(request: Parcel) -> dict[str, str]:
    parts = {name: getattr(request, name).hex() for name in _BYTES}
    return {"action": request.action, "site": request.site, **parts, "arrays": hash_arrays(request.arrays)}


def _from_json(tree: dict[str, str]) -> tuple[Parcel, str]:
    parts = {name: bytes.fromhex(tree[name]) for name in _BYTES}
    return Parcel(action=tree["action"], site=tree["site"], **parts), tree["arrays"]  # type: ignore[arg-type]


def _note(home: Home, code: str, text: str) -> None:
    try:
        with open_ledger(home, home.policy()) as ledger:
            ledger.append(Note(code=code, text=text))
    except SecureFedError as error:
        home.log(f"the halt is not on the ledger: {error}")
