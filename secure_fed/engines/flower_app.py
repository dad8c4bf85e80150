"""What `flwr run .` starts: the same apps, with the run's folder told by Flower's run configuration.

`flwr run . --run-config "overrides='method=zero_fill seed=1' runs-dir='/data/runs'"`.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from secure_fed.config import compose_config, freeze
from secure_fed.engines.apps import make_client_app, make_server_app
from secure_fed.engines.runner import finish, found, prepare, serve_schedule
from secure_fed.errors import SecureFedError
from secure_fed.federation.config import RunConfig

_LOG = logging.getLogger("flwr")  # what `flwr run --stream` and `flwr log` show
_SHOWN = ("auroc_macro", "epsilon_max", "participants", "survivors")


class _Logged:
    """An observer of a run that writes to Flower's log."""

    def begin(self, config: RunConfig, done: int, notes: Sequence[str] = ()) -> None:
        """Warnings first."""
        for weak, cost in config.weaknesses().items():
            _LOG.warning("%s: %s", weak, cost)
        for note in notes:
            _LOG.info("secure_fed %s", note)

    def round(self, line: dict[str, Any]) -> None:
        """A line a round."""
        figures = ", ".join(f"{key} {line[key]:.4g}" for key in _SHOWN if key in line)
        _LOG.info("secure_fed round %d: %s", line["step"] + 1, figures)


def folder_of(context: Context) -> Path:
    """The run's folder: `runs-dir` of Flower's run configuration, and Flower's run id."""
    runs = Path(str(context.run_config.get("runs-dir", "runs"))).expanduser()
    if not runs.is_absolute():
        runs = Path.home() / ".secure_fed" / runs
    return runs / f"flower-{context.run_id}"


def main(grid: Grid, context: Context) -> None:
    """Prepare the run folder from the overrides, train, and write the results."""
    folder = folder_of(context)
    overrides = shlex.split(str(context.run_config.get("overrides", "")))
    try:
        config = freeze(compose_config(overrides), folder)
        prepared = prepare(config)
        found(folder, prepared)
        finish(folder, prepared, serve_schedule(folder, prepared, grid, _Logged()))
    except SecureFedError as error:
        _LOG.error("error: %s", error)
        raise
    _LOG.info("run: %s", folder)


server_app = make_server_app(main)
client_app = make_client_app(folder_of)
