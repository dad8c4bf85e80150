"""The one way to hash named float32 vectors: a model by its components, an optimizer's state by its moments.

Shapes inside a component follow from the configuration, whose hash stands beside this one wherever it is signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secure_fed.errors import ConfigError

Vector = npt.NDArray[np.float32]


def parameters_digest(parameters: Mapping[str, Vector]) -> bytes:
    """SHA-256 over each component's name, size and little-endian float32 values, sorted by name; 32 bytes.

    `parameters` is component -> flat float32 vector [P], in any order. Contiguous vectors are hashed in place.
    Bits count, not values: 0.0 and -0.0 differ. Raises ConfigError for anything but flat float32 vectors.
    """
    state = hashlib.sha256(b"secure_fed parameters/1\0" + len(parameters).to_bytes(8, "big"))
    for name in sorted(parameters):
        header, values = encode_vector(name, parameters[name])
        state.update(header)
        state.update(values)
    return state.digest()


def encode_vector(name: str, values: Vector) -> tuple[bytes, memoryview]:
    """A header with name and size, and the values as little-endian bytes [4 P], in place where possible.

    Lengths come first, so two different lists of vectors never give the same bytes. Raises ConfigError for
    anything but a flat float32 vector [P].
    """
    if values.dtype != np.float32 or values.ndim != 1:
        raise ConfigError(f"{name}: expected a flat float32 vector, got {values.dtype} of shape {values.shape}")
    encoded = name.encode()
    header = len(encoded).to_bytes(4, "big") + encoded + len(values).to_bytes(8, "big")
    return header, np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data
