"""A check that this process computes as IEEE 754 says, to the last bit and subnormal numbers included.

Sites recompute the server's step and compare hashes: a machine that rounds otherwise would accuse an honest server.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secure_fed.errors import RunAborted

_LANES = 67
"""More values than any vector register holds and no multiple of one, so that bodies and tails of loops are run."""

_Case = tuple[np.ufunc, tuple[int, ...], int]
_FLOAT32: tuple[_Case, ...] = (
    (np.multiply, (0x00800000, 0x3F000000), 0x00400000),  # a subnormal result: 2^-126 / 2
    (np.add, (0x00400000, 0x00400000), 0x00800000),  # subnormal operands: 2^-127 + 2^-127
    (np.add, (0x3F800000, 0x33C00000), 0x3F800001),  # 1 + 1.5 * 2^-24 goes up: neither truncated nor rounded down
    (np.add, (0x3F800000, 0x33800000), 0x3F800000),  # 1 + 2^-24 is a tie, and goes to the even neighbour
    (np.subtract, (0xBF800001, 0x33800000), 0xBF800002),  # as is this one, where even lies away from zero
    (np.divide, (0x3F800000, 0x40400000), 0x3EAAAAAB),  # 1 / 3
    (np.sqrt, (0x40000000,), 0x3FB504F3),
)
_FLOAT64: tuple[_Case, ...] = (
    (np.multiply, (0x0010000000000000, 0x3FE0000000000000), 0x0008000000000000),
    (np.add, (0x0008000000000000, 0x0008000000000000), 0x0010000000000000),
    (np.add, (0x3FF0000000000000, 0x3CA8000000000000), 0x3FF0000000000001),
    (np.add, (0x3FF0000000000000, 0x3CA0000000000000), 0x3FF0000000000000),
    (np.subtract, (0xBFF0000000000001, 0x3CA0000000000000), 0xBFF0000000000002),
    (np.divide, (0x3FF0000000000000, 0x4008000000000000), 0x3FD5555555555555),
    (np.sqrt, (0x4000000000000000,), 0x3FF6A09E667F3BCD),
)


def _prepared(
    cases: tuple[_Case, ...], bits: type[np.unsignedinteger[Any]], real: type[np.floating[Any]]
) -> tuple[tuple[np.ufunc, tuple[npt.NDArray[Any], ...], npt.NDArray[Any]], ...]:
    return tuple(
        (operation, tuple(np.full(_LANES, value, bits).view(real) for value in operands), np.full(_LANES, result, bits))
        for operation, operands, result in cases
    )


_CASES = _prepared(_FLOAT32, np.uint32, np.float32) + _prepared(_FLOAT64, np.uint64, np.float64)


def require_ieee_arithmetic() -> None:
    """Compare a few operations with their known bits, some 30 microseconds; the mode is a thread's, and can change.

    Raises:
        RunAborted: where subnormal numbers are flushed to zero or results are not rounded to nearest, ties to even.
    """
    with np.errstate(all="ignore"):
        for operation, operands, expected in _CASES:
            found = operation(*operands)
            # As bits: a machine that flushes subnormal numbers may also compare them as if they were zero.
            if not np.array_equal(found.view(expected.dtype), expected):
                raise RunAborted(
                    f"this process does not compute as IEEE 754 says: {found.dtype} {operation.__name__} of "
                    f"{', '.join(operand.view(expected.dtype)[:1].tobytes()[::-1].hex() for operand in operands)} gave "
                    f"other bits than {expected[:1].tobytes()[::-1].hex()}. It could not recompute the server's step. "
                    "Leave torch.set_flush_denormal off and load no library that was built with -ffast-math"
                )
