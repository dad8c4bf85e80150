"""Flower's Ray simulation: the same apps, with sites spread over worker processes."""

from __future__ import annotations

import logging
import os
import warnings

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}


def run_simulation(server_app: ServerApp, client_app: ClientApp, nodes: int, workers: int) -> None:
    """Run under Ray with `workers` processes; raises RuntimeError if the ServerApp failed without saying why."""
    os.environ.update(_QUIET)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `flwr run` is the advertised way, and needs a daemon; this is its engine without one.
        from flwr.simulation import run_simulation as flower_simulation

        flower_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"num_cpus": workers, "logging_level": logging.ERROR, "log_to_driver": False},
            },
        )
