"""One hash for a model and one for an optimizer's state, in which every bit and every name counts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from secure_fed.errors import ConfigError
from secure_fed.strategies import State, Vector, parameters_digest, state_digest


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


PARAMETERS = {"fusion": vector(1, -2.5), "encoder.image": vector(0.1)}
STATES = {
    "fusion": State(3, {"first": vector(1, 2), "second": vector(3, 4)}),
    "encoder.image": State(1, {"first": vector(5), "second": vector(6)}),
}


def test_the_parameters_hash_is_as_documented() -> None:
    encoded = b"secure_fed parameters/1\0" + (2).to_bytes(8, "big")
    encoded += b"\0\0\0\x0dencoder.image" + (1).to_bytes(8, "big") + bytes.fromhex("cdcccc3d")
    encoded += b"\0\0\0\x06fusion" + (2).to_bytes(8, "big") + bytes.fromhex("0000803f000020c0")
    assert parameters_digest(PARAMETERS) == hashlib.sha256(encoded).digest()


def test_the_states_hash_is_as_documented() -> None:
    encoded = b"secure_fed optimizer state/1\0" + (1).to_bytes(8, "big")
    encoded += b"\0\0\0\x06fusion" + (3).to_bytes(8, "big") + (2).to_bytes(4, "big")
    encoded += b"\0\0\0\x05first" + (2).to_bytes(8, "big") + bytes.fromhex("0000803f00000040")
    encoded += b"\0\0\0\x06second" + (2).to_bytes(8, "big") + bytes.fromhex("0000404000008040")
    assert state_digest({"fusion": STATES["fusion"]}) == hashlib.sha256(encoded).digest()


def test_the_order_of_a_mapping_and_the_layout_in_memory_do_not_matter() -> None:
    spread = np.zeros(4, np.float32)[::2]
    spread[:] = PARAMETERS["fusion"]
    assert parameters_digest({"encoder.image": PARAMETERS["encoder.image"], "fusion": spread}) == parameters_digest(
        PARAMETERS
    )
    turned = {name: State(s.steps, dict(reversed(s.moments.items()))) for name, s in reversed(STATES.items())}
    assert state_digest(turned) == state_digest(STATES)


def test_every_difference_changes_the_parameters_hash() -> None:
    others = [
        {},
        {"fusion": vector(1, -2.5)},
        {"fusion": vector(1, np.nextafter(np.float32(-2.5), np.float32(0))), "encoder.image": vector(0.1)},
        {"fusion": vector(-2.5, 1), "encoder.image": vector(0.1)},
        {"fusion": vector(1), "encoder.image": vector(-2.5, 0.1)},
        {"encoder.image": vector(1, -2.5), "fusion": vector(0.1)},
        {"fusion": vector(1, -2.5), "encoder.imagf": vector(0.1)},
        {"fusion": vector(1, -2.5), "encoder.image": vector(0.1), "": vector()},
        {"a": vector(0.0)},
        {"a": vector(-0.0)},
    ]
    assert len({parameters_digest(each) for each in (PARAMETERS, *others)}) == 11


def test_every_difference_changes_the_states_hash() -> None:
    fusion, moments = STATES["fusion"], STATES["fusion"].moments
    others = [
        {},
        {"fusion": fusion},
        {**STATES, "fusion": State(4, moments)},
        {**STATES, "fusion": State(3, {"first": moments["second"], "second": moments["first"]})},
        {**STATES, "fusion": State(3, {"first": moments["first"]})},
        {
            **STATES,
            "fusion": State(
                3, {"first": vector(1, np.nextafter(np.float32(2), np.float32(3))), "second": moments["second"]}
            ),
        },
        {"fusion": STATES["encoder.image"], "encoder.image": fusion},
        {"fusion": State(0, moments)},
        {"fusion": State(3)},
    ]
    assert len({state_digest(each) for each in (STATES, *others)}) == 10


def test_a_component_that_took_no_step_counts_as_absent() -> None:
    assert state_digest({**STATES, "translator.a_to_b": State()}) == state_digest(STATES)


def test_the_two_hashes_never_coincide() -> None:
    assert parameters_digest({}) != state_digest({})


@pytest.mark.parametrize(
    "wrong", [np.zeros(2), np.zeros(2, ">f4"), np.zeros((1, 2), np.float32), np.zeros(2, np.int32)], ids=str
)
def test_only_flat_float32_vectors_are_hashed(wrong: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="fusion: expected a flat float32 vector"):
        parameters_digest({"fusion": wrong})
    with pytest.raises(ConfigError, match="first: expected a flat float32 vector"):
        state_digest({"fusion": State(1, {"first": wrong})})
