"""Opacus's PRV agrees with the reported figure wherever it answers, and answers None elsewhere."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.accounting import Mechanism, epsilon, joint_noise_multiplier
from secure_fed.errors import AccountingError
from secure_fed.privacy.prv import LEAST_NOISE, MOST_EPSILON, MOST_STEPS, prv_epsilon

DELTA = 1e-5


def poisson(sigma=1.0, q=0.0625, steps=800):
    return Mechanism("poisson_gaussian", sigma, q, steps)


def agree(mechanisms, delta=DELTA):
    """What `verify --cross-check` asks for."""
    reported, second = epsilon(mechanisms, delta), prv_epsilon(mechanisms, delta)
    assert second is not None
    assert abs(second - reported) <= 0.01 * reported + 0.005
    return second


# Opacus 1.6.0's own figures, with its error of 0.01 in them.
@pytest.mark.parametrize(("sigma", "wanted"), [(0.8, 19.97), (1.0, 12.56), (1.5, 6.33), (2.0, 4.22)])
def test_table_of_the_house(sigma, wanted):
    assert agree([poisson(sigma)]) == pytest.approx(wanted, abs=0.03)


def test_three_phases_of_the_house():
    found = agree([poisson(), poisson(1.5, steps=400), poisson(2.0, 0.128, 400)])
    assert found == pytest.approx(15.90, abs=0.04)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("q", [0.0005, 0.01, 0.0625, 0.3, 1.0])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(LEAST_NOISE, 1), (0.5, 16), (1.0, 16), (1.0, 800), (6.0, 800), (30.0, 16)]
)
def test_grid_inside_the_sound_range_agrees(sigma, steps, q, delta):
    if epsilon([poisson(sigma, q, steps)], delta) <= MOST_EPSILON / 2:
        agree([poisson(sigma, q, steps)], delta)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(poisson, st.floats(0.4, 20), st.floats(0.001, 0.9), st.integers(1, 2000))
        | st.builds(lambda s, t: Mechanism("gaussian", s, 1.0, t), st.floats(0.8, 50), st.integers(1, 200)),
        min_size=1,
        max_size=4,
    ),
    st.floats(-9, -3),
)
def test_compositions_of_anything_agree_or_are_declined(mechanisms, exponent):
    second = prv_epsilon(mechanisms, 10**exponent)
    assert second is None or agree(mechanisms, 10**exponent) == second


def test_unsampled_gaussian_is_the_one_sampled_always():
    always = agree([poisson(6.0, 1.0, 62)])
    assert agree([Mechanism("gaussian", 6.0, 1.0, 62)]) == pytest.approx(always, rel=1e-6)


def test_components_are_joined():
    parts = (2.0, 2.0, 2.0, 2.0)
    together = Mechanism("poisson_gaussian", joint_noise_multiplier(parts), 0.0625, 80, component_noise=parts)
    assert prv_epsilon([together], DELTA) == prv_epsilon([poisson(steps=80)], DELTA)


@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism("truncated_poisson_gaussian", 1.0, 0.0625, 8, 96, 1000),
        poisson(0.0),
        poisson(LEAST_NOISE * 0.99, steps=1),
        poisson(50.0, 0.01, MOST_STEPS + 1),
        poisson(0.5, 0.5, 800),
    ],
    ids=["cut", "no noise", "little noise", "many steps", "large epsilon"],
)
def test_outside_its_sound_range_it_declines(mechanism):
    assert prv_epsilon([poisson(4.0, steps=10), mechanism], DELTA) is None


def test_opacus_answers_infinity_where_this_declines():
    # The reason for MOST_EPSILON: where this fails, the range may be wider.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(0.5, 0.9, 800)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not math.isfinite(accountant.get_epsilon(DELTA, eps_error=0.5))
    assert epsilon([poisson(0.5, 0.9, 800)], DELTA) < math.inf


def test_nothing_costs_nothing_and_delta_is_checked():
    assert prv_epsilon([], DELTA) == 0.0
    with pytest.raises(AccountingError, match="delta="):
        prv_epsilon([poisson()], 0.0)


@pytest.mark.slow
def test_federation_of_ten_sites_is_cross_checked_in_time():
    # 50 rounds x 3 phases x 10 sites, every site with a noise of its own. Unmerged, one site takes half a minute.
    begun = time.process_time()
    for site in range(10):
        rounds = [[poisson(s + site / 50, steps=16) for s in (1.0, 1.5, 2.0)] for _ in range(50)]
        agree([m for phases in rounds for m in phases])
    assert time.process_time() - begun < 60


def test_it_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mechanism in (Mechanism("gaussian", 6.1, 1.0, 62), poisson(30.1, 0.01, 16), poisson(0.51, 0.5, 800)):
            prv_epsilon([mechanism], DELTA)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_it_prints_nothing_in_a_process_that_imports_opacus_for_it():
    command = (
        "from secure_fed.accounting import Mechanism\n"
        "from secure_fed.privacy.prv import prv_epsilon\n"
        "prv_epsilon([Mechanism('gaussian', 6.0, 1.0, 62)], 1e-5)\n"
        "prv_epsilon([Mechanism('poisson_gaussian', 30.0, .01, 16)], 1e-5)\n"
        "prv_epsilon([Mechanism('poisson_gaussian', .5, .5, 800)], 1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
