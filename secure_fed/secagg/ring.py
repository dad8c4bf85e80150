"""Fixed point numbers in the ring of integers mod 2^32: what floats become before they are masked.

Rounding is stochastic and unbiased, so the sum of many rounded updates is the rounded sum on average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from secure_fed.errors import ConfigError
from secure_fed.secagg import keys
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.prg import KeyStream, Ring

MODULUS_BITS = 32
_HALF = 2 ** (MODULUS_BITS - 1)
_BLOCK = 64 * 1024

Dither = Callable[[Ring], None]
"""Overwrites a uint32 vector with uniform random words; `KeyStream(key).fill` is one."""


def max_level(value_bits: int) -> int:
    """The largest |q| of one contribution: 2^(b-1) - 1, so that zero is exact and the range symmetric."""
    return int(2 ** (value_bits - 1) - 1)


def largest_value_bits(members: int) -> int:
    """The largest b for which n * max|q| < 2^31: no sum of n contributions can wrap around."""
    bits = MODULUS_BITS - 1
    while members * max_level(bits) >= _HALF:
        bits -= 1
    return bits


def check_no_overflow(members: int, value_bits: int) -> None:
    """Refuse a ring in which the sum of `members` contributions could wrap around.

    Raises:
        ConfigError: value_bits below 2, or members * max|q| >= 2^31; names the largest allowed.
    """
    largest = largest_value_bits(members)
    if not 2 <= value_bits <= largest:
        raise ConfigError(
            f"secagg value_bits={value_bits} with n={members} members: n * max|q| must stay below 2^31 and "
            f"value_bits at least 2; the largest allowed is value_bits={largest}"
        )


def system_dither() -> Dither:
    """A dither stream keyed by the operating system's generator; one for each vector."""
    return KeyStream(keys.fresh_secret()).fill


def quantise(values: NDArray[np.floating], clip: float, value_bits: int, dither: Dither) -> Ring:
    """Clip to [-clip, clip] and round stochastically to multiples of step = clip / max|q|, as uint32 [d].

    q = floor(x / step + u) with u uniform on multiples of 2^-32 in [0, 1): E[q] = x / step up to 2^-32.
    Negative q are stored mod 2^32.

    Args:
        values: float [d], finite.
        clip: positive bound, in the unit of the values.
        value_bits: b, the bits of one contribution.
        dither: a stream of uniform words; `system_dither()` where privacy or bias matters.

    Raises:
        SecAggError: `not_finite` if a value is NaN or infinite.
    """
    level = max_level(value_bits)
    quantised = np.empty(len(values), dtype=np.uint32)
    words = np.empty(min(_BLOCK, len(values)), dtype=np.uint32)
    for start in range(0, len(values), _BLOCK):
        scaled = np.asarray(values[start : start + _BLOCK], dtype=np.float64) * (level / clip)
        require(bool(np.isfinite(scaled).all()), Code.NOT_FINITE, "the vector holds NaN or infinity")
        np.clip(scaled, -level, level, out=scaled)
        chunk = words[: len(scaled)]
        dither(chunk)
        scaled += chunk * 2.0**-32
        np.floor(scaled, out=scaled)
        quantised[start : start + _BLOCK] = scaled.astype(np.int32).view(np.uint32)
    return quantised


def centre(sums: Ring) -> NDArray[np.int64]:
    """Ring elements uint32 [d] as signed integers in [-2^31, 2^31), int64 [d]."""
    return sums.view(np.int32).astype(np.int64)


def dequantise(sums: NDArray[np.int64], clip: float, value_bits: int) -> NDArray[np.float64]:
    """The sum of the contributions as float64 [d], in the unit of the values: sum of q times step."""
    return np.multiply(sums, clip / max_level(value_bits), dtype=np.float64)
