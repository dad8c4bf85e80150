"""Known answers and algebra of encoding, PRG, Shamir, ring and parameters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import identities, make_context

from secure_fed.errors import ConfigError, SecAggError
from secure_fed.secagg import (
    Code,
    ComponentSpec,
    KeyStream,
    SecAggParams,
    VectorSchema,
    default_threshold,
    dequantise,
    largest_value_bits,
    masking,
    max_level,
    quantise,
    shamir,
    system_dither,
)
from secure_fed.secagg.encoding import decode, digest, encode
from secure_fed.secagg.keys import derive
from secure_fed.secagg.prg import BLOCK_BYTES
from secure_fed.secagg.ring import centre

VECTORS = Path(__file__).parent / "vectors"


def vectors(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text())["cases"]


# Canonical encoding


def from_plain(value):
    """JSON has no bytes: {"hex": ...} stands for them."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_plain(item) for key, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", vectors("encoding"), ids=lambda case: case["name"])
def test_encoding_has_its_known_bytes_and_reads_them_back(case):
    value = from_plain(case["value"])
    encoded = bytes.fromhex(case["encoded"])
    assert encode(case["domain"], value) == encoded
    assert decode(case["domain"], encoded) == value
    assert digest(case["domain"], value).hex() == case["sha256"]


VALUES = st.recursive(
    st.binary(max_size=9) | st.text(st.characters(codec="utf-8"), max_size=5) | st.integers(-(2**70), 2**70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(VALUES, VALUES)
def test_encoding_is_injective_and_round_trips(one, other):
    assert decode("test", encode("test", one)) == one
    assert (encode("test", one) == encode("test", other)) == (one == other)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(VALUES, st.data())
def test_decoder_takes_nothing_that_the_encoder_would_not_have_written(value, data):
    encoded = bytearray(encode("test", value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        read = decode("test", bytes(encoded))
    except SecAggError as error:
        assert error.code == Code.MALFORMED_MESSAGE  # noqa: PT017 - either outcome is right
    else:
        assert encode("test", read) == bytes(encoded)


@pytest.mark.parametrize("case", vectors("encoding_refused"), ids=lambda case: case["name"])
def test_malformed_bytes_are_refused(case):
    with pytest.raises(SecAggError, match=Code.MALFORMED_MESSAGE):
        decode("test", bytes.fromhex(case["encoded"]))


def test_bytes_of_one_domain_are_refused_in_another():
    with pytest.raises(SecAggError, match="not a mask message"):
        decode("mask", encode("share", [1]))


@pytest.mark.parametrize("value", [True, 1.5, None, {1: b""}, [object()]])
def test_values_without_a_canonical_form_are_programming_errors(value):
    with pytest.raises(TypeError):
        encode("test", value)


# PRG


@pytest.mark.parametrize("case", vectors("prg"), ids=lambda case: case["name"])
def test_keystream_has_its_known_words(case):
    words = np.zeros(len(case["words"]), dtype=np.uint32)
    KeyStream(bytes.fromhex(case["key"])).fill(words)
    assert words.tolist() == case["words"]


@pytest.mark.parametrize("size", [1, 7, BLOCK_BYTES // 4, BLOCK_BYTES // 4 + 1, 3 * BLOCK_BYTES // 4 + 5])
def test_keystream_is_raw_aes_ctr_across_blocks(size):
    key = bytes(range(32))
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    raw = np.frombuffer(cipher.update(bytes(4 * size)), dtype="<u4")
    words = np.zeros(size, dtype=np.uint32)
    KeyStream(key).fill(words)
    np.testing.assert_array_equal(words, raw)


def test_adding_and_subtracting_a_keystream_cancel():
    start = np.arange(100_000, dtype=np.uint32)
    target = start.copy()
    KeyStream(bytes(32)).add_to(target)
    assert (target != start).mean() > 0.99
    KeyStream(bytes(32)).subtract_from(target)
    np.testing.assert_array_equal(target, start)


def test_keystream_refuses_another_type_or_key_length():
    with pytest.raises(ValueError, match="float32"):
        KeyStream(bytes(32)).add_to(np.zeros(4, dtype=np.float32))
    with pytest.raises(ValueError, match="16 bytes"):
        KeyStream(bytes(16))


@pytest.mark.parametrize("case", vectors("kdf"), ids=lambda case: case["name"])
def test_derived_key_has_its_known_value(case):
    secret, session = bytes.fromhex(case["secret"]), bytes.fromhex(case["session"])
    assert derive(secret, case["purpose"], session, case["details"]).hex() == case["key"]


def test_no_two_masks_share_a_keystream():
    """Other secret, session, component or member: other words. The same pair from either side cancels."""
    one, two = bytes(32), b"\x01" * 32

    def words(mask, *arguments) -> bytes:
        target = np.zeros(4, dtype=np.uint32)
        mask(target, *arguments)
        return target.tobytes()

    masks = [
        words(masking.apply_self_mask, one, one, "site01", "image"),
        words(masking.apply_self_mask, two, one, "site01", "image"),
        words(masking.apply_self_mask, one, two, "site01", "image"),
        words(masking.apply_self_mask, one, one, "site02", "image"),
        words(masking.apply_self_mask, one, one, "site01", "text"),
        words(masking.apply_pair_mask, one, one, "site01", "site02", "image"),
        words(masking.apply_pair_mask, two, one, "site01", "site02", "image"),
        words(masking.apply_pair_mask, one, two, "site01", "site02", "image"),
        words(masking.apply_pair_mask, one, one, "site01", "site03", "image"),
        words(masking.apply_pair_mask, one, one, "site01", "site02", "text"),
    ]
    assert len(set(masks)) == len(masks)
    both = np.zeros(4, dtype=np.uint32)
    masking.apply_pair_mask(both, one, one, "site01", "site02", "image")
    masking.apply_pair_mask(both, one, one, "site02", "site01", "image")
    assert not both.any()


# Shamir


@pytest.mark.parametrize("case", vectors("shamir"), ids=lambda case: case["name"])
def test_shamir_has_its_known_shares(case):
    coefficients = [int(text, 16) for text in case["coefficients"]]
    shares = {int(point): int(text, 16) for point, text in case["shares"].items()}
    for point, share in shares.items():
        assert shamir.evaluate(coefficients, point) == share
    assert shamir.combine(shares, len(coefficients)).hex() == case["coefficients"][0]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret, threshold, data):
    points = data.draw(st.lists(st.integers(1, 100), min_size=threshold, max_size=12, unique=True))
    shares = shamir.split(secret, threshold, points)
    subset = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine({point: shares[point] for point in subset}, threshold) == secret
    if threshold > 1:
        with pytest.raises(SecAggError, match=Code.BELOW_THRESHOLD):
            shamir.combine({point: shares[point] for point in subset[1:]}, threshold)


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """For t - 1 shares and any other secret there is a polynomial through both: the shares say nothing."""
    shares = shamir.split(bytes(range(32)), 3, [1, 2, 3])
    for other in (bytes(32), b"\xff" * 32):
        # The line through (0, other), (1, y1), (2, y2) as a third share at 3, by Lagrange over those points.
        p, zero = shamir.PRIME, int.from_bytes(other, "big")
        third = (zero - 3 * shares[1] + 3 * shares[2]) % p
        assert shamir.combine({1: shares[1], 2: shares[2], 3: third}, 3) == other


def test_field_is_a_prime_field_larger_than_every_secret():
    p = shamir.PRIME
    assert p > 2**256
    odd, twos = p - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller-Rabin
        x = pow(base, odd, p)
        assert x in (1, p - 1) or any(pow(x, 2**power, p) == p - 1 for power in range(1, twos))


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(bytes(31), 2, [1, 2]), (bytes(32), 3, [1, 2]), (bytes(32), 2, [0, 1]), (bytes(32), 2, [1, 1])],
)
def test_shamir_refuses_wrong_lengths_thresholds_and_points(secret, threshold, points):
    with pytest.raises(ValueError):
        shamir.split(secret, threshold, points)


# Ring


def fixed_dither(seed: int):
    return KeyStream(seed.to_bytes(32, "big")).fill


def test_stochastic_rounding_is_unbiased():
    """The mean of m roundings of x has standard deviation at most step / (2 sqrt(m)); six of them is 1e-9."""
    repeats, clip, bits = 200_000, 1.0, 8
    step = clip / max_level(bits)
    for number, x in enumerate((0.0, 0.3 * step, -0.3 * step, 0.5, -0.7117, 0.99 * step)):
        levels = centre(quantise(np.full(repeats, x, dtype=np.float32), clip, bits, fixed_dither(number)))
        assert set(np.unique(levels)) <= {np.floor(x / step), np.floor(x / step) + 1}
        error = dequantise(levels, clip, bits).mean() - np.float32(x)
        assert abs(error) < 6 * step / (2 * np.sqrt(repeats))


def test_sum_of_quantised_vectors_is_within_one_step_a_contributor():
    rng = np.random.default_rng(3)
    updates = rng.uniform(-1, 1, (10, 5000)).astype(np.float32)
    total = np.zeros(5000, dtype=np.uint32)
    for update in updates:
        total += quantise(update, 1.0, 16, system_dither())
    decoded = dequantise(centre(total), 1.0, 16)
    assert np.abs(decoded - updates.astype(np.float64).sum(axis=0)).max() < 10 / max_level(16)


def test_values_are_clipped_and_zero_and_the_bounds_are_exact():
    values = np.array([0.0, 2.0, -2.0, 9.0, -1e30], dtype=np.float32)
    levels = centre(quantise(values, 2.0, 16, system_dither()))
    assert levels.tolist() == [0, 32767, -32767, 32767, -32767]
    assert dequantise(levels, 2.0, 16).tolist() == [0.0, 2.0, -2.0, 2.0, -2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_refused_by_code(bad):
    with pytest.raises(SecAggError, match=Code.NOT_FINITE):
        quantise(np.array([0.0, bad], dtype=np.float32), 1.0, 16, system_dither())


@pytest.mark.parametrize("members", [3, 10, 100, 1000, 65_536])
def test_largest_value_bits_is_the_last_that_cannot_wrap_around(members):
    bits = largest_value_bits(members)
    assert members * max_level(bits) < 2**31
    assert members * max_level(bits + 1) >= 2**31 or bits == 31


# Parameters


def params(**changes) -> SecAggParams:
    base = {"members": 10, "threshold": 7, "max_corrupt": 2, "min_cohort": 7, "value_bits": 16, "clip": 1.0}
    return SecAggParams(**{**base, **changes})


@pytest.mark.parametrize(
    ("members", "corrupt", "threshold"), [(10, 2, 7), (30, 6, 19), (50, 10, 31), (100, 20, 61), (3, 1, 3)]
)
def test_default_threshold_is_the_smallest_that_makes_survivors_unique(members, corrupt, threshold):
    assert default_threshold(members, corrupt) == threshold
    assert 2 * threshold > members + corrupt >= 2 * (threshold - 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"members": 2, "threshold": 2, "max_corrupt": 0, "min_cohort": 2}, "members=2: at least 3"),
        ({"threshold": 6}, "threshold=6 allows two survivor lists for n=10, C=2.* at least 7"),
        ({"threshold": 11}, "threshold=11 can never be met"),
        ({"max_corrupt": 10}, r"max_corrupt=10 is not within 0\.\.9"),
        ({"min_cohort": 11}, r"min_cohort=11 is not within 1\.\.10"),
        ({"value_bits": 30}, "value_bits=30 with n=10 .* largest allowed is value_bits=28"),
        ({"value_bits": 1}, "value_bits=1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"min_contributors": 0}, "min_contributors=0"),
        ({"floors": {"fusion": 0}, "dp_only": frozenset({"fusion"})}, "floor 0"),
        ({"floors": {"fusion": 3}}, "floor 3 of component 'fusion' is below .* = 4.*dp_only"),
        ({"floors": {"fusion": 4}, "dp_only": frozenset({"fusion"})}, "dp_only names component 'fusion'"),
    ],
)
def test_parameters_that_protect_nobody_are_refused_with_the_way_out(changes, text):
    with pytest.raises(ConfigError, match=text):
        params(**changes)


def test_small_cohorts_and_missing_slack_are_said_aloud():
    notes = params(members=3, threshold=3, max_corrupt=1, min_cohort=3).cautions()
    assert any("3 members" in note for note in notes)
    assert any("no member may drop out" in note for note in notes)
    assert params().cautions() == ()


def test_component_whose_owners_cannot_reach_its_floor_is_refused_at_setup():
    with pytest.raises(ConfigError, match="'rare' has 2 owners and its floor is 3"):
        make_context(6, 1, {"rare": (4, {0, 1}), "fusion": (4, set(range(6)))})


def test_schema_refuses_empty_repeated_and_ownerless_components():
    everyone = frozenset(identities(3))
    for specs, text in [
        ((), "no component"),
        ((ComponentSpec("a", 1, everyone), ComponentSpec("a", 2, everyone)), "more than once"),
        ((ComponentSpec("a", 0, everyone),), "size 0"),
        ((ComponentSpec("a", 1, frozenset()),), "no owner"),
    ]:
        with pytest.raises(ConfigError, match=text):
            VectorSchema(specs)


def test_session_ids_differ_in_everything_they_bind():
    base = make_context(5)
    contexts = [
        base,
        make_context(5, run="other"),
        make_context(5, round_=2),
        make_context(5, attempt=1),
        make_context(5, value_bits=12),
        make_context(6),
    ]
    assert len({context.kid for context in contexts}) == len(contexts)
    sids = {
        base.sid(bytes(32), ["site01", "site02"], bytes(32)),
        base.sid(b"\x01" * 32, ["site01", "site02"], bytes(32)),
        base.sid(bytes(32), ["site01", "site03"], bytes(32)),
        base.sid(bytes(32), ["site01", "site02"], b"\x01" * 32),
        make_context(5, components={"fusion": (9, set(range(5)))}).sid(bytes(32), ["site01", "site02"], bytes(32)),
    }
    assert len(sids) == 5
