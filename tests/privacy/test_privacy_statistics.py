"""Noisy sums: bounded, noised as planned, indifferent to non-finite rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dp_fixtures import SilentNoise
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.errors import PrivacyError
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.plan import StatisticPlan
from secure_fed.privacy.statistics import clipped_sum, noisy_sum

PLAN = StatisticPlan(phase="ridge", bound=2.0, noise_multiplier=1.5)


def rows(n: int = 7, p: int = 5, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def test_rows_within_the_bound_are_summed_and_longer_ones_shortened_to_it():
    vectors = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    np.testing.assert_allclose(clipped_sum(vectors, 1.0).numpy(), [0.3 + 0.6, 0.4 + 0.8], rtol=1e-6)


@given(seed=st.integers(0, 10_000), bound=st.floats(1e-6, 1e6), scale=st.floats(1e-6, 1e12))
@settings(max_examples=60, deadline=None)
def test_no_row_moves_the_sum_by_more_than_the_bound(seed, bound, scale):
    vectors = rows(seed=seed).double() * scale
    whole = clipped_sum(vectors, bound)
    for i in range(len(vectors)):
        rest = clipped_sum(torch.cat([vectors[:i], vectors[i + 1 :]]), bound)
        # 7 summands of size `bound` in float64: rounding below 1e-14 of it.
        assert (whole - rest).norm() <= bound * (1 + 1e-14 * 100)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_zero(poison):
    vectors = rows()
    expected = clipped_sum(vectors[1:], 2.0)
    vectors[0, 3] = poison
    torch.testing.assert_close(clipped_sum(vectors, 2.0), expected)


def test_the_noise_has_the_planned_deviation_also_without_a_record():
    for n in (0, 50):
        vectors = torch.zeros(n, 20_000)
        noise = noisy_sum(vectors, PLAN, ReproducibleNoise(n))
        assert noise.dtype == np.float64
        # 4 standard errors of the deviation of 20,000 draws.
        assert abs(noise.std() / 3.0 - 1) < 4 / np.sqrt(40_000)


def test_without_noise_the_sum_is_the_clipped_sum():
    np.testing.assert_array_equal(noisy_sum(rows(), PLAN, SilentNoise(0)), clipped_sum(rows(), 2.0).numpy())


def test_anything_but_one_row_a_record_is_refused():
    with pytest.raises(PrivacyError, match="ridge"):
        noisy_sum(torch.zeros(3), PLAN, ReproducibleNoise(0))
