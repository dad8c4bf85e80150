"""Noisy sums: bounded, noised as planned, indifferent to non-finite rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from dp_fixtures import PAIRS, SilentNoise, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.errors import PrivacyError
from secure_fed.methods.ridge import moments
from secure_fed.models.batch import Batch
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.plan import StatisticPlan
from secure_fed.privacy.statistics import clipped_sum, noisy_sum

PLAN = StatisticPlan(phase="ridge", bound=2.0, noise_multiplier=1.5)


def rows(n: int = 7, p: int = 5, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def clipped_rows(vectors: torch.Tensor, bound: float) -> torch.Tensor:
    """Each row a unit of its own."""
    return clipped_sum(vectors, torch.arange(len(vectors)), bound)


def records(n: int, units: tuple[int, ...] | None = None) -> Batch:
    """`n` records without a modality; patients are the unit where their numbers are given."""
    nothing = torch.zeros(n, 1)
    if units is None:
        return Batch({}, {}, nothing, nothing)
    return Batch({}, {}, nothing, nothing, torch.tensor(units), "patient")


def test_rows_within_the_bound_are_summed_and_longer_ones_shortened_to_it():
    vectors = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    np.testing.assert_allclose(clipped_rows(vectors, 1.0).numpy(), [0.3 + 0.6, 0.4 + 0.8], rtol=1e-6)


@given(seed=st.integers(0, 10_000), bound=st.floats(1e-6, 1e6), scale=st.floats(1e-6, 1e12))
@settings(max_examples=60, deadline=None)
def test_no_row_moves_the_sum_by_more_than_the_bound(seed, bound, scale):
    vectors = rows(seed=seed).double() * scale
    whole = clipped_rows(vectors, bound)
    for i in range(len(vectors)):
        rest = clipped_rows(torch.cat([vectors[:i], vectors[i + 1 :]]), bound)
        # 7 summands of size `bound` in float64: rounding below 1e-14 of it.
        assert (whole - rest).norm() <= bound * (1 + 1e-14 * 100)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_zero(poison):
    vectors = rows()
    expected = clipped_rows(vectors[1:], 2.0)
    vectors[0, 3] = poison
    torch.testing.assert_close(clipped_rows(vectors, 2.0), expected)


def test_the_noise_has_the_planned_deviation_also_without_a_record():
    for n in (0, 50):
        vectors = torch.zeros(n, 20_000)
        noise = noisy_sum(vectors, records(n), PLAN, ReproducibleNoise(n))
        assert noise.dtype == np.float64
        # 4 standard errors of the deviation of 20,000 draws.
        assert abs(noise.std() / 3.0 - 1) < 4 / np.sqrt(40_000)


def test_without_noise_the_sum_is_the_clipped_sum():
    np.testing.assert_array_equal(
        noisy_sum(rows(), records(7), PLAN, SilentNoise(0)), clipped_rows(rows(), 2.0).numpy()
    )


def test_anything_but_one_row_a_record_is_refused():
    for wrong in (torch.zeros(3), torch.zeros(2, 5)):
        with pytest.raises(PrivacyError, match="ridge"):
            noisy_sum(wrong, records(3), PLAN, ReproducibleNoise(0))


# -- the patient as unit ----------------------------------------------------------------------------------------

PATIENTS = (0, 1, 0, 2, 1, 0, 3)
OF_PATIENTS = dataclasses.replace(PLAN, unit="patient", max_records_per_unit=3)


def per_patient(vectors: torch.Tensor, patients: tuple[int, ...], bound: float) -> torch.Tensor:
    """The slow way: sum a patient's rows, clip, add up."""
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for patient in set(patients):
        own = sum(row.double() for row, owner in zip(vectors, patients, strict=True) if owner == patient)
        total += own * min(1.0, bound / float(own.norm()))
    return total


def test_a_patients_rows_are_summed_before_they_are_clipped():
    vectors = rows()
    expected = per_patient(vectors, PATIENTS, 2.0)
    found = noisy_sum(vectors, records(7, PATIENTS), OF_PATIENTS, SilentNoise(0))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)
    assert not np.allclose(found, clipped_rows(vectors, 2.0).numpy())


@given(seed=st.integers(0, 10_000), bound=st.floats(1e-6, 1e6), scale=st.floats(1e-6, 1e12))
@settings(max_examples=40, deadline=None)
def test_no_patient_moves_the_sum_by_more_than_the_bound(seed, bound, scale):
    vectors = rows(seed=seed).double() * scale
    patients = torch.tensor(PATIENTS)
    whole = clipped_sum(vectors, patients, bound)
    for patient in range(4):
        others = patients != patient
        rest = clipped_sum(vectors[others], patients[others], bound)
        assert (whole - rest).norm() <= bound * (1 + 1e-14 * 100)


def test_only_the_first_k_max_rows_of_a_patient_count():
    vectors = rows()
    two = dataclasses.replace(OF_PATIENTS, max_records_per_unit=2)
    kept = torch.tensor([0, 1, 2, 3, 4, 6])
    found = noisy_sum(vectors, records(7, PATIENTS), two, SilentNoise(0))
    owners = tuple(PATIENTS[i] for i in kept)
    np.testing.assert_allclose(found, per_patient(vectors[kept], owners, 2.0).numpy(), rtol=1e-9)


def test_a_row_that_is_not_finite_drops_its_patient_and_nobody_else():
    vectors = rows()
    others = torch.tensor(PATIENTS) != 1
    expected = clipped_sum(vectors[others], torch.tensor(PATIENTS)[others], 2.0)
    vectors[4, 0] = float("nan")
    torch.testing.assert_close(clipped_sum(vectors, torch.tensor(PATIENTS), 2.0), expected)


@pytest.mark.parametrize(("batch", "statistic"), [(records(7), OF_PATIENTS), (records(7, PATIENTS), PLAN)])
def test_records_that_are_grouped_by_another_unit_than_the_plans_are_refused(batch, statistic):
    with pytest.raises(PrivacyError, match=f"unit='{statistic.unit}'.*'{batch.unit}'"):
        noisy_sum(rows(), batch, statistic, ReproducibleNoise(0))


def test_the_statistic_of_ridge_is_bounded_by_patient():
    model = make_model(translator={"name": "linear"})
    batch = make_batch(model, n=7, patients=PATIENTS)
    for present in batch.presence.values():
        present[:] = True
    statistic = dataclasses.replace(OF_PATIENTS, bound=19.0)
    whole = noisy_sum(moments(model, batch, None, PAIRS[0]), batch, statistic, SilentNoise(0))
    records_as_units = clipped_rows(moments(model, batch, None, PAIRS[0]), 19.0).numpy()
    # A record's statistic has about the length of the bound, so a patient of three has three times too much.
    assert np.linalg.norm(whole) < 0.8 * np.linalg.norm(records_as_units)
    for patient in range(4):
        rest = batch.select_units(torch.arange(4) != patient)
        without = noisy_sum(moments(model, rest, None, PAIRS[0]), rest, statistic, SilentNoise(0))
        assert np.linalg.norm(whole - without) <= 19.0 * (1 + 1e-9)
