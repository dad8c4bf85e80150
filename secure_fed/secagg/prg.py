"""The mask generator: AES-256-CTR keystreams in blocks, added to or taken from ring vectors in place.

Blocks can be made in any order, and one stays in cache, so that threads share a vector and its length costs no memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

BLOCK_BYTES = 192 * 1024
"""The most keystream in a block. Measured: large enough that calls cost little, small enough for a core's cache."""
TAG_BYTES = 16
KEY_BYTES = 32
_NONCE_BYTES = 12

Ring = NDArray[np.uint32]
Words = NDArray[np.unsignedinteger[Any]]
Octets = NDArray[np.uint8]

if sys.byteorder != "little":
    # Words and packed slices are views of memory: a big-endian machine would read other numbers.
    raise ImportError("secure_fed.secagg runs on little-endian machines only")

_ZEROS = memoryview(bytes(BLOCK_BYTES))


class KeyStream:
    """The keystream of one key, in blocks: block i is AES-256-CTR from the counter i * 2^32 + 2 (128 bits, big endian).

    That is what AES-256-GCM with the nonce i makes of zeros (NIST SP 800-38D, 7.1). It is asked for in that form
    because OpenSSL runs GCM, and not CTR alone, in wide vector registers; the tag is dropped.
    A key serves one stream only: every key of the protocol is derived for one purpose.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = _cipher(key)

    def write(self, index: int, room: Octets) -> Octets:
        """Write as much of block `index` as there is room for and 16 bytes more; a view of it, uint8 [len - 16]."""
        keystream = room[: len(room) - TAG_BYTES]
        self._cipher.encrypt_into(_nonce(index), _ZEROS[: len(keystream)], None, room.data)
        return keystream


class KeyStreams:
    """Several keystreams, each added or subtracted, over the same blocks. One thread at a time.

    Args:
        streams: each key with True to be added, False to be subtracted.
    """

    def __init__(self, streams: Sequence[tuple[bytes, bool]]) -> None:
        self._steps = [(_cipher(key).encrypt_into, np.add if adds else np.subtract) for key, adds in streams]
        self._room = np.empty(BLOCK_BYTES + TAG_BYTES, dtype=np.uint8)

    def apply_to(self, target: Words, index: int) -> None:
        """target += and -= block `index` of all, in place: uint32 or uint64 [d], modulo 2^32 or 2^64."""
        if target.dtype.kind != "u" or target.ndim != 1 or target.nbytes > BLOCK_BYTES:
            raise ValueError(f"target is {target.dtype} {target.shape}, expected unsigned integers, one block")
        # What does not change from stream to stream is made once: there are hundreds of streams a block.
        room = self._room[: target.nbytes + TAG_BYTES]
        words, buffer = room[: target.nbytes].view(target.dtype), room.data
        nonce, zeros = _nonce(index), _ZEROS[: target.nbytes]
        for encrypt_into, combine in self._steps:
            encrypt_into(nonce, zeros, None, buffer)
            combine(target, words, target)


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"key has {len(key)} bytes, AES-256 takes {KEY_BYTES}")
    return AESGCM(key)


def _nonce(index: int) -> bytes:
    return index.to_bytes(_NONCE_BYTES, "big")
