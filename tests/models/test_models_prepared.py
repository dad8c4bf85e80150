"""Prepared inputs are kept by what they were made of: never given out for other values, and bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secure_fed.models.prepared import PreparedCache, content_digest


def counting(calls: list[int]):
    def prepare(raw: np.ndarray) -> torch.Tensor:
        calls.append(len(raw))
        return torch.tensor([float(len(str(value))) for value in raw.ravel()])

    return prepare


def test_the_same_values_are_prepared_once_and_any_other_anew() -> None:
    cache, calls = PreparedCache(), []
    raw = np.arange(6, dtype=np.float32).reshape(3, 2)
    first = cache.of(raw, counting(calls))
    assert cache.of(raw.copy(), counting(calls)) is first
    changed = raw.copy()
    changed[2, 1] = np.nextafter(changed[2, 1], np.float32(9))
    cache.of(changed, counting(calls))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array(["ab", "c"], dtype=object), np.array(["a", "bc"], dtype=object)),
        (np.array(["", ""], dtype=object), np.array([""], dtype=object)),
        (np.zeros((2, 3), dtype=np.float32), np.zeros((3, 2), dtype=np.float32)),
        (np.zeros(2, dtype=np.float32), np.zeros(1, dtype=np.float64)),
    ],
)
def test_values_that_only_look_alike_have_other_digests(one, other) -> None:
    assert content_digest(one) != content_digest(other)


def test_the_least_used_is_dropped_when_the_bytes_are_used_up() -> None:
    cache, calls = PreparedCache(most_bytes=3 * 4 * 2), []
    a, b, c = (np.full((3, 1), value, dtype=np.float32) for value in (1.0, 2.0, 3.0))
    for raw in (a, b, a, c, a):
        cache.of(raw, counting(calls))
    assert len(calls) == 3
    cache.of(b, counting(calls))
    assert len(calls) == 4
