"""Intervals over seeds and paired tests: against published tables, closed forms and another make of the same."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secure_fed.errors import DataError
from secure_fed.sweep.statistics import MOST_FLIPPED, holm, mean_interval, paired, sign_flip_p

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("n", "confidence", "quantile"),
    # Student's table: two-sided quantiles for n - 1 degrees of freedom.
    [(2, 0.95, 12.706), (3, 0.95, 4.303), (5, 0.95, 2.776), (3, 0.90, 2.920), (10, 0.99, 3.250)],
)
def test_the_interval_is_students_t(n, confidence, quantile):
    values = [0.7 + 0.01 * i for i in range(n)]
    found = mean_interval(values, confidence)
    sd = np.std(values, ddof=1)
    assert found.n == n
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(sd)
    assert found.high - found.mean == pytest.approx(quantile * sd / math.sqrt(n), rel=2e-4)  # the table's digits
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_seed_has_a_mean_but_no_interval():
    found = mean_interval([0.75], 0.95)
    assert (found.mean, found.low, found.high, found.sd, found.n) == (0.75, None, None, None, 1)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_no_or_unusable_values_are_refused(values):
    with pytest.raises(DataError, match="finite numbers"):
        mean_interval(values, 0.95)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(0.7, 0.02, size=(2000, 3))
    covered = np.mean([(f.low <= 0.7 <= f.high) for f in (mean_interval(list(d), 0.9) for d in draws)])
    assert abs(covered - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)  # four standard errors of the share


@given(SCORES, SCORES)
def test_a_paired_test_agrees_with_scipys(first, second):
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    differences = np.subtract(second, first)
    found = paired(dict(enumerate(first)), dict(enumerate(second)))
    if np.ptp(differences) <= 1e-9:
        return  # rounding decides there
    assert found.t_p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-6, abs=1e-12)
    assert found.difference == pytest.approx(np.mean(differences), abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(differences), rel=1e-6)


@given(SCORES, SCORES)
def test_swapping_the_two_changes_nothing_but_the_sign(first, second):
    a, b = dict(enumerate(first)), dict(enumerate(second))
    forth, back = paired(a, b), paired(b, a)
    assert forth.difference == -back.difference
    assert (forth.t_p, forth.permutation_p, forth.n) == (back.t_p, back.permutation_p, back.n)


def test_only_common_keys_are_paired():
    found = paired({0: 0.1, 1: 0.2, 2: 0.9}, {1: 0.3, 0: 0.3, 7: 0.0})
    assert found.n == 2
    assert found.difference == pytest.approx(0.15)


def test_nothing_in_common_is_no_test():
    assert paired({0: 0.1}, {1: 0.2}) is None


def test_one_pair_tests_nothing():
    found = paired({0: 0.1}, {0: 0.2})
    assert (found.t_p, found.low, found.standard_error, found.permutation_p) == (None, None, None, 1.0)


def test_equal_results_differ_by_nothing():
    found = paired({0: 0.1, 1: 0.2}, {0: 0.1, 1: 0.2})
    assert (found.difference, found.t_p, found.permutation_p) == (0.0, 1.0, 1.0)


def test_differences_that_do_not_scatter_give_no_p_value():
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit: that is no scatter, and p = 0 would be a claim on nothing.
    assert paired({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.2, 1: 0.3, 2: 0.4}).t_p is None


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_one_sided_differences_reach_the_least_permutation_p(n):
    assert sign_flip_p([0.01 * (i + 1) for i in range(n)]) == 2.0 ** (1 - n)


@given(st.lists(st.integers(-50, 50).map(lambda i: i / 64), min_size=1, max_size=8))
def test_the_permutation_p_counts_all_flips(differences):
    every = itertools.product((1, -1), repeat=len(differences))
    flips = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in every]
    expected = np.mean([flip >= abs(math.fsum(differences)) for flip in flips])  # sixty-fourths: exact
    assert sign_flip_p(differences) == expected


def test_rounding_hides_no_tie():
    # Added one by one, ten times 0.1 is a bit less than 1: without care not even the data as they are would count.
    assert sign_flip_p([0.1] * 10) == 2.0**-9


def test_the_permutation_test_ends_where_it_would_take_too_long():
    assert sign_flip_p([0.1] * MOST_FLIPPED) == 2.0 ** (1 - MOST_FLIPPED)
    assert sign_flip_p([0.1] * (MOST_FLIPPED + 1)) is None


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's own numbers, as statsmodels gives them
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.04], [0.04]),
        ([None, 0.04, None, 0.01], [None, 0.04, None, 0.02]),
        ([], []),
    ],
)
def test_holm_adjusts_step_by_step(given_, expected):
    assert [None if p is None else round(p, 12) for p in holm(given_)] == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_is_between_nothing_and_bonferroni(values):
    adjusted = holm(values)
    for p, q in zip(values, adjusted, strict=True):
        assert p <= q <= 1.0
    least = int(np.argmin(values))
    assert adjusted[least] == min(1.0, len(values) * values[least])  # the first step is Bonferroni's
    assert np.all(np.diff(np.array(adjusted)[np.argsort(values, kind="stable")]) >= 0)


def test_holm_raises_few_false_alarms_in_a_family():
    """Without a difference anywhere, at most 5 % of families of ten tests alarm; without Holm it would be 40 %."""
    rng = np.random.default_rng(1)
    alarms, alone = 0, 0
    for _ in range(400):
        tests = [paired(dict(enumerate(a)), dict(enumerate(b))).t_p for a, b in rng.normal(size=(10, 2, 4))]
        alarms += min(holm(tests)) < 0.05
        alone += min(tests) < 0.05
    assert alarms / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert alone / 400 > 0.2


def test_statistics_need_no_torch():
    rooms = "secure_fed.sweep.statistics, secure_fed.sweep.table, secure_fed.sweep.comparison"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
