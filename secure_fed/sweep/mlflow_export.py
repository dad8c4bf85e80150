"""A finished sweep to MLflow: one run for the sweep, one below it for each cell, and nothing that must stay at a site.

Factors, scores, costs and pages leave; homes, ledgers, keys and the text of errors do not.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from secure_fed.errors import ConfigError, DataError, PolicyRefusal
from secure_fed.identity import canonical_json
from secure_fed.sweep.matching import SEED, Setting
from secure_fed.sweep.record import BROKEN, CELLS, RESULT, CellError, CellResult, CellRow
from secure_fed.sweep.table import CSV, Results, read_results

PAGE, REPORT = "sweep.html", "report.html"
SWEEP_TAG, ANCHOR_TAG, CELL_TAG = "secure_fed.sweep", "secure_fed.first_run", "secure_fed.cell"
_PARENT = "mlflow.parentRunId"
# MLflow reads these from the environment alone. It must not tell anybody of the export, nor wait for minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_COSTS = ("epsilon_spent", "rounds", "rounds_burned", "wall_s", "cpu_s", "peak_mib", "bytes_up", "bytes_down")
_PHASE = ("epsilon", "share", "rounds", "seconds", "bytes_up")


def export(folder: Path, tracking_uri: str, experiment: str | None = None) -> int:
    """Write a sweep's finished and broken cells to MLflow; returns how many finished ones are there afterwards.

    experiment: MLflow's; without one, the sweep's name. A second export adds what has finished since and writes the
    sweep's page anew: cells are known by their id. Page and table leave only where no cell is broken. Raises DataError
    on a folder that is no sweep, damaged or without a finished cell, ConfigError where MLflow is not installed or
    refuses, PolicyRefusal with tuning=repeat_select.
    """
    results = read_results(folder)
    if results.manifest.tuning == "repeat_select":
        raise PolicyRefusal(
            f"{folder} is not exported: with tuning=repeat_select the candidates and their number must stay hidden "
            "from whoever sees the chosen model. Hand on that one model by itself."
        )
    if not results.finished:
        raise DataError(
            f"{folder} has no finished cell to export: resume the sweep with `secure-fed sweep resume={folder}`."
        )
    with _patience(), _plain_errors(tracking_uri):
        target = _Target.open(tracking_uri, experiment or results.manifest.name)
        parent = _write_parent(target, results)
        known = target.children(parent)
        cells: list[CellResult | CellError] = [*results.finished, *results.broken]
        for cell in cells:
            _write_cell(target, folder, parent, cell, known.get(cell.id))
    return len(results.finished)


@contextmanager
def _patience() -> Iterator[None]:
    """MLflow's settings as ours, where the user has set none; as they were afterwards."""
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """What MLflow or its database raise as one line of ours."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"An export to {without_password(uri)} needs {error.name or error}, which is not installed: "
            "pip install 'secure-fed[mlflow]'."
        ) from error
    except Exception as error:
        # Neither MLflow nor SQLAlchemy is imported here just to name their errors.
        origin = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | ValueError) and origin not in ("mlflow", "sqlalchemy"):
            raise
        raise _refused(uri, error) from None  # an address in its text may hold a password


def _refused(uri: str, error: Exception) -> ConfigError:
    parts, reason = urlsplit(uri), " ".join(str(error).split())
    for secret in filter(None, (parts.netloc.rpartition("@")[0], parts.query)):
        reason = reason.replace(secret, "...")
    return ConfigError(
        f"The export to {without_password(uri)} failed: {reason[:600]} | Give a server's address that answers, or a "
        "local database as sqlite:///FILE.db. What was written stays, and another export goes on from there."
    )


def without_password(uri: str) -> str:
    """The address without what may hold a password: who logs in, and what stands behind a question mark."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc and not parts.query:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


@dataclass(frozen=True)
class _Values:
    """What a run of MLflow's holds."""

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Target:
    """An experiment of a tracking store. `client` is MLflow's, which has no types."""

    client: Any
    experiment: str

    @classmethod
    def open(cls, uri: str, experiment: str) -> _Target:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return cls(client, found.experiment_id)
        return cls(client, client.create_experiment(experiment, artifact_location=_beside_database(uri)))

    def runs(self, tag: str, value: str) -> list[Any]:
        """All runs whose tag has this value."""
        from mlflow.entities import ViewType

        wanted = f"tags.`{tag}` = '{value}'"
        found, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], wanted, ViewType.ACTIVE_ONLY, 1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def children(self, parent: str) -> dict[str, Any]:
        """Cell -> its run below the parent."""
        runs = self.runs(_PARENT, parent)
        return {run.data.tags[CELL_TAG]: run for run in runs if CELL_TAG in run.data.tags}

    def write(self, run: str, values: _Values, at: int = 0) -> None:
        """Write parameters, metrics of time `at` (milliseconds) and tags; the same again changes nothing."""
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run,
            metrics=[Metric(_name(key), float(value), at, 0) for key, value in values.metrics.items()],
            params=[Param(_name(key), str(value)) for key, value in values.params.items()],
            tags=[RunTag(key, value) for key, value in values.tags.items()],
        )


def _beside_database(uri: str) -> str | None:
    """Where files go: next to a local database, which itself would have them in whatever folder we stand in."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def _name(key: str) -> str:
    """A name that MLflow takes: others' characters become underscores."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _write_parent(target: _Target, results: Results) -> str:
    """The sweep's own run, found again by what it is and by a cell of its own: another sweep may do just the same."""
    manifest = results.manifest
    what = canonical_json([manifest.name, manifest.code, list(manifest.arguments)])
    key = hashlib.sha256(what).hexdigest()[:32]
    own = {cell.run for cell in results.finished}
    found = [run for run in target.runs(SWEEP_TAG, key) if run.data.tags.get(ANCHOR_TAG) in own]
    if found:
        parent = found[0].info.run_id
    else:
        tags = {SWEEP_TAG: key, ANCHOR_TAG: results.finished[0].run}
        parent = target.client.create_run(target.experiment, tags=tags, run_name=manifest.name).info.run_id
    params = {name: getattr(manifest, name) for name in ("code", "data", "objective", "tuning")}
    params |= {name: " ".join(getattr(manifest, name)) for name in ("arguments", "base")}
    counts = {
        f"secure_fed.{status}": str(len(getattr(results, status))) for status in ("finished", "broken", "missing")
    }
    target.write(parent, _Values(params, counts))
    # The text of a broken cell's error stands in both, and may name a file or a record of a site.
    for name in () if results.broken else (PAGE, CSV):
        if (results.folder / name).is_file():
            target.client.log_artifact(parent, str(results.folder / name))
    target.client.set_terminated(parent, "KILLED" if results.missing else "FINISHED")
    return str(parent)


def _write_cell(target: _Target, folder: Path, parent: str, cell: CellResult | CellError, known: Any) -> None:
    """One cell's run; one that is there and finished is left as it is."""
    if known is not None and known.info.status == "FINISHED":
        return
    file = folder / CELLS / cell.id / (RESULT if isinstance(cell, CellResult) else BROKEN)
    ended = round(file.stat().st_mtime * 1000)
    if known is None:
        took = round(cell.wall_s * 1000) if isinstance(cell, CellResult) else 0
        tags = {_PARENT: parent, CELL_TAG: cell.id}
        run = target.client.create_run(target.experiment, ended - took, tags, _title(cell)).info.run_id
    else:
        run = known.info.run_id
    if isinstance(cell, CellError):
        target.write(run, _Values(_params(cell), {"secure_fed.status": "broken", "secure_fed.error": cell.error}))
        target.client.set_terminated(run, "FAILED", ended)
        return
    tags = {
        "secure_fed.status": "finished",
        "secure_fed.run": cell.run,
        "secure_fed.model_sha256": cell.model_sha256,
        "secure_fed.insecure_reproducible": str(cell.insecure_reproducible).lower(),
    }
    target.write(run, _Values(_params(cell), tags, _metrics(cell)), ended)
    report = folder / CELLS / cell.id / REPORT
    if report.is_file():
        target.client.log_artifact(run, str(report))
    # Last: whoever is interrupted before writes this cell again.
    target.client.set_terminated(run, "FINISHED", ended)


def _title(cell: CellRow) -> str:
    factors = tuple((name, value) for name, value in cell.factors.items() if name != SEED)
    return f"{Setting(cell.kind, factors).brief}, seed={cell.seed}"


def _params(cell: CellRow) -> dict[str, Any]:
    fields = ("kind", "method", "ownership", "seed", "privacy", "secagg", "epsilon_target", "delta", "repeat")
    return {**{name: getattr(cell, name) for name in fields}, **cell.factors}


def _metrics(cell: CellResult) -> dict[str, float]:
    values = {**cell.metrics, **{name: getattr(cell, name) for name in _COSTS}}
    for phase in cell.phases:
        values |= {f"phase.{phase.phase}.{cost}": getattr(phase, cost) for cost in _PHASE}
    return {name: value for name, value in values.items() if value is not None}
