"""A coordinator that wants more than the owner allows, and days on which a site's disk, clock or data fail it."""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench

from secure_fed.client import books
from secure_fed.client.books import close_run, open_ledger
from secure_fed.client.charging import Charges
from secure_fed.client.halt import halted
from secure_fed.client.home import Home
from secure_fed.client.overview import budget_of, close_open_run
from secure_fed.client.policy import Policy
from secure_fed.engines.simulated_homes import found_homes, kept_home, policy_of
from secure_fed.engines.simulated_sites import simulate
from secure_fed.errors import BudgetExhausted, PolicyRefusal, RunAborted
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger, Plan, Refusal, Reserve, read_ledger, standing, verify
from secure_fed.ledger import ledger as ledger_module
from secure_fed.planning import plan_view
from secure_fed.server.round import Place

SITE = "site01"
TWO_PHASES = "method.schedule=every_round"
"""Classifier and translators in one round: two charges of it."""


@pytest.fixture
def bench(make_config, tmp_path) -> Bench:
    return Bench.make(make_config(TWO_PHASES, "secagg.max_attempts=1", folder=tmp_path / "run"))


def bodies(home: Home, kind: type) -> list:
    return [r.body for r in read_ledger(home.ledger_path) if isinstance(r.body, kind)]


def edit(home: Home, **changes: object) -> None:
    path = home.policy_path
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def log_of(home: Home) -> str:
    return (home.private / "site.log").read_text()


# -- the disk ----------------------------------------------------------------------------------------------------


@contextmanager
def disk_that_takes(bytes_more: Callable[[int], int | None], monkeypatch: pytest.MonkeyPatch):
    """The kernel refuses the ledger of SITE more than `bytes_more(number of the write)` bytes; None is no limit."""
    real, writes = Ledger._write, []

    def limited(self: Ledger, handle: int, data: bytes) -> None:
        if self._site != SITE:
            return real(self, handle, data)
        writes.append(data)
        more = bytes_more(len(writes))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if more is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._path.stat().st_size + more, hard))
        try:
            return real(self, handle, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write", limited)
        yield writes


def test_a_disk_that_is_full_after_the_first_of_two_charges_takes_neither_and_the_round_is_charged_once_later(
    bench, monkeypatch
) -> None:
    home = bench.home(SITE)
    # Writes of a first round: genesis, plan, the charges of both phases. One charge is some 900 bytes, two are not.
    with disk_that_takes(lambda number: 1200 if number == 3 else None, monkeypatch) as writes:
        result = bench.round(0, 0)
    assert len(writes) == 3
    assert writes[2].count(b"\n") == 2
    assert len(writes[2].split(b"\n")[0]) < 1200 < len(writes[2]), "the first charge alone would have fitted"
    assert result.survivors == 4
    assert result.traffic.codes == {SITE: "refused"}
    assert bodies(home, Reserve) == [], "half a round was charged"
    assert "File too large" in log_of(home)
    assert bench.pending(SITE) is None
    bench.restart(SITE)
    assert bench.round(1, 1).survivors == 5
    assert [(body.round, body.phase) for body in bodies(home, Reserve)] == [(1, "classify"), (1, "translate")]
    assert verify([home.ledger_path]).ok


@pytest.mark.parametrize("number", [1, 2, 3], ids=["genesis", "plan", "charges"])
def test_a_disk_that_refuses_a_write_costs_the_site_that_round_and_no_epsilon(bench, monkeypatch, number) -> None:
    home = bench.home(SITE)
    with disk_that_takes(lambda write: 100 if write == number else None, monkeypatch):
        assert bench.round(0, 0).survivors == 4
    assert not Ledger.is_begun(home.ledger_path) or bodies(home, Reserve) == []
    bench.restart(SITE)
    assert bench.round(1, 1).survivors == 5
    assert {body.round for body in bodies(home, Reserve)} == {1}
    assert len(bodies(home, Plan)) == 1
    assert verify([home.ledger_path]).ok


def test_a_log_that_cannot_be_written_changes_no_answer_and_keeps_no_site_from_halting(
    bench, monkeypatch, capsys
) -> None:
    home, real = bench.home(SITE), Path.open

    def full(self: Path, *arguments, **options):
        if self.name == "site.log":
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **options)

    bench.round(0, 0)
    monkeypatch.setattr(Path, "open", full)
    assert bench.sites[SITE].handle(bench.request(SITE, "mask", Header("run", 1, 1, 99))).code == "no_session"
    assert "site.log could not be written (No space left on device)" in capsys.readouterr().err
    home.ledger_path.write_bytes(b"\n".join(home.ledger_path.read_bytes().split(b"\n")[:2]) + b"\n")
    lied = bench.sites[SITE].handle(bench.request(SITE, "finish", Header("run", 1, 1, 100)))
    assert lied.code == "ledger_behind"
    assert halted(home) is not None


# -- clock and data ----------------------------------------------------------------------------------------------


def test_a_clock_that_went_backwards_stops_the_site_before_it_charges_and_the_others_go_on(bench, monkeypatch) -> None:
    home = bench.home(SITE)
    bench.round(0, 0)
    before = home.ledger_path.read_bytes()
    real = ledger_module.datetime

    class Behind(real):
        @classmethod
        def now(cls, tz=None):
            shift = timedelta(hours=1) if bench.transport.sent[-1][0] == SITE else timedelta()
            return real.now(tz) - shift

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "datetime", Behind)
        result = bench.round(1, 1)
    assert result.traffic.codes == {SITE: "refused"}
    assert home.ledger_path.read_bytes() == before
    assert "The clock went backwards" in log_of(home)
    assert "Set the clock; nothing was written" in log_of(home)
    assert "site02" not in result.traffic.codes


def test_a_clock_set_forward_frees_no_epsilon(bench, monkeypatch) -> None:
    """It makes yesterday of today, and so frees rounds a day: those are the owner's patience, not his privacy."""
    home = bench.home(SITE)
    edit(home, max_rounds_a_day=1)
    bench.round(0, 0)
    assert bench.round(1, 1).traffic.codes[SITE] == "refused_by_policy"
    held = standing(read_ledger(home.ledger_path)).committed()
    real = books.datetime

    class Ahead(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + timedelta(days=30)

    monkeypatch.setattr(books, "datetime", Ahead)
    assert bench.round(1, 2).survivors == 5
    assert standing(read_ledger(home.ledger_path)).committed() == held


def test_records_that_cannot_be_read_cost_no_epsilon_however_often_the_coordinator_asks(bench) -> None:
    home, site = bench.home(SITE), bench.sites[SITE]
    read = site._load_records

    def unreadable():
        raise OSError(5, "Input/output error", "/data/patient-4711.png")

    site._load_records = unreadable
    for number in range(2):
        result = bench.round(0, number)
        assert result.traffic.codes == {SITE: "internal_error"}
    assert bodies(home, Reserve) == []
    assert all("patient" not in str(parcel) for _, _, parcel in bench.transport.received)
    site._load_records = read
    assert bench.round(0, 2).survivors == 5
    assert {body.round for body in bodies(home, Reserve)} == {2}


# -- names and rounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["", "x" * 129, "\ud800", "../../ledger", "a b", "/srv/data", "run\n"])
def test_a_run_whose_name_no_ledger_takes_gets_a_fixed_code_and_leaves_nothing(bench, run) -> None:
    edit(bench.home(SITE), allowed_methods=["ridge"])
    before = {path.name for path in bench.home(SITE).private.iterdir()}
    for action in ("advertise", "mask", "finish", "plain"):
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


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(server=st.lists(asked_for, min_size=4, max_size=16))
def test_whatever_a_server_asks_in_whatever_order_never_passes_the_limit_and_always_verifies(
    federations, tmp_path_factory, server
) -> None:
    root = tmp_path_factory.mktemp("gate") / SITE
    gate = Gate(Home.create(root, policy_of(federations[8.0], federations[8.0].site(SITE))), federations)
    for action, *arguments in server:
        limit, passed = gate.policy.epsilon, getattr(gate, action)(*arguments)
        if action == "round" and passed:
            assert standing(read_ledger(gate.home.ledger_path)).committed() <= limit
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
    overrides = (kept, "federation.lifetime_epsilon=8", "privacy.epsilon=3", "method=zero_fill", "secagg.max_attempts=1")
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


# -- homes that are half there -----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


def test_a_crash_while_a_home_is_made_leaves_none_and_the_next_run_makes_it(make_config, tmp_path, monkeypatch) -> None:
    from secure_fed.client import home as homes
    from secure_fed.engines.runner import prepare

    config = config_of(make_config, tmp_path, "method=zero_fill", run="one")
    calls: list[Path] = []

    def die(path: Path, policy: Policy) -> None:
        calls.append(path)
        if len(calls) == 3:
            # What another process that only looks would meet now: keys, and no policy yet.
            assert kept_home(config, "site03") is None
            prepare(config)
            raise Killed
        save(path, policy)

    save = homes.save_policy
    prepared = prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(homes, "save_policy", die)
        with pytest.raises(Killed):
            found_homes(tmp_path / "one", prepared.federation)
    assert {path.name for path in (tmp_path / "homes").glob("site*")} == {"site01", "site02"}
    keys = {name: Home(tmp_path / "homes" / name).signing_key().public_bytes for name in ("site01", "site02")}
    bench = Bench.make(replace_folder(config, tmp_path / "two"))
    assert bench.round(run="a").survivors == 5
    assert {name: bench.home(name).signing_key().public_bytes for name in keys} == keys
    assert not list((tmp_path / "homes").glob(".site*"))


def replace_folder(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"run_dir": str(folder)})


@pytest.mark.parametrize("number", range(1, 6), ids=["genesis", "plan", "charges", "settle", "close"])
@pytest.mark.parametrize("torn", [False, True], ids=["after the write", "in the middle of it"])
def test_a_crash_at_any_write_of_the_ledger_only_over_counts(make_config, tmp_path, monkeypatch, number, torn) -> None:
    overrides = (TWO_PHASES, "federation.lifetime_epsilon=8", "privacy.epsilon=3")
    bench = Bench.make(config_of(make_config, tmp_path, *overrides, run="one"))
    real, writes = Ledger._write, []

    def mortal(self: Ledger, handle: int, data: bytes) -> None:
        if self._site == SITE:
            writes.append(data)
            if len(writes) == number:
                if torn:
                    os.write(handle, data[: len(data) - 20])
                else:
                    real(self, handle, data)
                raise Killed
        real(self, handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write", mortal)
        with pytest.raises(Killed):
            bench.round(0, 0, run="a")
            bench.coordinator.finish(Place("a", 1, 1))
    bench.restart(SITE)
    home = bench.home(SITE)
    if number < 5:
        bench.round(0, 1, run="a")
    bench.coordinator.finish(Place("a", 1, 2))
    charged = Counter(body.phase for body in bodies(home, Reserve))
    # What was noised is on the ledger: one round or two of each phase, and a torn write may have kept the first.
    assert charged["classify"] in {1, 2}
    assert charged["translate"] in {1, 2}
    assert charged["classify"] >= charged["translate"]
    books_ = standing(read_ledger(home.ledger_path))
    assert books_.run("a").closed
    assert books_.spent() <= books_.committed() <= 3
    verdict = verify([home.ledger_path])
    assert verdict.ok, verdict.problems
    assert not [p for p in home.private.glob("*.bin") if p.stem.startswith(("pending-", "track-", "session-"))]
