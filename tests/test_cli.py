"""The command line as a newcomer meets it: help, overrides, sweeps, exit codes, and what bad input is answered."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.progress import LiveProgress

TINY = ("federation.rounds=2", "data.patients=200")
"""On top of `small`: as small as a run gets."""

Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call `secure-fed` in a working directory that is not the repository and holds nothing else."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def in_a_subprocess(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def error_of(result: Result) -> str:
    return " ".join(result.stderr.split())


# -- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["run"], ["verify"], ["report"], ["predict"]])
def test_help_needs_neither_torch_nor_flower_nor_hydra(command: Sequence[str]) -> None:
    code = f"""
import sys, time
began = time.process_time()  # as on an idle machine
from secure_fed.cli import app
try:
    app({[*command, "--help"]!r})
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "flwr", "hydra", "numpy", "opacus", "pydantic", "matplotlib"}} & set(sys.modules)
print("LOADED", sorted(heavy), "SECONDS", time.process_time() - began)
"""
    last = in_a_subprocess(code).splitlines()[-1]
    assert last.startswith("LOADED [] "), last
    assert float(last.split()[-1]) < 0.5


def test_help_of_run_teaches_overrides_sweeps_resuming_and_the_exit_codes(cli: Cli) -> None:
    text = " ".join(cli("run", "--help").stdout.split())
    for taught in ("KEY=VALUE", "--cfg job", "--multirun seed=0,1,2", "resume=", "data.root=PATH", "--json"):
        assert taught in text
    assert "3 refused by policy, 4 aborted" in " ".join(cli("--help").stdout.split())


def test_cfg_job_shows_every_value_and_runs_nothing(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    result = cli("run", "--cfg", "job", "privacy.epsilon=3.5", "method=ridge")
    assert result.exit_code == 0
    shown = result.stdout
    assert "epsilon: 3.5" in shown
    assert "name: ridge" in shown
    assert "run_dir: runs/" in shown
    assert list(Path().iterdir()) == []


def test_cfg_job_with_an_unknown_key_is_an_error_too(cli: Cli) -> None:
    result = cli("run", "--cfg", "job", "privacy.epsilonn=3")
    assert result.exit_code == 2
    assert "privacy.epsilon" in result.stderr


# -- running ---------------------------------------------------------------------------------------------------


def test_a_run_from_any_folder_ends_with_where_it_lies(small: Sequence[str], cli: Cli) -> None:
    result = cli("run", *small, *TINY)
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("run: ")
    folder = Path(last.removeprefix("run: "))
    assert folder.is_absolute()
    assert folder.parent.parent == Path("runs").resolve(), "runs/<date>/<time>-<name> of the working directory"
    assert folder.name.endswith("-fin")
    assert (folder / "summary.json").is_file()
    assert f"report: {folder / 'report.html'}" in result.stdout
    assert "round   2/2" in result.stderr
    assert os.listdir() == ["runs"], "something else was left in the working directory"


def test_json_output_is_one_object_and_no_other_word(small: Sequence[str], cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "--json", *small, *TINY, f"run_dir={tmp_path / 'a run'}")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["run_dir"] == str(tmp_path / "a run")
    assert summary == {**json.loads((tmp_path / "a run" / "summary.json").read_text()), "run_dir": summary["run_dir"]}
    assert result.stderr == ""


def test_a_sweep_writes_a_folder_for_each_cell(small: Sequence[str], cli: Cli, tmp_path: Path) -> None:
    result = cli("run", *small, *TINY, "--multirun", "seed=0,1", f"run_dir={tmp_path / 'sweep'}")
    assert result.exit_code == 0, result.stderr
    cells = [tmp_path / "sweep" / name for name in ("0", "1")]
    assert [line for line in result.stdout.splitlines() if line.startswith("run: ")] == [f"run: {c}" for c in cells]
    summaries = [json.loads((cell / "summary.json").read_text()) for cell in cells]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    assert summaries[0]["run"] != summaries[1]["run"]


def test_a_sweep_goes_on_after_a_cell_that_cannot_be_and_tells_it_by_the_exit_code(
    small: Sequence[str], cli: Cli, tmp_path: Path
) -> None:
    result = cli("run", *small, *TINY, "-m", "privacy.delta=0.5,1e-5", f"run_dir={tmp_path / 'sweep'}")
    assert result.exit_code == 2
    assert "privacy.delta=0.5 is not below 1/N" in error_of(result)
    assert not (tmp_path / "sweep" / "0").exists()
    assert (tmp_path / "sweep" / "1" / "summary.json").is_file()


def test_a_sweep_with_an_unknown_option_anywhere_does_not_begin(small: Sequence[str], cli: Cli) -> None:
    result = cli("run", *small, *TINY, "--multirun", "method=fin,foo")
    assert result.exit_code == 2
    assert "method=foo is unknown; known: car_mfl, complete, drop, fin, " in error_of(result)
    assert list(Path().iterdir()) == []


# -- bad input -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Sequence[str], int, Sequence[str]]] = {
    # what is wrong: overrides on top of SMALL, exit code, what the message holds
    "a misspelt key": (["privacy.epsilonn=3"], 2, ["'privacy.epsilonn'", "did you mean privacy.epsilon", "--cfg job"]),
    "a key without its group": (["epsilon=3"], 2, ["'epsilon'", "did you mean privacy.epsilon?"]),
    "a singular": (["federation.round=3"], 2, ["'federation.round'", "did you mean federation.rounds"]),
    "an appended key": (["+foo=3"], 2, ["'foo'", "--cfg job"]),
    "no value": (["seed"], 2, ["'seed'", "key=value"]),
    "an unknown method": (["method=foo"], 2, ["method=foo", "fin, fin_paper, fin_uncertainty", "zero_fill"]),
    "a group without an option": (["experiment=null"], 2, ["experiment=None", "physionet2012, small"]),
    "an unknown data set": (["data=foo"], 2, ["data=foo", "chexpert, composite, fin_heterogeneous, manifest"]),
    "an unknown encoder": (["model/image=resnet"], 2, ["model/image=resnet", "did you mean resnet", "small_cnn"]),
    "a key of another option": (
        ["data=physionet2012"],
        2,
        ["'data.patients'", "did you mean data.root", "--cfg job"],
    ),
    "text for a number": (["seed=x"], 2, ["seed='x'", "integer"]),
    "an unknown scheme": (["federation.partition.scheme=foo"], 2, ["scheme='foo'", "or column (by the"]),
    "the ICU types by another name": (["federation.partition.scheme=icu"], 2, ["the ICU type of physionet2012"]),
    "a site column that is not there": (["federation.partition.scheme=column"], 2, ["site column", "or use iid"]),
    "an unknown modality": (
        ["federation.ownership={image:1,audio:1,image+text:3}"],
        2,
        ["'audio'", "this data set has image, text"],
    ),
    "an ownership of other sites": (
        ["federation.ownership=1:1:2"],
        2,
        ["'1:1:2'", "describes 4 sites", "federation.sites=5"],
    ),
    "an ownership that YAML read in base 60": (["federation.ownership=28802"], 2, ["28802", "base 60", "quote it"]),
    "fewer sites than the cohort floor": (
        ["federation.sites=2", "federation.ownership=0:0:2"],
        2,
        ["federation.sites=2", "at least 3 are needed", "secagg=off"],
    ),
    "a component without a contributor": (
        ["federation.ownership=5:0:0", "method=zero_fill"],
        2,
        ["'5:0:0'", "encoder.text", "no site owns text"],
    ),
    "nobody to train translators": (["federation.ownership=2:3:0"], 2, ["method=fin", "method=zero_fill"]),
    "a component below its floor": (
        ["federation.ownership=2:1:2"],
        2,
        ["'2:1:2'", "translator.image_to_text", "2 contributors", "floor of 3", "federation.corrupt=0"],
    ),
    "delta that reaches 1/N": (["privacy.delta=0.02"], 2, ["privacy.delta=0.02", "site01", "N=50", "below 0.02"]),
    "epsilon that no noise reaches": (["privacy.epsilon=1e-6"], 2, ["privacy.epsilon=1e-06", "larger epsilon"]),
    "a negative epsilon": (["privacy.epsilon=-1"], 2, ["privacy.epsilon=-1", "greater than 0"]),
    "two wrong values at once": (["seed=-1", "privacy.sample_rate=2"], 2, ["seed=-1", "privacy.sample_rate=2"]),
    "a ring that overflows": (
        ["secagg.value_bits=31"],
        2,
        ["value_bits=31", "n=5", "largest allowed is value_bits=29"],
    ),
    "a name that is a path": (["name=a/b"], 2, ["name='a/b'"]),
    "fewer patients than sites": (
        ["data.patients=40", "federation.sites=50", "federation.ownership=10:10:30"],
        2,
        ["30 patients", "sites=50", "give more data"],
    ),
    "privacy off in compliance mode": (["federation.compliance=true", "privacy=off"], 3, ["privacy=off is refused"]),
    "secagg off in compliance mode": (["federation.compliance=true", "secagg=off"], 3, ["secagg=off is refused"]),
    "insecure_reproducible in compliance mode": (
        ["federation.compliance=true", "insecure_reproducible=true"],
        3,
        ["insecure_reproducible=true is refused", "federation.compliance=true"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_named_with_its_value_and_the_way_out_and_leaves_nothing_behind(
    small: Sequence[str], cli: Cli, wrong: str
) -> None:
    overrides, code, expected = WRONG[wrong]
    result = cli("run", *small, *overrides)
    message = error_of(result)
    assert result.exit_code == code, message
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for part in expected:
        assert part in message
    assert result.stdout == ""
    assert list(Path().iterdir()) == [], "a run that cannot be left something behind"


def test_data_that_is_not_there_is_named_with_what_was_expected(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    cases = {
        ("data=physionet2012",): ["data.root has no value", "data.root=..."],
        ("data=physionet2012", f"data.root={tmp_path / 'nowhere'}"): ["nowhere does not exist", "Outcomes-a.txt"],
        ("data=physionet2012", f"data.root={tmp_path / 'empty'}"): [f"{tmp_path / 'empty'}", "Outcomes-a.txt"],
        ("data=physionet2012", f"data.root={tmp_path / 'other'}"): [f"{tmp_path / 'other'}", "Outcomes-a.txt"],
        ("data=physionet2012", f"data.root={tmp_path / 'table.csv'}"): [f"{tmp_path / 'table.csv'}"],
        ("data=manifest",): ["data.path has no value", "data.path=..."],
        (
            "data=manifest",
            f"data.path={tmp_path / 'table.csv'}",
            "data.modalities={note:{kind:text,column:a}}",
            "data.labels=[b]",
        ): [f"{tmp_path / 'table.csv'}, line 1", "has no column 'id'", "its columns are a, b"],
    }
    for overrides, expected in cases.items():
        result = cli("run", *overrides)
        assert result.exit_code == 2, overrides
        for part in ["error: ", *expected]:
            assert part in error_of(result), overrides
        assert list(Path().iterdir()) == [], overrides


def test_a_run_never_goes_where_something_stands(
    small: Sequence[str], cli: Cli, tmp_path: Path, finished_run: Path
) -> None:
    before = sorted(finished_run.rglob("*"))
    result = cli("run", *small, f"run_dir={finished_run}")
    assert result.exit_code == 2
    assert f"run_dir={finished_run} exists and is not empty" in error_of(result)
    assert "resume" not in error_of(result), "a finished run cannot be resumed"
    assert sorted(finished_run.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    for flags in ([], ["-m", "seed=0,1"]):
        result = cli("run", *small, f"run_dir={tmp_path / 'file'}", *flags)
        assert result.exit_code == 2
        assert f"run_dir={tmp_path / 'file'} is a file" in error_of(result)
    result = cli("run", *small, f"run_dir={tmp_path / 'file' / 'below'}")
    assert result.exit_code == 2
    assert "below cannot be made: Not a directory" in error_of(result)
    assert (tmp_path / "file").read_text() == "mine"


def test_resume_takes_a_run_that_is_not_finished_and_nothing_else(cli: Cli, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "begun" / "sites" / "site01").mkdir(parents=True)
    for arguments, expected in {
        (f"resume={finished_run}", "seed=3"): ["takes nothing else", "seed=3"],
        (f"resume={finished_run}", "--multirun"): ["takes nothing else", "--multirun"],
        (f"resume={finished_run}",): [f"{finished_run} is finished", "nothing to resume"],
        (f"resume={tmp_path / 'nowhere'}",): ["nowhere is not a run folder", "config.yaml"],
        (f"resume={tmp_path / 'begun'}",): ["begun was interrupted before its run began", "delete it"],
    }.items():
        result = cli("run", *arguments)
        assert result.exit_code == 2
        for part in expected:
            assert part in error_of(result)


@pytest.mark.parametrize("command", ["report", "predict", "verify"])
def test_a_folder_that_is_no_run_is_a_usage_error(cli: Cli, command: str, tmp_path: Path) -> None:
    more = ["--data", tmp_path / "x.csv"] if command == "predict" else []
    result = cli(command, tmp_path / "nowhere", *more)
    assert result.exit_code == 2
    assert "nowhere" in error_of(result)
    assert "Traceback" not in result.stderr


# -- what weakens a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("privacy=off", "privacy=off"),
        ("insecure_reproducible=true", "insecure_reproducible=true"),
        ("secagg=off", "secagg=off"),
    ],
)
def test_a_run_that_is_for_comparison_only_says_so_on_top_of_every_output(
    small: Sequence[str], cli: Cli, tmp_path: Path, override: str, said: str
) -> None:
    folder = tmp_path / "run"
    result = cli("run", *small, *TINY, override, f"run_dir={folder}")
    assert result.exit_code == 0, result.stderr
    first_of_log, first_of_output = result.stderr.splitlines()[0], " ".join(result.stdout.split())
    assert first_of_log.startswith(f"warning: {said}")
    assert said in first_of_output
    assert first_of_output.index(said) < first_of_output.index("AUROC")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["warnings"][0].startswith(said)
    card = (folder / "model_card.md").read_text().replace("\\", "")
    page = (folder / "report.html").read_text()
    for text in (card, page[page.index("<body") :]):
        assert said in text
        assert text.index(said) < text.index("AUROC")
    if override == "privacy=off":
        assert (summary["epsilon"], summary["epsilon_max"], summary["delta"]) == ({}, None, None)
    assert cli("verify", folder).exit_code == 0


# -- progress --------------------------------------------------------------------------------------------------


def test_one_round_is_called_one_round(make_config, capsys) -> None:
    LiveProgress().begin(make_config("federation.rounds=1", "method=zero_fill"), 0)
    assert ": 5 sites, 1 round, epsilon" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_round_scores_epsilon_and_survivors_in_80_columns(make_config, monkeypatch, terminal) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        "secure_fed.progress.Console",
        lambda **options: Console(**{**options, "stderr": False}, file=shown, force_terminal=terminal, width=80),
    )
    line = {
        "step": 1,
        "phases": ["translate"],
        "auroc_macro": 0.812,
        "auroc_macro_missing": {"image": 0.7, "text": 0.65},
        "epsilon_max": 4.25,
        "participants": 10,
        "survivors": 9,
    }
    with LiveProgress() as progress:
        progress.begin(make_config(), 0)
        progress.round({**line, "step": 0})
        # A round without evaluation keeps the last scores in sight on a terminal.
        progress.round({key: value for key, value in line.items() if not key.startswith("auroc") or not terminal})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    lines = [part.rstrip() for part in re.split(r"[\r\n]+", text) if part.strip()]
    assert ": 5 sites, 3 rounds, epsilon" in text
    assert all(len(part) <= (80 if terminal else 120) for part in lines[1:]), "the first line may wrap"
    assert not any("…" in part for part in lines)
    last = lines[-1]
    for part in ("AUROC 0.812", "no image 0.700", "no text 0.650", "eps 4.25", "sites 10, survivors 9"):
        assert part in last
    assert ("round 2/3" in text) if terminal else ("round   2/3  translate" in last)
    assert "left" in text
