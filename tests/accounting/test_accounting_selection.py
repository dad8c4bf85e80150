"""What choosing among runs costs: composition over alternatives, the best of a random number, and that number's law."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import islice, product

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp as dp_rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, nbinom, poisson

from secure_fed.accounting import (
    Mechanism,
    composed_epsilon,
    covers,
    draw_repetitions,
    epsilon,
    repeat_select_epsilon,
)
from secure_fed.accounting.selection import repetition_law
from secure_fed.errors import AccountingError

DELTA = 1e-5
DPSGD = Mechanism("poisson_gaussian", 1.0, 0.0625, 800)


def gaussian(noise: float, steps: int = 1) -> Mechanism:
    return Mechanism("gaussian", noise, 1.0, steps)


# -- the table of a run of DP-SGD ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "figure"),
    [
        ("one run, RDP", 13.8),
        ("ten runs, RDP", 63.4),
        ("ten runs, PLD", 54.9),
        ("best of a Poisson number, ten on average", 25.0),
        ("best of a geometric number, ten on average", 20.6),
        ("best of a logarithmic number, ten on average", 18.9),
    ],
)
def test_what_ten_runs_of_dp_sgd_cost(what: str, figure: float) -> None:
    """sigma 1, q 0.0625, 800 steps, delta 1e-5: selection among ten costs far less than showing all ten."""
    found = {
        "one run, RDP": lambda: epsilon([DPSGD], DELTA, accountant="rdp"),
        "ten runs, RDP": lambda: epsilon([DPSGD.repeated(10)], DELTA, accountant="rdp"),
        "ten runs, PLD": lambda: composed_epsilon([[[DPSGD]]] * 10, DELTA).epsilon,
        "best of a Poisson number, ten on average": lambda: repeat_select_epsilon([[[DPSGD]]], DELTA, 10, math.inf),
        "best of a geometric number, ten on average": lambda: repeat_select_epsilon([[[DPSGD]]], DELTA, 10, 1),
        "best of a logarithmic number, ten on average": lambda: repeat_select_epsilon([[[DPSGD]]], DELTA, 10, 0),
    }[what]()
    assert found == pytest.approx(figure, abs=0.05)


@pytest.mark.parametrize("shape", [math.inf, 1.0, 0.0, 0.5])
@pytest.mark.parametrize("mechanism", [DPSGD, gaussian(4.0, 36)])
def test_one_candidate_costs_what_dp_accountings_own_event_does(mechanism: Mechanism, shape: float) -> None:
    accountant = dp_rdp.RdpAccountant()
    accountant.compose(dp_accounting.dp_event.RepeatAndSelectDpEvent(mechanism.event(), 7.0, shape))
    assert repeat_select_epsilon([[[mechanism]]], DELTA, 7.0, shape) == pytest.approx(accountant.get_epsilon(DELTA))


# -- composition ---------------------------------------------------------------------------------------------------


def test_composition_of_equal_plans_is_that_of_their_steps() -> None:
    runs = [[[gaussian(5.0, 10)], [gaussian(5.0, 10)]]] * 4
    found = composed_epsilon(runs, DELTA)
    assert found.basis == "pld"
    assert found.epsilon == pytest.approx(epsilon([gaussian(5.0, 40)], DELTA), rel=1e-4)


def test_the_site_that_spends_more_in_each_run_is_counted() -> None:
    """Different sites in different runs: nobody knows where a person is, so the worst of each run adds up."""
    low, high = [gaussian(8.0, 10)], [gaussian(4.0, 5), gaussian(6.0, 5)]
    found = composed_epsilon([[low, high], [high, low]], DELTA)
    assert found.basis == "pld"
    assert found.epsilon == pytest.approx(epsilon([*high, *high], DELTA), rel=1e-4)


def test_without_a_worst_alternative_rdp_bounds_every_choice() -> None:
    """Few loud steps against many quiet ones: which is worse depends on what else is composed."""
    run = [[gaussian(2.0, 1)], [Mechanism("poisson_gaussian", 1.0, 0.01, 400)]]
    found = composed_epsilon([run] * 3, DELTA)
    assert found.basis == "rdp"
    for choice in product(run, repeat=3):
        assert found.epsilon >= epsilon([m for mechanisms in choice for m in mechanisms], DELTA)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(
            st.builds(gaussian, st.floats(2.0, 20.0), st.integers(1, 30)).map(lambda m: [m]), min_size=1, max_size=3
        ),
        min_size=1,
        max_size=3,
    )
)
def test_composition_is_never_below_any_choice_of_sites(runs: list[list[list[Mechanism]]]) -> None:
    found = composed_epsilon(runs, DELTA)
    assert found.basis == "pld"  # of Gaussian releases one alternative is always the worst
    loudest = max(math.fsum(m.steps / m.noise_multiplier**2 for (m,) in choice) for choice in product(*runs))
    assert found.epsilon >= epsilon([gaussian(1 / math.sqrt(loudest))], DELTA) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Mechanism("poisson_gaussian", 1.0, 0.1, 10), Mechanism("poisson_gaussian", 1.0, 0.05, 10)),
        (Mechanism("poisson_gaussian", 1.0, 0.1, 10), Mechanism("poisson_gaussian", 2.0, 0.1, 9)),
        (
            Mechanism("truncated_poisson_gaussian", 1.0, 0.1, 10, 50, 400),
            Mechanism("truncated_poisson_gaussian", 1.0, 0.1, 5, 50, 400),
        ),
    ],
)
def test_less_sampling_more_noise_and_fewer_steps_are_dominated(one: Mechanism, other: Mechanism) -> None:
    found = composed_epsilon([[[one], [other]]], DELTA)
    assert found.basis == "pld"
    assert found.epsilon == pytest.approx(epsilon([one], DELTA))


@pytest.mark.parametrize(
    "other",
    [
        Mechanism("truncated_poisson_gaussian", 1.0, 0.1, 10, 40, 400),
        Mechanism("truncated_poisson_gaussian", 1.0, 0.05, 10, 50, 400),
        Mechanism("poisson_gaussian", 0.9, 0.1, 9),
    ],
)
def test_what_is_not_plainly_less_is_not_dominated(other: Mechanism) -> None:
    one = Mechanism("truncated_poisson_gaussian", 1.0, 0.1, 10, 50, 400)
    if other.batch_cap is None:
        one = Mechanism("poisson_gaussian", 1.0, 0.1, 10)
    found = composed_epsilon([[[one], [other]]], DELTA)
    assert found.basis == "rdp"
    assert found.epsilon >= max(epsilon([one], DELTA), epsilon([other], DELTA))


def test_each_sampled_release_needs_one_of_its_own() -> None:
    """Two phases are not covered by one of the same rate and noise."""
    phase = Mechanism("poisson_gaussian", 1.0, 0.1, 10)
    other = Mechanism("poisson_gaussian", 1.05, 0.1, 10)
    assert composed_epsilon([[[phase], [phase, other]]], DELTA).epsilon >= epsilon([phase, other], DELTA)


def test_nothing_released_costs_nothing() -> None:
    assert composed_epsilon([], DELTA).epsilon == 0.0
    assert composed_epsilon([[], [[]]], DELTA).epsilon == 0.0


def test_a_release_without_noise_has_no_bound() -> None:
    bare = gaussian(0.0)
    assert composed_epsilon([[[gaussian(5.0)]], [[bare]]], DELTA).epsilon == math.inf
    assert repeat_select_epsilon([[[gaussian(5.0)]], [[bare]]], DELTA, 10, 1) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(AccountingError, match="delta="):
        composed_epsilon([], delta)
    with pytest.raises(AccountingError, match="delta="):
        repeat_select_epsilon([[[DPSGD]]], delta, 10, 1)


# -- selection -----------------------------------------------------------------------------------------------------

CANDIDATES = [[[gaussian(noise, 18)], [gaussian(1.2 * noise, 21)]] for noise in (9.0, 12.0, 30.0)]


@pytest.mark.parametrize("shape", [math.inf, 1.0])
def test_a_mixture_of_candidates_costs_between_all_of_the_best_and_all_of_the_worst(shape: float) -> None:
    worst, best = CANDIDATES[0], CANDIDATES[-1]
    mixed = repeat_select_epsilon(CANDIDATES, DELTA, 10, shape)
    assert repeat_select_epsilon([best], DELTA, 10, shape) < mixed
    assert mixed < repeat_select_epsilon([worst], DELTA, 10, shape)


def test_a_candidate_listed_twice_is_drawn_twice_as_often() -> None:
    """Uniform over the grid, not over the different plans in it: seeds share a plan."""
    once = repeat_select_epsilon(CANDIDATES, DELTA, 10, 1)
    assert repeat_select_epsilon([*CANDIDATES, *CANDIDATES], DELTA, 10, 1) == pytest.approx(once)
    assert repeat_select_epsilon([CANDIDATES[0], *CANDIDATES], DELTA, 10, 1) > once


def test_selection_covers_the_site_that_spends_most() -> None:
    loud, quiet = [gaussian(9.0, 18)], [gaussian(20.0, 18)]
    alone = repeat_select_epsilon([[loud]], DELTA, 10, 1)
    assert repeat_select_epsilon([[quiet, loud]], DELTA, 10, 1) == pytest.approx(alone)


def test_selection_costs_more_than_one_run_and_less_than_all() -> None:
    run = [[gaussian(9.0, 18)]]
    selected = repeat_select_epsilon([run], DELTA, 20, 1)
    assert composed_epsilon([run], DELTA).epsilon < selected < composed_epsilon([run] * 20, DELTA).epsilon


def test_more_runs_on_average_cost_more() -> None:
    figures = [repeat_select_epsilon([[[DPSGD]]], DELTA, mean, 1) for mean in (1, 3, 10, 100)]
    assert figures == sorted(figures)


def test_nothing_to_select_from_is_refused() -> None:
    with pytest.raises(AccountingError, match="at least one candidate"):
        repeat_select_epsilon([], DELTA, 10, 1)


def test_a_plan_covers_what_it_planned_and_nothing_more() -> None:
    plan = [[gaussian(9.0, 19)], [gaussian(9.5, 22)]]
    assert covers(plan, plan)
    assert covers(plan, [[gaussian(9.0, 18)], []])
    assert not covers(plan, [[gaussian(9.0, 23)]])
    assert not covers(plan, [[gaussian(0.0)]])
    assert not covers(plan, [[DPSGD]])
    assert covers([], [])
    assert not covers([], plan)


# -- the law of repetitions ----------------------------------------------------------------------------------------


def probabilities(mean: float, shape: float, count: int = 400) -> dict[int, float]:
    with localcontext() as context:
        context.prec = 60
        return {k: float(p) for k, p in islice(repetition_law(mean, shape), count)}


@pytest.mark.parametrize("mean", [1.0, 1.5, 10.0, 72.0])
def test_poisson_law_is_poisson(mean: float) -> None:
    found = probabilities(mean, math.inf)
    assert np.allclose(list(found.values()), poisson.pmf(list(found), mean), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("mean", [1.5, 10.0, 72.0])
def test_shape_one_is_the_geometric_law(mean: float) -> None:
    for k, found in probabilities(mean, 1.0).items():
        assert found == pytest.approx((1 / mean) * (1 - 1 / mean) ** (k - 1), rel=1e-12)


@pytest.mark.parametrize(("mean", "shape"), [(10.0, 0.5), (10.0, 2.0), (3.0, 7.0)])
def test_other_shapes_are_a_negative_binomial_without_zero(mean: float, shape: float) -> None:
    found = probabilities(mean, shape)
    gamma = (found[1] / found[2] * (1 + shape) / 2) ** -1  # of the first two, by definition 1 - gamma
    gamma = 1 - gamma
    law = nbinom(shape, gamma)
    expected = law.pmf(list(found)) / (1 - law.pmf(0))
    assert np.allclose(list(found.values()), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(
    ("mean", "shape"), [(10.0, math.inf), (10.0, 1.0), (4.0, 0.0), (4.0, 0.5), (1.0, 0.0), (5.0, 3.0)]
)
def test_probabilities_add_up_to_one_and_have_the_mean(mean: float, shape: float) -> None:
    with localcontext() as context:
        context.prec = 60
        law = []
        for k, p in islice(repetition_law(mean, shape), 3000):
            law.append((k, p))
            if k > mean and p < Decimal("1e-25"):
                break
        assert abs(sum(p for _, p in law) - 1) < Decimal("1e-20")
        assert abs(sum(k * p for k, p in law) - Decimal(mean)) < Decimal("1e-18")


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("mean", [1.01, 2.0, 50.0])
def test_law_is_the_one_that_the_accountant_counts_for(mean: float, shape: float) -> None:
    """dp-accounting solves gamma from the mean by itself; the law that is drawn from must have the same."""
    solved = dp_rdp.rdp_privacy_accountant._gamma_truncated_negative_binomial(shape, mean)
    found = probabilities(mean, shape, 2)
    drawn = 1 - found[2] / found[1] * 2 / (1 + shape)
    assert drawn == pytest.approx(solved, rel=1e-7)


def bits_of(fraction: float) -> int:
    return int(fraction * 2**256)


def test_only_poisson_can_draw_nothing() -> None:
    lowest = bits_of(0.0)
    assert draw_repetitions(10, math.inf, lambda _: lowest) == 0
    for shape in (0.0, 0.5, 1.0, 3.0):
        assert draw_repetitions(10, shape, lambda _: lowest) == 1


def test_the_largest_uniform_number_still_ends_the_draw() -> None:
    assert draw_repetitions(10, math.inf, lambda bits: 2**bits - 1) > 100
    assert draw_repetitions(2, 1, lambda bits: 2**bits - 1) > 200


@pytest.mark.parametrize("shape", [math.inf, 1.0])
def test_draws_follow_the_law(shape: float) -> None:
    """The inverse of the cumulative law at evenly spaced numbers: frequencies meet the probabilities."""
    count = 400
    numbers = iter(bits_of((i + 0.5) / count) for i in range(count))
    drawn = [draw_repetitions(3.0, shape, lambda _: next(numbers)) for _ in range(count)]
    law = {k: p for k, p in probabilities(3.0, shape, 40).items() if p * count >= 5}
    observed = [drawn.count(k) for k in law]
    rest = (count - sum(observed), count * (1 - sum(law.values())))
    expected = [p * count for p in law.values()]
    assert chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue > 0.999


def test_draws_come_from_the_operating_system() -> None:
    assert len({draw_repetitions(1000, 1) for _ in range(12)}) > 1  # alike with probability below 1e-30


@pytest.mark.parametrize(
    ("mean", "shape", "named"),
    [
        (0.5, 1.0, "mean="),
        (math.inf, 1.0, "mean="),
        (math.nan, 1.0, "mean="),
        (10.0, -0.5, "shape="),
        (10.0, math.nan, "shape="),
    ],
)
def test_a_law_that_no_theorem_covers_is_refused(mean: float, shape: float, named: str) -> None:
    with pytest.raises(AccountingError, match=named):
        draw_repetitions(mean, shape)
    with pytest.raises(AccountingError, match=named):
        repeat_select_epsilon([[[DPSGD]]], DELTA, mean, shape)
