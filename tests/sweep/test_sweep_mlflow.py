"""The export to MLflow against a real local store, read back through MLflow's own client."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path

import pytest
from example import EPSILON, SEED, example_sweep
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.errors import ConfigError, DataError, PolicyRefusal
from secure_fed.sweep import mlflow_export
from secure_fed.sweep.mlflow_export import export
from secure_fed.sweep.record import BROKEN, CELLS, RESULT
from secure_fed.sweep.table import read_results, write_tables

pytest.importorskip("mlflow")
TINY = {"epsilons": (3.0,), "methods": ("fin",), "seeds": (0, 1, 2), "ownerships": ("5:1:4",), "references": ()}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """A database whose tables are made once; every test takes an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def sweep(tmp_path) -> Path:
    folder = example_sweep(tmp_path / "sweep", **TINY)
    write_tables(folder)
    (folder / "sweep.html").write_text("<!doctype html>")
    return folder


def read_back(store: str, experiment: str):
    """The sweep's runs, and cells' runs by cell."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    cells = {run.data.tags["secure_fed.cell"]: run for run in children}
    assert len(cells) == len(children)  # no cell is there twice
    return client, [run for run in runs if run not in children], cells


def artifacts(client, run) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id)}


def test_every_cell_is_a_run_below_the_sweeps(sweep, store):
    results = read_results(sweep)
    assert export(sweep, store, "cells") == len(results.finished) == 1
    client, (parent,), cells = read_back(store, "cells")
    assert set(cells) == {cell.id for cell in (*results.finished, *results.broken)}
    assert {run.data.tags["mlflow.parentRunId"] for run in cells.values()} == {parent.info.run_id}
    (cell,) = results.finished
    run = cells[cell.id]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "epsilon=3, method=fin, ownership=5:1:4, seed=0"
    assert run.info.end_time - run.info.start_time == cell.wall_s * 1000
    assert run.data.params[EPSILON] == "3.0"
    assert run.data.params[SEED] == "0"
    assert run.data.params["privacy"] == "dp"
    assert run.data.tags["secure_fed.run"] == cell.run
    scores = {name: value for name, value in cell.metrics.items() if value is not None}
    assert {name: run.data.metrics[name] for name in scores} == scores
    assert run.data.metrics["epsilon_spent"] == cell.epsilon_spent
    assert run.data.metrics["phase.translate.share"] == cell.phases[1].share
    assert "auroc.Fracture" not in run.data.metrics  # None is no number
    assert artifacts(client, run) == {"report.html"}
    assert parent.data.params["code"] == results.manifest.code
    assert parent.data.tags["secure_fed.broken"] == "1"


def test_nothing_but_pages_leaves_a_cells_folder(sweep, store):
    cell = sweep / CELLS / read_results(sweep).finished[0].id
    for name in ("sites/site01/private/identity.pem", "sites/site01/ledger.jsonl", "private/coordinator.pem"):
        (cell / name).parent.mkdir(parents=True, exist_ok=True)
        (cell / name).write_text("secret")
    (cell / "model.safetensors").write_text("weights")
    export(sweep, store, "leaves")
    client, _, cells = read_back(store, "leaves")
    assert artifacts(client, cells[cell.name]) == {"report.html"}


def test_a_broken_cell_has_no_text_of_its_error(sweep, store):
    """An error's text may name a file or a record of a site."""
    export(sweep, store, "broken")
    client, [parent], cells = read_back(store, "broken")
    run = cells[read_results(sweep).broken[0].id]
    assert run.info.status == "FAILED"
    assert run.data.tags["secure_fed.error"] == "BudgetExhausted"
    assert "budget and policy" not in json.dumps(run.to_dictionary(), default=str)
    assert artifacts(client, parent) == set()  # it stands in the page and in the table


def test_a_second_export_doubles_nothing(sweep, store):
    for _ in range(2):
        export(sweep, store, "twice")
    _, parents, cells = read_back(store, "twice")
    assert (len(parents), len(cells)) == (1, 2)


def finish_broken(folder: Path) -> str:
    """A resumed sweep: its broken cell has finished."""
    results = read_results(folder)
    broken, like = results.broken[0], results.finished[0]
    fields = broken.model_dump(exclude={"schema_", "error", "message", "traceback"})
    result = like.model_copy(update={**fields, "run": "f" * 32})
    (folder / CELLS / broken.id / RESULT).write_text(result.model_dump_json(by_alias=True))
    (folder / CELLS / broken.id / BROKEN).unlink()
    return broken.id


def test_an_export_after_a_resume_adds_what_has_finished_since(sweep, store):
    export(sweep, store, "resumed")
    cell = finish_broken(sweep)
    assert export(sweep, store, "resumed") == 2
    client, parents, cells = read_back(store, "resumed")
    assert (len(parents), len(cells)) == (1, 2)
    assert cells[cell].info.status == "FINISHED"
    assert cells[cell].data.tags["secure_fed.status"] == "finished"
    assert artifacts(client, parents[0]) == {"sweep.html", "sweep.csv"}
    assert "auroc_macro" in cells[cell].data.metrics
    assert parents[0].data.tags["secure_fed.finished"] == "2"


def test_an_export_that_was_interrupted_goes_on(sweep, store, monkeypatch):
    from mlflow import MlflowClient

    class Interrupted(Exception): ...

    def stop(*_args, **_options):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", stop)
        (sweep / "sweep.html").rename(sweep / "aside.html")
        (sweep / "sweep.csv").rename(sweep / "aside.csv")
        with pytest.raises(Interrupted):
            export(sweep, store, "interrupted")
    export(sweep, store, "interrupted")
    client, parents, cells = read_back(store, "interrupted")
    assert (len(parents), len(cells)) == (1, 2)
    assert artifacts(client, cells[read_results(sweep).finished[0].id]) == {"report.html"}


def test_the_same_sweep_run_again_is_another_one(sweep, tmp_path, store):
    """Same arguments, same code, same ids of cells, but other runs: another draw of the noise."""
    again = example_sweep(tmp_path / "again", **TINY)
    path = next(again.glob(f"{CELLS}/*/{RESULT}"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": "e" * 32}))
    for folder in (sweep, again):
        export(folder, store, "replicates")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name("replicates").experiment_id])
    assert len({run.data.tags.get("mlflow.parentRunId") for run in runs}) == 3  # none, and two parents


def test_files_lie_beside_a_local_database(sweep, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(sweep, store, "beside")
    assert not (tmp_path / "mlruns").exists()
    assert (Path(store.removeprefix("sqlite:///")).parent / "mlartifacts").is_dir()


def test_without_an_experiment_it_is_called_like_the_sweep(tmp_path, store):
    export(example_sweep(tmp_path / "sweep", **TINY, name="my-sweep"), store)
    assert read_back(store, "my-sweep")[1][0].info.run_name == "my-sweep"


# -- what is refused ---------------------------------------------------------------------------------------


def test_repeat_select_is_not_exported(tmp_path, store):
    folder = example_sweep(tmp_path / "sweep", **TINY, tuning="repeat_select", draws=(0, 1, 1))
    with pytest.raises(PolicyRefusal, match="must stay hidden"):
        export(folder, store, "hidden")


def test_a_folder_that_is_no_sweep_is_refused(tmp_path, store):
    with pytest.raises(DataError, match="not a sweep's folder"):
        export(tmp_path, store, "none")


def test_a_sweep_without_a_finished_cell_is_refused(sweep, store):
    for path in sweep.glob(f"{CELLS}/*/{RESULT}"):
        path.unlink()
    with pytest.raises(DataError, match="no finished cell"):
        export(sweep, store, "empty")


def test_a_missing_extra_is_named(sweep, store, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.partition(".")[0] == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs mlflow, .*pip install 'secure-fed\[mlflow\]'"):
        export(sweep, store, "extra")


@pytest.mark.parametrize(
    "uri",
    [
        "http://someone:hunter2@127.0.0.1:9",  # nobody listens there
        "sqlite:////dev/null/mlflow.db",
        "nonsense://here",
    ],
)
def test_a_store_that_cannot_be_reached_is_named_without_its_password(sweep, uri):
    with pytest.raises(ConfigError, match=r"The export to .* failed") as caught:
        export(sweep, uri, "unreachable")
    assert "hunter2" not in str(caught.value)
    assert "sqlite:///FILE.db" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://someone:hunter2@host:5000/x", "http://host:5000/x"),
        ("postgresql://host/runs?user=someone&password=hunter2", "postgresql://host/runs"),
        ("sqlite:///runs.db", "sqlite:///runs.db"),
    ],
)
def test_the_command_says_where_it_exported_to_without_a_password(sweep, monkeypatch, uri, shown):
    monkeypatch.setattr(mlflow_export, "export", lambda *_: 3)
    result = CliRunner().invoke(app, ["export", str(sweep), "--mlflow", uri])
    assert result.exit_code == 0
    assert result.stdout.endswith(f"are in {shown}\n")


def test_mlflows_settings_are_as_before(sweep, store, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    before = dict(os.environ)
    export(sweep, store, "settings")
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")} == {
        name: value for name, value in before.items() if name.startswith("MLFLOW")
    }
