"""Canonical encoding of everything that is signed, hashed or sent: one value has exactly one encoding.

Tag (1 byte), length or count (8 bytes, big endian), content. A domain string comes first, so that bytes made
for one purpose never verify for another.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code

Value: TypeAlias = "bytes | str | int | Sequence[Value] | Mapping[str, Value]"

PROTOCOL = "secure_fed.secagg"
_HEAD = 9
_MAX_DEPTH = 8
_BYTES, _TEXT, _INT, _LIST, _DICT = b"bsild"
_pack_head = struct.Struct(">BQ").pack
_unpack_head = struct.Struct(">BQ").unpack_from


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
    found, position = _read(data, 0, 0)
    if found != f"{PROTOCOL}/{domain}":
        raise _malformed(f"not a {domain} message")
    value, end = _read(data, position, 0)
    if end != len(data):
        raise _malformed("trailing bytes")
    return value


def digest(domain: str, value: Value) -> bytes:
    """SHA-256 of the canonical encoding, 32 bytes."""
    return hashlib.sha256(encode(domain, value)).digest()


def _malformed(detail: str) -> SecAggError:
    return SecAggError(Code.MALFORMED_MESSAGE, detail)


# Most values are exactly of one of these types, and a type is compared faster than a class is asked: `_write_other`
# takes what is left, in the same bytes.
def _write(value: Value, parts: list[bytes]) -> None:
    kind = type(value)
    if kind is bytes:
        parts.append(_pack_head(_BYTES, len(value)))  # type: ignore[arg-type]
        parts.append(value)  # type: ignore[arg-type]
    elif kind is str:
        text = value.encode()  # type: ignore[union-attr]
        parts.append(_pack_head(_TEXT, len(text)))
        parts.append(text)
    elif kind is list or kind is tuple:
        parts.append(_pack_head(_LIST, len(value)))  # type: ignore[arg-type]
        for item in value:  # type: ignore[union-attr]
            _write(item, parts)
    elif kind is dict:
        parts.append(_pack_head(_DICT, len(value)))  # type: ignore[arg-type]
        for key in sorted(value, key=_utf8):  # type: ignore[arg-type]
            _write(key, parts)
            _write(value[key], parts)  # type: ignore[index]
    else:
        _write_other(value, parts)


def _write_other(value: Value, parts: list[bytes]) -> None:
    if isinstance(value, bytes):
        _write(bytes(value), parts)
    elif isinstance(value, str):
        _write(str.__str__(value), parts)
    elif isinstance(value, int) and not isinstance(value, bool):
        content = _int_bytes(value)
        parts += (_pack_head(_INT, len(content)), content)
    elif isinstance(value, Mapping):
        _write(dict(value), parts)
    elif isinstance(value, (list, tuple)):
        _write(list(value), parts)
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


def _read(data: bytes, position: int, depth: int) -> tuple[Value, int]:
    """The value at `position` and where the next one begins; refuses what the writer would not have written."""
    if depth > _MAX_DEPTH:
        raise _malformed("nested too deep")
    start = position + _HEAD
    if start > len(data):
        raise _malformed("truncated")
    tag, length = _unpack_head(data, position)
    if tag in (_LIST, _DICT):
        # Every item takes at least a head: a huge count is refused before anything is allocated.
        if length * _HEAD > len(data) - start:
            raise _malformed("truncated")
        return (_read_list if tag == _LIST else _read_mapping)(data, start, length, depth)
    end = start + length
    if end > len(data):
        raise _malformed("truncated")
    content = data[start:end]
    if tag == _BYTES:
        return content, end
    if tag == _TEXT:
        return _text(content), end
    if tag == _INT:
        return _int(content), end
    raise _malformed("unknown tag")


def _read_list(data: bytes, position: int, count: int, depth: int) -> tuple[list[Value], int]:
    items = []
    for _ in range(count):
        item, position = _read(data, position, depth + 1)
        items.append(item)
    return items, position


def _read_mapping(data: bytes, position: int, count: int, depth: int) -> tuple[dict[str, Value], int]:
    result: dict[str, Value] = {}
    previous: str | None = None
    for _ in range(count):
        key, position = _read(data, position, depth + 1)
        if not isinstance(key, str):
            raise _malformed("mapping key is not text")
        # UTF-8 keeps the order of code points, so the order of the texts is that of their bytes.
        if previous is not None and key <= previous:
            raise _malformed("mapping keys are not sorted and distinct")
        previous = key
        result[key], position = _read(data, position, depth + 1)
    return result, position


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("text is not UTF-8") from None


def _int(content: bytes) -> int:
    if not content or content[0] > 1:
        raise _malformed("integer without a sign")
    value = int.from_bytes(content[1:], "big")
    if content[0] == 1:
        value = -value
    if _int_bytes(value) != content:
        raise _malformed("integer is not in its shortest form")
    return value
