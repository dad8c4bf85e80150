"""Canonical encoding of everything that is signed, hashed or sent: one value has exactly one encoding.

Tag (1 byte), length or count (8 bytes, big endian), content. A domain string comes first, so that bytes made
for one purpose never verify for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code

Value: TypeAlias = "bytes | str | int | Sequence[Value] | Mapping[str, Value]"

PROTOCOL = "secure_fed.secagg"
_HEAD = 9
_MAX_DEPTH = 8


def encode(domain: str, value: Value) -> bytes:
    """Canonical bytes of `value` under `domain`.

    Takes bytes, str, int of any size, lists or tuples, and mappings with str keys; anything else (bool,
    float, None) is a programming error and raises TypeError.
    """
    parts: list[bytes] = []
    _write(f"{PROTOCOL}/{domain}", parts)
    _write(value, parts)
    return b"".join(parts)


def decode(domain: str, data: bytes) -> Value:
    """The value that `encode(domain, value)` made into `data`; lists come back as lists, mappings as dicts.

    Raises:
        SecAggError: `malformed_message` for another domain, truncated or trailing bytes, and for every byte
            string that `encode` would not have produced.
    """
    reader = _Reader(data)
    if reader.read(0) != f"{PROTOCOL}/{domain}":
        raise _malformed(f"not a {domain} message")
    value = reader.read(0)
    if reader.position != len(data):
        raise _malformed("trailing bytes")
    return value


def digest(domain: str, value: Value) -> bytes:
    """SHA-256 of the canonical encoding, 32 bytes."""
    return hashlib.sha256(encode(domain, value)).digest()


def _malformed(detail: str) -> SecAggError:
    return SecAggError(Code.MALFORMED_MESSAGE, detail)


def _head(tag: bytes, length: int) -> bytes:
    return tag + length.to_bytes(8, "big")


def _write(value: Value, parts: list[bytes]) -> None:
    if isinstance(value, bytes):
        parts += (_head(b"b", len(value)), value)
    elif isinstance(value, str):
        text = value.encode("utf-8")
        parts += (_head(b"s", len(text)), text)
    elif isinstance(value, int) and not isinstance(value, bool):
        content = _int_bytes(value)
        parts += (_head(b"i", len(content)), content)
    elif isinstance(value, Mapping):
        parts.append(_head(b"d", len(value)))
        for key in sorted(value, key=_utf8):
            _write(key, parts)
            _write(value[key], parts)
    elif isinstance(value, (list, tuple)):
        parts.append(_head(b"l", len(value)))
        for item in value:
            _write(item, parts)
    else:
        raise TypeError(f"value of type {type(value).__name__} has no canonical encoding")


def _utf8(key: str) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"mapping key {key!r} is not a str")
    return key.encode("utf-8")


def _int_bytes(value: int) -> bytes:
    """Sign byte (0 or 1), then the magnitude without leading zeros; zero is the sign byte alone."""
    magnitude = abs(value)
    return bytes([value < 0]) + magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")


class _Reader:
    """Reads one value after the other and refuses what the writer would not have written."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise _malformed("nested too deep")
        head = self._take(_HEAD)
        tag, length = head[:1], int.from_bytes(head[1:], "big")
        if tag == b"b":
            return self._take(length)
        if tag == b"s":
            return self._text(length)
        if tag == b"i":
            return self._int(length)
        if tag == b"l":
            return [self.read(depth + 1) for _ in range(self._count(length))]
        if tag == b"d":
            return self._dict(length, depth)
        raise _malformed("unknown tag")

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise _malformed("truncated")
        content = self._data[self.position : end]
        self.position = end
        return content

    def _count(self, count: int) -> int:
        # Every item takes at least a head: a huge count is refused before anything is allocated.
        if count * _HEAD > len(self._data) - self.position:
            raise _malformed("truncated")
        return count

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed("text is not UTF-8") from None

    def _int(self, length: int) -> int:
        content = self._take(length)
        if not content or content[0] > 1:
            raise _malformed("integer without a sign")
        value = int.from_bytes(content[1:], "big")
        if content[0] == 1:
            value = -value
        if _int_bytes(value) != content:
            raise _malformed("integer is not in its shortest form")
        return value

    def _dict(self, count: int, depth: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        previous: bytes | None = None
        for _ in range(self._count(count)):
            key = self.read(depth + 1)
            if not isinstance(key, str):
                raise _malformed("mapping key is not text")
            raw = key.encode("utf-8")
            if previous is not None and raw <= previous:
                raise _malformed("mapping keys are not sorted and distinct")
            previous = raw
            result[key] = self.read(depth + 1)
        return result
