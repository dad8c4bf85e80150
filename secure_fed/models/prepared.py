"""What an encoder's public, parameter-free `prepare` made of raw values, kept by their content.

The cells of a sweep see the same records again and again, and a filter bank over them takes longer than a round.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from secure_fed.data.images import LazyImages
from secure_fed.data.records import Values

MOST_BYTES = 128 * 2**20


class PreparedCache:
    """Prepared tensors by the SHA-256 of the raw values, the least used dropped first; safe to share between threads.

    A whole array is one entry: rows prepared in another company could differ in their last bits. It holds nothing
    that its process does not hold anyway, and leaves it by no door. What it returns is shared: nobody writes into it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, raw: Values, prepare: Callable[[Any], Tensor], made_by: bytes = b"") -> Tensor:
        """`prepare(raw)`, or what it gave for the same values before; `made_by` names all else that decides it."""
        key = content_digest(raw) + made_by
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        prepared = prepare(raw)
        with self._guard:
            if key not in self._kept:
                self._kept[key] = prepared
                self._bytes += prepared.nbytes
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return prepared


def content_digest(raw: Values) -> bytes:
    """SHA-256 over dtype, shape and values; an object array holds str. Images in files are told by these, unread."""
    if isinstance(raw, LazyImages):
        return raw.digest()
    state = hashlib.sha256(f"{raw.dtype.str}{raw.shape}".encode())
    if raw.dtype == object:
        for text in raw.ravel():
            encoded = str(text).encode("utf-8", errors="surrogatepass")
            state.update(len(encoded).to_bytes(8, "big") + encoded)
    else:
        state.update(np.ascontiguousarray(raw).data)
    return state.digest()
