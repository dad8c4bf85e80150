"""A signature that held is not verified again; anything else about it is another question."""

from __future__ import annotations

import pytest

from secure_fed import identity, signatures
from secure_fed.identity import SigningKey
from secure_fed.secagg import keys


@pytest.fixture(autouse=True)
def nothing_remembered():
    signatures.forget()
    yield
    signatures.forget()


@pytest.fixture
def counted(monkeypatch) -> list[bytes]:
    """The public keys for which Ed25519 was really computed."""
    asked: list[bytes] = []

    class Counting:
        @staticmethod
        def from_public_bytes(public: bytes):
            asked.append(public)
            return real.from_public_bytes(public)

    real = signatures.Ed25519PublicKey
    monkeypatch.setattr(signatures, "Ed25519PublicKey", Counting)
    return asked


def test_what_held_is_verified_once_by_whichever_door_it_comes(counted) -> None:
    key = SigningKey.generate()
    signature = key.sign(b"message")
    assert identity.verify_signature(key.public_bytes, b"message", signature)
    assert keys.verify(key.public_bytes, signature, b"message")
    assert len(counted) == 1


def test_a_signature_that_held_does_not_make_another_one_hold() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"message")
    assert signatures.verify(key.public_bytes, signature, b"message")
    assert not signatures.verify(other.public_bytes, signature, b"message")
    assert not signatures.verify(key.public_bytes, signature, b"messagf")
    assert not signatures.verify(key.public_bytes, signature[:-1] + bytes([signature[-1] ^ 1]), b"message")
    # The same bytes in a row, cut in other places.
    assert not signatures.verify(key.public_bytes, signature[:-1], signature[-1:] + b"message")
    assert not signatures.verify(key.public_bytes, signature + b"m", b"essage")


def test_what_did_not_hold_is_verified_again_and_fills_nothing(counted) -> None:
    key = SigningKey.generate()
    for _ in range(3):
        assert not signatures.verify(key.public_bytes, bytes(64), b"message")
    assert len(counted) == 3
    assert not signatures._remembered


def test_so_many_are_remembered_and_no_more(monkeypatch, counted) -> None:
    monkeypatch.setattr(signatures, "MOST_REMEMBERED", 2)
    key = SigningKey.generate()
    signed = {message: key.sign(message) for message in (b"a", b"b", b"c")}
    for message, signature in signed.items():
        assert signatures.verify(key.public_bytes, signature, message)
    assert len(signatures._remembered) == 2
    assert signatures.verify(key.public_bytes, signed[b"a"], b"a")
    assert len(counted) == 4
