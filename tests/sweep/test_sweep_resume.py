"""Which folder a sweep may go on in, and what it says where it may not; no cell trains here."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from example import example_sweep
from faulty_worker import COMMAND, FINE, FULL, PRINTS, RAISES
from tiny_sweep import TINY, inodes
from typer.testing import CliRunner

from secure_fed import sweeping
from secure_fed.cli import app
from secure_fed.sweep.cells import code_version
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.pool import ProcessPool

Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call `secure-fed sweep` in an empty folder; cells do what their seed says and nothing else."""
    monkeypatch.chdir(tmp_path)
    pool = functools.partial(ProcessPool, command=(*COMMAND, code_version()))
    monkeypatch.setattr(sweeping, "ProcessPool", pool)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ["sweep", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def seeds(*wanted: int) -> list[str]:
    return [*TINY, "privacy.epsilon=3", f"seed={','.join(map(str, wanted))}", "sweep.dir=mine", "launcher.workers=1"]


def results(folder: str) -> dict[str, tuple[int, int]]:
    return {name: what for name, what in inodes(Path(folder)).items() if name.endswith(("cell.json", "config.yaml"))}


def said(result: Result) -> str:
    return " ".join((result.stdout + result.stderr).split())


def test_all_finished_is_exit_0_with_tables_a_page_and_the_folder_in_the_last_line(cli: Cli) -> None:
    result = cli(*seeds(FINE, PRINTS))
    assert result.exit_code == 0, result.stderr
    for name in ("sweep.json", "sweep.csv", "sweep.parquet", "sweep_results.json", "sweep.html"):
        assert (Path("mine") / name).is_file()
    assert result.stdout.splitlines()[-1] == f"sweep: {Path('mine').absolute()}"
    assert "cell 2/2" in result.stderr


def test_broken_cells_are_exit_1_named_with_their_error_and_tried_again(cli: Cli) -> None:
    result = cli(*seeds(FINE, RAISES))
    assert result.exit_code == 1
    assert "1 cell finished, 1 broken" in result.stdout
    assert "broken: zero_fill epsilon=3 ownership=1:0:3 seed=1: ValueError: nothing fits" in result.stdout
    assert "resume=" in result.stdout
    again = cli("resume=mine", "--json")
    assert again.exit_code == 1
    *ended, last = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(cell["seed"], cell["status"], cell["earlier"]) for cell in ended] == [
        (FINE, "finished", True),
        (RAISES, "broken", False),
    ]
    assert (last["finished"], last["broken"], last["left"], last["ended"]) == (1, 1, 0, "done")


def test_a_full_disk_is_exit_4_and_says_how_to_go_on(cli: Cli) -> None:
    result = cli(*seeds(FINE, FULL, PRINTS))
    assert result.exit_code == 4
    assert "No space left on device" in result.stderr
    assert f"sweep resume={Path('mine').absolute()}" in result.stderr
    assert Path("mine/sweep.csv").is_file()
    assert SweepFolder(Path("mine")).result(SweepFolder(Path("mine")).manifest().cells[0].id) is not None


def test_the_same_arguments_again_go_on_and_run_nothing_that_is_finished(cli: Cli) -> None:
    assert cli(*seeds(FINE, PRINTS)).exit_code == 0
    before = results("mine")
    assert len(before) == 4
    again = cli(*seeds(FINE, PRINTS))
    assert again.exit_code == 0
    assert "2 of 2 cells are finished already" in again.stderr
    assert results("mine") == before


def test_other_arguments_in_the_same_folder_are_an_error_that_says_what_differs(cli: Cli) -> None:
    assert cli(*seeds(FINE)).exit_code == 0
    before = inodes(Path("mine"))
    result = cli(*seeds(FINE, PRINTS), "sweep.confidence=0.9")
    assert result.exit_code == 2
    for part in ("holds another sweep", "confidence was 0.95 and is 0.9", "1 cell is new", "seed=5", "resume="):
        assert part in said(result)
    assert {name: what for name, what in inodes(Path("mine")).items() if name != "sweep.lock"} == {
        name: what for name, what in before.items() if name != "sweep.lock"
    }


def test_resume_takes_nothing_but_the_launcher(cli: Cli) -> None:
    assert cli(*seeds(FINE)).exit_code == 0
    result = cli("resume=mine", "seed=0,1")
    assert result.exit_code == 2
    assert "takes nothing else but launcher.*; it was given resume=mine seed=0,1" in said(result)
    assert cli("resume=mine", "launcher.workers=1", "launcher.pin=false").exit_code == 0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"code": "0.0.9+0123456789abcdef"}, "was begun with secure_fed 0.0.9+0123456789abcdef, and this is 0."),
        ({"schema": "secure_fed.sweep/9"}, "has schema 'secure_fed.sweep/9'"),
    ],
)
def test_a_folder_of_another_version_is_an_error_before_the_first_cell(
    cli: Cli, change: dict[str, str], part: str
) -> None:
    assert cli(*seeds(FINE)).exit_code == 0
    path = Path("mine/sweep.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for arguments in (["resume=mine"], seeds(FINE)):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert part in said(result)


def test_resume_of_what_is_no_sweep_is_an_error(cli: Cli) -> None:
    assert "is not a sweep's folder" in said(cli("resume=nowhere"))


def test_a_folder_that_another_process_sweeps_in_is_refused(cli: Cli) -> None:
    assert cli(*seeds(FINE)).exit_code == 0
    with SweepFolder(Path("mine")).locked():
        result = cli("resume=mine")
    assert result.exit_code == 2
    assert "in use by another sweep" in said(result)


def test_a_torn_cell_runs_again(cli: Cli) -> None:
    assert cli(*seeds(FINE, PRINTS)).exit_code == 0
    cell = SweepFolder(Path("mine")).manifest().cells[1].id
    (Path("mine/cells") / cell / "cell.json").write_text('{"schema"')
    result = cli("resume=mine")
    assert result.exit_code == 0, said(result)
    assert f"cells/{cell}/cell.json is damaged" in said(result)
    assert SweepFolder(Path("mine")).result(cell) is not None


def test_a_dry_run_lists_the_cells_and_writes_nothing(cli: Cli) -> None:
    result = cli(*seeds(FINE, PRINTS), "--dry-run")
    assert result.exit_code == 0
    assert "2 cells (2 grid); nothing was run" in result.stdout
    listed = json.loads(cli(*seeds(FINE, PRINTS), "--dry-run", "--json").stdout)
    assert [cell["seed"] for cell in listed["cells"]] == [FINE, PRINTS]
    assert "name: processes" in cli(*seeds(FINE), "--cfg", "job").stdout
    assert list(Path().iterdir()) == []
    assert cli("--cfg", "hydra").exit_code == 2


def test_report_writes_tables_and_page_anew_and_takes_no_options(cli: Cli) -> None:
    assert cli(*seeds(FINE)).exit_code == 0
    for name in ("sweep.html", "sweep.csv"):
        (Path("mine") / name).unlink()
    result = CliRunner().invoke(app, ["report", "mine"])
    assert result.exit_code == 0
    assert result.stdout == f"page: {Path('mine/sweep.html').absolute()}\n"
    assert Path("mine/sweep.csv").is_file()
    assert CliRunner().invoke(app, ["report", "mine", "--output", "elsewhere"]).exit_code == 2


def test_a_sweep_that_the_disk_cannot_hold_is_refused_before_the_first_cell(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_CELL_BYTES", 2**60)
    result = cli(*seeds(FINE))
    assert result.exit_code == 2
    assert "make room" in said(result)
    assert not Path("mine/sweep.json").exists()


@pytest.mark.parametrize("command", ["sweep", "compare", "export"])
def test_help_needs_neither_torch_nor_hydra(command: str) -> None:

    code = (
        "import sys\nfrom secure_fed.cli import app\n"
        f"try:\n    app([{command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'flwr', 'hydra', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "SWEEP" in done.stdout.upper()


@pytest.mark.parametrize("command", ["report", "compare"])
def test_reading_a_sweep_needs_neither_torch_nor_flower(command: str, tmp_path: Path) -> None:
    folder = str(example_sweep(tmp_path / "s", epsilons=(3.0,), methods=("fin",)))
    arguments = [command, folder] if command == "report" else [command, folder, folder]
    code = (
        "import sys\nfrom secure_fed.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'flwr', 'hydra'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_compare_takes_another_score_than_the_objective(tmp_path: Path) -> None:
    folder = str(example_sweep(tmp_path / "s", epsilons=(3.0,), methods=("fin",)))
    metric = "auroc_macro_missing.text"
    result = CliRunner().invoke(app, ["compare", folder, folder, "--metric", metric, "--json"])
    assert json.loads(result.stdout)["metric"] == metric
    wrong = CliRunner().invoke(app, ["compare", folder, folder, "--metric", "auroc"])
    assert wrong.exit_code == 2
    assert metric in " ".join(wrong.stderr.split())


def test_a_home_folder_is_meant_as_a_shell_means_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    arguments = [*seeds(FINE)[:-2], "sweep.dir='~/mine'", "launcher.workers=1"]
    assert cli(*arguments).exit_code == 0
    assert (tmp_path / "home/mine/sweep.json").is_file()
    assert cli("resume=~/mine").exit_code == 0


def test_the_way_on_can_be_pasted_into_a_shell() -> None:
    argument = sweeping._to_resume(SweepFolder(Path("/mine/a sweep")))
    assert shlex.split(argument) == ["resume=/mine/a sweep"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_one_stops_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with sweeping._stoppable() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before
