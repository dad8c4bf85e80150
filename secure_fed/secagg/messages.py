"""The wire messages: frozen values with exactly one byte form, read strictly.

Field for field: `encode("wire/<name>", [VERSION, field, ...])`. The version leaves room for hybrid keys
(X25519 with ML-KEM), whose public keys have other lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeAlias

from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code
from secure_fed.secagg.encoding import Value, decode, encode
from secure_fed.secagg.keys import HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES
from secure_fed.secagg.notes import check_length, unpad
from secure_fed.secagg.shamir import PRIME, SHARE_BYTES

VERSION = 1

Read: TypeAlias = Callable[[Value], Any]


def _malformed(detail: str) -> SecAggError:
    return SecAggError(Code.MALFORMED_MESSAGE, detail)


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise _malformed("a text field holds something else")
    return value


def _blob(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise _malformed("a bytes field holds something else")
    return value


def _sized(length: int) -> Callable[[Value], bytes]:
    def read(value: Value) -> bytes:
        content = _blob(value)
        if len(content) != length:
            raise _malformed(f"{len(content)} bytes where {length} belong")
        return content

    return read


def _share(value: Value) -> bytes:
    content = _sized(SHARE_BYTES)(value)
    if int.from_bytes(content, "big") >= PRIME:
        raise _malformed("a share is not an element of the field")
    return content


def _notice(value: Value) -> bytes:
    content = _blob(value)
    check_length(content)
    return content


def _padded(value: Value) -> bytes:
    content = _blob(value)
    unpad(content)
    return content


def _map(item: Read) -> Callable[[Value], dict[str, Any]]:
    def read(value: Value) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _malformed("a mapping field holds something else")
        return {key: item(content) for key, content in value.items()}

    return read


def _many(item: Read) -> Callable[[Value], tuple[Any, ...]]:
    def read(value: Value) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _malformed("a list field holds something else")
        return tuple(item(content) for content in value)

    return read


_hash, _key, _signature = _sized(HASH_BYTES), _sized(KEY_BYTES), _sized(SIGNATURE_BYTES)


@dataclass(frozen=True)
class Message:
    """What the messages share: the byte form, made of the fields in their order."""

    NAME: ClassVar[str]
    READERS: ClassVar[tuple[Read, ...]]

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        content: list[Value] = [VERSION]
        content += [getattr(self, field.name) for field in fields(self)]
        return encode(f"wire/{self.NAME}", content)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The message in `data`.

        Raises:
            SecAggError: `unsupported_version`, or `malformed_message` for anything that `to_bytes` of this
                class would not have written.
        """
        content = decode(f"wire/{cls.NAME}", data)
        if not isinstance(content, list) or not content or not isinstance(content[0], int):
            raise _malformed("no version")
        version, *values = content
        if version != VERSION:
            raise SecAggError(Code.UNSUPPORTED_VERSION, f"version {version}, this build speaks {VERSION}")
        if len(values) != len(cls.READERS):
            raise _malformed(f"{len(values)} fields, expected {len(cls.READERS)}")
        return cls(*(read(value) for read, value in zip(cls.READERS, values, strict=True)))


@dataclass(frozen=True)
class Advertise(Message):
    """Stage 1, client to server: the ephemeral X25519 keys and a commitment to each self-mask seed.

    `basis` is the hash of what the sender starts from (32 bytes): all members must start from the same. `notice` is
    the caller's word to all members, at most `NOTE_BYTES`; the protocol signs it and does not read it.
    """

    sender: str
    kid: bytes
    basis: bytes
    cipher_key: bytes
    mask_key: bytes
    commitments: Mapping[str, bytes]
    notice: bytes
    signature: bytes

    NAME = "advertise"
    READERS = (_text, _hash, _hash, _key, _key, _map(_hash), _notice, _signature)

    def statement(self) -> bytes:
        """What the sender signs: everything but the signature."""
        content: list[Value] = [
            VERSION,
            self.kid,
            self.sender,
            self.basis,
            self.cipher_key,
            self.mask_key,
            self.commitments,
            self.notice,
        ]
        return encode("sign/advertise", content)


@dataclass(frozen=True)
class Advertisements(Message):
    """Stage 2, server to client: the bytes of every `Advertise`, in the order of their senders."""

    advertisements: tuple[bytes, ...]

    NAME = "advertisements"
    READERS = (_many(_blob),)


@dataclass(frozen=True)
class Dealt(Message):
    """Inside a sealed share: secret name -> share for this holder, a note to it, the dealer's signature over both.

    Shares have 33 bytes, big endian, and a note is padded, so that no message's length depends on a secret.
    """

    shares: Mapping[str, bytes]
    padded_note: bytes
    signature: bytes

    NAME = "dealt"
    READERS = (_map(_share), _padded, _signature)

    @property
    def note(self) -> bytes:
        """The dealer's word to this holder alone; empty where it has none."""
        return unpad(self.padded_note)


@dataclass(frozen=True)
class ShareBundle(Message):
    """Stage 2, client to server: a sealed `Dealt` for every neighbour in U1 (in the complete graph: everybody)."""

    sender: str
    kid: bytes
    u1_hash: bytes
    sealed: Mapping[str, bytes]

    NAME = "share-bundle"
    READERS = (_text, _hash, _hash, _map(_blob))


@dataclass(frozen=True)
class ShareDelivery(Message):
    """Stage 3, server to client: U2, sorted, and what the neighbours in it sealed for this member, by sender."""

    kid: bytes
    u2: tuple[str, ...]
    sealed: Mapping[str, bytes]

    NAME = "share-delivery"
    READERS = (_hash, _many(_text), _map(_blob))


@dataclass(frozen=True)
class Masked(Message):
    """Stage 3, client to server: component -> digest of the masked, packed slice, which travels beside it."""

    sender: str
    sid: bytes
    digests: Mapping[str, bytes]
    signature: bytes

    NAME = "masked"
    READERS = (_text, _hash, _map(_hash), _signature)

    def statement(self) -> bytes:
        """What the sender signs: everything but the signature."""
        content: list[Value] = [VERSION, self.sid, self.sender, self.digests]
        return encode("sign/masked", content)


@dataclass(frozen=True)
class Survivors(Message):
    """Stage 4, server to client: U3, whose masked vectors are in the sum, sorted."""

    sid: bytes
    survivors: tuple[str, ...]

    NAME = "survivors"
    READERS = (_hash, _many(_text))


@dataclass(frozen=True)
class Confirm(Message):
    """Stage 4, client to server: the signature over the survivors that it saw."""

    sender: str
    sid: bytes
    signature: bytes

    NAME = "confirm"
    READERS = (_text, _hash, _signature)


@dataclass(frozen=True)
class Confirmations(Message):
    """Stage 5, server to client: who signed the survivors."""

    sid: bytes
    signatures: Mapping[str, bytes]

    NAME = "confirmations"
    READERS = (_hash, _map(_signature))


@dataclass(frozen=True)
class ReleasedShares(Message):
    """One holder's released shares of one dealer, with what it takes to check the dealer's signature.

    `hidden` holds the hashes of the shares that stay secret, `note_hash` that of the padded note: the dealer signed
    the hashes of all of them.
    """

    shares: Mapping[str, bytes]
    hidden: Mapping[str, bytes]
    note_hash: bytes
    signature: bytes

    NAME = "released-shares"
    READERS = (_map(_share), _map(_hash), _hash, _signature)


@dataclass(frozen=True)
class Release(Message):
    """Stage 5, client to server: dealer -> the bytes of its `ReleasedShares`."""

    sender: str
    sid: bytes
    released: Mapping[str, bytes]

    NAME = "release"
    READERS = (_text, _hash, _map(_blob))


@dataclass(frozen=True)
class Transcript(Message):
    """After the round: who survived and who signed that, so that every client can check the claim."""

    kid: bytes
    model_hash: bytes
    u1_hash: bytes
    u2: tuple[str, ...]
    survivors: tuple[str, ...]
    signatures: Mapping[str, bytes]

    NAME = "transcript"
    READERS = (_hash, _hash, _hash, _many(_text), _many(_text), _map(_signature))
