"""The ring: quantiser, levels and bounds. Known answers, exact expectations, extremes and refusals."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.errors import ConfigError, SecAggError
from secure_fed.secagg import ring
from secure_fed.secagg.codes import Code
from secure_fed.secagg.masking import masked_slice
from secure_fed.secagg.packing import BLOCK_VALUES
from secure_fed.secagg.prg import TAG_BYTES, KeyStream
from secure_fed.secagg.ring import Levels, Quantiser, dequantise, largest_value_bits, max_level, quantise, wire_bits

VECTORS = Path(__file__).parent / "vectors"


def quantiser_vectors() -> list[dict]:
    return json.loads((VECTORS / "quantiser.json").read_text())["cases"]


def float32(value: float) -> float:
    """Rounded to the nearest float32; infinite beyond."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def level_by_the_book(x: float, clip: float, bits: int, word: int, weight: float) -> int:
    """The rounding rule of `Quantiser` in exact arithmetic but for the two roundings to float32 that it names."""
    fraction_bits = min(16, 32 - bits)
    largest = max_level(bits) << fraction_bits
    bound = min(largest, 2**31 - 128)
    product = float32(x * float32(weight * largest / clip))
    fixed = round(Fraction(min(max(product, -bound), bound)))  # half to even, as rint
    return (fixed + (word >> (16 - fraction_bits))) >> fraction_bits


@pytest.mark.parametrize("case", quantiser_vectors(), ids=lambda case: case["name"])
def test_quantiser_has_its_known_levels(case):
    values = np.frombuffer(bytes.fromhex(case["values"]), dtype="<f4")
    key = bytes.fromhex(case["dither_key"])
    levels = quantise(values, case["clip"], case["value_bits"], key, case["weight"])
    assert levels.view(np.int32).tolist() == case["levels"]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1.0),
    st.integers(2, 31),
    st.integers(0, 2**32),
)
def test_quantiser_follows_its_rule_to_the_bit(values, clip, weight, bits, seed):
    key = seed.to_bytes(32, "big")
    levels = quantise(np.array(values, dtype=np.float32), clip, bits, key, weight).view(np.int32)
    words = KeyStream(key).write(0, np.empty(2 * len(values) + TAG_BYTES, dtype=np.uint8)).view(np.uint16)
    expected = [level_by_the_book(x, clip, bits, int(word), weight) for x, word in zip(values, words, strict=True)]
    assert levels.tolist() == expected
    assert np.abs(levels).max() <= max_level(bits)


class EveryDither:
    """Stands in for the keystream: over 2^F values, at most 2 blocks, each of the 2^F dithers comes exactly once."""

    bits: int

    def __init__(self, key: bytes) -> None:
        del key

    def write(self, index: int, room: np.ndarray) -> np.ndarray:
        words = room[:-TAG_BYTES].view(np.uint16)
        words[:] = (np.arange(len(words)) + index * BLOCK_VALUES) << max(0, self.bits - 16) & 0xFFFF
        return room[:-TAG_BYTES]


@pytest.mark.parametrize("bits", [12, 16, 17, 20, 24, 28])
@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 1 / 3, -0.7117, 1e-3, -1e-7, 3e-9, 0.999999, -2.5])
def test_mean_over_all_dithers_is_the_value_within_two_float32_roundings(bits, share, monkeypatch):
    """No sampling: the mean of the level over every dither is exact, and within the stated bound of x / step."""
    monkeypatch.setattr(EveryDither, "bits", bits, raising=False)
    monkeypatch.setattr(ring, "KeyStream", EveryDither)
    clip, weight, fraction_bits = 0.37, 0.8, min(16, 32 - bits)
    x = np.float32(share * clip / weight)
    levels = quantise(np.full(2**fraction_bits, x, dtype=np.float32), clip, bits, bytes(32), weight)
    mean = Fraction(int(levels.view(np.int32).sum(dtype=np.int64)), 2**fraction_bits)
    clipped = min(max(Fraction(float(x)) * Fraction(weight), -Fraction(clip)), Fraction(clip))
    error = abs(mean * Fraction(clip) / max_level(bits) - clipped)
    relative = Fraction(1, 2**23) + Fraction(1, 2**48)  # (1 + 2^-24)^2 - 1, and its last bit
    step = Fraction(clip) / max_level(bits)
    assert error <= abs(clipped) * relative + step / 2 ** (fraction_bits + 1)


@pytest.mark.parametrize(("dither", "name"), [(0, "smallest"), (2**16 - 1, "largest")])
@pytest.mark.parametrize("bits", range(2, 32))
def test_no_dither_pushes_a_level_beyond_the_bound(bits, dither, name, monkeypatch):
    class Constant(EveryDither):
        def write(self, index: int, room: np.ndarray) -> np.ndarray:
            room[:-TAG_BYTES].view(np.uint16)[:] = dither
            return room[:-TAG_BYTES]

    monkeypatch.setattr(ring, "KeyStream", Constant)
    clip, level = 2.0, max_level(bits)
    values = np.array([clip, -clip, 1e30, -1e30, 3.4e38, -3.4e38, 0.0, -0.0], dtype=np.float32)
    levels = quantise(values, clip, bits, bytes(32)).view(np.int32)
    assert levels[6:].tolist() == [0, 0]
    if bits <= 25:
        assert levels[:6].tolist() == 3 * [level, -level]
    else:  # 2^31 - 2^(32-b) is no float32: the bound is the next one below, 2^-24 of it away
        assert (np.abs(levels[:6].astype(np.int64)) <= level).all()
        assert (np.abs(levels[:6].astype(np.int64)) >= level * (1 - 2**-24) - 1).all()


def test_stochastic_rounding_is_unbiased_with_the_keystream_itself():
    """The mean of m roundings of x has standard deviation at most step / (2 sqrt(m)); six of them is 1e-9."""
    repeats, clip, bits = 200_000, 1.0, 8
    step = clip / max_level(bits)
    for number, x in enumerate((0.0, 0.3 * step, -0.3 * step, 0.5, -0.7117, 0.99 * step)):
        values = np.full(repeats, x, dtype=np.float32)
        levels = quantise(values, clip, bits, number.to_bytes(32, "big")).view(np.int32)
        assert set(np.unique(levels)) <= {np.floor(x / step), np.floor(x / step) + 1}
        error = dequantise(levels, clip, bits).mean() - np.float32(x)
        assert abs(error) < 6 * step / (2 * np.sqrt(repeats))


def test_rounding_errors_of_neighbouring_values_are_uncorrelated():
    """The lag-1 correlation of m independent errors has standard deviation 1 / sqrt(m)."""
    repeats = 200_000
    levels = quantise(np.full(repeats, 0.25, dtype=np.float32), 127.0, 8, b"\x05" * 32).view(np.int32)
    error = levels - 0.25
    assert abs(np.mean(error[1:] * error[:-1]) / np.var(error)) < 6 / np.sqrt(repeats)


def test_sum_of_quantised_vectors_is_within_one_step_a_contributor():
    rng = np.random.default_rng(3)
    updates = rng.uniform(-1, 1, (10, 5000)).astype(np.float32)
    total = np.zeros(5000, dtype=np.uint32)
    for number, update in enumerate(updates):
        total += quantise(update, 1.0, 16, bytes([number]) * 32)
    decoded = dequantise(total.view(np.int32), 1.0, 16)
    assert np.abs(decoded - updates.astype(np.float64).sum(axis=0)).max() < 10 / max_level(16)


def test_values_are_clipped_and_zero_and_the_bounds_are_exact():
    values = np.array([0.0, 2.0, -2.0, 9.0, -1e30], dtype=np.float32)
    levels = quantise(values, 2.0, 16, bytes(32)).view(np.int32)
    assert levels.tolist() == [0, 32767, -32767, 32767, -32767]
    assert dequantise(levels, 2.0, 16).tolist() == [0.0, 2.0, -2.0, 2.0, -2.0]


def test_clip_holds_for_the_weighted_value():
    values = np.array([1.0, 4.0, -8.0], dtype=np.float32)
    levels = quantise(values, 1.0, 16, bytes(32), weight=0.25).view(np.int32)
    assert levels[1:].tolist() == [32767, -32767]
    assert levels[0] in (8191, 8192)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK_VALUES - 1, BLOCK_VALUES, BLOCK_VALUES + 40])
def test_value_that_is_not_finite_is_refused_by_code_and_nothing_comes_out(bad, place):
    values = np.zeros(BLOCK_VALUES + 41, dtype=np.float32)
    values[place] = bad
    with pytest.raises(SecAggError, match=f"^{Code.NOT_FINITE}"):
        quantise(values, 1.0, 16, bytes(32))
    with pytest.raises(SecAggError, match=f"^{Code.NOT_FINITE}"):
        masked_slice(Quantiser(values, 1.0, 16, bytes(32)), [], 24, threads=2)


@pytest.mark.parametrize(
    ("clip", "weight", "text"),
    [
        (0.0, 1.0, "clip=0.0"),
        (math.inf, 1.0, "clip=inf"),
        (math.nan, 1.0, "clip=nan"),
        (1.0, -1.0, "weight=-1.0"),
        (1e-35, 1.0, "clip=1e-35 .* does not fit float32"),
        (1e30, 1e-30, "does not fit float32"),
    ],
)
def test_clip_and_weight_that_float32_cannot_scale_by_are_refused(clip, weight, text):
    with pytest.raises(ConfigError, match=text):
        Quantiser(np.zeros(3, dtype=np.float32), clip, 16, bytes(32), weight)


def test_quantiser_takes_float32_vectors_only():
    for wrong in (np.zeros(3), np.zeros((3, 1), dtype=np.float32), np.zeros(3, dtype=np.float16)):
        with pytest.raises(SecAggError, match=f"^{Code.VECTOR_MISMATCH}"):
            Quantiser(wrong, 1.0, 16, bytes(32))


# Levels and the ring


def test_levels_beyond_one_contribution_are_refused():
    top = np.array([max_level(16), -max_level(16)], dtype=np.int32)
    assert Levels(top.view(np.uint32), 16).size == 2
    for wrong in ([2**15, 0], [0, -(2**15)], [-(2**31), 0], [2**31 - 1, 0]):
        with pytest.raises(SecAggError, match=f"^{Code.OUT_OF_RANGE}"):
            Levels(np.array(wrong, dtype=np.int32).view(np.uint32), 16)
    for wrong in (top, top.view(np.uint32).reshape(2, 1), top.astype(np.uint64)):
        with pytest.raises(SecAggError, match=f"^{Code.VECTOR_MISMATCH}"):
            Levels(wrong, 16)


@pytest.mark.parametrize(
    ("members", "bits", "expected"),
    [(10, 16, 21), (32, 16, 21), (33, 16, 24), (256, 16, 24), (257, 16, 32), (10, 20, 24), (17, 20, 32), (3, 30, 32)],
)
def test_wire_has_the_fewest_bits_in_which_no_sum_can_wrap(members, bits, expected):
    assert wire_bits(members, bits) == expected
    assert members * max_level(bits) < 2 ** (expected - 1)


@pytest.mark.parametrize("members", [3, 10, 100, 1000, 65_536])
def test_largest_value_bits_is_the_last_that_cannot_wrap_around(members):
    bits = largest_value_bits(members)
    assert members * max_level(bits) < 2**31
    assert members * max_level(bits + 1) >= 2**31 or bits == 31
