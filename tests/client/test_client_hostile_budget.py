"""A coordinator that wants more than the owner allows, and what an owner is told beforehand."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench
from two_phase_site import SITE, bodies, edit, log_of

from secure_fed.accounting import Mechanism, filter_epsilon
from secure_fed.accounting import epsilon as epsilon_of
from secure_fed.client import books
from secure_fed.client.books import close_run, open_ledger
from secure_fed.client.charging import Charges
from secure_fed.client.home import Home
from secure_fed.client.overview import budget_of, close_open_run
from secure_fed.client.policy import Policy
from secure_fed.engines.simulated_homes import policy_of
from secure_fed.engines.simulated_sites import simulate
from secure_fed.errors import BudgetExhausted, PolicyRefusal, RunAborted
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Header
from secure_fed.ledger import Close, Ledger, Plan, Record, Refusal, Reserve, read_ledger, standing, verify
from secure_fed.planning import plan_view
from secure_fed.server.round import Place

# -- names and rounds --------------------------------------------------------------------------------------------


def test_a_run_whose_name_no_ledger_takes_gets_a_fixed_code_and_leaves_nothing(bench) -> None:
    edit(bench.home(SITE), allowed_methods=["ridge"])
    before = {path.name for path in bench.home(SITE).private.iterdir()}
    names = ("", "x" * 129, "\ud800", "../../ledger", "a b", "/srv/data", "run\n")
    for action, run in product(("advertise", "mask", "finish", "plain"), names):
        answer = bench.sites[SITE].handle(bench.request(SITE, action, Header(run, 0, 0, 0)))
        assert answer.code == "malformed_message"
    assert {path.name for path in bench.home(SITE).private.iterdir()} - before <= {"lock", "site.log"}


def test_a_server_that_invents_a_run_for_every_refusal_does_not_fill_the_ledger(bench, monkeypatch) -> None:
    home = bench.home(SITE)
    bench.round(0, 0)
    edit(home, allowed_methods=["ridge"])
    monkeypatch.setattr(books, "MOST_REFUSALS", 5)
    for number in range(9):
        answer = bench.sites[SITE].handle(bench.request(SITE, "advertise", Header(f"run{number}", 0, 0, 0)))
        assert answer.code == "refused_by_policy"
    assert [body.run for body in bodies(home, Refusal)] == [f"run{number}" for number in range(5)]


def test_one_step_again_and_again_under_ever_larger_numbers_spends_the_plan_and_no_more(bench) -> None:
    home = bench.home(SITE)
    for number in (0, 1, 2**40, 2**80):
        assert bench.round(0, number).survivors == 5
    with pytest.raises(BudgetExhausted, match="without budget for its phase"):
        bench.round(0, 10**30)
    planned = {phase.name: phase.rounds for phase in bodies(home, Plan)[0].phases}
    charged = Counter(body.phase for body in bodies(home, Reserve))
    assert charged == planned == {"classify": 4, "translate": 4}
    assert verify([home.ledger_path]).ok


# -- runs --------------------------------------------------------------------------------------------------------


@dataclass
class Gate:
    """One home, and a server that asks its gate for rounds of runs with these budgets, as it likes."""

    home: Home
    federations: dict[float, Federation]
    asked: dict[str, float] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.home.policy()

    def round(self, run: str, epsilon: float) -> bool:
        """Whether the gate let a round through: it is charged then."""
        federation = self.federations[self.asked.setdefault(run, epsilon)]
        site = federation.site(SITE)
        with open_ledger(self.home, self.policy) as ledger:
            charges = Charges(federation, site, self.policy, ledger, "os_urandom_aes256ctr")
            header = Header(run, 0, len(ledger), len(ledger))
            phases = federation.phases_of(site, 0)
            try:
                plan = charges.admit(header, phases, lambda _plan: None)
            except PolicyRefusal:
                return False
            assert plan is not None
            charges.reserve(header, [plan.phase(phase.name) for phase in phases], b"\0" * 32)
            return True

    def close(self, run: str) -> None:
        with open_ledger(self.home, self.policy) as ledger:
            close_run(ledger, run, "finished")

    def lower(self, epsilon: float) -> None:
        if epsilon < self.policy.epsilon:
            edit(self.home, epsilon=epsilon)


def held(records: Sequence[Record]) -> float:
    """What counts against the limit, by this test's own books: whole plans of open runs, charges of closed ones."""
    genesis, *bodies_ = (record.body for record in records)
    closed = {body.run for body in bodies_ if isinstance(body, Close)}
    released: dict[str, list[Mechanism]] = {}
    for body in bodies_:
        if isinstance(body, Plan) and body.run not in closed:
            released[body.run] = [phase.mechanism.repeated(phase.rounds) for phase in body.phases]
        elif isinstance(body, Reserve) and body.run in closed:
            released.setdefault(body.run, []).append(body.mechanism)
    together = [mechanism for mechanisms in released.values() for mechanism in mechanisms]
    if len(released) < 2:
        return epsilon_of(together, genesis.delta)
    return filter_epsilon(together, genesis.delta, genesis.filter_order)


BUDGETS = (1.0, 3.0, 8.0)
RUNS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def federations() -> dict[float, Federation]:
    from secure_fed.config import compose_config, freeze

    small = ("data.patients=240", "federation.sites=5", "federation.rounds=2", "federation.ownership=1:1:3")
    ratio = ("federation.lifetime_epsilon=8", "privacy.max_noise_ratio=50")

    def make(epsilon: float) -> Federation:
        overrides = (*small, *ratio, "method=zero_fill", f"privacy.epsilon={epsilon}")
        config = freeze(compose_config(overrides), Path("planned"))
        return Federation(config, simulate(config).members)

    return {epsilon: make(epsilon) for epsilon in BUDGETS}


asked_for = st.one_of(
    st.tuples(st.just("round"), st.sampled_from(RUNS), st.sampled_from(BUDGETS)),
    st.tuples(st.just("close"), st.sampled_from(RUNS)),
    st.tuples(st.just("lower"), st.sampled_from([7.0, 4.0])),
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(server=st.lists(asked_for, min_size=4, max_size=16))
def test_whatever_a_server_asks_in_whatever_order_never_passes_the_limit_and_always_verifies(
    federations, tmp_path_factory, server
) -> None:
    root = tmp_path_factory.mktemp("gate") / SITE
    gate = Gate(Home.create(root, policy_of(federations[8.0], federations[8.0].site(SITE))), federations)
    for action, *arguments in server:
        limit, passed = gate.policy.epsilon, getattr(gate, action)(*arguments)
        if action == "round" and passed:
            assert held(read_ledger(gate.home.ledger_path)) <= limit
    if not Ledger.is_begun(gate.home.ledger_path):
        return
    verdict = verify([gate.home.ledger_path])
    assert verdict.ok, verdict.problems
    seen, books_ = budget_of(gate.home), standing(read_ledger(gate.home.ledger_path))
    assert verdict.rows[0].epsilon == seen.spent <= seen.committed <= 8.0
    assert {row.run: row.spent for row in seen.runs} == verdict.rows[0].epsilon_by_run
    for run in books_.runs:
        assert run.plan is None or run.plan.epsilon <= gate.asked[run.run]


def test_a_server_that_ends_a_run_and_begins_another_as_often_as_it_likes_comes_to_an_end(
    federations, tmp_path
) -> None:
    gate = Gate(Home.create(tmp_path / SITE, policy_of(federations[3.0], federations[3.0].site(SITE))), federations)
    passed = 0
    while gate.round(f"run{passed}", 3.0):
        gate.close(f"run{passed}")
        passed += 1
        assert passed < 200
    books_ = standing(read_ledger(gate.home.ledger_path))
    assert passed > 2
    assert 7 < books_.spent() <= 8
    assert verify([gate.home.ledger_path]).ok


@pytest.mark.parametrize(
    "other",
    ["privacy.max_grad_norm=9", "privacy.sample_rate=0.5", "federation.spare_rounds=7"],
)
def test_a_run_under_anothers_name_does_not_get_another_plan(make_config, tmp_path, other) -> None:
    kept = f"federation.homes={tmp_path / 'homes'}"
    lifetime = (kept, "federation.lifetime_epsilon=8", "privacy.epsilon=3")
    overrides = (*lifetime, "method=zero_fill", "secagg.max_attempts=1")
    Bench.make(make_config(*overrides, folder=tmp_path / "one")).round(run="a")
    home = Home(tmp_path / "homes" / SITE)
    before = bodies(home, Plan), bodies(home, Reserve)
    second = Bench.make(make_config(*overrides, other, folder=tmp_path / "two"))
    second.coordinator.attempt = 50
    with pytest.raises(RunAborted, match="site01: refused"):
        second.round(0, 1, run="a")
    assert (bodies(home, Plan), bodies(home, Reserve)) == before
    assert "was planned otherwise than this configuration has it; a plan is never changed" in log_of(home)


def test_a_run_under_anothers_name_and_with_a_larger_epsilon_gets_the_noise_that_the_ledger_holds(
    make_config, tmp_path
) -> None:
    kept = (f"federation.homes={tmp_path / 'homes'}", "federation.lifetime_epsilon=8", "method=zero_fill")
    Bench.make(make_config(*kept, "privacy.epsilon=3", folder=tmp_path / "one")).round(run="a")
    second = Bench.make(make_config(*kept, "privacy.epsilon=5", folder=tmp_path / "two"))
    second.coordinator.attempt = 50
    assert second.round(0, 1, run="a").survivors == 5
    home = Home(tmp_path / "homes" / SITE)
    assert len(bodies(home, Plan)) == 1
    assert len({body.mechanism for body in bodies(home, Reserve)}) == 1
    assert verify([home.ledger_path]).ok


def test_a_run_that_its_operator_closed_leaves_no_noised_update_and_no_retry_brings_one(bench) -> None:
    home = bench.home(SITE)
    answers: list[str] = []

    def lost(site, action, parcel):
        if action == "mask" and site == SITE and not answers:
            answers.append(parcel.code)
            return None
        return parcel

    bench.transport.after = lost
    assert bench.round(0, 0).survivors == 4
    assert answers == ["ok"]
    assert bench.pending(SITE) is not None
    close_open_run(home, "run")
    assert not [p for p in home.private.glob("*.bin") if p.stem.startswith(("pending-", "track-", "session-"))]
    charged = len(bodies(home, Reserve))
    result = bench.round(1, 1)
    assert result.traffic.codes[SITE] in {"budget_exhausted", "needs_checkpoint"}
    assert len(bodies(home, Reserve)) == charged
    assert verify([home.ledger_path]).ok


# -- what is said beforehand -------------------------------------------------------------------------------------


def config_of(make_config, tmp_path, *overrides: str, run: str) -> RunConfig:
    return make_config(f"federation.homes={tmp_path / 'homes'}", *overrides, folder=tmp_path / run)


def test_an_owner_who_allows_less_than_a_run_wants_gets_the_plan_that_was_shown(small, make_config, tmp_path) -> None:
    overrides = ("federation.lifetime_epsilon=8", "privacy.epsilon=5", "method=zero_fill")
    bench = Bench.make(config_of(make_config, tmp_path, *overrides, run="one"))
    home = Home(tmp_path / "homes" / SITE)
    edit(home, epsilon=4.0)
    view = plan_view([*small, *overrides, f"federation.homes={tmp_path / 'homes'}"])
    assert view.refused == {}
    shown = next(group for group in view.groups if SITE in group.sites)
    assert (shown.limit, shown.admitted) == (4.0, shown.epsilon)
    assert 3.9 < shown.epsilon <= 4.0
    bench.round(run="a")
    fixed = bodies(home, Plan)[0]
    assert fixed.phases[0].mechanism.noise_multiplier == shown.phases[0].noise_multiplier
    assert fixed.epsilon == shown.epsilon
    assert budget_of(home).runs[0].planned == shown.epsilon


def test_a_plan_for_a_limit_below_the_runs_epsilon_is_what_new_homes_put_on_their_ledgers(
    small, make_config, tmp_path
) -> None:
    overrides = ("federation.lifetime_epsilon=4", "privacy.epsilon=5", "method=zero_fill")
    shown = plan_view([*small, *overrides]).groups[0]
    bench = Bench.make(make_config(*overrides, folder=tmp_path / "run"))
    bench.round()
    fixed = bodies(bench.home(shown.sites[0]), Plan)[0]
    assert fixed.phases[0].mechanism.noise_multiplier == shown.phases[0].noise_multiplier
    assert fixed.epsilon == shown.epsilon <= 4
    planned = bench.prepared.plans[shown.sites[0]]
    assert planned is not None
    assert planned.epsilon == fixed.epsilon


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("privacy.unit=patient", "this home counts with unit=record"),
        ("privacy.delta=1e-6", "this home counts with delta=1e-05"),
        ("secagg.clip=99", "above the policy's max_clip"),
    ],
)
def test_what_a_kept_home_would_refuse_is_refused_before_anything_is_written(
    small, make_config, tmp_path, other, words
) -> None:
    overrides = ("federation.lifetime_epsilon=8", "privacy.epsilon=3", "method=zero_fill")
    first = Bench.make(config_of(make_config, tmp_path, *overrides, run="one"))
    first.round(0, 0, run="a")
    before = {path: path.read_bytes() for path in (tmp_path / "homes").rglob("*") if path.is_file()}
    with pytest.raises(PolicyRefusal, match=words):
        Bench.make(config_of(make_config, tmp_path, *overrides, other, run="two"))
    assert not (tmp_path / "two").exists()
    assert {path: path.read_bytes() for path in before} == before, "a roster or a home was changed for it"
    view = plan_view([*small, *overrides, other, f"federation.homes={tmp_path / 'homes'}"])
    assert view.groups == ()
    assert words in view.refused[SITE]
    assert first.round(1, 1, run="a").survivors == 5, "the run under way was harmed"


def test_a_home_filled_by_a_first_run_that_ended_early_is_refused_beforehand_and_shown_as_filled(
    small, make_config, tmp_path
) -> None:
    overrides = ("federation.lifetime_epsilon=8", "privacy.epsilon=8", "method=zero_fill")
    bench = Bench.make(config_of(make_config, tmp_path, *overrides, run="one"))
    bench.round(run="a")
    bench.coordinator.finish(Place("a", 1, 1))
    view = budget_of(Home(tmp_path / "homes" / SITE))
    assert view.filled_by_the_first
    assert (view.further, view.committed) == (0.0, view.spent)
    assert view.spent < 6, "though much is left by its charges"
    for epsilon in (0.5, 2.0):
        again = (*overrides, f"privacy.epsilon={epsilon}")
        with pytest.raises(BudgetExhausted, match="holds for one run alone"):
            Bench.make(config_of(make_config, tmp_path, *again, run="two"))
        refused = plan_view([*small, *again, f"federation.homes={tmp_path / 'homes'}"]).refused
        assert "holds for one run alone" in refused[SITE]
