"""A capped batch is charged for the units that its cut puts out, for every data set up to the declared size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import pld
from scipy.stats import binom, norm

from secure_fed.accounting import Mechanism, epsilon, filter_epsilon, filter_order
from secure_fed.accounting.truncation import cut_probability

DELTA = 1e-5


def cut(cap, population=1000, sigma=1.0, q=0.0625, steps=800):
    return Mechanism("truncated_poisson_gaussian", sigma, q, steps, cap, population)


# The table of the house: 1000 units, mean batch 62.5.
@pytest.mark.parametrize(("cap", "wanted"), [(64, 47.0), (72, 26.9), (80, 16.1), (96, 12.56), (128, 12.55)])
def test_table_of_the_house(cap, wanted):
    assert epsilon([cut(cap)], DELTA) == pytest.approx(wanted, abs=0.051 if cap < 96 else 0.0051)


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
@pytest.mark.parametrize("cap", [64, 80, 96])
def test_pld_is_never_above_rdp_and_rdp_never_above_the_filter(cap, relation):
    low = epsilon([cut(cap)], DELTA, relation=relation)
    rdp = epsilon([cut(cap)], DELTA, accountant="rdp", relation=relation)
    order = filter_order(12.0, DELTA)
    # Orders of the filter need not be among RDP's: a best one in between differs in the fourth digit.
    assert 0 < low <= rdp <= filter_epsilon([cut(cap)], DELTA, order, relation=relation) * (1 + 1e-3)


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_cap_that_is_never_reached_costs_nothing(relation):
    plain = epsilon([Mechanism("poisson_gaussian", 1.0, 0.0625, 800)], DELTA, relation=relation)
    assert epsilon([cut(1000)], DELTA, relation=relation) == pytest.approx(plain, rel=1e-3)


def test_dp_accountings_figure_is_of_one_size_and_understates_smaller_data_sets():
    # Declare a million units and cut to 64: nobody seems to be sampled. With 60 units nothing is ever cut, and
    # the truth is plain Poisson sampling. The declared size must not be a way to a small epsilon.
    mechanism = cut(64, population=1_000_000)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(mechanism.event())
    truth = epsilon([Mechanism("poisson_gaussian", 1.0, 0.0625, 800)], DELTA)
    assert accountant.get_epsilon(DELTA) < 0.1 * truth
    assert epsilon([mechanism], DELTA) > truth


def test_chance_of_a_cut_is_the_binomials_and_only_grows_with_the_data_set():
    assert cut_probability(cut(64)) == pytest.approx(sum(binom.pmf(k, 999, 0.0625) for k in range(64, 1000)))
    chances = [cut_probability(cut(64, population=n)) for n in range(64, 1200, 7)]
    assert chances[0] < 1e-70
    assert chances == sorted(chances)
    assert cut_probability(Mechanism("poisson_gaussian", 1.0, 0.0625, 8)) == 0.0
    assert [cut_probability(cut(64), records) for records in (1, 2, 64, 65)] == sorted(
        cut_probability(cut(64), records) for records in (1, 2, 64, 65)
    )
    assert cut_probability(cut(64), 65) == 1.0


# Every two of the three meet in four of the eight; all of them in a slow run.
MECHANISMS = [
    pytest.param(sigma, q, population, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for i, sigma in enumerate([0.7, 1.5])
    for j, q in enumerate([0.3, 0.8])
    for k, population in enumerate([4, 400])
]


@pytest.mark.parametrize(("sigma", "q", "population"), MECHANISMS)
@pytest.mark.parametrize("units", [1, 2, 3, 4])
def test_exact_divergence_of_a_worst_case_data_set_is_covered(sigma, q, units, population):
    """One step, all others at -1, the unit in question at +1: the exact hockey-stick divergence by integration."""
    cap = 2
    mechanism = cut(cap, population=population, sigma=sigma, q=q, steps=1)
    x = np.linspace(-12, 12, 48_001)
    without, with_it = _density(x, units - 1, 0, cap, sigma, q), _density(x, units - 1, 1, cap, sigma, q)
    for delta in (0.2, 0.05, 1e-3):
        claimed = epsilon([mechanism], delta)
        for upper, lower in ((without, with_it), (with_it, without)):
            spent = float(np.sum(np.maximum(upper - math.exp(claimed) * lower, 0)) * (x[1] - x[0]))
            assert spent <= delta * (1 + 1e-6)


def _density(x, others, extra, cap, sigma, q):
    """Density of the noised sum: Poisson sample of all, cut to a random `cap` of it, others -1 and extra +1."""
    total = np.zeros_like(x)
    for b in range(others + 1):
        for e in range(extra + 1):
            weight = binom.pmf(b, others, q) * binom.pmf(e, extra, q)
            if b + e <= cap:
                total += weight * norm.pdf(x, e - b, sigma)
                continue
            stays = cap / (b + e) if e else 0.0  # the extra one is among the `cap` that stay
            total += weight * stays * norm.pdf(x, 1 - (cap - 1), sigma)
            total += weight * (1 - stays) * norm.pdf(x, -cap, sigma)
    return total
