"""Plans say what they cost, refuse what has no guarantee, and cannot be changed afterwards."""

from __future__ import annotations

import dataclasses

import pytest
from dp_fixtures import plan
from pydantic import ValidationError

from secure_fed.accounting import Mechanism
from secure_fed.errors import PrivacyError
from secure_fed.privacy.plan import SamplingPlan, StatisticPlan, TrainingOptions


def test_a_plan_states_its_mechanism_and_its_public_denominator():
    settings = plan(sample_rate=0.25, steps=30, declared_n=200, noise_multiplier=1.5, max_grad_norm=2.0)
    assert settings.expected_batch == 50
    assert settings.mechanism() == Mechanism(kind="poisson_gaussian", noise_multiplier=1.5, sample_rate=0.25, steps=30)


def test_the_clip_norm_is_not_part_of_what_is_charged():
    assert plan(max_grad_norm=0.1).mechanism() == plan(max_grad_norm=9.0).mechanism()


def test_a_statistic_is_charged_as_one_gaussian_release_of_everybody():
    statistic = StatisticPlan(phase="ridge", bound=3.0, noise_multiplier=2.0)
    assert statistic.mechanism() == Mechanism(kind="gaussian", noise_multiplier=2.0, sample_rate=1.0, steps=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", 0.0), ("max_grad_norm", float("inf")), ("max_grad_norm", float("nan")),
        ("noise_multiplier", 0.0), ("noise_multiplier", -1.0), ("noise_multiplier", float("nan")),
        ("sample_rate", 0.0), ("sample_rate", 1.01), ("sample_rate", float("nan")),
        ("steps", 0), ("declared_n", 0), ("unit", "'visit'"), ("max_records_per_unit", 2), ("max_records_per_unit", 0),
    ],
)  # fmt: skip
def test_a_plan_without_a_guarantee_is_refused_by_name_and_value(name, value):
    with pytest.raises(PrivacyError, match=rf"'test'.*{name}={value}"):
        plan(**{name: value.strip("'") if isinstance(value, str) else value})


@pytest.mark.parametrize(("name", "value"), [("bound", 0.0), ("noise_multiplier", 0.0)])
def test_a_statistic_without_a_guarantee_is_refused(name, value):
    with pytest.raises(PrivacyError, match=name):
        StatisticPlan(**{"phase": "ridge", "bound": 1.0, "noise_multiplier": 1.0, name: value})


def test_the_patient_as_unit_changes_whom_a_plan_speaks_of_and_not_its_mechanism():
    patient = {"unit": "patient", "max_records_per_unit": 4}
    assert plan(**patient).mechanism() == plan().mechanism()
    assert plan(**patient).expected_batch == plan().expected_batch
    statistic = StatisticPlan(phase="ridge", bound=1.0, noise_multiplier=1.0, **patient)
    assert statistic.mechanism() == dataclasses.replace(statistic, unit="record", max_records_per_unit=1).mechanism()
    with pytest.raises(PrivacyError, match=r"max_records_per_unit=0"):
        dataclasses.replace(statistic, max_records_per_unit=0)
    with pytest.raises(PrivacyError, match=r"max_records_per_unit=4.*unit='patient'"):
        dataclasses.replace(statistic, unit="record")


def test_plans_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().noise_multiplier = 0.1
    with pytest.raises(ValidationError):
        TrainingOptions().learning_rate = 2.0


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0},
        {"momentum": 1.0},
        {"optimizer": "lion"},
        {"max_physical_batch": 0},
        {"back_end": "vmap"},
        {"clip": 1.0},
    ],
)
def test_training_options_that_mean_nothing_or_touch_privacy_are_refused(options):
    with pytest.raises(ValidationError):
        TrainingOptions(**options)


def test_a_plain_plan_has_no_mechanism():
    assert not hasattr(SamplingPlan(phase="plain", sample_rate=0.5, steps=1, declared_n=2), "mechanism")
