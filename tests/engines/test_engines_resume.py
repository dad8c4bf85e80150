"""Interrupted runs: killed at any place, they leave ledgers that verify and go on with one round charged again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.client import site as client_site
from secure_fed.client.charging import Charges
from secure_fed.client.site import SiteClient
from secure_fed.engines import runner
from secure_fed.engines.runner import resume, start
from secure_fed.errors import ConfigError, RunAborted
from secure_fed.ledger import verify
from secure_fed.server import training as server_training

STEPS = 3


class Killed(BaseException):
    """As a SIGKILL in this process: nothing catches it."""


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_finished_with_at_most_one_step_charged_again(run: Path, resumed: int = 1) -> None:
    summary = summary_of(run)
    assert summary["resumed"] == resumed
    assert summary["rounds_charged_again"] <= 1
    assert summary["epsilon_max"] <= summary["epsilon_target"]
    assert steps_of(run) == list(range(summary["rounds"]))
    assert verify([run]).ok
    page = (run / "report.html").read_text()
    assert ("charged again after an interruption" in page) == (summary["rounds_charged_again"] == 1)


# -- a real process, really killed -----------------------------------------------------------------------------


def begin(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "secure_fed.cli", "run", *overrides, f"run_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)


def wait_for_rounds(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 300  # to end a hang, not to judge a busy machine
    path = folder / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_killed_is_continued_from_the_command_line(small, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(folder, *small, "federation.rounds=6", "evaluation.every=6")
    wait_for_rounds(process, folder, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "summary.json").exists()
    verdict = verify([folder])
    assert verdict.ok, verdict.problems

    result = CliRunner().invoke(app, ["run", f"resume={folder}"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"run: {folder}"
    assert_finished_with_at_most_one_step_charged_again(folder)


@pytest.fixture
def _interruptible():
    """Ctrl-C interrupts, also where the tests themselves were started in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("again", [False, True], ids=["a new run", "a resumed run"])
def test_ctrl_c_tells_how_to_go_on(small, tmp_path: Path, monkeypatch, again) -> None:
    folder = tmp_path / "run"

    def pressed(self, *_arguments):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(server_training.Trainer, "_apply", pressed)
    result = CliRunner().invoke(app, ["run", *small, f"run_dir={folder}"])
    if again:
        result = CliRunner().invoke(app, ["run", f"resume={folder}"])
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert last == f"interrupted: the ledgers stand; continue with: secure-fed run resume={folder}"
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert verify([folder]).ok


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_before_anything_began_leaves_nothing(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "prepare", lambda config: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(app, ["run", *small, f"run_dir={tmp_path / 'run'}"])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: nothing had begun"
    assert not (tmp_path / "run").exists()


# -- killed at a chosen place ----------------------------------------------------------------------------------


def die_at_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, *, after: bool) -> None:
    original = getattr(owner, name)
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = original(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@contextmanager
def killed_at_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, *, after: bool):
    """What runs in the block must be killed at that call; afterwards `owner` is whole again."""
    with monkeypatch.context() as patched:
        die_at_call(patched, owner, name, call, after=after)
        with pytest.raises(Killed):
            yield


PLACES = {
    # five sites, so calls 6 to 10 of a site's work belong to the second round
    "before a site reserves": (Charges, "reserve", 8, False),
    "after a site reserved, before it trained": (Charges, "reserve", 8, True),
    "after a site kept its update, before it masked": (SiteClient, "_update", 8, True),
    "after some sites opened the sum": (SiteClient, "_unmask", 8, True),
    "after a site erased its update, before it settled": (client_site, "open_ledger", 8, False),
    "after the sum was opened, before the model moved": (server_training.Trainer, "_apply", 2, False),
    "after metrics were written, before the checkpoint": (server_training, "append_metrics", 2, True),
    "after the last round": (runner, "save_model", 1, False),
    "before the summary is in its place": (runner, "summarise", 1, True),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_anywhere_goes_on_with_at_most_one_round_charged_again(
    make_config, monkeypatch, tmp_path, place
) -> None:
    folder = tmp_path / "run"
    owner, name, call, after = PLACES[place]
    config = make_config(f"federation.rounds={STEPS}", "evaluation.every=3", folder=folder)
    with killed_at_call(monkeypatch, owner, name, call, after=after):
        start(config)
    assert not (folder / "summary.json").exists()
    assert verify([folder]).ok or not list(folder.rglob("ledger.jsonl"))
    resume(folder)
    assert_finished_with_at_most_one_step_charged_again(folder)


def test_a_run_killed_between_summary_and_report_gets_its_report(make_config, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "run"
    with killed_at_call(monkeypatch, runner, "write_report", 1, after=False):
        start(make_config("federation.rounds=2", folder=folder))
    ledgers = {path: path.read_bytes() for path in folder.rglob("ledger.jsonl")}
    before = (folder / "summary.json").read_bytes()
    resume(folder)
    assert (folder / "report.html").is_file()
    assert {path: path.read_bytes() for path in ledgers} == ledgers, "writing a report charged something"
    assert (folder / "summary.json").read_bytes() == before


def test_a_run_killed_while_it_was_founded_says_that_nothing_was_charged(make_config, monkeypatch, tmp_path) -> None:
    for place, name in enumerate(("save_checkpoint", "dump_config")):
        folder = tmp_path / str(place)
        with killed_at_call(monkeypatch, runner, name, 1, after=True):
            start(make_config(folder=folder))
        with pytest.raises(ConfigError, match=r"interrupted before its run began.*nothing was charged.*delete it"):
            resume(folder)
        assert not list(folder.rglob("ledger.jsonl"))


def test_a_torn_line_of_metrics_is_written_anew(make_config, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "run"
    with killed_at_call(monkeypatch, server_training, "save_checkpoint", 2, after=True):
        start(make_config(f"federation.rounds={STEPS}", folder=folder))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rou')
    resume(folder)
    assert steps_of(folder) == list(range(STEPS))


def test_a_ledger_torn_in_its_last_record_is_continued(make_config, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "run"
    with killed_at_call(monkeypatch, Charges, "reserve", 8, after=True):
        start(make_config(f"federation.rounds={STEPS}", folder=folder))
    with (folder / "sites" / "site02" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"body":{"attempt":0,"kind":"res')
    resume(folder)
    assert_finished_with_at_most_one_step_charged_again(folder)


def test_more_interruptions_than_spare_rounds_cost_steps_of_the_schedule_and_never_the_budget(
    make_config, monkeypatch, tmp_path
) -> None:
    folder = tmp_path / "run"
    config = make_config("federation.rounds=5", "federation.spare_rounds=1", folder=folder)
    interruptions = 3
    for attempt in range(interruptions):
        with killed_at_call(monkeypatch, server_training.Trainer, "_apply", 1, after=False):
            start(config) if attempt == 0 else resume(folder)
    resume(folder)
    summary = summary_of(folder)
    assert len(steps_of(folder)) == 5 - (interruptions - 1), "one interruption is paid for by the spare round"
    assert summary["rounds_skipped"] == interruptions - 1
    assert f"{interruptions - 1} rounds of the schedule did not take place" in (folder / "report.html").read_text()
    assert summary["rounds_charged_again"] == 1, "it was the same step each time"
    assert summary["resumed"] == interruptions
    assert summary["epsilon_max"] <= config.privacy.epsilon
    assert verify([folder]).ok


def test_a_run_killed_after_a_burned_round_never_uses_a_released_round_number_again(
    make_config, monkeypatch, tmp_path
) -> None:
    """Shares of round 0 were given out and lost on the way; the run dies in the round that takes its place."""
    folder = tmp_path / "run"
    unmask = SiteClient._unmask

    def lost_on_the_way(self, header, parcel):
        answer = unmask(self, header, parcel)
        if header.round == 0:
            raise OSError("the network is gone")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(SiteClient, "_unmask", lost_on_the_way)
        die_at_call(patched, Charges, "reserve", 8, after=True)
        with pytest.raises(Killed):
            start(make_config(f"federation.rounds={STEPS}", "federation.spare_rounds=2", folder=folder))
    resume(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(2, 2 + STEPS))
    assert [line["attempts"] for line in lines] == [1] * STEPS, "a stale round number cost an attempt"
    assert summary_of(folder)["rounds_burned"] == 1
    assert verify([folder]).ok


# -- drop-outs -------------------------------------------------------------------------------------------------


def test_a_run_in_which_sites_drop_out_finishes_and_counts_them(make_config, tmp_path) -> None:
    folder = tmp_path / "run"
    overrides = ["federation.sites=8", "federation.ownership=2:2:4", "federation.rounds=4", "evaluation.every=4"]
    start(make_config(*overrides, "federation.dropout=0.2", folder=folder))
    summary = summary_of(folder)
    assert min(line["survivors"] for line in summary["secagg"]["rounds"]) < 8
    assert all(line["survivors"] >= summary["secagg"]["threshold"] for line in summary["secagg"]["rounds"])
    assert summary["epsilon_max"] <= summary["epsilon_target"]
    assert verify([folder]).ok


def test_a_run_that_loses_too_many_sites_stops_with_code_4_and_can_be_resumed(make_config, tmp_path) -> None:
    folder = tmp_path / "run"
    config = make_config("federation.dropout=0.95", "secagg.max_attempts=2", folder=folder)
    with pytest.raises(RunAborted, match=r"failed in all 2 attempts.*resume") as stopped:
        start(config)
    assert stopped.value.exit_code == 4
    assert not (folder / "summary.json").exists()
    assert verify([folder]).ok or not list(folder.rglob("ledger.jsonl"))
    result = CliRunner().invoke(app, ["run", f"resume={folder}"])
    assert result.exit_code == 4
    assert "error: round " in result.stderr
