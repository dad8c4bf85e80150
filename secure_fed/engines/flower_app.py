"""What `flwr run .` starts: the same apps, with the run's folder told by Flower's run configuration.

`flwr run . --run-config "overrides='method=zero_fill seed=1' runs-dir='/data/runs'"`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from secure_fed.config import compose_config, freeze
from secure_fed.engines.apps import make_client_app, make_server_app
from secure_fed.engines.runner import finish, found, prepare, serve_schedule


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
    config = freeze(compose_config(overrides), folder)
    prepared = prepare(config)
    found(folder, prepared)
    finish(folder, prepared, serve_schedule(folder, prepared, grid))


server_app = make_server_app(main)
client_app = make_client_app(folder_of)
