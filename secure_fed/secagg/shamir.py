"""Shamir's secret sharing (1979) of 32-byte secrets over the prime field of 2^256 + 297.

The field is larger than every secret, so a secret is shared as one element; points are public member indices.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod

from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code

PRIME = 2**256 + 297  # the smallest prime above 2^256
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, int]:
    """Share a 32-byte secret: point -> share, any `threshold` of which give it back and fewer say nothing.

    Raises:
        ValueError: the secret has another length, a point is 0 or repeated, or there are fewer points than
            the threshold.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret has {len(secret)} bytes, expected {SECRET_BYTES}")
    xs = list(points)
    if len(set(xs)) != len(xs) or any(not 0 < x < PRIME for x in xs):
        raise ValueError(f"points {xs} are not distinct and positive")
    if not 1 <= threshold <= len(xs):
        raise ValueError(f"threshold {threshold} is not within 1..{len(xs)}, the number of points")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: evaluate(coefficients, x) for x in xs}


def evaluate(coefficients: Sequence[int], point: int) -> int:
    """The polynomial with these coefficients (constant first) at `point`, in the field; Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, int], threshold: int) -> bytes:
    """The 32-byte secret behind `shares` (point -> share); the lowest `threshold` points are used.

    Raises:
        SecAggError: `below_threshold` with too few shares; `wrong_secret` where they give a
            constant that does not fit into 32 bytes. Other wrong shares give a wrong secret:
            compare with a commitment.
    """
    if len(shares) < threshold:
        raise SecAggError(Code.BELOW_THRESHOLD, f"{len(shares)} shares of the {threshold} needed")
    points = tuple(sorted(shares)[:threshold])
    weights = _weights_at_zero(points)
    value = sum(weight * shares[point] for weight, point in zip(weights, points, strict=True)) % PRIME
    if value >= 2 ** (8 * SECRET_BYTES):
        raise SecAggError(Code.WRONG_SECRET, "the shares give no 32-byte secret")
    return value.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=1024)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's basis polynomials at zero; the secrets of a round are combined over few point sets.

    The denominators are inverted together (Montgomery's trick): one modular inverse a point set.
    """
    numerators = [prod(other for other in points if other != x) for x in points]
    denominators = [prod(other - x for other in points if other != x) for x in points]
    before = list(accumulate(denominators, lambda product, factor: product * factor % PRIME, initial=1))
    inverse = pow(before.pop(), -1, PRIME)
    weights = []
    for numerator, denominator, product in zip(*map(reversed, (numerators, denominators, before)), strict=True):
        weights.append(numerator * inverse * product % PRIME)
        inverse = inverse * denominator % PRIME
    return tuple(reversed(weights))
