"""What counts against the limit, and which plan it still admits: as the gate asks and as `verify` recomputes."""

from __future__ import annotations

import math

import pytest
from bookkeeping import DELTA, FIRST, bodies, close, forge, further, genesis, plan, reserve, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.accounting import Mechanism, epsilon, filter_epsilon, merge
from secure_fed.errors import AccountingError
from secure_fed.identity import SigningKey
from secure_fed.ledger import Off, read_ledger, standing, verify
from secure_fed.ledger.budget import Bookkeeper, planned_mechanisms

KEY = SigningKey.generate()


def _books(*items, **first):
    keeper = Bookkeeper(genesis(KEY, **first))
    for item in items:
        keeper.add(item)
    return keeper.standing()


def _problem(tmp_path, items):
    return verify([forge(tmp_path / "ledger.jsonl", "site01", KEY, items)]).first_problem


def test_open_run_counts_its_whole_plan_and_a_closed_one_what_it_charged():
    run = [plan(), reserve(0), settle(0)]
    assert _books(*run).commitments() == merge(planned_mechanisms(plan()))
    assert _books(*run, close()).commitments() == (FIRST,)
    assert _books(*run).charged() == (FIRST,)
    assert _books(plan(), close()).commitments() == ()


def test_closing_an_unknown_run_frees_nothing():
    assert _books(plan(), close("run-9")) == _books(plan())


def test_first_plan_is_admitted_by_pld_and_a_further_one_by_the_filter_over_all_that_counts():
    first, later = planned_mechanisms(plan()), [Mechanism("gaussian", 20.0, 1.0, 1)]
    assert _books().admission(first, "run-1") == epsilon(first, DELTA)
    books = _books(plan(), reserve(0))
    order = books.genesis.filter_order
    assert books.admission(later, "run-2") == filter_epsilon([*first, *later], DELTA, order)
    # The same run asked again, after its restart, is still alone.
    assert books.admission(first, "run-1") == epsilon(first, DELTA)


def test_run_that_closed_without_a_charge_leaves_the_next_plan_the_first():
    later = planned_mechanisms(plan(rounds=1))
    assert _books(plan(), close()).admission(later, "run-2") == epsilon(later, DELTA)


def test_further_plan_is_refused_where_only_pld_admitted_the_first_even_once_that_stopped_early():
    """Choosing PLD or the filter after seeing results would cost up to twice delta: see `Standing.admission`."""
    limit, tiny = 1.9, [Mechanism("gaussian", 500.0, 1.0, 1)]
    books = _books(plan(), reserve(0), close(), epsilon_limit=limit)
    order = books.genesis.filter_order
    assert books.runs[0].in_full == planned_mechanisms(plan())
    assert epsilon(planned_mechanisms(plan()), DELTA) < limit < filter_epsilon(planned_mechanisms(plan()), DELTA, order)
    assert filter_epsilon([FIRST, *tiny], DELTA, order) < limit  # what was charged would leave room
    assert books.admission(tiny, "run-2") > limit


def test_nothing_is_admitted_where_something_left_without_privacy_or_no_limit_was_set():
    off = Off(run="run-0", step=0, round=0, phase="encoders")
    assert _books(off).admission([FIRST], "run-1") == math.inf
    unlimited = _books(plan(), reserve(0), epsilon_limit=None)
    with pytest.raises(AccountingError, match="sets no limit"):
        unlimited.admission([FIRST], "run-2")


def test_spent_is_pld_for_one_run_and_the_filter_for_several():
    one = [plan(), reserve(0), settle(0), close()]
    assert _books(*one).spent() == epsilon([FIRST], DELTA)
    two = _books(*one, plan(run="run-2"), reserve(0, run="run-2"))
    assert two.several
    assert two.spent() == filter_epsilon([FIRST, FIRST], DELTA, two.genesis.filter_order)
    assert two.spent() > epsilon([FIRST, FIRST], DELTA)
    assert _books(*one, plan(run="run-2"), reserve(0, run="run-2"), epsilon_limit=None).spent() == math.inf


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["plan", "charge", "close"]), st.sampled_from(["run-1", "run-2", "run-3"])),
        max_size=12,
    )
)
def test_what_is_charged_is_never_more_than_what_is_committed(steps):
    """Over any order of plans, charges within them and closings, several runs open side by side."""
    keeper, planned, closed, charged = Bookkeeper(genesis(KEY)), set(), set(), {}
    for kind, run in steps:
        if kind == "plan" and run not in planned:
            planned.add(run)
            keeper.add(plan(run=run, filter_epsilon=None))
        elif kind == "charge" and run in planned - closed and charged.get(run, 0) < 3:
            charged[run] = charged.get(run, 0) + 1
            keeper.add(reserve(charged[run], run=run))
        elif kind == "close" and run in planned:
            closed.add(run)
            keeper.add(close(run))
    books = keeper.standing()
    committed = {(m.kind, m.noise_multiplier): m.steps for m in books.commitments()}
    for m in books.charged():
        assert m.steps <= committed[m.kind, m.noise_multiplier]
    if closed == planned:
        assert books.charged() == books.commitments()


def test_books_read_one_by_one_are_those_read_at_once(tmp_path):
    items = [genesis(KEY), *bodies(), close()]
    records = read_ledger(forge(tmp_path / "ledger.jsonl", "site01", KEY, items))
    keeper = Bookkeeper(items[0])
    for number, record in enumerate(records, 1):
        keeper.add(record.body)
        assert keeper.standing() == standing(records[:number])


# -- as the auditor recomputes it --------------------------------------------------------------------------------


def test_several_runs_within_the_limit_verify_and_their_figure_is_the_filters(tmp_path):
    first = [genesis(KEY), *bodies(1), close()]
    second = [further(first, rounds=1), reserve(0, run="run-2"), close("run-2", "operator")]
    third = [further([*first, *second], rounds=1, run="run-3"), reserve(0, run="run-3")]
    items = [*first, *second, *third]
    row = verify([forge(tmp_path / "ledger.jsonl", "site01", KEY, items)]).rows[0]
    assert row.problem is None
    charged = standing(read_ledger(tmp_path / "ledger.jsonl")).charged()
    assert row.epsilon == filter_epsilon(charged, DELTA, items[0].filter_order)
    assert row.pld_epsilon == epsilon(charged, DELTA) < row.epsilon
    assert any("3 runs" in flag for flag in row.flags)


def test_runs_open_side_by_side_are_counted_in_full(tmp_path):
    first = [genesis(KEY), plan(rounds=2), reserve(0)]
    assert _problem(tmp_path, [*first, further(first, rounds=1), reserve(0, run="run-2"), reserve(1)]) is None


def test_further_plan_beyond_the_limit_is_named(tmp_path):
    first = [genesis(KEY), *bodies(1)]
    later = further(first, rounds=40, epsilon=50.0)
    assert "record 5 plans run run-2, which brings epsilon to" in _problem(tmp_path, [*first, later])


def test_first_plan_beyond_the_limit_is_named(tmp_path):
    items = [genesis(KEY, epsilon_limit=1.0), plan()]
    assert "record 1 plans run run-1, which brings epsilon to 1.87" in _problem(tmp_path, items)


def test_further_plan_that_claims_pld_instead_of_the_filter_is_named(tmp_path):
    first = [genesis(KEY), *bodies(1), close()]
    assert "record 6 claims filter_epsilon=1.87" in _problem(tmp_path, [*first, plan(run="run-2")])
    assert "record 6 claims filter_epsilon=None" in _problem(tmp_path, [*first, plan(run="run-2", filter_epsilon=None)])


def test_figure_of_the_filter_where_nothing_limits_is_named(tmp_path):
    items = [genesis(KEY, epsilon_limit=None), plan()]
    assert "record 1 claims filter_epsilon=1.87" in _problem(tmp_path, items)


def test_order_of_the_filter_is_no_free_choice(tmp_path):
    first = genesis(KEY)
    other = genesis(KEY, filter_order=first.filter_order + 1)
    assert f"record 0 fixes filter_order={other.filter_order}" in _problem(tmp_path, [other])


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (reserve(1), "record 6 belongs to run run-1, which record 5 had closed"),
        (plan(), "record 6 belongs to run run-1, which record 5 had closed"),
        (Off(run="run-1", step=1, round=1, phase="encoders"), "record 6 belongs to run run-1, which record 5"),
        (close(), "record 6 closes run run-1, which record 5 had closed"),
        (close("run-2"), "record 6 closes run run-2, which has no plan"),
    ],
)
def test_what_comes_after_a_close_is_named(tmp_path, late, words):
    assert words in _problem(tmp_path, [genesis(KEY), *bodies(1), close(), late])


def test_round_that_was_charged_is_settled_also_after_the_close(tmp_path):
    assert _problem(tmp_path, [genesis(KEY), *bodies(1), close(), settle(0, outcome="released")]) is None


def test_hundred_runs_on_one_home_are_judged_in_seconds(tmp_path):
    """Every plan is judged where it stands: what counts is kept, not gathered anew from the first record."""
    import time

    items = [genesis(KEY, epsilon_limit=40.0)]
    for number in range(100):
        run = f"run-{number}"
        made = plan(run=run, rounds=1) if not number else further(items, run=run, rounds=1)
        items += [made, reserve(0, run=run), close(run)]
    times = [f"2025-06-01T12:00:00.{i:06d}Z" for i in range(len(items))]
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, items, times)
    began = time.process_time()
    assert verify([path]).ok
    assert time.process_time() - began < 5
