"""A mechanism states what was released, and refuses what cannot be accounted."""

from __future__ import annotations

import json
import math

import dp_accounting
import pytest

from secure_fed.accounting import Mechanism, event
from secure_fed.errors import AccountingError

GOOD = {"kind": "poisson_gaussian", "noise_multiplier": 1.1, "sample_rate": 0.05, "steps": 20}


def test_json_form_is_read_back_and_is_the_documented_one():
    mechanism = Mechanism(**GOOD)
    assert mechanism.to_json() == GOOD
    assert Mechanism.from_json(json.loads(json.dumps(mechanism.to_json()))) == mechanism


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
