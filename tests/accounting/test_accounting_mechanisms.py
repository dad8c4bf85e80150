"""A mechanism states what was released, and refuses what cannot be accounted."""

from __future__ import annotations

import json
import math

import dp_accounting
import pytest

from secure_fed.accounting import Mechanism, event, joint_noise_multiplier, merge
from secure_fed.errors import AccountingError

GOOD = {"kind": "poisson_gaussian", "noise_multiplier": 1.1, "sample_rate": 0.05, "steps": 20}
CUT = {**GOOD, "kind": "truncated_poisson_gaussian", "batch_cap": 60, "population": 500}
PARTS = (1.5, 2.0, 6.0)
JOINT = {**GOOD, "noise_multiplier": joint_noise_multiplier(PARTS), "component_noise": list(PARTS)}


def test_json_form_is_read_back_and_is_the_documented_one():
    mechanism = Mechanism(**GOOD)
    assert mechanism.to_json() == GOOD
    assert Mechanism.from_json(json.loads(json.dumps(mechanism.to_json()))) == mechanism


def test_json_of_mechanisms_without_caps_and_components_is_the_first_ledgers_to_the_byte():
    assert json.dumps(Mechanism("poisson_gaussian", 1.5, 0.0625, 16).to_json()) == (
        '{"kind": "poisson_gaussian", "noise_multiplier": 1.5, "sample_rate": 0.0625, "steps": 16}'
    )
    assert json.dumps(Mechanism("gaussian", 8, 1, 1).to_json()) == (
        '{"kind": "gaussian", "noise_multiplier": 8.0, "sample_rate": 1.0, "steps": 1}'
    )


@pytest.mark.parametrize("value", [CUT, JOINT, {**CUT, **JOINT, "kind": "truncated_poisson_gaussian"}])
def test_json_of_caps_and_components_is_read_back(value):
    mechanism = Mechanism.from_json(json.loads(json.dumps(value)))
    assert mechanism.to_json() == value
    assert Mechanism.from_json(mechanism.to_json()) == mechanism


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({**GOOD, "batch_cap": 60}, "batch_cap=60 with kind='poisson_gaussian'.*Leave it out"),
        ({**GOOD, "population": 500}, "population=500 with kind='poisson_gaussian'"),
        ({**GOOD, "batch_cap": None}, "batch_cap=None is empty: leave the field out"),
        ({**GOOD, "component_noise": []}, r"component_noise=\[\] is empty: leave the field out"),
        ({**GOOD, "component_noise": 2.0}, "component_noise=2.0 is not a list"),
        ({**GOOD, "component_noise": "12"}, "component_noise='12' is not a list"),
        ({**GOOD, "component_noise": [2.0, 0.0]}, "component_noise=.* finite numbers > 0"),
        ({**GOOD, "component_noise": [2.0, "1"]}, "component_noise=.* finite numbers > 0"),
        ({**GOOD, "component_noise": [2.0, math.nan]}, "component_noise=.* finite numbers > 0"),
        ({**JOINT, "noise_multiplier": 1.5}, r"noise_multiplier=1.5 is not the joint one .* set it to .*=1\.17"),
        ({k: v for k, v in CUT.items() if k != "population"}, "population=None .* needs"),
        ({k: v for k, v in CUT.items() if k != "batch_cap"}, "batch_cap=None .* needs"),
        ({**CUT, "batch_cap": 0}, "batch_cap=0"),
        ({**CUT, "batch_cap": 60.0}, r"batch_cap=60\.0"),
        ({**CUT, "population": True}, "population=True"),
        ({**CUT, "population": 59}, "batch_cap=60 is above population=59: no batch is ever cut"),
    ],
)
def test_caps_and_components_that_do_not_add_up_are_named_with_the_way_out(value, words):
    with pytest.raises(AccountingError, match=words):
        Mechanism.from_json(value)


def test_joint_noise_is_the_root_of_summed_inverse_squares_and_does_not_overflow():
    assert joint_noise_multiplier([3.0]) == 3.0
    assert joint_noise_multiplier([2.0] * 4) == 1.0
    assert joint_noise_multiplier(PARTS) == pytest.approx((1.5**-2 + 2.0**-2 + 6.0**-2) ** -0.5, rel=1e-15)
    assert joint_noise_multiplier([1e-200, 1e200]) == 1e-200
    with pytest.raises(AccountingError, match="component_noise="):
        joint_noise_multiplier([])


def test_merging_adds_only_what_is_equal_in_every_field():
    different = [
        Mechanism(**GOOD),
        Mechanism("gaussian", 1.1, 1.0, 20),
        Mechanism(**CUT),
        Mechanism(**{**CUT, "batch_cap": 61}),
        Mechanism(**{**CUT, "population": 501}),
        Mechanism.from_json(JOINT),
        Mechanism("poisson_gaussian", JOINT["noise_multiplier"], 0.05, 20),
        Mechanism.from_json({**JOINT, "component_noise": list(PARTS[::-1])}),
    ]
    merged = merge(different + different[::-1])
    assert len(merged) == len(different)
    assert {m.steps for m in merged} == {40}
    assert merged == merge(merged)


def test_repeated_rounds_keep_every_field():
    for value in (GOOD, CUT, JOINT):
        assert Mechanism.from_json(value).repeated(3).to_json() == {**value, "steps": 60}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "shuffled_gaussian"),
        ("kind", None),
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", "1.0"),
        ("noise_multiplier", True),
        ("sample_rate", 0),
        ("sample_rate", 1.01),
        ("sample_rate", "0.1"),
        ("sample_rate", math.nan),
        ("steps", 0),
        ("steps", -1),
        ("steps", 2.0),
        ("steps", True),
    ],
)
def test_wrong_value_is_refused_and_named(field, value):
    with pytest.raises(AccountingError, match=f"{field}="):
        Mechanism.from_json({**GOOD, field: value})


@pytest.mark.parametrize("value", [None, [], "x", {}, {**GOOD, "extra": 1}, {k: GOOD[k] for k in list(GOOD)[:3]}])
def test_other_shapes_are_refused(value):
    with pytest.raises(AccountingError, match="exactly the fields"):
        Mechanism.from_json(value)


def test_statistic_of_all_units_cannot_claim_amplification():
    with pytest.raises(AccountingError, match=r"sample_rate=0\.5"):
        Mechanism("gaussian", 1.0, 0.5, 1)


def test_whole_numbers_are_the_same_mechanism_as_floats():
    assert Mechanism("gaussian", 2, 1, 1).to_json() == Mechanism("gaussian", 2.0, 1.0, 1).to_json()
    assert repr(Mechanism("gaussian", 2, 1, 1).to_json()["noise_multiplier"]) == "2.0"


def test_event_is_dp_accountings_poisson_sampled_gaussian():
    assert event([Mechanism(**GOOD), Mechanism(**GOOD)]) == dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.1)), 40
            )
        ]
    )
    assert Mechanism("gaussian", 3.0, 1.0, 2).event() == dp_accounting.SelfComposedDpEvent(
        dp_accounting.GaussianDpEvent(3.0), 2
    )


def test_event_of_a_cut_sample_is_dp_accountings_truncated_one():
    assert Mechanism(**CUT).event() == dp_accounting.SelfComposedDpEvent(
        dp_accounting.TruncatedSubsampledGaussianDpEvent(500, 0.05, 60, 1.1), 20
    )


def test_event_of_components_lists_them_inside_one_sample():
    parts = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(s) for s in PARTS])
    assert Mechanism.from_json(JOINT).event() == dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.05, parts), 20
    )
    statistic = Mechanism("gaussian", joint_noise_multiplier(PARTS), 1.0, 1, component_noise=PARTS)
    assert statistic.event() == dp_accounting.SelfComposedDpEvent(parts, 1)
