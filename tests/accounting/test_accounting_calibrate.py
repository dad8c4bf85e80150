"""Calibration finds the least noise and is never above the target."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.accounting import Mechanism, MechanismShape, calibrate, epsilon, filter_epsilon, filter_order
from secure_fed.accounting.calibrate import LEAST_NOISE
from secure_fed.errors import AccountingError

DELTA = 1e-5
DPSGD = MechanismShape("poisson_gaussian", 0.0625, 800)


def _reached(shapes, scale, past=(), relation="add_or_remove_one"):
    return epsilon([*past, *(shape.at(scale) for shape in shapes)], DELTA, relation=relation)


@pytest.mark.parametrize(
    "shapes",
    [
        [DPSGD],
        [MechanismShape("poisson_gaussian", 0.0625, 640), MechanismShape("poisson_gaussian", 0.2, 64, 2.0)],
        [DPSGD, MechanismShape("gaussian", 1.0, 1, 8.0)],
        [MechanismShape("gaussian", 1.0, 1)],
    ],
)
@pytest.mark.parametrize("target", [0.5, 8.0, 60.0])
@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_target_is_met_from_below_and_closely(shapes, target, relation):
    scale = calibrate(shapes, target, DELTA, relation=relation)
    assert target * (1 - 1e-3) <= _reached(shapes, scale, relation=relation) <= target


@settings(max_examples=4, deadline=None)
@given(st.floats(0.02, 300.0), st.floats(0.002, 0.5), st.integers(1, 2000))
def test_target_is_never_passed(target, q, steps):
    shapes = [MechanismShape("poisson_gaussian", q, steps)]
    scale = calibrate(shapes, target, DELTA)
    reached = _reached(shapes, scale)
    assert reached <= target
    assert scale == LEAST_NOISE or reached >= target * (1 - 1e-3)


def test_inverse_of_the_table_of_the_house():
    # sigma 1.5 costs 6.3208 (see the composition's table); 1e-3 in epsilon is about 1e-3 in sigma.
    assert calibrate([DPSGD], 6.3208, DELTA) == pytest.approx(1.5, rel=2e-3)


def test_more_budget_needs_less_noise_and_more_steps_need_more():
    scales = [calibrate([DPSGD], target, DELTA) for target in (1.0, 2.0, 4.0, 8.0)]
    assert scales == sorted(scales, reverse=True)
    longer = MechanismShape("poisson_gaussian", 0.0625, 1600)
    assert calibrate([longer], 8.0, DELTA) > scales[-1]


def test_what_was_spent_before_is_counted():
    past = (Mechanism("poisson_gaussian", 2.0, 0.0625, 800),)
    scale = calibrate([DPSGD], 8.0, DELTA, past=past)
    assert scale > calibrate([DPSGD], 8.0, DELTA)
    assert 8.0 * (1 - 1e-3) <= _reached([DPSGD], scale, past) <= 8.0


def test_budget_spent_already_is_named_with_the_way_out():
    past = (Mechanism("poisson_gaussian", 1.0, 0.0625, 800),)
    with pytest.raises(AccountingError, match=r"epsilon=8 .* 12\.55 is spent already\. Only a larger epsilon"):
        calibrate([DPSGD], 8.0, DELTA, past=past)


def test_epsilon_that_no_noise_reaches_is_named_with_the_way_out():
    with pytest.raises(AccountingError, match=r"epsilon=1e-07 .* fewer rounds or steps"):
        calibrate([DPSGD], 1e-7, DELTA)


@pytest.mark.parametrize("target", [0, -1.0, math.nan, math.inf])
def test_epsilon_that_is_none_is_named(target):
    with pytest.raises(AccountingError, match="epsilon="):
        calibrate([DPSGD], target, DELTA)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: MechanismShape("poisson_gaussian", 0.1, 0), "steps=0"),
        (lambda: MechanismShape("poisson_gaussian", 0.1, 1, 0.0), "relative_noise=0"),
        (lambda: MechanismShape("gaussian", 0.1, 1), "sample_rate=0.1"),
        (lambda: MechanismShape("gaussian", 1.0, 1, batch_cap=3), "batch_cap=3"),
        (lambda: MechanismShape("truncated_poisson_gaussian", 0.1, 1), "batch_cap=None"),
        (lambda: MechanismShape("gaussian", 1.0, 1, component_noise=(1.0, 0.0)), "component_noise="),
        (lambda: calibrate([DPSGD], 8.0, DELTA, order=1.0), "order=1.0"),
        (lambda: calibrate([], 8.0, DELTA), "nothing to calibrate"),
        (lambda: calibrate([DPSGD], 8.0, 1.0), "delta="),
        (lambda: calibrate([DPSGD], 8.0, DELTA, tolerance=0.0), "tolerance="),
    ],
)
def test_wrong_arguments_are_named(build, word):
    with pytest.raises(AccountingError, match=word):
        build()


PAST = (Mechanism("poisson_gaussian", 2.0, 0.0625, 400), Mechanism("gaussian", 20.0, 1.0, 3))
STATISTIC = MechanismShape("gaussian", 1.0, 62)


# Every second square of the board, on which each two of the three meet; all of it in a slow run.
FILTERED = [
    pytest.param(shapes, target, past, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for i, shapes in enumerate([[DPSGD], [STATISTIC], [DPSGD, STATISTIC]])
    for j, target in enumerate([4.0, 8.0, 20.0])
    for k, past in enumerate([(), PAST])
]


@pytest.mark.parametrize(("shapes", "target", "past"), FILTERED)
def test_noise_by_the_filter_meets_the_limit_from_below_and_closely(shapes, target, past):
    order = filter_order(target, DELTA)
    scale = calibrate(shapes, target, DELTA, past=past, order=order)
    reached = filter_epsilon([*past, *(shape.at(scale) for shape in shapes)], DELTA, order)
    assert target * (1 - 1e-3) <= reached <= target
    # What the filter admits, PLD admits too: the order costs noise, never privacy.
    assert scale >= calibrate(shapes, target, DELTA, past=past)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 50.0), st.floats(0.002, 1.0), st.integers(1, 2000), st.sampled_from([(), PAST]))
def test_limit_of_the_filter_is_never_passed(target, q, steps, past):
    order = filter_order(target, DELTA)
    shapes = [MechanismShape("poisson_gaussian", q, steps)]
    if filter_epsilon(past, DELTA, order) >= target:
        with pytest.raises(AccountingError, match="is spent already by the filter at order"):
            calibrate(shapes, target, DELTA, past=past, order=order)
        return
    scale = calibrate(shapes, target, DELTA, past=past, order=order)
    reached = filter_epsilon([*past, *(shape.at(scale) for shape in shapes)], DELTA, order)
    assert reached <= target
    assert scale == LEAST_NOISE or reached >= target * (1 - 1e-3)


def test_limit_that_the_past_has_spent_by_the_filter_is_named_with_the_way_out():
    past = (Mechanism("poisson_gaussian", 1.0, 0.0625, 800),)
    order = filter_order(8.0, DELTA)
    with pytest.raises(AccountingError, match=r"is spent already by the filter at order 4\. Only a larger epsilon"):
        calibrate([DPSGD], 8.0, DELTA, past=past, order=order)


def test_order_that_leaves_no_room_is_named():
    # At order 2 the conversion alone costs log(1 / 2) - log(2 delta) = 10.1.
    with pytest.raises(AccountingError, match=r"epsilon=8 .* by the filter at order 2 even with a noise"):
        calibrate([DPSGD], 8.0, DELTA, order=2.0)


def test_capped_batches_and_components_are_solved_like_any_other():
    capped = MechanismShape("truncated_poisson_gaussian", 0.0625, 160, batch_cap=96, population=1000)
    parts = MechanismShape("poisson_gaussian", 0.0625, 160, component_noise=(1.0, 2.0))
    scale = calibrate([capped, parts], 8.0, DELTA, tolerance=1e-2)
    first, second = capped.at(scale), parts.at(scale)
    assert (first.batch_cap, first.population) == (96, 1000)
    assert second.component_noise == (scale, 2 * scale)
    assert 8.0 * (1 - 1e-2) <= epsilon([first, second], DELTA) <= 8.0


def test_huge_epsilon_gets_the_least_noise():
    assert calibrate([DPSGD], 1e6, DELTA) == LEAST_NOISE


def test_answers_do_not_depend_on_the_order_of_the_past():
    past = [Mechanism("poisson_gaussian", s, 0.05, 100) for s in (3.0, 4.0)]
    assert calibrate([DPSGD], 8.0, DELTA, past=past) == calibrate([DPSGD], 8.0, DELTA, past=past[::-1])
