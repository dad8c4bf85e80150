"""What an epsilon report says of a run that a sweep has chosen: the cost of choosing, on top and in its item."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from example_run import DELTA, Example

from secure_fed.errors import DataError
from secure_fed.report import write_epsilon_report
from secure_fed.report.tuning import Tuning, read_tuning

STATEMENT: dict[str, Any] = {
    "schema": "secure_fed.tuning/1",
    "sweep": "clipping",
    "mode": "composed",
    "runs": 72,
    "mean": None,
    "shape": None,
    "epsilon": 41.5,
    "bounded": True,
    "delta": DELTA,
    "basis": "pld",
    "remarks": [],
}
PUBLIC = {**STATEMENT, "mode": "public", "epsilon": None, "bounded": None, "basis": "own"}
INFINITE = {**STATEMENT, "epsilon": None, "bounded": False, "basis": "none"}
UNKNOWN = {**STATEMENT, "epsilon": None, "bounded": None, "basis": "none"}
SELECTED = {
    **STATEMENT,
    "mode": "repeat_select",
    "runs": None,
    "mean": 10.0,
    "shape": 1.0,
    "epsilon": 12.5,
    "basis": "rdp_repeat_and_select",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    owns = {"site01": ("image",), "site02": ("image", "text"), "site03": ("image", "text")}
    return Example(rounds=3, owns=owns, dropped={}, floors={}).write(tmp_path / "run")


def reported(run: Path, statement: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The page and the JSON of the run, with this statement in its folder."""
    if statement is not None:
        (run / "tuning.json").write_text(json.dumps(statement), encoding="utf-8")
    write_epsilon_report([run], run)
    page = (run / "epsilon_report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    return page, json.loads((run / "epsilon_report.json").read_text(encoding="utf-8"))


def item(tree: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in tree["items"] if item["id"] == "data_accesses")


def top(page: str) -> str:
    return page[: page.index("<h1>")]


@pytest.mark.parametrize(
    ("statement", "level", "title", "said", "figure"),
    [
        (PUBLIC, "notice", "Chosen by a sweep", "among 72 runs (sweep clipping)", "this run's own"),
        (STATEMENT, "notice", "Tuning counts", "ε = 41.50 at δ = 10⁻⁵: the composition", "41.50"),
        (INFINITE, "danger", "Tuning is not covered", "ε is infinite", "∞"),
        (UNKNOWN, "danger", "Tuning is not covered", "is not established", "not established"),
        (SELECTED, "notice", "Tuning counts", "a random number of runs, 10 on average", "12.50"),
    ],
)
def test_what_the_choice_cost_stands_on_top_and_in_data_accesses(
    run: Path, statement: dict[str, Any], level: str, title: str, said: str, figure: str
) -> None:
    page, tree = reported(run, statement)
    (warning,) = [warning for warning in tree["warnings"] if warning["title"] == title]
    assert warning["level"] == level
    assert said in warning["text"]
    assert title in top(page)
    assert said in top(page)
    assert said in " ".join(item(tree)["statements"])
    assert {"name": "ε with tuning counted", "value": figure} in item(tree)["facts"]
    assert tree["tuning"] == statement
    tile = "ε with tuning" in page[: page.index('id="trust_model"')]
    assert tile == (statement["basis"] != "own")


def test_the_runs_own_figure_stays_that_of_its_ledgers(run: Path) -> None:
    _, before = reported(run, None)
    _, after = reported(run, STATEMENT)
    assert after["federation"] == before["federation"]
    assert after["statement"] == before["statement"]
    assert before["tuning"] is None
    assert "are not charged" in " ".join(item(before)["statements"])
    assert "are not charged" not in " ".join(item(after)["statements"])


def test_selection_holds_against_outsiders_only_and_is_labelled_rdp(run: Path) -> None:
    _, tree = reported(run, SELECTED)
    told = " ".join(item(tree)["statements"])
    assert "by RDP (Papernot and Steinke 2022; no PLD is known for this)" in told
    assert "The coordinator and the sites saw every run" in told
    _, tree = reported(run, {**SELECTED, "shape": None})
    assert "(Poisson)" in " ".join(item(tree)["statements"])


def test_where_no_site_spends_most_in_every_run_the_figure_is_labelled_rdp(run: Path) -> None:
    _, tree = reported(run, {**STATEMENT, "basis": "rdp"})
    assert "(RDP, as no one site spent most in every run)" in " ".join(item(tree)["statements"])


def test_remarks_of_the_sweep_are_repeated_as_text(run: Path) -> None:
    page, tree = reported(run, {**STATEMENT, "remarks": ["<b>so</b> it was"]})
    assert "<b>so</b> it was" in item(tree)["statements"]
    assert "<b>so</b>" not in page


def test_ledgers_alone_say_nothing_of_a_sweep(run: Path, tmp_path: Path) -> None:
    """The statement is the researcher's word, and stands in no ledger."""
    (run / "tuning.json").write_text(json.dumps(STATEMENT), encoding="utf-8")
    (tmp_path / "out").mkdir()
    write_epsilon_report([run / "sites" / "site01"], tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "epsilon_report.json").read_text(encoding="utf-8"))
    assert tree["tuning"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "secure_fed.tuning/2"},
        {"mode": "secret"},
        {"epsilon": "41.5"},
        {"epsilon": -1.0},
        {"epsilon": None},
        {"bounded": None},
        {"bounded": False},
        {"delta": None},
        {"delta": 1.0},
        {"basis": "own"},
        {"basis": "rdp_repeat_and_select"},
        {"runs": None},
        {"runs": 0},
        {"mean": 10.0},
        {"mode": "public"},
        {"mode": "public", "basis": "own"},
        {"mode": "public", "basis": "own", "epsilon": None, "bounded": False},
        {"mode": "repeat_select", "basis": "rdp_repeat_and_select"},
        {"mode": "repeat_select", "basis": "rdp_repeat_and_select", "mean": 10.0},
        {"mode": "repeat_select", "basis": "rdp_repeat_and_select", "runs": None},
        {"mode": "repeat_select", "basis": "pld", "runs": None, "mean": 10.0},
    ],
)
def test_a_statement_that_is_damaged_or_contradicts_itself_is_an_error(run: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"tuning\.json is damaged .*secure-fed report SWEEP"):
        reported(run, {**STATEMENT, **changes})


def test_a_statement_is_read_strictly_but_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps({**SELECTED, "author": "somebody"}), encoding="utf-8")
    assert read_tuning(path) == Tuning.model_validate_json(json.dumps(SELECTED))
    path.write_text('{"schema": ', encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        read_tuning(path)
    path.write_text(json.dumps(INFINITE), encoding="utf-8")
    assert read_tuning(path).figure == math.inf
