"""Known answers and algebra of encoding, key derivation, Shamir and parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import from_plain, identities, make_context

from secure_fed.errors import ConfigError, SecAggError
from secure_fed.secagg import (
    Code,
    ComponentSpec,
    SecAggParams,
    VectorSchema,
    default_threshold,
    shamir,
)
from secure_fed.secagg.encoding import decode, digest, encode
from secure_fed.secagg.keys import derive

VECTORS = Path(__file__).parent / "vectors"


def vectors(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text())["cases"]


# Canonical encoding


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


# Derived keys


@pytest.mark.parametrize("case", vectors("kdf"), ids=lambda case: case["name"])
def test_derived_key_has_its_known_value(case):
    secret, session = bytes.fromhex(case["secret"]), bytes.fromhex(case["session"])
    assert derive(secret, case["purpose"], session, case["details"]).hex() == case["key"]


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
