"""A patient with several records is charged for all of them at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from secure_fed.accounting import Mechanism, epsilon, joint_noise_multiplier, patient_epsilon
from secure_fed.accounting.groups import MOST_RECORDS
from secure_fed.errors import AccountingError

DELTA = 1e-5


def poisson(sigma=1.0, q=0.0625, steps=800):
    return Mechanism("poisson_gaussian", sigma, q, steps)


# The table of the house.
@pytest.mark.parametrize(("records", "wanted"), [(1, 12.6), (2, 30.7), (5, 113.0), (10, 336.0)])
def test_table_of_the_house(records, wanted):
    assert patient_epsilon([poisson()], DELTA, records) == pytest.approx(wanted, rel=5e-3)


def test_one_record_is_the_record():
    mechanisms = [poisson(), Mechanism("gaussian", 8.0, 1.0, 1)]
    assert patient_epsilon(mechanisms, DELTA, 1) == epsilon(mechanisms, DELTA)


@pytest.mark.parametrize("records", [2, 7])
def test_without_sampling_it_is_the_gaussian_of_as_many_times_the_sensitivity(records):
    # The group's shift is `records`, so noise counts for that much less: Balle and Wang 2018's form for it.
    found = patient_epsilon([Mechanism("gaussian", 12.0, 1.0, 4)], DELTA, records)
    assert found == pytest.approx(epsilon([Mechanism("gaussian", 12.0 / records, 1.0, 4)], DELTA), rel=2e-3)
    assert patient_epsilon([poisson(12.0, 1.0, 4)], DELTA, records) == pytest.approx(found, rel=2e-3)


def test_two_rarely_sampled_records_cost_at_least_one_that_is_sampled_twice_as_often():
    # Of two records at rate q at least one is in the sample with probability 2 q - q^2.
    assert patient_epsilon([poisson(q=0.01)], DELTA, 2) >= epsilon([poisson(q=0.0199)], DELTA)


@pytest.mark.parametrize(
    ("sigma", "records", "q"),
    [
        (0.7, 2, 0.3),
        (2.0, 3, 0.6),
        pytest.param(2.0, 2, 0.3, marks=pytest.mark.slow),
        pytest.param(0.7, 3, 0.6, marks=pytest.mark.slow),
    ],
)
def test_exact_divergence_of_one_step_is_covered_in_both_directions(sigma, records, q):
    x = np.linspace(-20, 24, 88_001)
    without = norm.pdf(x, 0, sigma)
    with_them = sum(binom.pmf(j, records, q) * norm.pdf(x, j, sigma) for j in range(records + 1))
    for delta in (0.1, 1e-2, 1e-4):
        claimed = patient_epsilon([poisson(sigma, q, 1)], delta, records)
        spent = [
            float(np.sum(np.maximum(upper - math.exp(claimed) * lower, 0)) * (x[1] - x[0]))
            for upper, lower in ((without, with_them), (with_them, without))
        ]
        assert max(spent) <= delta * (1 + 1e-6)
        assert max(spent) >= delta * 0.98  # and it is tight


def test_one_record_through_the_mixture_is_the_sampled_gaussian():
    mixture = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        1.0, [0.0, 1.0], [0.9375, 0.0625], value_discretization_interval=5e-3
    ).self_compose(800)
    assert mixture.get_epsilon_for_delta(DELTA) == pytest.approx(epsilon([poisson()], DELTA), rel=2e-3)


@settings(max_examples=3, deadline=None)
@given(st.floats(0.8, 8.0), st.floats(0.005, 0.4), st.integers(1, 300), st.integers(2, 6))
def test_more_records_never_cost_less(sigma, q, steps, records):
    here = patient_epsilon([poisson(sigma, q, steps)], DELTA, records)
    assert here <= patient_epsilon([poisson(sigma, q, steps)], DELTA, records + 1) * (1 + 2e-3) + 1e-4


def test_other_mechanisms_and_components_are_composed():
    parts = (2.0, 2.0, 2.0, 2.0)
    together = Mechanism("poisson_gaussian", joint_noise_multiplier(parts), 0.0625, 800, component_noise=parts)
    assert patient_epsilon([together], DELTA, 2) == patient_epsilon([poisson()], DELTA, 2)
    more = patient_epsilon([poisson(), Mechanism("gaussian", 8.0, 1.0, 1)], DELTA, 2)
    assert patient_epsilon([poisson()], DELTA, 2) < more
    assert patient_epsilon([poisson(steps=400)] * 2, DELTA, 2) == patient_epsilon([poisson()], DELTA, 2)


def test_capped_batch_costs_a_patient_more_than_an_uncapped_one():
    capped = Mechanism("truncated_poisson_gaussian", 1.0, 0.0625, 800, 64, 1000)
    assert patient_epsilon([capped], DELTA, 2) > 1.5 * patient_epsilon([poisson()], DELTA, 2)
    assert patient_epsilon([capped], DELTA, 1) == epsilon([capped], DELTA)


def test_nothing_costs_nothing_and_what_is_not_bounded_is_infinite():
    assert patient_epsilon([], DELTA, 5) == 0.0
    assert patient_epsilon([poisson(0.0)], DELTA, 5) == math.inf
    assert patient_epsilon([poisson()], DELTA, MOST_RECORDS + 1) == math.inf
    assert 500 < patient_epsilon([poisson(steps=2)], DELTA, MOST_RECORDS) < math.inf


@pytest.mark.parametrize("records", [0, -1, 2.0, True, None])
def test_number_of_records_that_is_none_is_named(records):
    with pytest.raises(AccountingError, match="records="):
        patient_epsilon([poisson()], DELTA, records)
