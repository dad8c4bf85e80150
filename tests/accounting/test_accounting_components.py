"""Components stepped together on one sample cost what their joint noise costs, and never less."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.accounting import Mechanism, epsilon, filter_epsilon, joint_noise_multiplier

DELTA = 1e-5


def together(parts, kind="poisson_gaussian", q=0.0625, steps=100):
    return Mechanism(kind, joint_noise_multiplier(parts), q, steps, component_noise=tuple(parts))


@pytest.mark.parametrize("parts", [(2.0,), (2.0, 2.0), (1.5, 3.0, 40.0)])
def test_joint_noise_is_what_dp_accounting_makes_of_composed_gaussians_in_one_sample(parts):
    # dp-accounting's own rule for the event; its PLD accountant does not know the event at all.
    mechanism = together(parts)
    accountant = rdp.RdpAccountant()
    accountant.compose(mechanism.event())
    assert epsilon([mechanism], DELTA, accountant="rdp") == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)
    assert filter_epsilon([mechanism], DELTA, 8.0) == pytest.approx(_at_order(mechanism, 8.0), rel=1e-9)


def _at_order(mechanism, order):
    accountant = rdp.RdpAccountant([order])
    accountant.compose(mechanism.event())
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_components_without_sampling_compose_like_separate_releases(relation):
    parts = (3.0, 4.0, 12.0)
    one = epsilon([together(parts, "gaussian", 1.0, 5)], DELTA, relation=relation)
    separate = epsilon([Mechanism("gaussian", s, 1.0, 5) for s in parts], DELTA, relation=relation)
    assert one == pytest.approx(separate, rel=1e-3)


def test_components_on_one_sample_cost_more_than_on_a_sample_each_would_claim():
    # Sampled together they are in or out together: composing them as if sampled apart would under-report.
    parts = (1.0, 1.0, 1.0)
    apart = epsilon([Mechanism("poisson_gaussian", s, 0.0625, 800) for s in parts], DELTA)
    assert epsilon([together(parts, steps=800)], DELTA) > 1.5 * apart


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_joint_noise_is_at_most_the_least_and_forgets_the_order(parts):
    joint = joint_noise_multiplier(parts)
    assert joint <= min(parts)
    assert joint == joint_noise_multiplier(parts[::-1])
    assert joint == pytest.approx(1 / math.sqrt(sum(1 / s**2 for s in parts)), rel=1e-12)


def test_joint_norm_is_the_worst_clipped_record():
    # The sum of a record's clipped components, each in units of its noise, has norm 1 / joint at the most.
    rng = np.random.default_rng(1)
    clips, parts = np.array([0.5, 2.0, 1.0]), np.array([1.5, 3.0, 6.0])
    norms = [math.hypot(*(rng.uniform(0, 1, 3) * clips / (parts * clips))) for _ in range(1000)]
    assert max(norms) <= 1 / joint_noise_multiplier(list(parts))
    assert math.hypot(*(1 / parts)) == pytest.approx(1 / joint_noise_multiplier(list(parts)), rel=1e-12)


def test_pld_accountant_of_dp_accounting_has_no_event_for_components():
    # Where this fails, the joint form is no longer needed.
    assert not dp_accounting.pld.PLDAccountant().supports(together((2.0, 2.0)).event())
