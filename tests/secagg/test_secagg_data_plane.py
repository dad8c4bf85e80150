"""Keystreams, packing, masked slices and the accumulator: known answers, algebra, threads and memory."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.errors import SecAggError
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.codes import Code
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.masking import (
    DIGEST_CHUNK_BYTES,
    Mask,
    PackedSlice,
    masked_slice,
    pair_mask,
    self_mask,
    slice_digest,
)
from secure_fed.secagg.packing import (
    BLOCK_VALUES,
    GROUP_VALUES,
    WIRE_BITS,
    join_lanes,
    over_groups,
    pack,
    packed_bytes,
    split_lanes,
    unpack,
)
from secure_fed.secagg.prg import BLOCK_BYTES, TAG_BYTES, KeyStream, KeyStreams
from secure_fed.secagg.ring import Levels, Quantiser, max_level, quantise, wire_bits

VECTORS = Path(__file__).parent / "vectors"
EDGES = (1, 2, 3, 4, BLOCK_VALUES - 1, BLOCK_VALUES, BLOCK_VALUES + 1, 2 * GROUP_VALUES - 1, 2 * GROUP_VALUES + 7)
"""Sizes at which a slice, one longer, ends before, on and after the edge of a word, a block and a group."""


def vectors(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text())["cases"]


def by_name(case: dict) -> str:
    return case["name"]


def raw_words(key: bytes, index: int, count: int) -> np.ndarray:
    """Words of a block by AES on the counters themselves."""
    counters = b"".join((2**32 * index + 2 + step).to_bytes(16, "big") for step in range(-(-count // 4)))
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block at a time is the point
    return np.frombuffer(cipher.update(counters), dtype="<u4")[:count]


def words_of(key: bytes, index: int, count: int) -> np.ndarray:
    room = np.empty(4 * count + TAG_BYTES, dtype=np.uint8)
    return KeyStream(key).write(index, room).view(np.uint32)


def stream_of(key: bytes, count: int, block: int) -> np.ndarray:
    """Words of all blocks one after the other, `block` of them each."""
    parts = [raw_words(key, index, min(block, count - index * block)) for index in range(-(-count // block))]
    return np.concatenate(parts)


def random_levels(size: int, bits: int, seed: int) -> np.ndarray:
    level = max_level(bits)
    return np.random.default_rng(seed).integers(-level, level + 1, size).astype(np.int32).view(np.uint32)


def masks_of(me: int, everyone: range, component: str = "fusion") -> list[Mask]:
    """Self-mask first, then one for every peer; the shared secret of a pair is made of its two numbers."""
    peers = [peer for peer in everyone if peer != me]
    pairs = [bytes([min(me, peer), max(me, peer)] * 16) for peer in peers]
    return [
        self_mask(bytes([me]) * 32, b"s" * 32, f"site{me:02d}", component),
        *(
            pair_mask(shared, b"s" * 32, f"site{me:02d}", f"site{peer:02d}", component)
            for peer, shared in zip(peers, pairs, strict=True)
        ),
    ]


# Keystream


@pytest.mark.parametrize("case", vectors("prg"), ids=by_name)
def test_keystream_has_its_known_words(case):
    skip = case.get("skip", 0)
    words = words_of(bytes.fromhex(case["key"]), case["block"], skip + len(case["words"]))
    assert words[skip:].tolist() == case["words"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 70), st.binary(min_size=32, max_size=32))
def test_block_of_keystream_is_raw_aes_on_its_counters(index, count, key):
    np.testing.assert_array_equal(words_of(key, index, count), raw_words(key, index, count))


def test_whole_block_of_keystream_is_raw_aes_in_counter_mode():
    key, start = bytes(range(32)), (7 * 2**32 + 2).to_bytes(16, "big")
    cipher = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
    raw = np.frombuffer(cipher.update(bytes(BLOCK_BYTES)), dtype="<u4")
    np.testing.assert_array_equal(words_of(key, 7, BLOCK_BYTES // 4), raw)


def test_blocks_of_a_keystream_share_no_counter():
    """A block's last counter stays below the next one's first."""
    assert 2 + BLOCK_BYTES // 16 < 2**32


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_several_keystreams_are_each_added_or_subtracted_and_can_be_taken_back(dtype):
    keys = [bytes([number]) * 32 for number in range(5)]
    start = np.full(1002, 4_000_000_000, dtype=np.uint32).view(dtype)
    target, expected = start.copy(), start.copy()
    KeyStreams([(key, number % 2 == 0) for number, key in enumerate(keys)]).apply_to(target, 3)
    for number, key in enumerate(keys):
        words = raw_words(key, 3, 1002).view(dtype)
        expected += words if number % 2 == 0 else -words
    np.testing.assert_array_equal(target, expected)
    KeyStreams([(key, number % 2 == 1) for number, key in enumerate(keys)]).apply_to(target, 3)
    np.testing.assert_array_equal(target, start)


def test_keystream_refuses_another_type_length_or_key():
    for wrong in (
        np.zeros(4, dtype=np.float32),
        np.zeros((2, 2), dtype=np.uint32),
        np.zeros(BLOCK_BYTES + 1, np.uint8),
    ):
        with pytest.raises(ValueError, match=str(wrong.dtype)):
            KeyStreams([(bytes(32), True)]).apply_to(wrong, 0)
    with pytest.raises(ValueError, match="16 bytes"):
        KeyStream(bytes(16))


# Masks


def test_no_two_masks_share_a_keystream():
    """Other secret, session, component or member: another key."""
    one, two = bytes(32), b"\x01" * 32
    masks = [
        self_mask(one, one, "site01", "image"),
        self_mask(two, one, "site01", "image"),
        self_mask(one, two, "site01", "image"),
        self_mask(one, one, "site02", "image"),
        self_mask(one, one, "site01", "text"),
        pair_mask(one, one, "site01", "site02", "image"),
        pair_mask(two, one, "site01", "site02", "image"),
        pair_mask(one, two, "site01", "site02", "image"),
        pair_mask(one, one, "site01", "site03", "image"),
        pair_mask(one, one, "site01", "site02", "text"),
    ]
    assert len({mask.key for mask in masks}) == len(masks)


def test_mask_of_a_pair_is_added_by_the_lower_and_subtracted_by_the_higher():
    lower = pair_mask(bytes(32), bytes(32), "site01", "site02", "image")
    higher = pair_mask(bytes(32), bytes(32), "site02", "site01", "image")
    assert lower.adds
    assert higher == lower.inverse
    assert lower.inverse.inverse == lower


# Packing


def pattern(size: int, bits: int) -> np.ndarray:
    """The values of the known answers: (i * 2654435761 + 12345) mod 2^bits."""
    values = (np.arange(size, dtype=np.uint64) * 2_654_435_761 + 12_345) % (1 << bits)
    return values.astype(np.uint32)


@pytest.mark.parametrize("case", vectors("packing"), ids=by_name)
def test_packing_has_its_known_bytes_and_reads_them_back(case):
    bits = case["wire_bits"]
    values = np.array(case["values"], dtype=np.uint32) if "values" in case else pattern(case["size"], bits)
    data = pack(values, bits)
    if "packed" in case:
        assert data.tobytes().hex() == case["packed"]
    assert hashlib.sha256(data.tobytes()).hexdigest() == case["sha256"]
    np.testing.assert_array_equal(unpack(data, len(values), bits), values)


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("bits", WIRE_BITS)
def test_packing_keeps_the_values_mod_the_wire_in_a_third_of_eight_three_or_four_bytes(size, bits):
    values = np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32)
    data = pack(values, bits)
    assert data.nbytes == packed_bytes(size, bits) == {21: 8 * math.ceil(size / 3), 24: 3 * size, 32: 4 * size}[bits]
    np.testing.assert_array_equal(unpack(data, size, bits), values & np.uint32(2**bits - 1))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.integers(1, 10), st.integers(1, 32), st.integers(0, 2**32))
def test_words_add_as_their_lanes_do_up_to_both_ends(count, members, seed):
    """32 contributions of 16 bits fill 21 bits; random ones, all largest, and all smallest."""
    rng, level = np.random.default_rng(seed), max_level(16)
    random = rng.integers(-level, level + 1, (members, count), dtype=np.int32)
    for values in (random, np.full_like(random, level), np.full_like(random, -level), np.sign(random) * level):
        total = np.zeros(-(-count // 3), dtype=np.uint64)
        for row in values:
            words = np.empty_like(total)
            join_lanes(row.view(np.uint32), words, np.empty_like(total))
            total += words
        sums = np.empty(count, dtype=np.uint32)
        split_lanes(total, sums, np.empty_like(total))
        np.testing.assert_array_equal(sums.view(np.int32), values.sum(axis=0))


def test_data_of_another_length_or_type_are_no_packed_slice():
    data = pack(np.arange(9, dtype=np.uint32), 24)
    for wrong in (
        data[:-1],
        np.append(data, data[:1]),
        data.astype(np.int8),
        data.reshape(9, 3),
        np.repeat(data, 2)[::2],
    ):
        with pytest.raises(SecAggError, match=f"^{Code.VECTOR_MISMATCH}"):
            unpack(wrong, 9, 24)
        with pytest.raises(SecAggError, match=f"^{Code.VECTOR_MISMATCH}"):
            Accumulator(8, 24).add(wrong)
    with pytest.raises(ValueError, match="wire_bits=16"):
        packed_bytes(9, 16)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 8))
def test_ranges_of_threads_are_whole_groups_that_make_up_everything(size, threads, group):
    ranges = over_groups(size, threads, lambda start, stop: (start, stop), group=group)
    assert 1 <= len(ranges) <= threads
    assert [start for start, _ in ranges] == [0] + [stop for _, stop in ranges[:-1]]
    assert ranges[-1][1] == size
    assert all(start % group == 0 for start, _ in ranges)


def test_no_thread_at_all_is_refused():
    with pytest.raises(ValueError, match="threads=0"):
        masked_slice(Levels(random_levels(4, 8, 0), 8), [], 24, threads=0)


# Slice digest


@pytest.mark.parametrize("case", vectors("slice_digest"), ids=by_name)
def test_slice_digest_has_its_known_value(case):
    data = ((np.arange(case["length"], dtype=np.uint64) * 7 + 3) % 256).astype(np.uint8)
    assert slice_digest(data).hex() == case["digest"]
    assert slice_digest(data, threads=3).hex() == case["digest"]


def test_slice_digest_is_sha256_over_chunk_hashes_with_domain_and_length():
    data = np.random.default_rng(1).integers(0, 256, 3 * DIGEST_CHUNK_BYTES + 11, dtype=np.uint8)
    raw = data.tobytes()
    chunks = [raw[start : start + DIGEST_CHUNK_BYTES] for start in range(0, len(raw), DIGEST_CHUNK_BYTES)]
    inner = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    assert slice_digest(data) == hashlib.sha256(encode("slice", [len(raw), inner])).digest()


def test_every_bit_and_the_length_enter_the_slice_digest():
    data = np.zeros(2 * DIGEST_CHUNK_BYTES + 3, dtype=np.uint8)
    digests = {slice_digest(data), slice_digest(data[:-1]), slice_digest(np.append(data, np.uint8(0)))}
    for position in (0, DIGEST_CHUNK_BYTES - 1, DIGEST_CHUNK_BYTES, len(data) - 1):
        changed = data.copy()
        changed[position] ^= 128
        digests.add(slice_digest(changed))
    assert len(digests) == 7


# Masked slices and the accumulator


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize(("bits", "wire"), [(16, 21), (16, 24), (22, 32)])
def test_masks_cancel_in_the_sum_and_drop_outs_are_taken_out(size, bits, wire):
    everyone, dropped = range(1, 6), 3
    levels = {me: random_levels(size, bits, seed=me) for me in everyone}
    total = Accumulator(size, wire)
    present = [me for me in everyone if me != dropped]
    for me in present:
        total.add(masked_slice(Levels(levels[me], bits), masks_of(me, everyone), wire).data)
    own = [masks_of(me, everyone)[0] for me in present]
    # What the others applied against the one that dropped is the inverse of what it would have applied.
    against = [mask.inverse for mask in masks_of(dropped, everyone)[1:]]
    total.remove([*own, *against])
    sums, count = total.finish()
    assert count == len(present)
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(sums, sum(levels[me].view(np.int32).astype(np.int64) for me in present))


def test_slice_is_levels_and_the_count_under_the_masks():
    levels, masks = random_levels(GROUP_VALUES + 5, 16, seed=1), masks_of(2, range(1, 5))
    plain = np.append(levels, np.uint32(1))
    for bits in WIRE_BITS:
        # 21 bits are masked as the words that travel, the others as uint32 before they are packed.
        expected = pack(plain, bits).view(np.uint64) if bits == 21 else plain.copy()
        for mask in masks:
            block = BLOCK_BYTES // 4 * 2 // 3 if bits == 21 else BLOCK_BYTES // 4
            words = stream_of(mask.key, expected.nbytes // 4, block).view(expected.dtype)
            expected = expected + words if mask.adds else expected - words
        made = masked_slice(Levels(levels, 16), masks, bits)
        np.testing.assert_array_equal(made.data, expected.view(np.uint8) if bits == 21 else pack(expected, bits))
        assert made.digest == slice_digest(made.data)


@pytest.mark.parametrize("size", EDGES[-4:])
@pytest.mark.parametrize("bits", WIRE_BITS)
def test_result_does_not_depend_on_the_number_of_threads(size, bits):
    values = np.random.default_rng(5).normal(size=size).astype(np.float32)
    masks = masks_of(2, range(1, 5))

    def run(threads: int) -> tuple[PackedSlice, np.ndarray, int]:
        made = masked_slice(Quantiser(values, 1.0, 16, bytes(32)), masks, bits, threads)
        total = Accumulator(size, bits, threads)
        total.add(made.data)
        total.remove(masks)
        return made, *total.finish()

    one, sums, count = run(1)
    for threads in (2, 3, 7):
        other, other_sums, other_count = run(threads)
        np.testing.assert_array_equal(other.data, one.data)
        assert other.digest == one.digest
        np.testing.assert_array_equal(other_sums, sums)
        assert other_count == count == 1
    np.testing.assert_array_equal(sums.view(np.uint32), quantise(values, 1.0, 16, bytes(32)))


@pytest.mark.parametrize(
    ("members", "bits", "wire"), [(32, 16, 21), (2, 20, 21), (256, 16, 24), (16, 20, 24), (65_536, 16, 32), (3, 30, 32)]
)
def test_sums_at_both_ends_of_the_ring_come_out_with_their_sign(members, bits, wire):
    assert wire_bits(members, bits) == wire
    level = max_level(bits)
    total = Accumulator(5, wire)
    contribution = masked_slice(
        Levels(np.array([level, -level, 0, 1, -1], dtype=np.int32).view(np.uint32), bits), [], wire
    )
    for _ in range(members):
        total.add(contribution.data)
    sums, count = total.finish()
    assert sums.tolist() == [members * level, -members * level, 0, members, -members]
    assert count == members


def test_refused_slice_leaves_the_sum_as_it_was():
    total = Accumulator(3, 24)
    total.add(pack(np.array([1, 2, 3, 1], dtype=np.uint32), 24))
    with pytest.raises(SecAggError, match=f"^{Code.VECTOR_MISMATCH}"):
        total.add(pack(np.array([1, 2, 3, 1, 1], dtype=np.uint32), 24))
    sums, count = total.finish()
    assert (sums.tolist(), count) == ([1, 2, 3], 1)


def peak_bytes(work) -> int:
    """Peak of what Python and numpy allocate meanwhile, beyond what there was before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", WIRE_BITS)
def test_memory_is_the_result_and_a_few_blocks_whatever_the_cohort(bits):
    size, members = 20 * BLOCK_VALUES, 24
    values = np.zeros(size, dtype=np.float32)
    masks, block = masks_of(1, range(1, members + 1)), 4 * BLOCK_VALUES
    slices = []
    made = peak_bytes(lambda: slices.append(masked_slice(Quantiser(values, 1.0, 16, bytes(32)), masks, bits)))
    assert made < packed_bytes(size, bits) + 6 * block

    def sum_up() -> None:
        total = Accumulator(size, bits)
        for _ in range(members):
            total.add(slices[0].data)
        total.remove(masks * 10)
        total.finish()

    assert peak_bytes(sum_up) < 4 * size + 4 * block
