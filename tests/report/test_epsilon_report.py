"""epsilon_report.html and .json answer every point from data or say why not, and believe nobody but the ledgers."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from example_run import DELTA, RUN, Example

from secure_fed.accounting import Mechanism, epsilon, epsilon_curve, filter_epsilon, filter_order, patient_epsilon
from secure_fed.errors import ConfigError, DataError
from secure_fed.ledger import Anchor, Ledger, make_anchor
from secure_fed.report import formats, write_epsilon_report
from secure_fed.report.epsilon_report import ITEMS
from secure_fed.report.epsilon_sites import CURVE_DELTAS

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
SCENES = ("run", "off", "insecure", "patient", "several", "ledgers", "one", "damaged", "bare")


@dataclass(frozen=True)
class Report:
    """What was written, and whence."""

    html: str
    tree: dict[str, Any]
    example: Example
    folder: Path

    @property
    def text(self) -> str:
        body = re.sub(r"<style>.*?</style>", "", self.html, flags=re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body).replace("\u00a0", " "))

    @property
    def top(self) -> str:
        """What stands above the title."""
        return self.html[: self.html.index("<h1>")]

    def item(self, name: str) -> dict[str, Any]:
        return next(item for item in self.tree["items"] if item["id"] == name)

    def words(self, name: str) -> str:
        return json.dumps(self.item(name), ensure_ascii=False)

    def site(self, name: str) -> dict[str, Any]:
        return next(site for site in self.tree["sites"] if site["site"] == name)


def small(**changes: Any) -> Example:
    """Three sites, three rounds: every site contributes to something."""
    owns = {"site01": ("image",), "site02": ("image", "text"), "site03": ("image", "text")}
    example = Example(rounds=3, owns=owns, dropped={}, floors={})
    for name, value in changes.items():
        setattr(example, name, value)
    return example


def report(example: Example, run: Path, *paths: Path, **options: Any) -> Report:
    output = run if not paths else run.parent / "out"
    output.mkdir(exist_ok=True)
    write_epsilon_report(paths or [run], output, **options)
    html = (output / "epsilon_report.html").read_text(encoding="utf-8")
    return Report(html, json.loads((output / "epsilon_report.json").read_text(encoding="utf-8")), example, output)


def ledger(run: Path, site: str) -> Path:
    return run / "sites" / site / "ledger.jsonl"


def spoil(path: Path) -> None:
    path.write_text(path.read_text().replace('"noise_multiplier":1.93', '"noise_multiplier":9.93', 1))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Scene by name: its report, made once."""

    @cache
    def make(name: str) -> Report:
        changes = {
            "off": {"privacy": "off"},
            "insecure": {"reproducible": True},
            "patient": {"unit": "patient", "most": 4},
            "several": {"earlier": ("first", "second"), "limit": 30.0, "lifetime_claim": True},
        }
        example = small(**changes.get(name, {}))
        run = example.write(tmp_path_factory.mktemp(name) / "run")
        if name == "damaged":
            spoil(ledger(run, "site02"))
        if name == "ledgers":
            paths = [ledger(run, "site01"), ledger(run, "site02").parent]
            return report(example, run, *paths, roster=run / "roster.json")
        if name == "one":
            return report(example, run, ledger(run, "site02"))
        if name == "bare":
            (run / "one.jsonl").write_bytes(ledger(run, "site02").read_bytes().splitlines(keepends=True)[0])
            return report(example, run, run / "one.jsonl")
        return report(example, run)

    return make


# -- every point is answered ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_every_point_of_the_reference_is_filled_or_says_why_it_does_not_apply(scene, name):
    found = scene(name)
    assert tuple(item["id"] for item in found.tree["items"]) == ITEMS
    assert re.findall(r'<section class="item" id="(\w+)">', found.html) == list(ITEMS)
    for item in found.tree["items"]:
        filled = item["statements"] or item["facts"] or any(table["rows"] for table in item["tables"])
        if item["status"] == "filled":
            assert filled, item["id"]
            assert item["reason"] is None
        else:
            assert not filled, item["id"]
            assert item["reason"].startswith("because "), item["id"]
            assert f"Not applicable {item['reason']}." in found.html.replace("\u00a0", " ").replace("&#39;", "'")
        cells = [cell for table in item["tables"] for row in table["rows"] for cell in row]
        values = [fact["value"] for fact in item["facts"]]
        assert all(text.strip() for text in [*cells, *values, *item["statements"], item["title"]]), item["id"]
        assert all(len(row) == len(table["columns"]) for table in item["tables"] for row in table["rows"])


@pytest.mark.parametrize("name", SCENES)
def test_page_and_json_say_the_same_word_by_word(scene, name):
    found = scene(name)
    for item in found.tree["items"]:
        section = found.html.partition(f'<section class="item" id="{item["id"]}">')[2].partition("</section>")[0]
        drawn = re.sub(r"<svg.*?</svg>", "", section, flags=re.DOTALL)
        shown = re.findall(r"<(?:p|dt|dd|caption|th|td)\b[^>]*>(.*?)</(?:p|dt|dd|caption|th|td)>", drawn, re.DOTALL)
        told = [f"Not applicable {item['reason']}."] if item["reason"] else list(item["statements"])
        told += [text for fact in item["facts"] for text in (fact["name"], fact["value"])]
        for table in item["tables"]:
            told += [
                *filter(None, [table["caption"]]),
                *table["columns"],
                *(cell for row in table["rows"] for cell in row),
            ]
        assert [unescape(text).replace("\u00a0", " ") for text in shown] == told
    headline = re.findall(r'<p class="value">(.*?)</p>', found.html)
    value = found.tree["federation"]["epsilon"]
    bounded = {True: formats.epsilon(value), False: "∞", None: "?"}[found.tree["federation"]["bounded"]]
    assert headline[0] == bounded


def test_what_only_a_run_can_tell_is_not_applicable_to_ledgers_alone(scene):
    for name in ("public_data", "fairness"):
        assert scene("ledgers").item(name)["status"] == "not_applicable"
        assert scene("run").item(name)["status"] == "filled"
    assert scene("ledgers").item("access_control")["status"] == "filled"  # the roster was given
    assert scene("one").item("access_control")["status"] == "not_applicable"


# -- figures -------------------------------------------------------------------------------------------------


def charged(example: Example, site: str) -> list[Mechanism]:
    return [example.mechanism(site)] * sum(example.takes_part(site, step) for step in range(example.rounds))


@pytest.mark.parametrize("name", ["run", "ledgers", "one", "patient"])
def test_figures_of_one_run_are_the_accountants_over_the_charges(scene, name):
    found = scene(name)
    for site in found.tree["sites"]:
        spent = charged(found.example, site["site"])
        figures = site["figures"]
        assert site["epsilon"] == figures["pld"] == pytest.approx(epsilon(spent, DELTA), rel=1e-12)
        assert figures["basis"] == "pld"
        assert figures["rdp"] == pytest.approx(epsilon(spent, DELTA, accountant="rdp"), rel=1e-12)
        assert figures["replace_one"] == pytest.approx(epsilon(spent, DELTA, relation="replace_one"), rel=1e-12)
        expected = zip(CURVE_DELTAS, epsilon_curve(spent, CURVE_DELTAS), strict=True)
        assert [(p["delta"], p["epsilon"]) for p in figures["curve"]] == [pytest.approx(pair) for pair in expected]
        if name != "patient":
            patients = [(k, patient_epsilon(spent, DELTA, k)) for k in (1, 2, 5, 10)]
            assert [(p["records"], p["epsilon"]) for p in figures["patient"]] == [pytest.approx(p) for p in patients]
    largest = max(site["epsilon"] for site in found.tree["sites"])
    assert found.tree["federation"]["epsilon"] == largest
    assert f"ε of a site is {formats.epsilon(largest)} at δ = 10⁻⁵" in found.text


def test_several_runs_are_reported_by_the_filter_with_pld_beside_it(scene):
    found = scene("several")
    for site in found.tree["sites"]:
        spent = charged(found.example, site["site"]) * 3
        assert site["figures"]["basis"] == "filter"
        order = filter_order(30.0, DELTA)
        assert site["epsilon"] == pytest.approx(filter_epsilon(spent, DELTA, order), rel=1e-9)
        assert site["figures"]["pld"] == pytest.approx(epsilon(spent, DELTA), rel=1e-9)
        assert site["figures"]["pld"] < site["epsilon"]
        assert [run["run"] for run in site["runs"]] == ["first", "second", RUN]
        assert [run["closed"] for run in site["runs"]] == [True, True, False]
    assert "had the plans been fixed beforehand" in found.words("lifetime")
    assert "Tuning is included: 3 runs" in found.words("data_accesses")
    assert {row[0] for row in found.item("guarantee")["tables"][0]["rows"]} == {"first", "second", RUN[:12]}


def test_somebody_at_two_sites_has_the_sum_of_the_two_largest(scene):
    found = scene("run")
    two = sorted((site["epsilon"] for site in found.tree["sites"]), reverse=True)[:2]
    assert found.tree["federation"]["at_two_sites"] == {"epsilon": sum(two), "delta": 2 * DELTA}
    assert scene("one").tree["federation"]["at_two_sites"] is None


def test_the_parameters_of_each_phase_stand_in_full(scene):
    found = scene("run")
    table = found.item("guarantee")["tables"][0]
    assert table["columns"] == [
        "Phase",
        "Released",
        "Mechanism",
        "σ",
        "q",
        "Steps a round",
        "Rounds",
        "T",
        "Clip C",
        "Sites",
    ]
    rows = {row[0]: row[3:] for row in table["rows"]}
    assert rows["classify"] == ["1.93", "0.25", "4", "2", "8", "1", "site01–site03"]
    assert rows["translate"] == ["1.93", "0.25", "4", "1", "4", "1", "site02, site03"]


def test_noise_is_written_with_all_digits_that_were_charged(tmp_path):
    example = small(unit="patient", most=2, noise=dict.fromkeys(("site01", "site02", "site03"), 1.930001))
    found = report(example, example.write(tmp_path / "run"))
    assert found.item("guarantee")["tables"][0]["rows"][0][3] == "1.930001"


def test_where_the_patient_is_the_unit_the_figure_is_the_patients_and_k_max_is_stated(scene):
    reason = scene("patient").item("patient_level")["reason"]
    assert "the unit is the patient" in reason
    assert "At most 4 records of one patient" in reason
    assert "one patient of the site" in scene("patient").tree["statement"]
    assert scene("run").item("patient_level")["status"] == "filled"


# -- nothing is glossed over ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "said"), [("off", "Privacy was off"), ("insecure", "The noise came from a seed")])
def test_a_void_guarantee_stands_on_top_and_every_epsilon_is_infinite(scene, name, said):
    found = scene(name)
    assert "VOID." in found.top
    assert said in found.top
    assert said in found.tree["void"][0]
    assert found.tree["federation"]["epsilon"] is None
    assert found.tree["federation"]["bounded"] is False
    assert all(row["bounded"] is False for row in (*found.tree["adversaries"], *found.tree["sites"]))
    assert "differentially private with respect" not in found.text
    for figure in ("replace_one", "patient_level", "curve", "cross_checks"):
        assert found.item(figure)["reason"] == "because nothing is guaranteed: ε is infinite"
    assert "<svg" not in found.html


@pytest.mark.parametrize("changes", [{"privacy": "off"}, {"insecure_reproducible": True}])
def test_a_summary_that_confesses_more_than_the_ledgers_is_believed(tmp_path, changes):
    example = small(unit="patient", most=2)
    example.changes = changes
    found = report(example, example.write(tmp_path / "run"))
    assert "VOID." in found.top
    assert found.tree["federation"]["bounded"] is False
    assert {row["bounded"] for row in found.tree["adversaries"]} == {False}


def test_a_damaged_ledger_is_named_on_top_and_leaves_no_figure_for_the_federation(scene):
    found = scene("damaged")
    assert "Ledgers do not hold.</strong> site02: record 1 was changed" in found.top
    assert found.tree["verdict"]["ok"] is False
    assert found.tree["federation"] | {"guarantees": [], "delta": 0} == {
        "epsilon": None,
        "bounded": None,
        "delta": 0,
        "guarantees": [],
        "at_two_sites": None,
        "missing": [],
    }
    assert found.site("site02")["epsilon"] is None
    assert found.site("site01")["epsilon"] > 0
    assert "No guarantee is established: the ledgers of site02" in found.text


def test_a_missing_ledger_leaves_no_figure_for_the_federation(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    ledger(run, "site03").unlink()
    found = report(example, run)
    assert found.tree["federation"]["missing"] == ["site03"]
    assert found.tree["federation"]["epsilon"] is None
    assert "site03: belongs to the run, but its ledger.jsonl is missing" in found.top


def test_a_summary_that_understates_epsilon_is_exposed_and_its_figure_used_nowhere(tmp_path):
    example = small()
    example.changes = {"epsilon": dict.fromkeys(example.owns, 0.517), "epsilon_max": 0.517}
    found = report(example, example.write(tmp_path / "run"))
    assert "claims epsilon 0.517 for site01, its ledger gives" in found.top
    assert found.tree["federation"]["epsilon"] == pytest.approx(epsilon(charged(example, "site02"), DELTA))
    assert not any("0.52" in json.dumps(item["tables"]) for item in found.tree["items"])


def test_a_summary_that_denies_that_privacy_was_off_is_not_believed(tmp_path):
    example = small(privacy="off")
    run = example.write(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "privacy": "dp", "delta": DELTA, "epsilon_max": 1.0}))
    assert "VOID." in report(example, run).top


def test_a_ledger_of_a_stranger_is_not_believed(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    other = small()
    strange = other.write(tmp_path / "other")
    found = report(example, run, ledger(run, "site01"), roster=strange / "roster.json")
    assert "another public key than the roster" in found.top
    assert found.tree["federation"]["epsilon"] is None


def test_an_audit_above_the_ledgers_figure_stands_on_top(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    result = {
        "schema": "secure_fed.audit/1",
        "method": "one-run",
        "epsilon_lower": 1.5,
        "delta": DELTA,
        "confidence": 0.95,
        "canaries": 1000,
    }
    (run / "audit.json").write_text(json.dumps(result))
    found = report(example, run)
    assert found.item("audit")["facts"][1] == {"name": "Lower bound of ε", "value": "1.500 at δ = 10⁻⁵"}
    assert "does not contradict" in found.words("audit")
    assert "contradicts" not in found.top
    (tmp_path / "gross.json").write_text(json.dumps({**result, "epsilon_lower": 7.0}))
    found = report(example, run, audit=tmp_path / "gross.json")
    assert "The audit contradicts the ledgers" in found.top
    (run / "audit.json").write_text("{}")
    with pytest.raises(DataError, match=r"audit\.json is damaged"):
        report(example, run)


def test_a_cross_check_counts_only_for_the_same_state_of_the_ledger(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    before = report(example, run)
    assert "PRV: not run" in before.words("cross_checks")
    value = before.site("site01")["epsilon"]
    sites = [
        {"site": "site01", "epsilon": value, "epsilon_prv": value + 0.001},
        {"site": "site02", "epsilon": value + 3, "epsilon_prv": value},
    ]
    (run / "cross_check.json").write_text(json.dumps({"sites": sites}))
    found = report(example, run)
    rows = {row[0]: row for row in found.item("cross_checks")["tables"][0]["rows"]}
    assert rows["site01"][4:] == [formats.epsilon(value + 0.001), "PLD is below RDP; PRV agrees"]
    assert "another state of this ledger" in rows["site02"][5]
    assert "leaves this site out" in rows["site03"][5]
    sites[0]["epsilon_prv"] = value * 1.1
    (run / "cross_check.json").write_text(json.dumps({"sites": sites}))
    assert "FAULT" in report(example, run).words("cross_checks")


def test_the_tail_is_anchored_where_anchors_are_given(tmp_path, scene):
    assert "unanchored" in scene("run").words("integrity")
    example = small()
    run = example.write(tmp_path / "run")
    with Ledger.open(ledger(run, "site01"), "site01", example.keys["site01"]) as opened:
        anchor = make_anchor("site01", len(opened), opened.head, example.keys["site01"])
    (tmp_path / "kept.jsonl").write_bytes(anchor.to_line() + b"\n")
    found = report(example, run, ledger(run, "site01"), anchors=[tmp_path / "kept.jsonl"])
    assert "anchored up to record" in found.words("integrity")
    ahead = make_anchor("site01", anchor.length + 1, bytes(32), example.keys["site01"])
    assert isinstance(ahead, Anchor)
    (tmp_path / "kept.jsonl").write_bytes(ahead.to_line() + b"\n")
    assert "Ledgers do not hold" in report(example, run, ledger(run, "site01"), anchors=[tmp_path / "kept.jsonl"]).top


# -- the table of adversaries follows the configuration ------------------------------------------------------


def adversary(found: Report, name: str) -> dict[str, Any]:
    return next(row for row in found.tree["adversaries"] if row["id"] == name)


def test_one_local_figure_holds_against_everybody_but_insiders(scene):
    found = scene("run")
    largest = found.tree["federation"]["epsilon"]
    for row in found.tree["adversaries"]:
        assert row["epsilon"] == (None if row["id"] == "insider" else largest)
    assert adversary(found, "insider")["bounded"] is False
    assert "Masks against a malicious server" in adversary(found, "server")["guards"]
    assert "Another site" in adversary(found, "other_sites")["who"]


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"secagg": "off", "server_step": "unverified"}, "server", "Every site's own update"),
        ({"secagg": "off", "server_step": "unverified"}, "network", "every site's own update"),
        ({"secagg": "off", "server_step": "unverified"}, "server_and_sites", "Every site's own update."),
        ({"floors": {"fusion": 1}}, "server", "a single site's own update too"),
        ({"floors": {"fusion": 1}}, "server_and_sites", "Of fusion, possibly one site's update."),
        ({"graph": {"name": "k_regular", "degree": 34, "threshold": 22}}, "server", "semi-malicious server"),
        ({}, "server_and_sites", "at least 2 honest sites"),
    ],
)
def test_what_an_adversary_sees_follows_the_runs_configuration(tmp_path, changes, name, said):
    example = small(**changes)
    row = adversary(report(example, example.write(tmp_path / "run")), name)
    assert said in f"{row['sees']} {row['guards']}"


def test_without_masks_none_guard_anybody(tmp_path):
    example = small(secagg="off", server_step="unverified", unit="patient", most=2)
    found = report(example, example.write(tmp_path / "run"))
    guards = [row["guards"] for row in found.tree["adversaries"]]
    assert not any("Masks" in text or "without them" in text for text in guards)
    assert adversary(found, "server")["guards"] == "No masks. The site's own noise (differential privacy)."
    assert {"name": "Masks", "value": "off: updates travelled in the clear"} in found.item("collusion")["facts"]


def test_without_a_run_nothing_is_said_of_masks(scene):
    assert all("asks" not in row["guards"] for row in scene("ledgers").tree["adversaries"])
    assert "at most everything that left the site" in adversary(scene("ledgers"), "server")["sees"]


def test_given_weights_are_named_by_their_place_and_not_by_their_path(tmp_path):
    example = small(config="model:\n  text:\n    weights: /home/somebody/bert\n  image: {}\n")
    found = report(example, example.write(tmp_path / "run"))
    assert "Initial weights: given" in found.words("public_data")
    assert {"name": "Weights given for", "value": "model.text"} in found.item("public_data")["facts"]
    assert "somebody" not in found.html + json.dumps(found.tree)


# -- the files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_loaded_from_anywhere_and_no_path_or_host_is_told(scene, name):
    found = scene(name)
    assert not re.search(r"url\(|@import|https?://|<script|<link|<img|<iframe| src=| href=", found.html)
    assert "default-src 'none'" in found.html
    for text in (found.html, json.dumps(found.tree)):
        assert str(found.folder.parent) not in text
        assert str(Path.home()) not in text
        assert socket.gethostname() not in text


def test_a_report_written_twice_is_the_same(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    first, second = report(example, run), report(example, run)
    assert (first.html, first.tree) == (second.html, second.tree)


def test_markup_in_names_stays_text(tmp_path):
    example = small(labels=(HOSTILE, "B"), config=f"name: '{HOSTILE}'\n")
    example.changes = {
        "name": HOSTILE,
        "engine": HOSTILE,
        "data_notes": {HOSTILE: HOSTILE},
        "labels_left_out": [HOSTILE],
        "warnings": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
    }
    example.earlier, example.limit = (HOSTILE,), 20.0
    found = report(example, example.write(tmp_path / "run"))
    assert "<script" not in found.html
    assert "<img" not in found.html
    assert found.html.count("&lt;script&gt;") >= 8


def test_only_an_epsilon_report_is_replaced(tmp_path):
    example = small()
    run = example.write(tmp_path / "run")
    output = tmp_path / "out"
    output.mkdir()
    (output / "epsilon_report.html").write_text("a letter to grandmother")
    with pytest.raises(DataError, match="is no epsilon report: it is not overwritten"):
        write_epsilon_report([ledger(run, "site01")], output)
    assert (output / "epsilon_report.html").read_text() == "a letter to grandmother"
    assert sorted(path.name for path in output.iterdir()) == ["epsilon_report.html"]
    (output / "epsilon_report.html").unlink()
    for _ in range(2):
        write_epsilon_report([ledger(run, "site01")], output)
    with pytest.raises(DataError, match="is no folder"):
        write_epsilon_report([ledger(run, "site01")], tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no ledger"):
        write_epsilon_report([tmp_path / "nothing.jsonl"], output)


def test_the_page_asks_for_paper(scene):
    style = scene("run").html.partition("<style>")[2].partition("</style>")[0]
    for rule in ("size: A4", "table-header-group", "break-inside: avoid"):
        assert rule in style.partition("@media print")[2]


def test_a_report_imports_neither_torch_nor_flwr():
    code = "import secure_fed.report, sys; sys.exit(bool({'torch', 'flwr', 'opacus'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_many_sites_that_all_spent_differently_take_seconds(tmp_path):
    names = [f"site{i:02d}" for i in range(1, 13)]
    example = Example(rounds=24, owns=dict.fromkeys(names, ("image", "text")), dropped={})
    taking = {site: 12 + index for index, site in enumerate(names)}
    example.takes_part = lambda site, step: step < taking[site]
    run = example.write(tmp_path / "run")
    start = time.process_time()
    found = report(example, run)
    # 6 s measured on a busy core, most of it patient figures of the three that spent most.
    assert time.process_time() - start < 20
    assert len(found.site("site12")["figures"]["curve"]) == len(CURVE_DELTAS)
    assert found.site("site01")["figures"]["curve"] == []
    assert "Left out are site01–site09, which spent less" in found.words("patient_level")
    assert math.isfinite(found.tree["federation"]["epsilon"])
