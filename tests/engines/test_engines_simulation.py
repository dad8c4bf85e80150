"""Flower's own engines: Ray's simulation gives the model that this process gives, and `flwr run .` works."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from secure_fed.engines import simulated_sites, simulation
from secure_fed.engines.apps import forget_folders
from secure_fed.engines.in_process import run_in_process
from secure_fed.engines.runner import start
from secure_fed.ledger import verify

ROOT = Path(__file__).parents[2]


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def carried(server_app, client_app, nodes: int, workers: int) -> None:
    """What Ray does to a run, without Ray: all is pickled on the way, and who answers has read no folder before."""

    def copy(item):
        return pickle.loads(pickle.dumps(item))  # noqa: S301 - our own

    def answer(message, context):
        forget_folders()
        return copy(client_app(copy(message), copy(context)))

    simulated_sites._simulate.cache_clear()
    run_in_process(server_app, answer, nodes)


@pytest.mark.parametrize(
    "ray", [pytest.param(True, marks=pytest.mark.slow, id="Ray"), pytest.param(False, id="carried")]
)
def test_rays_simulation_gives_the_model_that_the_process_gives(make_config, tmp_path: Path, monkeypatch, ray) -> None:
    """Ray's processes take a minute to start; what they do to a run is tried without them too."""
    if not ray:
        monkeypatch.setattr(simulation, "run_simulation", carried)
    overrides = ("data.patients=200", "federation.rounds=2", "insecure_reproducible=true")
    here = start(make_config(*overrides, folder=tmp_path / "here"))
    there = start(make_config(*overrides, "engine=simulation", folder=tmp_path / "there"))
    a, b = summary_of(here), summary_of(there)
    assert b["engine"] == "simulation"
    assert a["model_sha256"] == b["model_sha256"]
    assert a["epsilon"] == b["epsilon"]
    assert verify([there]).ok


# -- flwr run . ------------------------------------------------------------------------------------------------

CONTROL_PORT = 39091
"""Where `flwr run` starts its local SuperLink."""


def link_processes(home: Path) -> list[int]:
    """The SuperLinks that live on this test's FLWR_HOME, and nobody else's."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"FLWR_HOME={home}".encode() in environment and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture
def flower(tmp_path: Path):
    """Calls `flwr` as in a fresh home; whatever it started is ended afterwards."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", CONTROL_PORT)) != 0, f"a SuperLink is already on port {CONTROL_PORT}"
    home = tmp_path / "flower"
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "flwr"), *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)

    yield call
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in link_processes(home):
            os.kill(process, sign)
        deadline = time.monotonic() + 10
        while link_processes(home) and time.monotonic() < deadline:
            time.sleep(0.2)


@pytest.mark.slow
def test_flwr_run_trains_and_the_ledgers_verify(flower, small, tmp_path: Path) -> None:
    """Flower's default federation has two SuperNodes, so each stands for several sites."""
    runs = tmp_path / "runs"
    overrides = " ".join([*small, "data.patients=200", "federation.rounds=2"])
    result = flower("run", ".", "--stream", "--run-config", f'overrides="{overrides}" runs-dir="{runs}"')
    log = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout + result.stderr)
    assert result.returncode == 0, log
    folders = list(runs.glob("flower-*"))
    assert len(folders) == 1, log
    assert "secure_fed round 2: auroc_macro" in log
    assert f"run: {folders[0]}" in log
    deadline = time.monotonic() + 120
    while not (folders[0] / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    summary = summary_of(folders[0])
    assert (summary["sites"], summary["rounds"]) == (5, 2)
    assert all(line["survivors"] == 5 for line in summary["secagg"]["rounds"])
    assert verify([folders[0]]).ok
    assert yaml.safe_load((folders[0] / "config.yaml").read_text())["data"]["patients"] == 200
    wrong = flower("run", ".", "--stream", "--run-config", f"overrides='privacy.epsilonn=3' runs-dir=\"{runs}\"")
    assert "did you mean privacy.epsilon" in wrong.stdout + wrong.stderr
    assert list(runs.glob("flower-*")) == folders, "a run that cannot be left something behind"
