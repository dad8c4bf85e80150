"""The figures of a verdict: two accountants that must agree, a third on request, and everything that weakens them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from io import StringIO

import pytest
from bookkeeping import DELTA, FIRST, N, bodies, expected_epsilon, forge, further, genesis, plan, reserve, settle, write
from rich.console import Console

from secure_fed.accounting import Mechanism, epsilon, filter_epsilon
from secure_fed.errors import AccountingError
from secure_fed.identity import SigningKey
from secure_fed.ledger import PlannedPhase, render, verify

KEY = SigningKey.generate()


@pytest.fixture
def ledger(tmp_path):
    return write(tmp_path / "ledger.jsonl", "site01", KEY, bodies())


def _one_phase(tmp_path, mechanism, sampler="poisson", rounds=1, first=None, **charge):
    """A ledger of one phase, all of whose rounds were charged."""
    phase = PlannedPhase(
        name="encoders", mechanism=mechanism, max_grad_norm=1.0, rounds=rounds, components=("encoder.image", "fusion")
    )
    first = first or genesis(KEY, epsilon_limit=300.0)
    cost = epsilon([replace(mechanism, steps=mechanism.steps * rounds)], DELTA, relation=first.relation)
    fixed = plan(phases=(phase,), epsilon=max(cost, 300.0), filter_epsilon=cost)
    charges = [
        reserve(number, mechanism=mechanism, sampler=sampler, relation=first.relation, **charge)
        for number in range(rounds)
    ]
    return forge(tmp_path / "one.jsonl", "site01", KEY, [first, fixed, *charges])


def _row(path, **options):
    verdict = verify([path], **options)
    assert verdict.ok, verdict.first_problem
    return verdict.rows[0]


def test_row_holds_pld_rdp_and_replace_one(ledger):
    row = _row(ledger)
    charged = [replace(m, steps=2 * m.steps) for m in (FIRST, reserve(0, "translators").mechanism)]
    assert row.epsilon == epsilon(charged, DELTA) == expected_epsilon()
    assert row.pld_epsilon is None  # one run: nothing was chosen after seeing results
    assert row.rdp_epsilon == epsilon(charged, DELTA, accountant="rdp") > row.epsilon
    assert row.replace_one_epsilon == epsilon(charged, DELTA, relation="replace_one") > row.epsilon


def test_mechanisms_are_merged_before_they_are_composed(ledger, monkeypatch):
    seen = []
    module = sys.modules["secure_fed.ledger.recompute"]
    real = module.epsilon
    monkeypatch.setattr(module, "epsilon", lambda m, *a, **k: seen.append(tuple(m)) or real(m, *a, **k))
    _row(ledger)
    assert seen
    assert {len(mechanisms) for mechanisms in seen} == {2}  # four charges


def test_json_says_on_what_the_figure_stands(tmp_path, ledger):
    site = verify([ledger]).to_json()["sites"][0]
    assert site["epsilon_basis"] == "pld"
    assert site["epsilon"] == site["epsilon_if_planned_beforehand"]
    first = [genesis(KEY), *bodies()]
    path = forge(tmp_path / "two.jsonl", "site01", KEY, [*first, further(first, rounds=1), reserve(0, run="run-2")])
    site = verify([path]).to_json()["sites"][0]
    assert site["epsilon_basis"] == "filter"
    charged = [replace(FIRST, steps=3 * FIRST.steps), replace(reserve(0, "translators").mechanism, steps=16)]
    assert site["epsilon"] == filter_epsilon(charged, DELTA, first[0].filter_order)
    assert site["epsilon_if_planned_beforehand"] == epsilon(charged, DELTA) < site["epsilon"]


# -- the cross-check -----------------------------------------------------------------------------------------------


def test_cross_check_is_given_what_was_charged_and_its_figure_is_shown(ledger):
    asked = []
    row = _row(ledger, cross_check=lambda m, delta: asked.append((tuple(m), delta)) or expected_epsilon() + 0.001)
    assert [(sum(m.steps for m in mechanisms), delta) for mechanisms, delta in asked] == [(48, DELTA)]
    assert row.prv_epsilon == expected_epsilon() + 0.001
    assert _table(verify([ledger], cross_check=lambda *_: 1.5455)).count("PRV") == 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_accountants_further_apart_than_one_percent_and_a_little_fail_the_verdict(ledger, sign):
    reported = expected_epsilon()
    apart = 0.01 * reported + 0.005
    assert verify([ledger], cross_check=lambda *_: reported + sign * 0.98 * apart).ok
    verdict = verify([ledger], cross_check=lambda *_: reported + sign * 1.02 * apart)
    assert "record 7 ends at a PLD epsilon of" in verdict.first_problem
    assert "more than 1 % + 0.005 apart" in verdict.first_problem


@pytest.mark.parametrize("answer", [None, math.inf, math.nan])
def test_no_figure_outside_the_sound_range_and_the_reason_is_shown(ledger, answer):
    verdict = verify([ledger], cross_check=lambda *_: answer)
    assert verdict.ok
    site = verdict.to_json()["sites"][0]
    assert (site["epsilon_prv"], site["prv_remark"]) == (None, "outside the range where it is sound")
    assert "outside the range where it is sound" in _table(verdict)


def test_cross_check_is_not_asked_for_another_relation(tmp_path):
    first = genesis(KEY, relation="replace_one", epsilon_limit=300.0)
    path = _one_phase(tmp_path, FIRST, first=first)
    row = _row(path, cross_check=lambda *_: pytest.fail("asked"))
    assert row.prv_remark == "it knows only adding or removing one unit"
    assert row.epsilon == row.replace_one_epsilon == epsilon([FIRST], DELTA, relation="replace_one")


def test_pld_above_the_rdp_bound_fails_the_verdict(ledger, monkeypatch):
    def contradictory(*_, accountant="pld", **__):
        return 2.0 if accountant == "pld" else 1.99

    monkeypatch.setattr(sys.modules["secure_fed.ledger.recompute"], "epsilon", contradictory)
    assert "record 7 ends at a PLD epsilon of 2, above the RDP bound 1.99" in verify([ledger]).first_problem


# -- what weakens the guarantee --------------------------------------------------------------------------------------


def test_update_without_sampling_is_flagged_and_a_statistic_of_all_units_is_not(tmp_path):
    every = Mechanism("gaussian", 5.0, 1.0, 1)
    flags = _row(_one_phase(tmp_path, every, "none", artefact="update")).flags
    assert any(flag.startswith("unamplified sampling in 1 charges") for flag in flags)
    assert _row(_one_phase(tmp_path, every, "none", artefact="statistic")).flags == ()
    assert _row(_one_phase(tmp_path, every, "none", artefact="evaluation")).flags == ()


def test_capped_batches_are_flagged_and_cost_more(tmp_path):
    cut = Mechanism("truncated_poisson_gaussian", 1.5, 0.0625, 16, batch_cap=30, population=N)
    row = _row(_one_phase(tmp_path, cut, "truncated_poisson"))
    assert any(flag.startswith("capped batches in 1 charges") for flag in row.flags)
    assert row.epsilon > epsilon([FIRST], DELTA)


def test_charge_without_noise_is_flagged_and_infinite(tmp_path):
    items = [
        genesis(KEY, epsilon_limit=None),
        plan(
            phases=(plan().phases[0].model_copy(update={"mechanism": replace(FIRST, noise_multiplier=0.0)}),),
            filter_epsilon=None,
        ),
    ]
    verdict = verify([forge(tmp_path / "ledger.jsonl", "site01", KEY, items)])
    assert "record 1 claims epsilon=8 for a plan that costs inf" in verdict.first_problem


def test_ledger_without_a_limit_is_flagged(tmp_path):
    path = write(
        tmp_path / "ledger.jsonl", "site01", KEY, [genesis(KEY, epsilon_limit=None), plan(filter_epsilon=None)]
    )
    assert _row(path).flags == ("no limit was set",)


def test_missing_replace_one_figure_is_flagged(ledger, monkeypatch):
    module = sys.modules["secure_fed.ledger.recompute"]
    real = module.epsilon

    def refuse(*args, relation="add_or_remove_one", **options):
        if relation == "replace_one":
            raise AccountingError("not accounted")
        return real(*args, relation=relation, **options)

    monkeypatch.setattr(module, "epsilon", refuse)
    row = _row(ledger)
    assert row.replace_one_epsilon is None
    assert row.flags == ("no replace-one epsilon: not accounted",)


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        (Mechanism("poisson_gaussian", 1e-9, 0.5, 1), "holds noise_multiplier=1e-09"),
        (Mechanism("poisson_gaussian", 1e300, 1e-300, 10**12), "holds noise_multiplier=1e+300"),
        (Mechanism("gaussian", 1.0, 1.0, 10**15), "steps: up to 1000000 are accounted"),
        (Mechanism("gaussian", 0.06, 1.0, 10**6), "holds an epsilon near"),
        (
            Mechanism("truncated_poisson_gaussian", 0.06, 0.999, 10**5, batch_cap=1, population=N),
            "holds an epsilon near",
        ),
    ],
)
def test_mechanism_of_absurd_size_is_named_and_does_not_take_the_auditors_machine(tmp_path, mechanism, words):
    """Composing the first of these would ask for 60 GB, the third and the last for more."""
    phase = plan().phases[0].model_copy(update={"mechanism": mechanism, "rounds": 1})
    items = [genesis(KEY), plan(phases=(phase,), filter_epsilon=1.0), settle(0)]
    problem = verify([forge(tmp_path / "ledger.jsonl", "site01", KEY, items)]).first_problem
    assert problem.startswith("site01: record 1 ")
    assert words in problem
    stray = [genesis(KEY), plan(), reserve(0, mechanism=mechanism)]
    assert "record 2 holds" in verify([forge(tmp_path / "stray.jsonl", "site01", KEY, stray)]).first_problem


def test_little_noise_is_still_accounted(tmp_path):
    """What somebody may try on synthetic data, and the least that calibration gives."""
    weak = Mechanism("poisson_gaussian", 0.1, 0.0625, 16)
    assert 300 < _row(_one_phase(tmp_path, weak, first=genesis(KEY, epsilon_limit=5000.0))).epsilon < 5000


def _table(verdict):
    out = StringIO()
    render(verdict, Console(file=out, width=200, color_system=None))
    assert json.dumps(verdict.to_json(), allow_nan=False)
    return out.getvalue()
