"""One budget for the life of the data: what the site's gate admits, refuses, frees and never forgets."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench

from secure_fed.client.books import open_ledger
from secure_fed.client.home import Home
from secure_fed.client.overview import budget_of, close_open_run
from secure_fed.errors import BudgetExhausted, ConfigError, PolicyRefusal, RunAborted
from secure_fed.federation.config import RunConfig
from secure_fed.federation.wire import Header
from secure_fed.ledger import Close, Ledger, Plan, Refusal, Reserve, read_ledger, standing, verify
from secure_fed.server.round import Place

ONE = "privacy.epsilon=3"


class Homes:
    """Five sites whose homes outlive runs, with a lifetime epsilon of 8; `run` founds another run on them."""

    def __init__(self, make_config, folder: Path) -> None:
        self._make, self.folder, self._runs = make_config, folder, 0

    def run(self, *overrides: str) -> Bench:
        return Bench.make(self.config(*overrides))

    def config(self, *overrides: str) -> RunConfig:
        self._runs += 1
        kept = (f"federation.homes={self.folder / 'homes'}", "federation.lifetime_epsilon=8")
        return self._make(*kept, "secagg.max_attempts=1", *overrides, folder=self.folder / f"run{self._runs}")

    def home(self, site: str) -> Home:
        return Home(self.folder / "homes" / site)

    def bodies(self, site: str, kind: type) -> list:
        return [r.body for r in read_ledger(self.home(site).ledger_path) if isinstance(r.body, kind)]

    def edit(self, site: str, **changes: object) -> None:
        path = self.home(site).policy_path
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.fixture
def homes(make_config, tmp_path) -> Homes:
    return Homes(make_config, tmp_path)


def sigma(plan: Plan) -> float:
    return plan.phases[0].mechanism.noise_multiplier


def test_a_second_run_on_a_home_gets_the_noise_that_its_past_leaves_room_for(homes) -> None:
    homes.run("privacy.epsilon=5").round(run="a")
    homes.run("privacy.epsilon=5", "privacy.max_noise_ratio=9").round(run="b")
    first, second = homes.bodies("site01", Plan)
    assert sigma(second) > sigma(first), "the second plan is solved given what the first has committed"
    assert first.filter_epsilon == first.epsilon <= 5
    assert second.epsilon < 5
    assert 7.9 < second.filter_epsilon <= 8, "and uses what the owner allows over both"
    assert verify([homes.home("site01").ledger_path]).ok


def test_a_run_that_would_pass_the_owners_limit_is_refused_before_any_gradient_and_the_others_go_on(homes) -> None:
    homes.run(ONE).round(run="a")
    homes.edit("site01", epsilon=3.05)
    bench = homes.run(ONE)
    bench.sites["site01"]._load_records = lambda *_: pytest.fail("a record was read for a run that is refused")
    before = len(homes.bodies("site01", Reserve))
    result = bench.round(run="b")
    assert result.survivors == 4
    assert dict(result.traffic.codes) == {"site01": "budget_exhausted"}
    assert len(homes.bodies("site01", Plan)) == 1, "not even the plan was written"
    assert len(homes.bodies("site01", Reserve)) == before
    assert "leaves nothing for this one" in (homes.home("site01").private / "site.log").read_text()
    assert [r.code for r in homes.bodies("site01", Refusal)] == ["budget_exhausted"]


def test_a_site_that_would_have_to_drown_the_others_in_noise_stays_out(homes) -> None:
    homes.run("privacy.epsilon=6").round(run="a")
    with pytest.raises(BudgetExhausted, match=r"0 of 5 sites have budget .* times the noise of privacy\.epsilon=7"):
        homes.run("privacy.epsilon=7", "privacy.max_noise_ratio=1.5")


def test_a_run_that_no_auditor_could_account_is_refused(homes, monkeypatch) -> None:
    homes.run(ONE).round(run="a")
    monkeypatch.setattr("secure_fed.ledger.accountable.MOST_STEPS", 10)
    with pytest.raises(BudgetExhausted, match="up to 10 are accounted, so no auditor could verify it"):
        homes.run(ONE)


def test_an_open_run_counts_in_full_and_a_closed_one_with_what_it_charged(homes) -> None:
    bench = homes.run(ONE)
    bench.round(run="a")
    open_ = standing(read_ledger(homes.home("site01").ledger_path))
    assert open_.run("a").committed == open_.run("a").in_full != open_.run("a").charged
    bench.coordinator.finish(Place("a", 1, 1))
    closed = standing(read_ledger(homes.home("site01").ledger_path))
    assert closed.run("a").committed == closed.run("a").charged
    assert closed.committed() < open_.committed()
    assert [c.reason for c in homes.bodies("site01", Close)] == ["finished"]


def test_a_site_that_never_took_part_begins_its_ledger_when_the_run_is_over(homes) -> None:
    bench = homes.run(ONE)
    anchors = bench.coordinator.finish(Place("a", 0, 0))
    assert sorted(anchor.site for anchor in anchors) == sorted(bench.sites)
    for site in bench.sites:
        assert [record.kind for record in read_ledger(homes.home(site).ledger_path)] == ["genesis"]
    assert verify([homes.home(site).ledger_path for site in bench.sites]).ok


def test_a_closed_run_charges_nothing_any_more_and_is_closed_once(homes) -> None:
    bench = homes.run(ONE)
    bench.round(0, 0, run="a")
    for number in (1, 2):
        bench.coordinator.finish(Place("a", 1, number))
    with pytest.raises(BudgetExhausted, match="without budget for its phase"):
        bench.round(1, 3, run="a")
    assert len(homes.bodies("site01", Close)) == 1
    assert {body.round for body in homes.bodies("site01", Reserve)} == {0}


def test_an_operator_closes_a_run_that_will_not_go_on_by_the_beginning_of_its_name(homes) -> None:
    homes.run(ONE).round(run="abc")
    homes.run(ONE).round(run="abd")
    home = homes.home("site02")
    with pytest.raises(ConfigError, match="beginning of several open runs at site02; open: abc, abd"):
        close_open_run(home, "ab")
    assert close_open_run(home, "abc") == "abc"
    with pytest.raises(ConfigError, match="'abc' is not open at site02; open: abd"):
        close_open_run(home, "abc")
    assert [(row.run, row.state) for row in budget_of(home).runs] == [("abc", "closed"), ("abd", "open")]


def test_the_end_of_a_run_that_a_stranger_announces_closes_nothing(homes) -> None:
    bench = homes.run(ONE)
    bench.round(run="a")
    request = bench.request("site01", "finish", Header("a", 1, 1, 9))
    from secure_fed.identity import SigningKey

    forged = bench.sites["site01"].handle(request.signed(SigningKey.generate()))
    assert forged.code == "unsigned_request"
    assert homes.bodies("site01", Close) == []
    assert bench.sites["site01"].handle(bench.request("site01", "finish", Header("other", 0, 0, 0))).code == "ok"
    assert homes.bodies("site01", Close) == [], "a run that never planned anything has nothing to close"


def test_the_owner_may_lower_the_limit_of_an_open_run_and_never_raise_it(homes) -> None:
    bench = homes.run(ONE)
    bench.round(0, 0, run="a")
    homes.edit("site01", epsilon=2.0)
    lowered = bench.round(1, 1, run="a")
    assert lowered.traffic.codes["site01"] == "budget_exhausted"
    homes.edit("site01", epsilon=9.0)
    raised = bench.round(1, 2, run="a")
    assert raised.traffic.codes["site01"] == "refused_by_policy"
    log = (homes.home("site01").private / "site.log").read_text()
    assert "epsilon=9, above the 8 that the ledger promised for the whole life of the data" in log


@pytest.mark.parametrize(
    ("key", "value"),
    [("unit", "patient"), ("delta", 2e-5), ("declared_n", 100), ("data_set", "others"), ("max_records_per_unit", 2)],
)
def test_a_policy_that_counts_otherwise_than_its_ledger_is_refused_and_names_both(homes, key, value) -> None:
    homes.run(ONE).round(run="a")
    homes.edit("site01", **{key: value}, **({"unit": "patient"} if key == "max_records_per_unit" else {}))
    home = homes.home("site01")
    refusal = pytest.raises(PolicyRefusal, match=rf"policy\.yaml has {key}={value}.*since its first record")
    with refusal, open_ledger(home, home.policy()):
        pass
    with pytest.raises(PolicyRefusal):
        budget_of(home)


def test_a_run_without_privacy_is_refused_by_a_home_that_promised_a_limit(homes) -> None:
    homes.run(ONE).round(run="a")
    before = homes.home("site01").ledger_path.read_bytes()
    bench = homes.run("privacy=off")
    with pytest.raises(BudgetExhausted, match="without budget for its phase"):
        bench.round(run="b")
    after = homes.home("site01").ledger_path.read_bytes()
    assert after.startswith(before)
    assert [r.code for r in homes.bodies("site01", Refusal)] == ["budget_exhausted"]


def test_a_home_that_served_a_run_without_privacy_admits_no_run_with_privacy(homes) -> None:
    homes.run("privacy=off").round(run="a")
    with pytest.raises(PolicyRefusal, match="served runs with privacy=off, so that no limit holds"):
        homes.run(ONE)  # the plan is refused before the run is founded
    assert budget_of(homes.home("site01")).further == 0.0
    assert budget_of(homes.home("site01")).to_json()["spent"] is None


def test_rounds_a_day_are_counted_over_all_runs(homes) -> None:
    homes.run(ONE).round(0, 0, run="a")
    homes.edit("site01", max_rounds_a_day=2)
    bench = homes.run(ONE)
    assert "site01" not in bench.round(0, 0, run="b").traffic.codes
    assert bench.round(1, 1, run="b").traffic.codes["site01"] == "refused_by_policy"
    assert "2 rounds were charged within 24 hours" in (homes.home("site01").private / "site.log").read_text()


def test_a_server_that_asks_again_and_again_adds_one_refusal_to_the_ledger(homes) -> None:
    bench = homes.run(ONE)
    bench.round(0, 0, run="a")
    homes.edit("site01", allowed_methods=["ridge"])
    for number in range(1, 6):
        answer = bench.sites["site01"].handle(bench.request("site01", "advertise", Header("a", 1, number, 10 + number)))
        assert answer.code == "refused_by_policy"
    assert [(r.code, r.round) for r in homes.bodies("site01", Refusal)] == [("refused_by_policy", 1)]


def test_two_runs_on_one_home_take_turns_and_neither_loses_its_place(homes) -> None:
    one, other = homes.run(ONE), homes.run(ONE)
    for step in (0, 1):
        assert one.round(step, step, run="a", more=step == 0).survivors == 5
        assert other.round(step, step, run="b", more=step == 0).survivors == 5
    assert one.held.track.digest != other.held.track.digest
    verdict = verify([homes.home(site).ledger_path for site in one.sites])
    assert verdict.ok, verdict.problems
    assert {body.run for body in homes.bodies("site03", Reserve)} == {"a", "b"}


def test_two_runs_that_start_at_the_same_moment_share_one_budget(homes) -> None:
    benches = {run: homes.run("privacy.epsilon=6", "privacy.max_noise_ratio=1") for run in ("a", "b")}
    outcomes: dict[str, object] = {}

    def go(run: str) -> None:
        try:
            outcomes[run] = benches[run].round(run=run)
        except (RunAborted, BudgetExhausted) as error:
            outcomes[run] = error

    threads = [threading.Thread(target=go, args=(run,)) for run in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"a", "b"}
    for site in benches["a"].sites:
        # Each alone fits, both together do not: whoever came first at a home has it.
        assert len(homes.bodies(site, Plan)) == 1
        assert standing(read_ledger(homes.home(site).ledger_path)).committed() <= 8
    assert verify([homes.home(site).ledger_path for site in benches["a"].sites]).ok


def test_the_budget_is_shown_with_what_is_left_and_by_run(homes) -> None:
    bench = homes.run(ONE)
    fresh = budget_of(homes.home("site01"))
    assert (fresh.spent, fresh.committed, fresh.further, fresh.limit, fresh.ledger) == (0.0, 0.0, 8.0, 8.0, None)
    bench.round(run="a")
    view = budget_of(homes.home("site01"))
    assert 0 < view.spent < view.committed <= 3
    assert 0 < view.further < 8
    assert (view.runs[0].run, view.runs[0].rounds, view.runs[0].state) == ("a", 1, "open")
    assert view.runs[0].planned == homes.bodies("site01", Plan)[0].epsilon
    assert view.ledger is not None
    # What is said to be left is indeed admitted, and a little more is not.
    books = standing(read_ledger(homes.home("site01").ledger_path))
    from secure_fed.accounting import MechanismShape, calibrate

    fits = MechanismShape("gaussian", 1.0, 1)
    noise = calibrate([fits], view.further, view.delta)
    assert books.admission((fits.at(noise * 1.01),), "next") <= 8 < books.admission((fits.at(noise * 0.95),), "next")


def test_a_home_of_other_data_is_not_taken_for_a_run(homes) -> None:
    homes.run(ONE)
    with pytest.raises(ConfigError, match=r"belongs to data_set=.*give another folder for these data"):
        homes.run(ONE, "seed=9")


def test_what_a_run_leaves_in_a_home_goes_when_it_is_over(homes) -> None:
    bench = homes.run(ONE)
    bench.round(0, 0, run="a", more=True)
    private = homes.home("site01").private
    assert list(private.glob("track-*.bin"))
    bench.coordinator.finish(Place("a", 1, 1))
    assert not [*private.glob("track-*"), *private.glob("session-*"), *private.glob("pending-*")]
    assert Ledger.is_begun(homes.home("site01").ledger_path)
