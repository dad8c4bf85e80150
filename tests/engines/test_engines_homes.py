"""Homes that outlive runs, end to end: whole runs, one after the other, interrupted, and at the same moment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from secure_fed.client.charging import Charges
from secure_fed.client.home import Home
from secure_fed.client.overview import budget_of
from secure_fed.config import compose_config, freeze
from secure_fed.engines.runner import resume, start
from secure_fed.errors import BudgetExhausted
from secure_fed.ledger import Plan, Reserve, read_ledger, standing, verify
from secure_fed.planning import plan_view

SMALL = (
    "data.patients=240",
    "federation.sites=5",
    "federation.ownership=1:1:3",
    "federation.rounds=3",
    "method.classify.steps=2",
    "method.classify.learning_rate=1",
)
SITES = tuple(f"site{number:02d}" for number in range(1, 6))
OUT = "site01"
LIFETIME = 8.0
BASE = ("method=zero_fill", f"federation.lifetime_epsilon={LIFETIME:g}", "privacy.epsilon=3", "evaluation.every=9")


def kept(folder: Path) -> tuple[str, ...]:
    return (*BASE, f"federation.homes={folder / 'homes'}")


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def report_of(run: Path) -> dict:
    return json.loads((run / "epsilon_report.json").read_text())


def bodies(home: Path, kind: type) -> list:
    return [r.body for r in read_ledger(home / "ledger.jsonl") if isinstance(r.body, kind)]


def allow(home: Path, epsilon: float) -> None:
    tree = yaml.safe_load((home / "policy.yaml").read_text())
    (home / "policy.yaml").write_text(yaml.safe_dump({**tree, "epsilon": epsilon}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs on the same homes; before the second the owner of one of them lowers his limit to what was spent."""
    root = tmp_path_factory.mktemp("kept")
    for name in ("one", "two"):
        start(freeze(compose_config([*SMALL, *kept(root)]), root / name))
        allow(root / "homes" / OUT, 2.5)
    return root


def test_two_runs_on_the_same_homes_verify_each_and_the_second_is_noisier_only_where_it_has_to_be(folder) -> None:
    for run in ("one", "two"):
        verdict = verify([folder / run], anchors=[folder / run])
        assert verdict.ok, (run, verdict.problems)
    for site in SITES[1:]:
        first, second = bodies(folder / "homes" / site, Plan)
        assert second.filter_epsilon <= LIFETIME
        assert second.phases[0].mechanism.noise_multiplier >= first.phases[0].mechanism.noise_multiplier


def test_a_site_without_budget_stays_out_and_the_run_ends_with_reports_that_say_so(folder) -> None:
    one, two = (summary_of(folder / name) for name in ("one", "two"))
    assert len(bodies(folder / "homes" / OUT, Plan)) == 1
    assert {body.run for body in bodies(folder / "homes" / OUT, Reserve)} == {one["run"]}
    assert [line["survivors"] for line in two["secagg"]["rounds"]] == [4] * two["rounds"]
    assert two["epsilon"][OUT] == 0.0
    assert f"{OUT}: the owner's budget or policy does not admit this run, which goes on without" in two["warnings"]
    assert f"{OUT}: the owner&#39;s budget or policy does not admit" in (folder / "two" / "report.html").read_text()
    metrics = [json.loads(line) for line in (folder / "two" / "metrics.jsonl").read_text().splitlines()]
    assert all(OUT not in sites for line in metrics for sites in line["contributors"].values())


def test_every_figure_of_two_runs_is_the_same_wherever_it_is_shown(folder) -> None:
    runs = {name: summary_of(folder / name)["run"] for name in ("one", "two")}
    verdict = {row.site: row for row in verify([folder / "two"]).rows}
    for site in SITES:
        budget = budget_of(Home(folder / "homes" / site))
        row = verdict[site]
        told = next(item for item in report_of(folder / "two")["sites"] if item["site"] == site)
        assert budget.spent == row.epsilon == told["epsilon"]
        assert budget.proof == ("pld" if site == OUT else "renyi filter")
        assert {item.run: item.spent for item in budget.runs} == row.epsilon_by_run
        for name, run in runs.items():
            assert summary_of(folder / name)["epsilon"][site] == row.epsilon_by_run.get(run, 0.0)
        assert all(item.state == "closed" for item in budget.runs)
        assert budget.spent == budget.committed <= LIFETIME


def test_a_summary_cannot_say_zero_of_a_site_that_charged_nor_name_a_run_that_is_on_no_ledger(folder, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder / "two", copy)
    honest = summary_of(copy)
    for change in (
        {"epsilon": {**honest["epsilon"], "site02": 0.0}},
        {"run": "0" * 32, "epsilon": dict.fromkeys(SITES, 0.0), "epsilon_max": 0.0},
        {"run": summary_of(folder / "one")["run"]},
    ):
        (copy / "summary.json").write_text(json.dumps({**honest, **change}))
        assert not verify([copy]).ok, change


def test_a_third_run_that_does_not_fit_is_refused_with_every_reason_before_anything_is_written(
    folder, make_config, small, tmp_path
) -> None:
    before = {path: path.read_bytes() for path in (folder / "homes").rglob("*") if path.is_file()}
    overrides = (*kept(folder), "privacy.epsilon=7.5", "privacy.max_noise_ratio=1.1")
    with pytest.raises(BudgetExhausted, match="0 of 5 sites have budget") as refused:
        start(make_config(*overrides, folder=tmp_path / "three"))
    assert all(site in str(refused.value) for site in SITES)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "three").exists()
    assert {path: path.read_bytes() for path in before} == before
    assert plan_view([*small, *overrides]).refused.keys() == set(SITES)


def test_what_a_plan_shows_for_a_third_run_is_what_the_third_run_puts_on_the_ledgers(
    folder, make_config, small, tmp_path
) -> None:
    shutil.copytree(folder / "homes", tmp_path / "homes")
    overrides = (*kept(tmp_path), "privacy.epsilon=7", "privacy.max_noise_ratio=9")
    view = plan_view([*small, *overrides])
    shown = {site: group for group in view.groups for site in group.sites}
    taken = {site: budget_of(Home(tmp_path / "homes" / site)).committed for site in SITES[1:]}
    start(make_config(*overrides, folder=tmp_path / "three"))
    for site in SITES[1:]:
        fixed = bodies(tmp_path / "homes" / site, Plan)[-1]
        assert fixed.phases[0].mechanism.noise_multiplier == shown[site].phases[0].noise_multiplier
        assert fixed.epsilon == shown[site].epsilon
        assert fixed.filter_epsilon == shown[site].admitted <= shown[site].limit == LIFETIME
        assert fixed.epsilon < 6, "less is left than the run would like"
        assert fixed.plan_hash == view.plan_hash
        assert taken[site] == shown[site].taken


class Killed(BaseException):
    """As a SIGKILL in this process: nothing catches it."""


def test_a_killed_run_goes_on_under_its_own_plan_though_another_run_came_in_between(
    make_config, tmp_path, monkeypatch
) -> None:
    calls = []
    reserve = Charges.reserve

    def die(self, *arguments):
        reserve(self, *arguments)
        calls.append(1)
        if len(calls) == 8:  # of five sites: in the second round, charged and not trained
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Charges, "reserve", die)
        with pytest.raises(Killed):
            start(make_config(*kept(tmp_path), folder=tmp_path / "one"))
    home = tmp_path / "homes" / "site02"
    held = budget_of(Home(home))
    start(make_config(*kept(tmp_path), "privacy.max_noise_ratio=9", folder=tmp_path / "two"))
    resume(tmp_path / "one")
    first, second = bodies(home, Plan)
    assert second.filter_epsilon > held.committed, "the run that was interrupted counted in full"
    charges = [body for body in bodies(home, Reserve) if body.run == first.run]
    assert {body.mechanism for body in charges} == {first.phases[0].mechanism}
    assert summary_of(tmp_path / "one")["rounds_charged_again"] == 1
    for name in ("one", "two"):
        verdict = verify([tmp_path / name])
        assert verdict.ok, verdict.problems
    assert budget_of(Home(home)).committed <= LIFETIME


def test_per_patient_and_with_a_federated_evaluation_every_figure_agrees_too(make_config, small, tmp_path) -> None:
    overrides = (*kept(tmp_path), "privacy.unit=patient", "evaluation=federated", "federation.rounds=2")
    overrides = tuple(item for item in overrides if item != "evaluation.every=9")
    view = plan_view([*small, *overrides])
    run = start(make_config(*overrides, folder=tmp_path / "run"))
    verdict = verify([run])
    assert verdict.ok, verdict.problems
    shown = {site: group for group in view.groups for site in group.sites}
    for row in verdict.rows:
        budget = budget_of(Home(tmp_path / "homes" / row.site))
        told = next(item for item in report_of(run)["sites"] if item["site"] == row.site)
        assert row.unit == budget.unit == "patient"
        assert row.epsilon == budget.spent == told["epsilon"] == summary_of(run)["epsilon"][row.site]
        assert budget.runs[0].planned == shown[row.site].epsilon
        assert row.epsilon == pytest.approx(shown[row.site].scheduled, rel=1e-9), "nothing went wrong"
        artefacts = {body.artefact for body in bodies(tmp_path / "homes" / row.site, Reserve)}
        assert artefacts == {"update", "evaluation"}


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "fit"), [(6.0, 1), (3.0, 2)], ids=["one fits", "both fit"])
def test_two_processes_that_start_at_the_same_moment_on_fresh_homes_share_one_budget(
    small, tmp_path, epsilon, fit
) -> None:
    ratio = 1 if fit == 1 else 9
    overrides = (*small, *kept(tmp_path), f"privacy.epsilon={epsilon}", f"privacy.max_noise_ratio={ratio}")
    command = [sys.executable, "-m", "secure_fed.cli", "run", *overrides, "secagg.max_attempts=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, f"run_dir={tmp_path / name}"], **pipes) for name in ("one", "two")]
    said = [process.communicate(timeout=300) for process in processes]
    codes = [process.returncode for process in processes]
    assert "Traceback" not in "".join(error for _, error in said), said
    # Where one fits, it has all homes, or each has some of them and perhaps neither enough for a cohort.
    assert codes == [0, 0] if fit == 2 else 0 < max(codes) <= 4, said
    for site in SITES:
        books = standing(read_ledger(tmp_path / "homes" / site / "ledger.jsonl"))
        assert len(books.runs) == fit
        assert books.spent() <= books.committed() <= (LIFETIME if fit == 2 else epsilon)
    verdict = verify([tmp_path / "homes" / site for site in SITES])
    assert verdict.ok, verdict.problems
