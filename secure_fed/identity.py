"""Who signed what: canonical JSON, Ed25519 keys with separated domains, and the roster of the sites.

Signatures are made and checked over `domain_separated` bytes, so that none can be replayed as another kind.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secure_fed import signatures
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.files import write_durably

SITE_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
MODALITY_NAME = r"^[a-z][a-z0-9_]*$"
ROSTER_DOMAIN = "roster/1"

SiteName = Annotated[str, Field(pattern=SITE_NAME)]
Modality = Annotated[str, Field(pattern=MODALITY_NAME)]
KeyHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SignatureHex = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def canonical_json(value: object) -> bytes:
    """The one encoding of a JSON value: sorted keys, no spaces, UTF-8, floats by `repr`.

    Raises ConfigError on NaN, infinity, a key that is no string, a lone surrogate or a type that JSON lacks:
    such values would have no encoding or more than one.
    """
    _check_keys(value)
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"This value has no canonical JSON ({error}): {str(value)[:80]!r}.") from error


def _check_keys(value: object) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is float:  # most values: told apart without asking an abstract class
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"Canonical JSON has strings as keys only; found {key!r}.")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)


def domain_separated(domain: str, message: bytes) -> bytes:
    """`message` under a purpose such as "ledger/1": a signature for one is none for another."""
    return b"secure_fed/" + domain.encode("ascii") + b"\0" + message


def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is the Ed25519 signature of `message` by `public` (32 raw bytes)."""
    return signatures.verify(public, signature, message)


def fingerprint(public: bytes) -> str:
    """128 bits of the key's SHA-256 in groups of four hex digits, to be read out over a telephone."""
    digits = hashlib.sha256(public).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


class SigningKey:
    """A site's or the consortium's Ed25519 key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_bytes: bytes = key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"SigningKey({fingerprint(self.public_bytes)})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature; `message` should be `domain_separated`."""
        return self._key.sign(message)

    def save(self, path: Path) -> None:
        """Write an unencrypted PKCS#8 PEM (0600), whole or not at all, and synced; its folder becomes 0700.

        Raises ConfigError where `path` exists: an overwritten key is a lost identity.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(path, pem, overwrite=False)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read what `save` wrote; raises ConfigError on a missing, readable-by-others or foreign file."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            pem = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"The signing key {path} cannot be read: {error.strerror}.") from error
        if mode & 0o077:
            raise ConfigError(f"The signing key {path} has mode {mode:o}: others may read it. Run: chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"The file {path} is not an unencrypted PEM private key.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"The file {path} holds a key that is not Ed25519.")
        return cls(key)


class Member(BaseModel):
    """A site as the consortium knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    public_key: KeyHex
    owns: Annotated[tuple[Modality, ...], Field(min_length=1)]
    declared_n: Annotated[int, Field(ge=1)] | None = None


class Roster(BaseModel):
    """Who takes part, with which key and which modalities, and who coordinates; signed by the consortium's key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["secure_fed.roster/1"] = "secure_fed.roster/1"
    version: Annotated[int, Field(ge=1)]
    consortium: KeyHex
    coordinator: KeyHex
    members: Annotated[dict[SiteName, Member], Field(min_length=1)]
    revoked: dict[SiteName, Member] = Field(
        default_factory=dict
    )  # took part once: their ledgers still have to be verified
    signature: SignatureHex

    @classmethod
    def create(
        cls,
        members: Mapping[str, Member],
        consortium_key: SigningKey,
        *,
        coordinator: bytes,
        version: int = 1,
        revoked: Mapping[str, Member] | None = None,
    ) -> Roster:
        """A roster signed by `consortium_key`; ConfigError on a malformed field, a repeated key or name.

        `coordinator` is the public key (32 bytes) that requests to the sites are signed with; `revoked` are former
        members, who take part in nothing any more.
        """
        unsigned = {
            "version": version,
            "consortium": consortium_key.public_bytes.hex(),
            "coordinator": coordinator.hex(),
            "members": dict(members),
            "revoked": dict(revoked or {}),
        }
        try:
            draft = cls.model_validate({**unsigned, "signature": "0" * 128})
        except ValidationError as error:
            raise ConfigError(f"The roster is malformed: {describe(error)}.") from error
        signature = consortium_key.sign(draft._signed_bytes())
        roster = draft.model_copy(update={"signature": signature.hex()})
        roster.check()
        return roster

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Read and check a roster file; ConfigError where it is missing or malformed, else as `check`."""
        return cls.from_bytes(roster_bytes(path), path)

    @classmethod
    def from_bytes(cls, raw: bytes, path: Path) -> Roster:
        """The roster in the content of the file `path`; raises as `load`."""
        try:
            roster = cls.model_validate_json(raw)
        except ValidationError as error:
            raise ConfigError(f"The roster {path} is malformed: {describe(error)}.") from error
        roster.check()
        return roster

    @property
    def known(self) -> dict[str, Member]:
        """Members and former members: whose ledgers may be there."""
        return {**self.revoked, **self.members}

    def save(self, path: Path) -> None:
        """Write the roster as canonical JSON, whole or not at all, and synced."""
        write_durably(path, canonical_json(self.model_dump(mode="json")) + b"\n", overwrite=True)

    def check(self) -> None:
        """LedgerError on a signature not by the consortium, ConfigError on a key that two sites share."""
        consortium = bytes.fromhex(self.consortium)
        seen = {self.coordinator: "the coordinator"}
        both = sorted(set(self.members) & set(self.revoked))
        if both:
            raise ConfigError(f"The roster names {', '.join(both)} as a member and as revoked: take one of them out.")
        for name, member in self.known.items():
            if member.public_key in seen:
                raise ConfigError(
                    f"The roster gives {seen[member.public_key]} and {name} the same public key "
                    f"{fingerprint(bytes.fromhex(member.public_key))}: every site makes its own."
                )
            seen[member.public_key] = name
        if not verify_signature(consortium, self._signed_bytes(), bytes.fromhex(self.signature)):
            raise LedgerError(
                f"The roster's signature is not by its consortium key {fingerprint(consortium)}: it was "
                "changed after signing. Ask the consortium for the signed file."
            )

    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON of everything, the signature included."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).digest()

    def _signed_bytes(self) -> bytes:
        return domain_separated(ROSTER_DOMAIN, canonical_json(self.model_dump(mode="json", exclude={"signature"})))


def roster_bytes(path: Path) -> bytes:
    """The content of a roster file; raises ConfigError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The roster {path} cannot be read: {error.strerror}.") from error


def describe(error: ValidationError) -> str:
    """The first complaint of a validation error in one line: where, what, and the value."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    found = " ".join(repr(first["input"]).split())
    return f"{where}: {first['msg']} (found {found[:60]})"
