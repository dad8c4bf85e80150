"""From a real run's folder to its cell: what is recomputed, what is refused, and what a phase costs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from secure_fed.accounting import Mechanism, epsilon
from secure_fed.config import load_config
from secure_fed.data import schema_of
from secure_fed.engines.runner import found, prepare, start
from secure_fed.errors import DataError, LedgerError
from secure_fed.ledger import Reserve, read_ledger, spent
from secure_fed.server.missing_rates import RATES
from secure_fed.sweep.collect import collect
from secure_fed.sweep.metrics import objectives
from secure_fed.sweep.record import GRID, CellResult, CellRow, Charges

MEASURED = {"wall_s": 3.5, "cpu_s": 3.0, "peak_mib": 600.0}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def row_of(folder: Path, **changes: object) -> CellRow:
    summary = summary_of(folder)
    fields = {
        "id": "0123456789abcdef",
        "kind": GRID,
        "factors": {"privacy.epsilon": summary["epsilon_target"], "seed": summary["seed"]},
        "method": summary["method"],
        "ownership": "1:1:3",
        "seed": summary["seed"],
        "privacy": summary["privacy"],
        "secagg": summary["secagg"]["mode"],
        "epsilon_target": summary["epsilon_target"],
        "delta": summary["delta"],
    }
    return CellRow.model_validate(fields | changes)


def mechanisms_of(group: Charges) -> list[Mechanism]:
    return list(group.mechanisms)


@pytest.fixture(scope="module")
def cell(finished_run: Path) -> CellResult:
    """A FIN run with drop-outs, collected."""
    return collect(finished_run, row_of(finished_run), **MEASURED)


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


def test_the_cell_survives_its_file(cell):
    assert CellResult.model_validate_json(cell.model_dump_json(by_alias=True)) == cell


def test_epsilon_is_what_each_ledger_adds_up_to(cell, finished_run):
    summary = summary_of(finished_run)
    by_site = {}
    for group in cell.charges:
        for site in group.sites:
            records = read_ledger(finished_run / "sites" / site / "ledger.jsonl")
            assert spent(records, summary["run"]) == tuple(mechanisms_of(group))
            by_site[site] = epsilon(mechanisms_of(group), summary["delta"])
            assert group.epsilon == by_site[site]
    assert sorted(by_site) == sorted(summary["members"])
    assert cell.epsilon_spent == max(by_site.values())
    # The run's own figures, made by other code of the same ledgers.
    assert by_site == pytest.approx(summary["epsilon"])


def test_sites_that_were_charged_alike_stand_together(cell):
    charged = [group.mechanisms for group in cell.charges]
    assert len(charged) == len(set(charged)) < sum(len(group.sites) for group in cell.charges)
    assert [group.epsilon for group in cell.charges] == sorted((g.epsilon for g in cell.charges), reverse=True)


def test_epsilon_never_comes_from_the_summary(copied):
    """A summary and ledgers that disagree are a broken cell, whatever of the two was changed."""
    summary = summary_of(copied)
    summary["epsilon"] = dict.fromkeys(summary["epsilon"], 0.1)
    summary["epsilon_max"] = 0.1
    (copied / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(LedgerError, match="claims epsilon"):
        collect(copied, row_of(copied), **MEASURED)


def _forged(ledger: Path) -> None:
    ledger.write_text(ledger.read_text().replace('"sample_rate":1', '"sample_rate":0.5', 1))


def _shortened(ledger: Path) -> None:
    lines = ledger.read_text().splitlines(keepends=True)
    at = next(place for place, line in enumerate(lines) if '"settle"' in line)
    ledger.write_text("".join(lines[: at - 1]))


def _of_another_site(ledger: Path) -> None:
    other = next(path for path in sorted(ledger.parents[1].glob("*/ledger.jsonl")) if path != ledger)
    shutil.copyfile(other, ledger)


@pytest.mark.parametrize("tamper", [_forged, _shortened, _of_another_site, Path.unlink], ids=lambda f: f.__name__)
def test_a_ledger_that_does_not_verify_breaks_the_cell(copied, tamper):
    tamper(copied / "sites" / "site01" / "ledger.jsonl")
    with pytest.raises(LedgerError, match=r"do not verify.*site01"):
        collect(copied, row_of(copied), **MEASURED)


def test_a_roster_that_was_changed_breaks_the_cell(copied):
    roster = json.loads((copied / "roster.json").read_text())
    roster["members"]["site01"]["public_key"] = roster["members"]["site02"]["public_key"]
    (copied / "roster.json").write_text(json.dumps(roster))
    with pytest.raises(DataError, match=r"roster\.json"):
        collect(copied, row_of(copied), **MEASURED)


def test_signatures_are_held_against_the_runs_roster(copied, make_config):
    """Whole ledgers under keys that the consortium does not know are nobody's."""
    config = make_config()  # the same sites, founded anew: other keys
    found(Path(config.run_dir), prepare(config))
    shutil.copyfile(Path(config.run_dir) / "roster.json", copied / "roster.json")
    with pytest.raises(LedgerError, match=r"do not verify.*names another public key than the roster"):
        collect(copied, row_of(copied), **MEASURED)


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "zero_fill"), ("seed", 7), ("epsilon_target", 1.0), ("delta", 1e-6), ("secagg", "off")],
)
def test_a_run_of_another_configuration_is_not_the_cells(finished_run, field, value):
    with pytest.raises(DataError, match=f"another configuration's run: its {field}"):
        collect(finished_run, row_of(finished_run, **{field: value}), **MEASURED)


def test_an_unfinished_run_is_no_result(copied):
    row = row_of(copied)
    (copied / "summary.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        collect(copied, row, **MEASURED)


def test_scores_and_traffic_are_the_runs(cell, finished_run):
    summary = summary_of(finished_run)
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert cell.metrics["auroc_macro"] == summary["auroc_macro"]
    assert cell.metrics["auroc_macro_missing.image"] == summary["auroc_macro_missing"]["image"]
    assert cell.metrics["auroc.Edema"] == summary["auroc_per_label"]["Edema"]
    assert cell.metrics["auprc_macro"] == summary["auprc_macro"]
    assert cell.metrics["auprc_macro_missing.text"] == summary["auprc_macro_missing"]["text"]
    assert cell.metrics["auroc_rate.image.1"] == pytest.approx(summary["auroc_macro_missing"]["image"], abs=1e-12)
    rates = {(point["modality"], point["rate"]): point["auroc_macro"] for point in summary["missing_rates"]}
    assert cell.metrics["auroc_rate.any.0.25"] == rates["any", 0.25]
    for name, figures in summary["imputation"].items():
        for figure in ("cosine", "mse_over_variance", "rank"):
            assert cell.metrics[f"imputation_{figure}.{name}"] == figures[figure]
    assert cell.bytes_up == sum(line["bytes_up"] for line in lines)
    assert cell.bytes_down == sum(line["bytes_down"] for line in lines)
    assert (cell.run, cell.model_sha256) == (summary["run"], summary["model_sha256"])
    assert (cell.wall_s, cell.cpu_s, cell.peak_mib) == (3.5, 3.0, 600.0)


def test_every_score_that_a_sweep_may_rank_by_is_in_the_cell(cell, finished_run):
    config = load_config(finished_run)
    left_out = {f"auroc.{label}" for label in summary_of(finished_run)["labels_left_out"]}
    known = set(objectives(schema_of(config.data), (), RATES))
    assert known - left_out <= set(cell.metrics)
    # Of what is left, less is better, or a method may have none.
    assert all(name.startswith("imputation_") for name in set(cell.metrics) - known)


def test_phases_share_out_the_whole_cell(cell, finished_run):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [phase.phase for phase in cell.phases] == ["classify", "translate"]
    assert [phase.rounds for phase in cell.phases] == [5, 1]
    assert sum(phase.bytes_up for phase in cell.phases) == cell.bytes_up
    assert math.fsum(phase.seconds for phase in cell.phases) == pytest.approx(sum(line["wall_s"] for line in lines))
    assert math.fsum(phase.share for phase in cell.phases) == pytest.approx(1)


def test_a_phase_alone_costs_what_its_charges_cost_at_a_site_that_ran_them_all(cell, finished_run):
    summary = summary_of(finished_run)
    both = max((s for s, m in summary["members"].items() if len(m["phases"]) == 2), key=summary["epsilon"].__getitem__)
    records = read_ledger(finished_run / "sites" / both / "ledger.jsonl")
    for phase in cell.phases:
        charged = [r.body.mechanism for r in records if isinstance(r.body, Reserve) and r.body.phase == phase.phase]
        assert phase.epsilon == epsilon(charged, summary["delta"])
        assert phase.epsilon < summary["epsilon"][both]


def test_without_privacy_there_is_no_epsilon_and_no_charge(make_config):
    folder = start(make_config("privacy.mode=off", "method=fin", "method.schedule=every_round"))
    cell = collect(folder, row_of(folder), **MEASURED)
    assert (cell.epsilon_spent, cell.charges) == (None, ())
    assert [(phase.phase, phase.artefact, phase.epsilon, phase.share) for phase in cell.phases] == [
        ("classify", "update", None, None),
        ("translate", "update", None, None),
    ]
    # Both ran in every round, which is shared out and not counted twice.
    assert [phase.rounds for phase in cell.phases] == [3, 3]
    assert sum(phase.bytes_up for phase in cell.phases) == pytest.approx(cell.bytes_up, abs=1)


def test_a_reproducible_run_gives_no_guarantee_whatever_its_ledgers_add_up_to(make_config):
    folder = start(make_config("insecure_reproducible=true", "method=ridge", "evaluation=federated"))
    cell = collect(folder, row_of(folder), **MEASURED)
    assert cell.insecure_reproducible
    assert cell.epsilon_spent is None
    assert cell.charges
    assert {phase.artefact for phase in cell.phases} == {"update", "statistic", "evaluation"}
    assert "auroc_macro_federated.image+text" in cell.metrics


def test_a_charge_without_noise_has_no_cell(copied, monkeypatch):
    """No configuration makes one; were there one, JSON has no infinity to show it with."""
    from secure_fed.sweep import collect as room

    free = room._book  # the charges as read, with the noise taken out

    def noiseless(site, records, run):
        book = free(site, records, run)
        loud = tuple(Mechanism(m.kind, 0.0, m.sample_rate, m.steps) for m in book.charged)
        return room._Book(book.site, book.genesis, loud, book.reserves)

    monkeypatch.setattr(room, "_book", noiseless)
    with pytest.raises(LedgerError, match="nothing bounds"):
        collect(copied, row_of(copied), **MEASURED)


def test_a_ledger_that_holds_other_runs_too_is_not_the_cells(finished_run):
    """Of a home that outlives the run, one run's epsilon is not what the site has spent."""
    from secure_fed.sweep import collect as room

    records = read_ledger(finished_run / "sites" / "site01" / "ledger.jsonl")
    with pytest.raises(LedgerError, match="other runs"):
        room._book("site01", records, "f" * 32)
