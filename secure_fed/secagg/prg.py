"""The mask generator: an AES-256-CTR keystream added to, or taken from, uint32 vectors in place.

Works in blocks of 256 KiB that stay in cache, so the memory taken does not depend on the vector's length.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

BLOCK_BYTES = 256 * 1024
KEY_BYTES = 32
_BLOCK = BLOCK_BYTES // 4
_ZEROS = memoryview(bytes(BLOCK_BYTES))

Ring = NDArray[np.uint32]


class KeyStream:
    """Keystream of one key: AES-256 in counter mode from a zero counter, read as little-endian uint32.

    A key serves one stream only (every key of the protocol is derived for one purpose), so the counter may
    start at zero. Every call goes on where the last one stopped.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key has {len(key)} bytes, AES-256 takes {KEY_BYTES}")
        self._cipher = Cipher(AES256(key), CTR(bytes(16))).encryptor()
        self._block = np.empty(_BLOCK, dtype="<u4")

    def fill(self, target: Ring) -> None:
        """Overwrite the uint32 vector `target` [d] with keystream."""
        for part in _blocks(target):
            part[:] = self._next(len(part))

    def add_to(self, target: Ring) -> None:
        """target += keystream mod 2^32, in place; `target` is uint32 [d]."""
        for part in _blocks(target):
            np.add(part, self._next(len(part)), out=part)

    def subtract_from(self, target: Ring) -> None:
        """target -= keystream mod 2^32, in place; `target` is uint32 [d]."""
        for part in _blocks(target):
            np.subtract(part, self._next(len(part)), out=part)

    def _next(self, count: int) -> Ring:
        block = self._block[:count]
        self._cipher.update_into(_ZEROS[: 4 * count], block.view(np.uint8).data)
        return block


def _blocks(target: Ring) -> list[Ring]:
    if target.dtype != np.uint32 or target.ndim != 1:
        raise ValueError(f"target is {target.dtype} with {target.ndim} axes, expected uint32 with 1")
    return [target[start : start + _BLOCK] for start in range(0, len(target), _BLOCK)]
