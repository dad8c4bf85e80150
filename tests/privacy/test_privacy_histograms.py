"""Noised counts: bounded by unit, whole numbers, noise as planned and everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from dp_fixtures import SilentNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secure_fed.accounting import Mechanism
from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.privacy.histograms import CellMap, HistogramPlan, exact_counts, noisy_counts
from secure_fed.privacy.noise import ReproducibleNoise

GROUPS, WIDTH, SLICES = 3, 4, ("evaluation.image", "evaluation.text")


def records(rows: int, units: Sequence[int] | None = None) -> Batch:
    """Records that know their own number, so that a map can tell them apart."""
    own = torch.arange(rows).unsqueeze(1)
    nothing = torch.zeros(rows, 1)
    patients = None if units is None else torch.tensor(units, dtype=torch.int64)
    return Batch({"x": own}, {}, nothing, nothing, patients, "record" if units is None else "patient")


def maps(touched: torch.Tensor) -> dict[str, CellMap]:
    """touched: int64 [slices, rows, groups]."""

    def of(index: int) -> CellMap:
        return lambda batch: touched[index][batch.inputs["x"][:, 0]]

    return {name: of(index) for index, name in enumerate(SLICES)}


def plan(noise: float = 1.0, unit: str = "record") -> HistogramPlan:
    return HistogramPlan(phase="evaluation", groups=GROUPS * len(SLICES), noise_multiplier=noise, unit=unit)


def flat(counts: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([counts[name] for name in SLICES]).astype(np.int64)


@given(
    seed=st.integers(0, 10_000),
    units=st.lists(st.integers(0, 5), min_size=1, max_size=14),
    unit=st.sampled_from(["record", "patient"]),
)
@settings(max_examples=80, deadline=None)
def test_leaving_out_a_unit_moves_the_counts_of_all_labels_and_views_by_no_more_than_the_bound(seed, units, unit):
    generator = torch.Generator().manual_seed(seed)
    # Cells beyond the group and negative ones too: whatever a map says, a unit touches one place in a group.
    touched = torch.randint(-2, WIDTH + 2, (len(SLICES), len(units), GROUPS), generator=generator)
    batch = records(len(units), units if unit == "patient" else None)
    whole = flat(exact_counts(maps(touched), GROUPS, WIDTH, batch))
    bound = plan(unit=unit).bound
    assert bound == math.sqrt(len(SLICES) * GROUPS)
    for one in batch.units.unique():
        rest = flat(exact_counts(maps(touched), GROUPS, WIDTH, batch.select(batch.units != one)))
        assert np.linalg.norm(whole - rest) <= bound + 1e-12


def test_the_bound_is_reached_and_not_only_respected():
    touched = torch.zeros(len(SLICES), 1, GROUPS, dtype=torch.int64)
    whole = flat(exact_counts(maps(touched), GROUPS, WIDTH, records(1)))
    assert np.linalg.norm(whole) == plan().bound


def test_of_a_patient_with_many_records_one_counts_and_it_is_the_same_in_every_slice():
    touched = torch.tensor([[[1] * GROUPS, [2] * GROUPS, [2] * GROUPS]] * 2)
    counts = exact_counts(maps(touched), GROUPS, WIDTH, records(3, [7, 7, 7]))
    for name in SLICES:
        np.testing.assert_array_equal(counts[name].reshape(GROUPS, WIDTH), [[0, 1, 0, 0]] * GROUPS)


def test_a_record_is_scored_alone_whatever_company_it_has():
    seen = []

    def looking(batch: Batch) -> torch.Tensor:
        seen.append(len(batch))
        return torch.zeros(len(batch), 1, dtype=torch.int64)

    exact_counts({"evaluation.image": looking}, 1, 2, records(5))
    assert seen == [1] * 5


def test_released_counts_are_whole_numbers_and_without_noise_the_exact_ones():
    touched = torch.randint(0, WIDTH, (len(SLICES), 40, GROUPS), generator=torch.Generator().manual_seed(1))
    noised = noisy_counts(maps(touched), GROUPS, WIDTH, records(40), plan(1.7), ReproducibleNoise(1), 10**6)
    assert {values.dtype for values in noised.values()} == {np.dtype(np.int32)}
    silent = noisy_counts(maps(touched), GROUPS, WIDTH, records(40), plan(1.7), SilentNoise(1), 10**6)
    exact = exact_counts(maps(touched), GROUPS, WIDTH, records(40))
    np.testing.assert_array_equal(flat(silent), flat(exact))
    assert (flat(noised) != flat(exact)).any()


def test_where_there_is_nobody_there_is_noise_of_the_planned_deviation():
    wide = HistogramPlan(phase="evaluation", groups=4, noise_multiplier=3.0)
    nobody: dict[str, CellMap] = {"evaluation.image": lambda batch: torch.zeros(len(batch), 4, dtype=torch.int64)}
    noised = noisy_counts(nobody, 4, 2500, records(0), wide, ReproducibleNoise(3), 10**6)["evaluation.image"]
    assert wide.deviation == 6.0
    # 10000 values: the standard error of the deviation is 0.7 %, of the mean 0.06; rounding adds 1/12 to the variance.
    assert noised.std() == pytest.approx(math.sqrt(36 + 1 / 12), rel=0.03)
    assert abs(noised.mean()) < 0.25
    values, found = np.unique(np.clip(noised, -18, 18), return_counts=True)
    expected = np.diff(np.concatenate([[0], stats.norm.cdf(values[:-1] + 0.5, scale=6.0), [1]])) * len(noised)
    assert stats.chisquare(found, expected).pvalue > 1e-3


def test_what_passes_the_ring_is_cut_and_not_wrapped():
    touched = torch.zeros(len(SLICES), 50, GROUPS, dtype=torch.int64)
    noised = noisy_counts(maps(touched), GROUPS, WIDTH, records(50), plan(1e-3), ReproducibleNoise(1), 40)
    assert flat(noised).max() == 40


@pytest.mark.parametrize(
    ("planned", "batch", "words"),
    [
        (
            HistogramPlan(phase="e", groups=5, noise_multiplier=1.0),
            records(2),
            "2 slices of 3 groups, the plan is for 5",
        ),
        (plan(unit="patient"), records(2), "unit='patient'"),
    ],
)
def test_counts_that_are_not_the_plans_are_refused(planned, batch, words):
    touched = torch.zeros(len(SLICES), 2, GROUPS, dtype=torch.int64)
    with pytest.raises(PrivacyError, match=words):
        noisy_counts(maps(touched), GROUPS, WIDTH, batch, planned, ReproducibleNoise(1), 100)


def test_a_map_of_another_shape_or_type_is_refused():
    for wrong in (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, GROUPS)):
        with pytest.raises(PrivacyError, match="expected int64"):
            exact_counts({"evaluation.image": lambda batch, wrong=wrong: wrong}, GROUPS, WIDTH, records(1))


@pytest.mark.parametrize("field", [{"groups": 0}, {"noise_multiplier": 0.0}, {"noise_multiplier": math.inf}])
def test_a_plan_without_groups_or_noise_is_refused(field):
    with pytest.raises(PrivacyError, match=next(iter(field))):
        HistogramPlan(**{"phase": "evaluation", "groups": 2, "noise_multiplier": 1.0, **field})


def test_the_mechanism_is_one_gaussian_release_of_all_units():
    assert plan(2.5).mechanism() == Mechanism("gaussian", 2.5, 1.0, 1)
