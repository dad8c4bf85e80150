"""A finished run: what lies in its folder, what the numbers stand on, and that a change to any of it is seen."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from secure_fed.accounting import epsilon
from secure_fed.cli import app
from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.identity import Roster
from secure_fed.ledger import read_ledger, spent

FILES = {
    "anchors.jsonl",
    "config.yaml",
    "data_notes.json",
    "metrics.jsonl",
    "model.safetensors",
    "model_card.md",
    "report.html",
    "epsilon_report.html",
    "epsilon_report.json",
    "roster.json",
    "summary.json",
}
FIELDS = {
    # named by the issue
    *("auroc_macro", "auroc_macro_missing", "epsilon", "epsilon_max", "delta", "accountant", "rounds", "sites"),
    *("engine", "wall_s", "secagg", "insecure_reproducible"),
    # read by the report
    *("schema", "run", "name", "status", "method", "data", "seed", "auroc_per_label", "labels_left_out", "holdout"),
    "evaluation",
    "max_records_per_unit",
    *("epsilon_target", "privacy", "unit", "relation", "rounds_burned", "rounds_charged_again", "resumed", "members"),
    *("components", "warnings", "data_notes", "versions"),
}


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def verify(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "300"})
    return result.exit_code, result.output


def test_every_file_is_there_and_no_temporary_one(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir() if path.is_file()} == FILES
    assert {path.name for path in finished_run.iterdir() if path.is_dir()} == {"checkpoint", "private", "sites"}
    for site in (finished_run / "sites").iterdir():
        assert {path.name for path in site.iterdir()} == {"policy.yaml", "ledger.jsonl", "witness.jsonl", "private"}
        assert not yaml.safe_load((site / "policy.yaml").read_text())["lifetime_claim"]


def test_when_a_run_is_over_each_ledger_is_anchored_to_its_last_record(finished_run: Path, tmp_path: Path) -> None:
    code, text = verify(finished_run, "--anchor", finished_run, "--json")
    assert code == 0, text
    assert all(site["anchored_records"] == site["records"] for site in json.loads(text)["sites"])
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    ledger = copy / "sites" / "site02" / "ledger.jsonl"
    *lines, _close = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines))
    assert verify(copy)[0] == 0, "without anchors a missing end is not noticed"
    code, text = verify(copy, "--anchor", finished_run / "anchors.jsonl")
    assert code == 1
    assert "site02: its last record was cut off" in " ".join(text.split())


def test_summary_has_every_field_and_agrees_with_metrics(finished_run: Path) -> None:
    summary, metrics = summary_of(finished_run), metrics_of(finished_run)
    assert summary.keys() >= FIELDS
    assert set(summary["auroc_macro_missing"]) == {"image", "text"}
    assert (summary["status"], summary["rounds"], summary["sites"]) == ("finished", 6, 5)
    assert summary["engine"] == "in_process"
    assert summary["auroc_macro"] == metrics[-1]["auroc_macro"]
    assert len(summary["secagg"]["rounds"]) == 6
    for masked, line in zip(summary["secagg"]["rounds"], metrics, strict=True):
        assert masked == {key: line[key] for key in masked}
        assert masked["bytes_up"] > 0 < masked["bytes_down"]


def test_metrics_has_one_line_for_each_step_in_order(finished_run: Path) -> None:
    metrics = metrics_of(finished_run)
    assert [line["step"] for line in metrics] == list(range(6))
    rounds = [line["round"] for line in metrics]
    assert rounds == sorted(set(rounds)), "a protocol round number was used twice"
    spent_so_far = [line["epsilon_max"] for line in metrics]
    assert spent_so_far == sorted(spent_so_far)


def test_epsilon_of_each_site_is_what_its_ledger_gives_and_within_the_target(finished_run: Path) -> None:
    summary = summary_of(finished_run)
    for site, claimed in summary["epsilon"].items():
        recomputed = epsilon(spent(read_ledger(finished_run / "sites" / site / "ledger.jsonl")), summary["delta"])
        assert claimed == pytest.approx(recomputed, rel=1e-9)
        assert 0 < claimed <= summary["epsilon_target"]
    assert summary["epsilon_max"] == max(summary["epsilon"].values())
    assert set(summary["epsilon"]) == {f"site{n:02d}" for n in range(1, 6)}


def test_verify_holds_and_says_whose_roster_it_trusted(finished_run: Path, tmp_path: Path) -> None:
    code, output = verify(finished_run)
    assert code == 0
    assert "verdict: holds" in output
    assert "the run's own, not given from outside" in output
    shutil.copy(finished_run / "roster.json", tmp_path / "roster.json")
    code, output = verify(finished_run, "--roster", tmp_path / "roster.json")
    assert code == 0
    assert "roster: given from outside" in output


def test_verify_fails_for_one_changed_byte_and_names_site_and_record(copy: Path) -> None:
    ledger = copy / "sites" / "site03" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"noise_multiplier":', b'"noise_multiplier":1', 1)
    ledger.write_bytes(b"".join(lines))
    code, output = verify(copy)
    assert code == 1
    assert "DOES NOT HOLD: site03: record 2" in output


def test_verify_fails_where_the_summary_claims_less_than_the_ledgers(copy: Path) -> None:
    summary = summary_of(copy)
    summary["epsilon"]["site02"] -= 0.01
    (copy / "summary.json").write_text(json.dumps(summary))
    code, output = verify(copy)
    assert code == 1
    assert "summary.json: claims epsilon" in output
    assert "site02" in output


def test_verify_fails_under_the_roster_of_another_consortium(finished_run: Path, make_config, tmp_path: Path) -> None:
    from secure_fed.engines.runner import found, prepare

    other = tmp_path / "other"
    found(other, prepare(make_config(folder=other)))
    code, output = verify(finished_run, "--roster", other / "roster.json")
    assert code == 1
    assert "another public key than the roster" in output


def test_verify_as_json_is_one_object(finished_run: Path) -> None:
    code, output = verify("--json", finished_run)
    verdict = json.loads(output)
    assert (code, verdict["ok"], len(verdict["sites"])) == (0, True, 5)
    assert verdict["epsilon_max"] == pytest.approx(summary_of(finished_run)["epsilon_max"], rel=1e-6)


def test_private_folders_are_closed_and_hold_no_pending_update(finished_run: Path) -> None:
    for site in (finished_run / "sites").iterdir():
        private = site / "private"
        assert private.stat().st_mode & 0o777 == 0o700
        for file in private.iterdir():
            if file.suffix != ".log":
                assert file.stat().st_mode & 0o077 == 0, file
        assert {"identity.pem", "storage.key"} <= {file.name for file in private.iterdir()}


def test_the_model_file_is_the_model_whose_hash_the_summary_gives(finished_run: Path) -> None:
    from secure_fed.config import load_config

    federation = Federation(load_config(finished_run), sites_of(Roster.load(finished_run / "roster.json")))
    model = federation.new_model()
    tensors = load_file(finished_run / "model.safetensors")
    assert {name: len(values) for name, values in tensors.items()} == model.component_sizes()
    untrained = model.digest()
    for name, values in tensors.items():
        model.set_component(name, values)
    assert model.digest().hex() == summary_of(finished_run)["model_sha256"]
    assert model.digest() != untrained


def test_nothing_that_is_shown_names_a_key_a_folder_of_this_machine_or_a_patient(finished_run: Path) -> None:
    from secure_fed.config import load_config

    secrets_ = [(site / "private" / "storage.key").read_bytes().hex() for site in (finished_run / "sites").iterdir()]
    patients = set(simulate(load_config(finished_run)).holdout.unit_ids[:50])
    for name in ("report.html", "model_card.md", "summary.json", "metrics.jsonl", "data_notes.json", "roster.json"):
        text = (finished_run / name).read_text()
        assert "PRIVATE KEY" not in text
        assert str(finished_run) not in text
        assert str(finished_run.parent) not in text
        assert str(Path.home()) + "/" not in text
        assert not any(secret in text for secret in secrets_)
        words = set(re.findall(r"[A-Za-z0-9_-]+", text))
        assert not words & patients, name


def test_report_can_be_written_again_from_the_files(copy: Path) -> None:
    before = (copy / "report.html").read_text()
    for name in ("report.html", "model_card.md"):
        (copy / name).unlink()
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == f"report: {copy / 'report.html'}"
    assert len((copy / "report.html").read_text()) == pytest.approx(len(before), rel=0.05)
    assert (copy / "model_card.md").is_file()


def test_report_names_what_a_reader_asks_first(finished_run: Path) -> None:
    page, card = (finished_run / "report.html").read_text(), (finished_run / "model_card.md").read_text()
    for text in (page, card):
        for word in ("AUROC", "without image", "without text", "site01", "lifetime"):
            assert word.lower() in text.lower(), word


def test_seeds_make_data_partitions_and_initial_weights_alike(make_config, tmp_path: Path) -> None:
    from secure_fed.engines.runner import prepare
    from secure_fed.engines.simulated_sites import _simulate

    def digest_and_units(seed: int):
        _simulate.cache_clear()
        prepared = prepare(make_config(f"seed={seed}"))
        units = {site: tuple(part.unit_ids) for site, part in prepared.simulated.records.items()}
        return prepared.federation.new_model().digest(), units, tuple(prepared.simulated.holdout.unit_ids)

    assert digest_and_units(5) == digest_and_units(5)
    other, same = digest_and_units(6), digest_and_units(5)
    assert all(a != b for a, b in zip(other, same, strict=True))


def test_two_runs_of_one_seed_differ_by_their_noise_and_agree_where_it_is_switched_off(
    make_config, tmp_path: Path
) -> None:
    from secure_fed.engines.runner import start

    def model_hash(name: str, *overrides: str) -> str:
        config = make_config("federation.rounds=2", "evaluation.every=2", *overrides, folder=tmp_path / name)
        return summary_of(start(config))["model_sha256"]

    assert model_hash("a") != model_hash("b")
    assert model_hash("c", "insecure_reproducible=true") == model_hash("d", "insecure_reproducible=true")
