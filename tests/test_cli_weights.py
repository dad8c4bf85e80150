"""Public weights at the command line: refused before anything is spent, pinned by digest, described, used again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from public_checkpoints import bert_folder, resnet_state
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.config import compose_config, freeze, load_config
from secure_fed.federation.facts import Federation, Site
from secure_fed.models.pinning import pinned

FROZEN = ("model/image=resnet18", "model.image.train=head", "model/text=bert_small", "model.text.train=adapters")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    torch.save(resnet_state(), root / "resnet18.pth")
    bert_folder(root / "bert")
    return root


@pytest.fixture
def overrides(small, checkpoints):
    return (
        *small, *FROZEN, "data.patients=120", "federation.rounds=2", "model.text.max_tokens=8",
        f"model.image.weights={checkpoints / 'resnet18.pth'}", f"model.text.weights={checkpoints / 'bert'}",
    )  # fmt: skip


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


WRONG = {
    "model.image.weights=nowhere.pth": r"nowhere.pth: missing",
    f"model.image.weights_sha256={'0' * 64}": "these are not the weights that the run was agreed on",
    "model.text.weights=nowhere": "nowhere: missing: give a local folder with config.json",
    "model.text.max_tokens=64": "knows 16 positions, fewer than model.text.max_tokens=64",
    "model.image.train=adapters": "model.image.train='adapters': adapters are low-rank changes of BERT's attention",
    "model.image.weights=null": "model.image: train=head without weights",
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_weights_are_bad_input_and_leave_no_run_behind(overrides, tmp_path, monkeypatch, command, wrong):
    monkeypatch.chdir(tmp_path)
    result = call(command, *overrides, wrong, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 2
    assert WRONG[wrong] in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_run_on_frozen_weights_says_what_it_stands_on_and_predicts_with_the_same_file(
    overrides, tmp_path, checkpoints
):
    elsewhere = Path(shutil.copytree(checkpoints, tmp_path / "weights"))
    moved = [item.replace(str(checkpoints), str(elsewhere)) for item in overrides]
    run = tmp_path / "run"
    result = call("run", *moved, f"run_dir={run}")
    assert result.exit_code == 0
    assert "encoder.image: frozen: batch norms keep the checkpoint's statistics" in " ".join(result.stderr.split())
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["model_notes"]) == {"encoder.image", "encoder.text"}
    assert summary["public_parameters"]["encoder.image"] > 11_000_000
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["text"]["weights_sha256"] in (run / "model_card.md").read_text()
    assert config["model"]["image"]["weights_sha256"] in summary["model_notes"]["encoder.image"][0]

    records = tmp_path / "records.csv"
    records.write_text("id,image,text\nnew,,small effusion with edema\n")
    assert call("predict", run, "--data", records).stdout.splitlines()[1].startswith("new,0.")
    # Another file in its place: features would be others, and nothing else would notice.
    torch.save(resnet_state(seed=1), elsewhere / "resnet18.pth")
    refused = call("predict", run, "--data", records)
    assert refused.exit_code == 2
    assert "these are not the weights that the run was agreed on" in " ".join(refused.stderr.split())


def test_what_owners_approve_names_the_weights_and_not_where_they_lie(overrides, tmp_path, checkpoints):
    elsewhere = Path(shutil.copytree(checkpoints, tmp_path / "weights"))
    members = [Site(f"site-{i}", frozenset({"image", "text"}), 50) for i in range(5)]

    def plan_hash(root):
        moved = [item.replace(str(checkpoints), str(root)) for item in overrides]
        return Federation(freeze(compose_config(moved), tmp_path / "run"), members).plan_hash()

    agreed = plan_hash(checkpoints)
    assert plan_hash(elsewhere) == agreed
    torch.save(resnet_state(seed=1), elsewhere / "resnet18.pth")
    assert plan_hash(elsewhere) != agreed


def test_a_frozen_configuration_reads_no_weights_when_it_is_loaded_again(overrides, tmp_path):
    from secure_fed.config import dump_config

    config = freeze(compose_config(list(overrides)), tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run") == config
    assert pinned(config.model) == config.model
