"""What the defaults must reach: utility floors of the quickstart and the time of a sweep's cell. Minutes long."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(folder: Path, *overrides: str) -> dict:
    command = [sys.executable, "-m", "secure_fed.cli", "run", f"run_dir={folder}", *overrides]
    subprocess.run(command, check=True, capture_output=True, cwd=folder.parent)
    return json.loads((folder / "summary.json").read_text())


def test_the_quickstart_at_epsilon_8_is_within_a_twentieth_of_non_private(tmp_path: Path) -> None:
    private = run(tmp_path / "dp")
    plain = run(tmp_path / "off", "privacy=off")
    assert private["epsilon_max"] <= 8
    assert private["auroc_macro"] >= 0.70
    assert private["auroc_macro"] >= plain["auroc_macro"] - 0.05
    assert set(private["auroc_macro_missing"]) == {"image", "text"}
    for value in private["auroc_macro_missing"].values():
        assert value >= 0.60


def test_the_quickstart_run_takes_under_four_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    run(tmp_path / "dp")
    assert time.monotonic() - began < 240


def test_a_small_cell_takes_at_most_25_seconds_of_one_thread_without_imports(tmp_path: Path) -> None:
    """CPU time, which other processes on the machine do not lengthen."""
    script = """
import time
from pathlib import Path
import sys
from secure_fed.config import compose_config, freeze
from secure_fed.engines.runner import start
began = time.process_time()
start(freeze(compose_config(["experiment=small"]), Path(sys.argv[1])))
print(time.process_time() - began)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "cell")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert float(done.stdout.split()[-1]) <= 25


@pytest.mark.parametrize("text", ["ngrams", "bert_small"])
@pytest.mark.parametrize("image", ["small_cnn", "resnet18"])
def test_reference_encoders_train_under_dp_and_masks(tmp_path: Path, image: str, text: str) -> None:
    summary = run(
        tmp_path / "run",
        f"model/image={image}",
        f"model/text={text}",
        "data.patients=120",
        "data.image_size=32",
        "federation.sites=5",
        "federation.ownership=1:1:3",
        "federation.rounds=2",
        "method.classify.steps=1",
        "method.translate.steps=1",
        "training.max_physical_batch=16",
    )
    assert summary["epsilon_max"] <= 8
    assert 0 <= summary["auroc_macro"] <= 1
