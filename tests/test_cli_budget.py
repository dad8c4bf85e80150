"""`secure-fed plan`, `site budget` and `site close`: what would be spent, what was, and what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from secure_fed.accounting import Mechanism, epsilon, patient_epsilon
from secure_fed.cli import app
from secure_fed.ledger import Plan, read_ledger

Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_a_plan_is_what_a_run_then_puts_on_its_ledgers(cli, small, tmp_path, finished_run) -> None:
    overrides = (*small, "federation.rounds=6", "federation.dropout=0.1", "name=finished")
    view = json.loads(cli("plan", *overrides, "--json").stdout)
    planned = {site: group for group in view["groups"] for site in group["sites"]}
    for site, group in planned.items():
        ledger = read_ledger(finished_run / "sites" / site / "ledger.jsonl")
        on_record = next(record.body for record in ledger if isinstance(record.body, Plan))
        assert on_record.plan_hash == view["plan_hash"]
        assert on_record.epsilon == pytest.approx(group["epsilon"])
        assert [phase.name for phase in on_record.phases] == [phase["name"] for phase in group["phases"]]
        for phase, shown in zip(on_record.phases, group["phases"], strict=True):
            assert phase.mechanism.noise_multiplier == shown["noise_multiplier"]
            assert phase.rounds == shown["rounds"] + shown["spare"]
    assert set(planned) == {path.name for path in (finished_run / "sites").iterdir()}
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_every_figure_of_a_plan_is_the_accountants(cli, small) -> None:
    view = json.loads(cli("plan", *small, "privacy.sample_rate=0.5", "--json").stdout)
    for group in view["groups"]:
        mechanisms = [
            Mechanism("poisson_gaussian", p["noise_multiplier"], 0.5, p["steps"] * (p["rounds"] + p["spare"]))
            for p in group["phases"]
        ]
        assert group["epsilon"] == epsilon(mechanisms, 1e-5)
        assert group["replace_one"] == epsilon(mechanisms, 1e-5, relation="replace_one")
        assert group["patients"]["2"] == patient_epsilon(mechanisms, 1e-5, 2)
        assert dict(map(tuple, group["curve"]))[1e-5] == pytest.approx(group["epsilon"], rel=1e-3)
        assert group["by_round"][-1] == pytest.approx(group["scheduled"], rel=1e-3)
        for phase, mechanism in zip(group["phases"], mechanisms, strict=True):
            assert phase["epsilon"] == epsilon([mechanism], 1e-5)
            one = phase["steps"]
            fits = Mechanism("poisson_gaussian", phase["noise_multiplier"], 0.5, one * phase["rounds_left"])
            more = Mechanism("poisson_gaussian", phase["noise_multiplier"], 0.5, one * (phase["rounds_left"] + 1))
            assert epsilon([fits], 1e-5) <= 8 < epsilon([more], 1e-5)


def test_a_plan_is_shown_as_tables_with_its_hash(cli, small) -> None:
    text = cli("plan", *small).stdout
    for shown in ("classify", "translate", "sigma", "replace-one", "by his number of records", "epsilon(delta)"):
        assert shown in text
    assert "plan hash" in text


def test_a_plan_says_how_its_budget_is_shared_out_where_the_configuration_does(cli, small) -> None:
    shares = json.loads(cli("plan", *small, "+privacy.budget_shares.translate=0.35", "--json").stdout)["budget_shares"]
    assert shares == {"classify": pytest.approx(0.65), "translate": pytest.approx(0.35)}
    text = " ".join(cli("plan", *small, "+privacy.budget_shares.translate=0.35").stdout.split())
    assert "classify 65.0%, translate 35.0%" in text
    assert json.loads(cli("plan", *small, "--json").stdout)["budget_shares"] == {}
    assert "budget_shares" not in cli("plan", *small).stdout


def test_plan_says_in_a_line_which_sites_release_nothing(cli, small):
    text = " ".join(cli("plan", *small, "method=drop").stdout.split())
    assert "site02: image, declared N 50: trains and releases nothing" in text
    assert json.loads(cli("plan", *small, "method=drop", "--json").stdout)["groups"][1]["epsilon"] == 0.0


def test_a_plan_warns_where_a_site_is_too_small_to_learn_anything(cli, small) -> None:
    text = " ".join(cli("plan", *small, "privacy.epsilon=0.1").stdout.split())
    assert "will hardly learn anything" in text
    assert "hardly" not in cli("plan", *small, "data.patients=4000", "privacy.epsilon=8").stdout


def test_a_plan_per_patient_counts_patients_and_says_so(cli, small) -> None:
    view = json.loads(cli("plan", *small, "data.patients=2000", "privacy.unit=patient", "--json").stdout)
    by_record = json.loads(cli("plan", *small, "data.patients=2000", "--json").stdout)
    assert view["unit"] == "patient"
    assert view["max_records_per_unit"] == 4
    assert all(group["patients"] == {} for group in view["groups"]), "epsilon is the patient's already"
    most = max(group["declared_n"][1] for group in view["groups"])
    assert most < min(group["declared_n"][0] for group in by_record["groups"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy=off", "privacy=off plans nothing"),
        ("privacy.max_grad_norm=0", "privacy.max_grad_norm=0"),
        ("privacy.epsilon=-1", "privacy.epsilon=-1"),
        ("privacy.delta=0.1", "privacy.delta=0.1 is not below 1/N"),
        ("privacy.unit=hospital", "privacy.unit='hospital'"),
        ("privacy.epsilom=3", "did you mean privacy.epsilon"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_value(cli, small, override, words) -> None:
    result = cli("plan", *small, override)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_ghost_norms_and_patients_do_not_go_together(cli, small) -> None:
    result = cli("plan", *small, "privacy.unit=patient", "training.back_end=ghost")
    assert result.exit_code == 2
    assert "give training.back_end=hooks" in " ".join(result.stderr.split())


def test_a_budget_is_shown_from_the_ledger_and_every_figure_is_recomputed(cli, finished_run) -> None:
    home = finished_run / "sites" / "site01"
    view = json.loads(cli("site", "budget", home, "--json").stdout)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert view["spent"] == pytest.approx(summary["epsilon"]["site01"])
    assert view["spent"] == view["committed"], "the run is over: nothing of its plan is held back"
    assert [run["state"] for run in view["runs"]] == ["closed"]
    assert view["proof"] == "pld"
    text = cli("site", "budget", home).stdout
    for shown in (view["key"], view["policy"], view["ledger"], "no lifetime claim", f"{view['spent']:.4f}"):
        assert shown in text


def test_a_budget_of_a_damaged_ledger_or_of_no_home_is_an_error(cli, finished_run, tmp_path) -> None:
    home = tmp_path / "site01"
    shutil.copytree(finished_run / "sites" / "site01", home)
    ledger = home / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":', b'"stops":', 1))
    damaged = cli("site", "budget", home)
    assert damaged.exit_code == 1
    assert "record" in damaged.stderr
    shutil.copy(finished_run / "sites" / "site02" / "ledger.jsonl", ledger)
    strange = cli("site", "budget", home)
    assert strange.exit_code == 1
    assert "belongs to 'site02', not to 'site01'" in strange.stderr
    assert cli("site", "budget", tmp_path / "nowhere").exit_code == 2
    nothing = cli("site", "close", finished_run / "sites" / "site02", "no-such-run")
    assert nothing.exit_code == 2
    assert "is not open at site02; open: none" in nothing.stderr
