"""The patient as the unit: one clip for all of a patient's records, sampled together, at most K_max of them."""

from __future__ import annotations

import copy
import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from dp_fixtures import (
    ENCODERS_AND_FUSION,
    SHIPPED,
    SilentNoise,
    classification_loss,
    clipped,
    flat,
    make_batch,
    make_model,
    plan,
    reference_gradients,
    sensitivity,
    shipped,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import bounded
from secure_fed.models.units import UnitRows
from secure_fed.privacy import dpsgd
from secure_fed.privacy.contributions import Factors, Rows
from secure_fed.privacy.dpsgd import clipped_gradient_sum, dp_sgd, plain_sgd
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise
from secure_fed.privacy.plan import SamplingPlan, TrainingOptions
from secure_fed.privacy.sensitivity import TOLERANCE

PATIENTS = (0, 1, 0, 2, 1, 0, 3)  # of 3, 2, 1 and 1 records, interleaved
SGD = TrainingOptions(learning_rate=0.5)


def patient_plan(**changes):
    return plan(**{"unit": "patient", "max_records_per_unit": 3, "declared_n": 4, **changes})


# -- clipping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_the_clipped_sum_of_every_shipped_component_equals_a_per_patient_loop(name):
    model, components, loss = shipped(name)
    batch = make_batch(model, n=5, patients=(0, 1, 0, 2, 1))
    by_patient = reference_gradients(model, components, loss, batch)
    assert len(by_patient) == 3
    # A bound between the norms, so that some patients are clipped and some are not.
    bound = float(by_patient.norm(dim=1).median())
    found = clipped_gradient_sum(model, components, loss, batch, bound)
    torch.testing.assert_close(found, clipped(by_patient, bound), rtol=1e-4, atol=1e-4 * bound)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_leaving_one_patient_out_moves_the_clipped_sum_by_at_most_the_bound(scale):
    for config in ({}, {"image": {"name": "small_cnn"}, "tabular": {"name": "mlp"}}):
        model = make_model(**config)
        batch = make_batch(model, n=len(PATIENTS), patients=PATIENTS)
        batch.inputs["vitals"][2] *= scale
        for bound in (0.01, 1.0):
            assert sensitivity(model, ENCODERS_AND_FUSION, classification_loss, batch, bound) <= 1 + TOLERANCE


def test_a_patients_equal_records_get_one_clip_together_where_records_as_units_get_one_each():
    model = make_model()
    one = make_batch(model, n=1)
    k = 5
    five = one.select(torch.zeros(k, dtype=torch.int64))
    patient = dataclasses.replace(five, unit="patient")  # five rows, one number
    records = dataclasses.replace(five, units=torch.arange(k))
    arguments = (model, ENCODERS_AND_FUSION, classification_loss)
    bound = 1e-3
    lengths = [clipped_gradient_sum(*arguments, batch, bound).norm() / bound for batch in (one, patient, records)]
    torch.testing.assert_close(torch.stack(lengths), torch.tensor([1.0, 1.0, float(k)]), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("poison", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("image", ["filterbank", "small_cnn"])
def test_a_record_that_is_not_finite_drops_its_patient_and_nobody_else(poison, image):
    model = make_model(image={"name": image})
    batch = make_batch(model, n=len(PATIENTS), patients=PATIENTS)
    expected = clipped_gradient_sum(
        model, ENCODERS_AND_FUSION, classification_loss, batch.select_units(torch.tensor([0, 2, 3])), 1.0
    )
    batch.inputs["vitals"][4] = poison  # one of patient 1's two records
    batch.presence["vitals"][4] = True
    found = clipped_gradient_sum(model, ENCODERS_AND_FUSION, classification_loss, batch, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@given(
    seed=st.integers(0, 10_000),
    patients=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    exponents=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
    trained=st.sampled_from([(True, True), (True, False), (False, True)]),
)
@settings(max_examples=80, deadline=None)
def test_gram_norms_and_sums_are_those_of_the_written_out_gradients(seed, patients, exponents, trained):
    generator = torch.Generator().manual_seed(seed)
    rows = len(patients)
    inputs, outputs = (
        10.0**exponent * torch.randn(rows, width, generator=generator)
        for width, exponent in zip((7, 3), exponents, strict=True)
    )
    layer = nn.Linear(7, 3)
    weight, bias = (p if use else None for p, use in zip((layer.weight, layer.bias), trained, strict=True))
    units = UnitRows.of(torch.tensor(patients))
    part = Factors(inputs, outputs, weight, bias).by_unit(units)
    columns = []
    if weight is not None:
        columns.append(torch.einsum("bo,bi->boi", outputs.double(), inputs.double()).flatten(start_dim=1))
    if bias is not None:
        columns.append(outputs.double())
    by_record = torch.cat(columns, dim=1)
    by_unit = Rows(by_record, layer.weight).by_unit(units).rows
    # Few random rows cancel little: the float64 Gram sum is off by 1e-12 of the whole, float32 by 6e-8.
    torch.testing.assert_close(part.norms().double(), by_unit.norm(dim=1), rtol=1e-6, atol=0.0)
    weights = torch.rand(len(units), generator=generator)
    summed = torch.cat([value.flatten() for _, value in part.weighted_sums(weights)]).double()
    expected = weights.double() @ by_unit
    # float32 output: 6e-8 of the value; float64 sums that cancel: 1e-14 of the largest summand.
    torch.testing.assert_close(summed, expected, rtol=1e-6, atol=1e-12 * float(by_record.abs().max()) + 1e-37)


@pytest.mark.parametrize("left", [0.0, 1e-7, 1e-5, 1e-3])
def test_a_patient_whose_records_cancel_gets_no_norm_that_is_too_small(left):
    generator = torch.Generator().manual_seed(1)
    a, b = (1e3 * torch.randn(1, width, generator=generator) for width in (40, 30))
    inputs, outputs = torch.cat([a, a]), torch.cat([b, -b * (1 + left)])
    layer = nn.Linear(40, 30)
    part = Factors(inputs, outputs, layer.weight, layer.bias).by_unit(UnitRows.of(torch.tensor([5, 5])))
    norm = part.norms()
    bound = 0.1
    released = torch.cat([value.flatten() for _, value in part.weighted_sums(bound / norm)])
    assert released.double().norm() <= bound * (1 + 1e-5)


@given(units=st.lists(st.integers(-3, 9), max_size=15), most=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_rows_of_units_are_what_a_loop_finds(units, most):
    found = UnitRows.of(torch.tensor(units, dtype=torch.int64))
    names = sorted(set(units))
    rows_of = [[i for i, unit in enumerate(units) if unit == name] for name in names]
    assert found.sizes.tolist() == [len(rows) for rows in rows_of]
    assert found.first(most).tolist() == sorted(row for rows in rows_of for row in rows[:most])
    for position, rows in enumerate(rows_of):
        assert found.rows(torch.tensor([position])).tolist() == rows
    grouped = {int(u): r.tolist() for group, rows in found.by_size() for u, r in zip(group, rows, strict=True)}
    assert grouped == dict(enumerate(rows_of))


# -- sampling ---------------------------------------------------------------------------------------------------


def seen_parts(monkeypatch, run):
    """The units of every physical batch that a gradient is taken of, and the rows of each."""
    parts = []
    original = dpsgd._UnitSampler.parts

    def recording(self):
        sample = list(original(self))
        parts.append(sample)
        return iter(sample)

    monkeypatch.setattr(dpsgd._UnitSampler, "parts", recording)
    run()
    return parts


@pytest.mark.parametrize("trainer", ["dp", "plain"])
def test_a_sample_takes_all_of_a_patients_records_or_none_and_no_patient_spans_two_physical_batches(
    monkeypatch, trainer
):
    model = make_model()
    patients = np.random.default_rng(0).integers(0, 15, 40)
    batch = make_batch(model, n=40, patients=patients)
    whole = {int(u): int((batch.units == u).sum()) for u in batch.units.unique()}
    largest = max(whole.values())
    training = TrainingOptions(max_physical_batch=largest + 1)
    facts = {"unit": "patient", "max_records_per_unit": largest, "sample_rate": 0.5, "steps": 20, "declared_n": 15}

    def run():
        if trainer == "dp":
            dp_sgd(model, ["fusion"], classification_loss, batch, plan(**facts), training, ReproducibleNoise(0))
        else:
            sampling = SamplingPlan(phase="test", **facts)
            plain_sgd(model, ["fusion"], classification_loss, batch, sampling, training, ReproducibleNoise(0))

    samples = seen_parts(monkeypatch, run)
    assert len(samples) == 20
    taken = 0
    for sample in samples:
        seen = [unit for part in sample for unit in part.units.unique().tolist()]
        assert len(seen) == len(set(seen))
        taken += len(seen)
        for part in sample:
            assert 0 < len(part) <= largest + 1
            assert all(int((part.units == unit).sum()) == whole[unit] for unit in part.units.unique().tolist())
    # 20 steps x |patients| coin flips of 1/2: 4 standard errors.
    flips = 20 * len(whole)
    assert abs(taken / flips - 0.5) < 4 * 0.5 / np.sqrt(flips)


def test_splitting_a_batch_of_patients_physically_changes_nothing():
    models = [make_model() for _ in range(2)]
    batch = make_batch(models[0], n=20, patients=[i % 8 for i in range(20)])
    for model, size in zip(models, (100, 3), strict=True):
        training = TrainingOptions(max_physical_batch=size)
        facts = patient_plan(steps=3, sample_rate=0.8, declared_n=8)
        dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, facts, training, ReproducibleNoise(1))
    torch.testing.assert_close(*(flat(m, ENCODERS_AND_FUSION) for m in models), rtol=1e-4, atol=1e-5)


def test_steps_equal_per_patient_clipped_sgd_divided_by_the_expected_number_of_patients():
    model = make_model()
    by_hand = copy.deepcopy(model)
    batch = make_batch(model, n=len(PATIENTS), patients=PATIENTS)
    facts = patient_plan(sample_rate=0.5, steps=4, declared_n=10, max_grad_norm=0.3)
    assert facts.expected_batch == 5.0  # patients, whatever their records
    dp_sgd(model, ["fusion"], classification_loss, batch, facts, SGD, SilentNoise(3))
    samples = SilentNoise(3)
    samples.seed()
    for _ in range(4):
        chosen = np.flatnonzero(samples.poisson_mask(4, 0.5))
        rows = torch.cat([torch.flatten((batch.units == int(patient)).nonzero()) for patient in chosen]).long()
        gradients = reference_gradients(by_hand, ["fusion"], classification_loss, batch.select(rows))
        step = clipped(gradients, 0.3) / 5.0
        by_hand.set_component("fusion", by_hand.get_component("fusion") - 0.5 * step.numpy())
    torch.testing.assert_close(flat(model, ["fusion"]), flat(by_hand, ["fusion"]), rtol=1e-4, atol=1e-6)


def test_of_a_patient_with_more_records_only_the_first_k_max_count():
    model = make_model()
    batch = make_batch(model, n=len(PATIENTS), patients=PATIENTS)
    first_two = batch.select(torch.tensor([0, 1, 2, 3, 4, 6]))  # without the third record of patient 0
    ends = []
    for records in (batch, first_two):
        trained = copy.deepcopy(model)
        facts = patient_plan(max_records_per_unit=2)
        dp_sgd(trained, ["fusion"], classification_loss, records, facts, SGD, SilentNoise(0))
        ends.append(flat(trained, ["fusion"]))
    torch.testing.assert_close(*ends, rtol=0.0, atol=0.0)
    assert not torch.equal(ends[0], flat(model, ["fusion"]))


def test_what_is_kept_of_a_patient_depends_on_no_other_patient():
    batch = make_batch(make_model(), n=len(PATIENTS), patients=PATIENTS)
    for left_out, most in product(range(4), (1, 2)):
        kept = torch.arange(4) != left_out
        fewer = bounded(batch.select_units(kept), most)
        of_all = bounded(batch, most)
        assert torch.equal(fewer.inputs["vitals"], of_all.select(of_all.units != left_out).inputs["vitals"])


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prepared", "planned"), [("record", "patient"), ("patient", "record")])
def test_records_that_are_grouped_by_another_unit_than_the_plans_are_refused(prepared, planned):
    model = make_model()
    batch = make_batch(model, n=4, patients=(0, 0, 1, 2) if prepared == "patient" else None)
    facts = patient_plan() if planned == "patient" else plan()
    with pytest.raises(PrivacyError, match=f"unit='{planned}'.*'{prepared}'.*prepare them with unit='{planned}'"):
        dp_sgd(model, ["fusion"], classification_loss, batch, facts, SGD, OsNoise())
    sampling = SamplingPlan(
        phase="plain", sample_rate=0.5, steps=1, declared_n=4,
        unit=facts.unit, max_records_per_unit=facts.max_records_per_unit,
    )  # fmt: skip
    with pytest.raises(PrivacyError, match=f"unit='{planned}'.*'{prepared}'"):
        plain_sgd(model, ["fusion"], classification_loss, batch, sampling, SGD, OsNoise())


def test_a_patient_that_may_not_fit_a_physical_batch_is_refused_whatever_the_records_are():
    model = make_model()
    batch = make_batch(model, n=2, patients=(0, 1))  # nobody has more than one record
    training = TrainingOptions(max_physical_batch=2)
    with pytest.raises(PrivacyError, match=r"max_records_per_unit=3.*max_physical_batch=2"):
        dp_sgd(model, ["fusion"], classification_loss, batch, patient_plan(), training, OsNoise())
