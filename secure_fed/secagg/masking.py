"""The masks of a slice as client and server both derive them, and the masked, packed, hashed slice itself.

y_u = q_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv), a component at a time (Bonawitz et
al. 2017, section 4): values mod 2^32, or three of them joined to one word mod 2^64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secure_fed.secagg import keys
from secure_fed.secagg.encoding import digest
from secure_fed.secagg.packing import (
    BLOCK_VALUES,
    GROUP_VALUES,
    LANE_BITS,
    Packed,
    block_of,
    join_lanes,
    over_groups,
    pack_block,
    packed_bytes,
)
from secure_fed.secagg.prg import KeyStreams
from secure_fed.secagg.ring import Source

DIGEST_CHUNK_BYTES = 64 * 1024
"""Bytes a chunk of the slice digest: a packed group of blocks is a whole number of them, 8, 9 or 12."""


@dataclass(frozen=True)
class Mask:
    """One derived keystream (32-byte key) of a slice, added (`adds`) or subtracted."""

    key: bytes
    adds: bool

    @property
    def inverse(self) -> Mask:
        """What takes this mask out again."""
        return Mask(self.key, not self.adds)


@dataclass(frozen=True)
class PackedSlice:
    """A masked slice as it travels, uint8 [packed_bytes(size + 1)], and its `slice_digest` (32 bytes)."""

    data: Packed
    digest: bytes


def self_mask(seed: bytes, sid: bytes, owner: str, component: str) -> Mask:
    """The owner's own mask of a component, from the component's self-mask seed (32 bytes)."""
    return Mask(keys.derive(seed, "self-mask", sid, [component, owner]), True)


def pair_mask(shared: bytes, sid: bytes, owner: str, peer: str, component: str) -> Mask:
    """`owner`'s mask of a component against `peer`: the lower id adds, the higher subtracts, so they cancel.

    `shared` is the X25519 secret of the two masking keys, 32 bytes.
    """
    key = keys.derive(shared, "pair-mask", sid, [component, *sorted((owner, peer))])
    return Mask(key, owner < peer)


def key_streams(masks: Sequence[Mask]) -> KeyStreams:
    """The keystreams of all masks; block i of a slice is masked with block i of each."""
    return KeyStreams([(mask.key, mask.adds) for mask in masks])


def masked_slice(source: Source, masks: Sequence[Mask], wire_bits: int, threads: int = 1) -> PackedSlice:
    """Read, mask, pack and hash a slice block by block; each block stays in cache from first to last.

    The slice is the source's levels and, last, the contributor count 1. The result does not depend on
    `threads`. Besides the result it takes a few blocks of memory a thread.

    Args:
        source: the levels, [size].
        masks: one self-mask and a mask for every peer.
        wire_bits: 21, 24 or 32.
        threads: how many to use, at least 1.

    Raises:
        SecAggError: what the source raises.
    """
    size = source.size + 1
    data = np.empty(packed_bytes(size, wire_bits), dtype=np.uint8)

    def mask_range(start: int, stop: int) -> bytes:
        streams = key_streams(masks)
        levels, scratch = np.empty(BLOCK_VALUES, dtype=np.uint32), np.empty(BLOCK_VALUES, dtype=np.uint32)
        digests = []
        for group in range(start, stop, GROUP_VALUES):
            last = min(group + GROUP_VALUES, stop)
            for first in range(group, last, BLOCK_VALUES):
                block = levels[: min(BLOCK_VALUES, last - first)]
                source.read(first, block[: source.size - first])
                if first + len(block) == size:
                    block[-1] = 1
                packed = block_of(data, first, len(block), wire_bits)
                if wire_bits == LANE_BITS:
                    words = packed.view(np.uint64)
                    join_lanes(block, words, scratch.view(np.uint64))
                    streams.apply_to(words, first // BLOCK_VALUES)
                else:
                    streams.apply_to(block, first // BLOCK_VALUES)
                    pack_block(block, packed, scratch)
            digests.append(_chunk_digests(block_of(data, group, last - group, wire_bits)))
        return b"".join(digests)

    chunks = b"".join(over_groups(size, threads, mask_range))
    return PackedSlice(data, _outer_digest(len(data), chunks))


def slice_digest(data: Packed, threads: int = 1) -> bytes:
    """SHA-256 over the SHA-256 of every chunk of 64 KiB, with domain and length; 32 bytes.

    Two levels, so that threads hash in parallel and the result does not depend on how many they are.
    `data` is uint8 [bytes].
    """
    chunks = over_groups(
        len(data), threads, lambda start, stop: _chunk_digests(data[start:stop]), group=DIGEST_CHUNK_BYTES
    )
    return _outer_digest(len(data), b"".join(chunks))


def _chunk_digests(data: Packed) -> bytes:
    view = data.data
    return b"".join(
        hashlib.sha256(view[start : start + DIGEST_CHUNK_BYTES]).digest()
        for start in range(0, len(view), DIGEST_CHUNK_BYTES)
    )


def _outer_digest(length: int, chunks: bytes) -> bytes:
    return digest("slice", [length, chunks])
