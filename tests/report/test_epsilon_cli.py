"""`secure-fed report` writes a run's pages into its folder, and from ledgers alone an epsilon report into another."""

from __future__ import annotations

import json

import pytest
from example_run import Example
from typer.testing import CliRunner

from secure_fed.cli import app

OWNS = {"site01": ("image",), "site02": ("image", "text"), "site03": ("image", "text")}


@pytest.fixture
def run(tmp_path):
    return Example(rounds=2, owns=OWNS, dropped={}).write(tmp_path / "run")


def called(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_run_gets_its_page_its_card_and_its_epsilon_report(run):
    result = called(run)
    assert result.exit_code == 0, result.output
    assert f"epsilon report: {run / 'epsilon_report.html'}" in result.stdout
    for name in ("report.html", "model_card.md", "epsilon_report.html", "epsilon_report.json"):
        assert (run / name).is_file()


def test_ledgers_alone_get_an_epsilon_report_in_the_given_folder_and_leave_the_run_as_it_was(
    run, tmp_path, monkeypatch
):
    before = sorted(run.rglob("*"))
    out = tmp_path / "out"
    out.mkdir()
    ledgers = [run / "sites" / site / "ledger.jsonl" for site in OWNS]
    result = called(*ledgers, "--roster", run / "roster.json", "--output", out)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "epsilon_report.json").read_text())["scope"] == "ledgers"
    assert sorted(run.rglob("*")) == before
    monkeypatch.chdir(out)
    (out / "epsilon_report.html").unlink()
    assert called(run / "sites" / "site01").exit_code == 0
    assert (out / "epsilon_report.html").is_file()


def test_ledgers_that_do_not_hold_are_reported_with_exit_code_one(run):
    path = run / "sites" / "site02" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"noise_multiplier":1.93', '"noise_multiplier":9.93', 1))
    result = called(run)
    assert result.exit_code == 1
    assert "Ledgers do not hold" in (run / "epsilon_report.html").read_text()
    assert not (run / "report.html").exists()
    result = called(path, "--output", run)
    assert result.exit_code == 1
    assert "the ledgers do not hold: site02: record 1 was changed" in result.stderr


@pytest.mark.parametrize("missing", ["nothing", "nothing.jsonl"])
def test_what_is_no_run_and_no_ledger_is_bad_input(tmp_path, missing):
    result = called(tmp_path / missing)
    assert result.exit_code == 2
    assert "holds no ledger" in result.stderr
