"""The packed form of a slice: 21, 24 or 32 bits a value, in blocks; and how threads share the blocks.

21 bits: three values in a 64-bit word, which is masked as a whole. 24 bits: masked as uint32, then the low 16 bits of a
block and its high 8 bits, because 2^24 divides 2^32. 32 bits: uint32. All little endian.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.prg import BLOCK_BYTES, Ring, Words

LANE_BITS, LANES = 21, 3
WIRE_BITS = (LANE_BITS, 24, 32)
BLOCK_VALUES = BLOCK_BYTES // 4
"""Values in a block, of which the last may be shorter; a multiple of 3. A block of keystream masks a block."""
GROUP_VALUES = 4 * BLOCK_VALUES
"""Values that threads share out: packed, a whole number of 64 KiB chunks."""

_HALF_LANES = np.uint64(sum(2 ** (lane * LANE_BITS + LANE_BITS - 1) for lane in range(LANES)))

Packed = NDArray[np.uint8]
Result = TypeVar("Result")


def packed_bytes(size: int, wire_bits: int) -> int:
    """How many bytes `size` values take on the wire: 8 for every three, or 3 or 4 each."""
    if wire_bits not in WIRE_BITS:
        raise ValueError(f"wire_bits={wire_bits} is none of {WIRE_BITS}")
    if wire_bits == LANE_BITS:
        return 8 * -(-size // LANES)
    return size * wire_bits // 8


def pack(values: Ring, wire_bits: int) -> Packed:
    """The packed form, uint8 [packed_bytes], of uint32 [d]; the values count mod 2^wire_bits."""
    data = np.empty(packed_bytes(len(values), wire_bits), dtype=np.uint8)
    scratch = np.empty(BLOCK_VALUES, dtype=np.uint32)
    for start in range(0, len(values), BLOCK_VALUES):
        block = values[start : start + BLOCK_VALUES]
        packed = block_of(data, start, len(block), wire_bits)
        if wire_bits == LANE_BITS:
            unused = np.int32(32 - LANE_BITS)
            centred = block.view(np.int32) << unused >> unused
            join_lanes(centred.view(np.uint32), packed.view(np.uint64), scratch.view(np.uint64))
        else:
            pack_block(block, packed, scratch)
    return data


def unpack(data: Packed, size: int, wire_bits: int) -> Ring:
    """The values, uint32 [size], of a packed slice: below 2^wire_bits.

    Raises:
        SecAggError: `vector_mismatch` if the data are not uint8 [packed_bytes(size, wire_bits)].
    """
    check_packed(data, size, wire_bits)
    values = np.zeros(size, dtype=np.uint32)
    scratch = np.empty(BLOCK_VALUES, dtype=np.uint32)
    for start in range(0, size, BLOCK_VALUES):
        block = values[start : start + BLOCK_VALUES]
        packed = block_of(data, start, len(block), wire_bits)
        if wire_bits == LANE_BITS:
            split_lanes(packed.view(np.uint64).copy(), block, scratch.view(np.uint64))
            np.bitwise_and(block, np.uint32(2**LANE_BITS - 1), out=block)
        else:
            add_block(packed, block, scratch)
    return values


def check_packed(data: Packed, size: int, wire_bits: int) -> None:
    """Raise `vector_mismatch` unless the data can be a packed slice of `size` values."""
    expected = packed_bytes(size, wire_bits)
    fits = data.dtype == np.uint8 and data.shape == (expected,) and data.flags.c_contiguous
    require(fits, Code.VECTOR_MISMATCH, f"packed slice is {data.dtype} {data.shape}, expected uint8 ({expected},)")


def block_of(data: Packed, start: int, count: int, wire_bits: int) -> Packed:
    """The bytes of the `count` values that begin with value `start`, on the edge of a block."""
    return data[packed_bytes(start, wire_bits) : packed_bytes(start + count, wire_bits)]


def join_lanes(values: Ring, words: Words, scratch: Words) -> None:
    """word j = v[j] + 2^21 v[j + w] + 2^42 v[j + 2w] mod 2^64, for one block of signed values mod 2^32.

    Words are integers, so they add as their lanes do as long as no lane's sum leaves -2^20..2^20 - 1.

    Args:
        values: uint32 [count].
        words: uint64 [w], w = ceil(count / 3), overwritten.
        scratch: uint64 [>= w].
    """
    width, signed = len(words), values.view(np.int32)
    np.copyto(words.view(np.int64), signed[:width])
    for lane in range(1, LANES):
        part = signed[lane * width : (lane + 1) * width]
        shifted = scratch[: len(part)]
        np.copyto(shifted.view(np.int64), part)
        np.left_shift(shifted, np.uint64(lane * LANE_BITS), out=shifted)
        np.add(words[: len(part)], shifted, out=words[: len(part)])


def split_lanes(words: Words, values: Ring, scratch: Words) -> None:
    """The signed values mod 2^32, uint32 [count], that `join_lanes` joined to `words`, which are used up."""
    width = len(words)
    # With half a lane added to each no lane is negative, and none has borrowed from the next.
    np.add(words, _HALF_LANES, out=words)
    for lane in range(LANES):
        part = values[lane * width : (lane + 1) * width]
        np.right_shift(words, np.uint64(lane * LANE_BITS), out=scratch[:width])
        np.copyto(part, scratch[: len(part)], casting="unsafe")
    np.bitwise_and(values, np.uint32(2**LANE_BITS - 1), out=values)
    np.subtract(values, np.uint32(2 ** (LANE_BITS - 1)), out=values)


def pack_block(values: Ring, data: Packed, scratch: Ring) -> None:
    """Write one block, uint32 [count], in 24 or 32 bits; `scratch` is uint32 [>= count]."""
    count = len(values)
    if len(data) == 4 * count:
        np.copyto(data.view(np.uint32), values)
        return
    # Casts truncate modulo the target's range and run in vector registers; strided byte copies do not.
    np.copyto(data[: 2 * count].view(np.uint16), values, casting="unsafe")
    np.right_shift(values, np.uint32(16), out=scratch[:count])
    np.copyto(data[2 * count :], scratch[:count], casting="unsafe")


def add_block(data: Packed, total: Ring, scratch: Ring) -> None:
    """total += one block in 24 or 32 bits, mod 2^32, in place: uint32 [count]; `scratch` is uint32 [>= count]."""
    count = len(total)
    if len(data) == 4 * count:
        np.add(total, data.view(np.uint32), out=total)
        return
    part = scratch[:count]
    np.copyto(part, data[2 * count :])
    np.left_shift(part, np.uint32(16), out=part)
    np.add(total, part, out=total)
    np.copyto(part, data[: 2 * count].view(np.uint16))
    np.add(total, part, out=total)


def over_groups(size: int, threads: int, work: Callable[[int, int], Result], group: int = GROUP_VALUES) -> list[Result]:
    """work(start, stop) over at most `threads` ranges of whole groups that make up 0..size; results in order.

    Raises:
        ValueError: threads below 1. What `work` raises comes through.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}, at least 1 is needed")
    groups = -(-size // group)
    parts = max(1, min(threads, groups))
    edges = [min(size, groups * part // parts * group) for part in range(parts + 1)]
    if parts == 1:
        return [work(0, size)]
    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(work, edges[:-1], edges[1:]))
