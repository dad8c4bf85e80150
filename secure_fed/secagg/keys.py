"""The cryptographic tools of the protocol under the names of their purposes, over pyca/cryptography.

X25519 agreement, HKDF-SHA256 with an encoded purpose, AES-256-GCM, hash commitments, Ed25519 verification.
"""

from __future__ import annotations

import secrets
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_fed import signatures
from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code
from secure_fed.secagg.encoding import Value, digest, encode

KEY_BYTES = 32
SIGNATURE_BYTES = 64
HASH_BYTES = 32
_NONCE_BYTES = 12
_ANY_PRIVATE = X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))  # clamped, so 2^254: no secret, only a test


def fresh_secret() -> bytes:
    """32 bytes from the operating system's generator: a self-mask seed or an X25519 private key."""
    return secrets.token_bytes(KEY_BYTES)


def public_of(private: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a 32-byte private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """The X25519 shared secret (RFC 7748), 32 bytes.

    Raises:
        SecAggError: `bad_key` for a point of low order, whose shared secret everybody knows.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecAggError(Code.BAD_KEY, "the public key is of low order") from None


@lru_cache(maxsize=1 << 12)  # a public key is asked about once by every member, and a process may simulate them all
def is_usable(public: bytes) -> bool:
    """Whether agreement with `public` gives a secret; a point of low order fails with any private key."""
    try:
        _ANY_PRIVATE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def derive(secret: bytes, purpose: str, session: bytes, details: Value) -> bytes:
    """A 32-byte key for one purpose: HKDF-SHA256 (RFC 5869), salt = session id, info = encoded details."""
    kdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=session, info=encode(f"kdf/{purpose}", details))
    return kdf.derive(secret)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM with a random nonce in front; random, so that a replayed state cannot repeat one."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext of `seal`.

    Raises:
        SecAggError: `share_unreadable` if key, content or associated data differ in a bit.
    """
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated)
    except (InvalidTag, ValueError):
        raise SecAggError(Code.SHARE_UNREADABLE, "a sealed share does not open") from None


def commit(kid: bytes, owner: str, component: str, seed: bytes) -> bytes:
    """Commitment to a self-mask seed; hiding because the seed has 256 random bits, binding by SHA-256."""
    return digest("seed-commitment", [kid, owner, component, seed])


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the Ed25519 signature (RFC 8032) of `message` under the 32-byte key `public`."""
    return signatures.verify(public, signature, message)
