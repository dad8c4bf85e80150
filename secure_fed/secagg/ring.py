"""Fixed point numbers in the ring of integers mod 2^32: what floats become before they are masked.

Rounding is stochastic and unbiased, so the sum of many rounded updates is the rounded sum on average.
"""

from __future__ import annotations

import math
import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_fed.errors import ConfigError
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.packing import BLOCK_VALUES, WIRE_BITS
from secure_fed.secagg.prg import TAG_BYTES, KeyStream, Octets, Ring

MODULUS_BITS = 32
DITHER_BITS = 16
_HALF = 2 ** (MODULUS_BITS - 1)
# Where a float32 that is at most 2^31 - 2^(32-b) lies below it: for b > 25 the bound itself is no float32.
_LARGEST_FLOAT_BELOW_HALF = float(np.nextafter(np.float32(_HALF), np.float32(0)))


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


def wire_bits(members: int, value_bits: int) -> int:
    """Bits a value on the wire: the fewest of 21, 24 and 32 in which no sum can wrap, n * max|q| < 2^(bits - 1)."""
    return next(bits for bits in WIRE_BITS if members * max_level(value_bits) < 2 ** (bits - 1))


class Source(Protocol):
    """Where the ring levels of a slice come from; disjoint ranges may be read from several threads."""

    @property
    def size(self) -> int:
        """How many levels there are."""

    @property
    def value_bits(self) -> int:
        """b: no level exceeds max_level(b)."""

    def read(self, start: int, out: Ring) -> None:
        """Write the levels start..start+len(out) to `out`, uint32 [<= BLOCK_VALUES]; start on a block's edge."""


class Levels:
    """Levels that are there already, uint32 [size], negative ones mod 2^32.

    Raises:
        SecAggError: `vector_mismatch` for another type or shape, `out_of_range` for |q| > max_level.
    """

    def __init__(self, values: Ring, value_bits: int) -> None:
        fits = values.dtype == np.uint32 and values.ndim == 1
        require(fits, Code.VECTOR_MISMATCH, f"levels are {values.dtype} {values.shape}, expected uint32 [size]")
        signed, level = values.view(np.int32), max_level(value_bits)
        in_range = not len(values) or (-level <= int(signed.min()) and int(signed.max()) <= level)
        require(in_range, Code.OUT_OF_RANGE, f"a level exceeds {level}")
        self.value_bits = value_bits
        self._values = values

    @property
    def size(self) -> int:
        """How many levels there are."""
        return len(self._values)

    def read(self, start: int, out: Ring) -> None:
        """Write the levels start..start+len(out) to `out`, uint32."""
        np.copyto(out, self._values[start : start + len(out)])


class Quantiser:
    """Levels of a float32 vector: weighted, clipped, and rounded stochastically while they are read.

    With F = min(16, 32 - b) fraction bits, x * weight / step becomes the fixed point number
    t = rint(x * s), s = weight * max_level * 2^F / clip in float32, clipped to |t| <= max_level * 2^F, and
    q = floor((t + d) / 2^F) with d uniform on F bits. Then E[q] = t / 2^F exactly, so that in the unit of the
    values E[q] * step = clip(x * weight)(1 + r) + e with |r| <= 2^-23 (two float32 roundings) and
    |e| <= step * 2^-(F + 1) (rint); zero is exact, and so are the bounds up to b = 25.

    Args:
        values: float32 [size].
        clip: positive bound on |x * weight|, in the unit of the values.
        value_bits: b, the bits of one contribution, 2 to 31.
        dither_key: 32 bytes, secret and fresh for each vector: block by block of the
            values, d is the upper F bits of the 16-bit words of the block of keystream.
        weight: public factor, positive.

    Raises:
        SecAggError: `vector_mismatch` for another type or shape; when read, `not_finite` for NaN or infinity.
        ConfigError: clip or weight not positive and finite, or so far apart that s is no normal float32.
    """

    def __init__(
        self, values: NDArray[np.float32], clip: float, value_bits: int, dither_key: bytes, weight: float = 1.0
    ) -> None:
        fits = values.dtype == np.float32 and values.ndim == 1
        require(fits, Code.VECTOR_MISMATCH, f"values are {values.dtype} {values.shape}, expected float32 [size]")
        self.value_bits = value_bits
        self._values = values
        fraction_bits = min(DITHER_BITS, MODULUS_BITS - value_bits)
        self._fraction_bits = np.int32(fraction_bits)
        self._unused_bits = np.uint16(DITHER_BITS - fraction_bits)
        largest = max_level(value_bits) * 2.0**fraction_bits
        self._bound = np.float32(min(largest, _LARGEST_FLOAT_BELOW_HALF))
        self._scale = _float32_scale(weight, largest, clip)
        self._dither_key = dither_key
        self._local = threading.local()

    @property
    def size(self) -> int:
        """How many levels there are."""
        return len(self._values)

    def read(self, start: int, out: Ring) -> None:
        """Write the levels of the block from `start` on, or fewer, to `out`, uint32; in any order, any number of times.

        Raises:
            SecAggError: `not_finite` if one of these values is NaN or infinite.
        """
        values = self._values[start : start + len(out)]
        require(bool(np.isfinite(values).all()), Code.NOT_FINITE, "the vector holds NaN or infinity")
        stream, scratch, room = self._thread_state()
        fixed, levels = scratch[: len(out)], out.view(np.int32)
        with np.errstate(over="ignore"):  # beyond float32 is beyond the clip
            np.multiply(values, self._scale, out=fixed)
        np.clip(fixed, -self._bound, self._bound, out=fixed)
        np.rint(fixed, out=fixed)
        np.copyto(levels, fixed, casting="unsafe")
        dither = stream.write(start // BLOCK_VALUES, room[: 2 * len(out) + TAG_BYTES]).view(np.uint16)
        if self._unused_bits:
            np.right_shift(dither, self._unused_bits, out=dither)
        # No overflow: t <= max_level 2^F and d <= 2^F - 1 add up to at most 2^31 - 1.
        np.add(levels, dither, out=levels)
        np.right_shift(levels, self._fraction_bits, out=levels)

    def _thread_state(self) -> tuple[KeyStream, NDArray[np.float32], Octets]:
        if not hasattr(self._local, "state"):
            scratch = np.empty(BLOCK_VALUES, dtype=np.float32)
            room = np.empty(2 * BLOCK_VALUES + TAG_BYTES, dtype=np.uint8)
            self._local.state = KeyStream(self._dither_key), scratch, room
        state: tuple[KeyStream, NDArray[np.float32], Octets] = self._local.state
        return state


def _float32_scale(weight: float, largest: float, clip: float) -> np.float32:
    for name, value in (("clip", clip), ("weight", weight)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"secagg {name}={value} is not a positive finite number")
    scale = weight * largest / clip
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= scale <= float(limits.max):
        raise ConfigError(
            f"secagg clip={clip} with weight={weight} does not fit float32: the scale {scale:g} of the fixed "
            "point numbers is no normal number; bring them closer to the size of the updates"
        )
    return np.float32(scale)


def quantise(values: NDArray[np.float32], clip: float, value_bits: int, dither_key: bytes, weight: float = 1.0) -> Ring:
    """The levels of `Quantiser`, read whole: uint32 [d], negative ones mod 2^32.

    Raises:
        SecAggError, ConfigError: as `Quantiser`.
    """
    source = Quantiser(values, clip, value_bits, dither_key, weight)
    levels = np.empty(len(values), dtype=np.uint32)
    for start in range(0, len(values), BLOCK_VALUES):
        source.read(start, levels[start : start + BLOCK_VALUES])
    return levels


def dequantise(sums: NDArray[np.int32], clip: float, value_bits: int) -> NDArray[np.float64]:
    """The sum of the contributions as float64 [d], in the unit of the values: sum of q times step."""
    return np.multiply(sums, clip / max_level(value_bits), dtype=np.float64)
