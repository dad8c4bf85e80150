"""The server's running sum of one component: packed slices in, masks out, and at the end the centred sums.

Memory for one int32 vector and a few blocks a thread, whatever the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secure_fed.secagg.masking import Mask, key_streams
from secure_fed.secagg.packing import (
    BLOCK_VALUES,
    LANE_BITS,
    Packed,
    add_block,
    block_of,
    check_packed,
    over_groups,
    packed_bytes,
    split_lanes,
)
from secure_fed.secagg.prg import Ring, Words


class Accumulator:
    """The sum of masked slices of one component, in the ring that they were masked in.

    With 21 wire bits that are 64-bit words of three values each, else uint32 values.

    Args:
        size: values of the component; a slice has one more, the contributor count.
        wire_bits: 21, 24 or 32, the packed form of the slices.
        threads: how many to use for each call, at least 1; the sums do not depend on it.

    Raises:
        ValueError: another number of wire bits.
    """

    def __init__(self, size: int, wire_bits: int, threads: int = 1) -> None:
        packed_bytes(size, wire_bits)
        self._size = size + 1
        self._wire_bits = wire_bits
        self._threads = threads
        # Words of three values leave room behind them, in which `finish` spreads the sums out.
        self._memory = np.zeros(self._size + self._size % 2, dtype=np.uint32)

    def add(self, data: Packed) -> None:
        """Add a packed slice, uint8 [packed_bytes(size + 1, wire_bits)].

        Raises:
            SecAggError: `vector_mismatch` for another type or length; the sum is then as it was.
        """
        check_packed(data, self._size, self._wire_bits)

        def add_range(start: int, stop: int) -> None:
            scratch = np.empty(BLOCK_VALUES, dtype=np.uint32)
            for first in range(start, stop, BLOCK_VALUES):
                count = min(BLOCK_VALUES, stop - first)
                packed, block = block_of(data, first, count, self._wire_bits), self._block(first, count)
                if self._wire_bits == LANE_BITS:
                    np.add(block, packed.view(np.uint64), out=block)
                else:
                    add_block(packed, block, scratch)

        over_groups(self._size, self._threads, add_range)

    def remove(self, masks: Sequence[Mask]) -> None:
        """Take masks out of the sum; many at once, so that the sum passes through the cache once."""
        inverse = [mask.inverse for mask in masks]

        def remove_range(start: int, stop: int) -> None:
            streams = key_streams(inverse)
            for first in range(start, stop, BLOCK_VALUES):
                streams.apply_to(self._block(first, min(BLOCK_VALUES, stop - first)), first // BLOCK_VALUES)

        over_groups(self._size, self._threads, remove_range)

    def finish(self) -> tuple[NDArray[np.int32], int]:
        """The centred sums, int32 [size], and the contributor count; the accumulator is used up.

        The sums are the accumulator's own memory: nothing is copied.
        """
        sums = self._memory[: self._size]
        if self._wire_bits == LANE_BITS:
            self._split(sums)
        signed = sums.view(np.int32)
        if self._wire_bits == 24:
            # Drop what is above the wire's bits, then carry the sign down: mod 2^24, centred.
            np.left_shift(signed, np.int32(8), out=signed)
            np.right_shift(signed, np.int32(8), out=signed)
        return signed[:-1], int(signed[-1])

    def _block(self, first: int, count: int) -> Words:
        """Where the `count` values from `first` on, the edge of a block, are summed."""
        if self._wire_bits == LANE_BITS:
            edges = packed_bytes(first, LANE_BITS) // 8, packed_bytes(first + count, LANE_BITS) // 8
            return self._memory.view(np.uint64)[slice(*edges)]
        return self._memory[first : first + count]

    def _split(self, sums: Ring) -> None:
        """From the last block to the first, because the sums of a block reach over the words of those after it."""
        scratch = np.empty(BLOCK_VALUES, dtype=np.uint32).view(np.uint64)
        for first in reversed(range(0, self._size, BLOCK_VALUES)):
            block = sums[first : first + BLOCK_VALUES]
            split_lanes(self._block(first, len(block)).copy(), block, scratch)
