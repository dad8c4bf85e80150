"""Server steps: FedAvg, FedAdam and FedYogi as pure functions that every site recomputes to the last bit.

A strategy of Flower's can be configured instead; `engines` runs it, and no site can check it.
"""

from secure_fed.models.digest import Vector, parameters_digest
from secure_fed.strategies.config import (
    FedAdamConfig,
    FedAvgConfig,
    FedYogiConfig,
    FlowerConfig,
    StepConfig,
    StrategyConfig,
)
from secure_fed.strategies.server_step import step
from secure_fed.strategies.state import State, state_digest
from secure_fed.strategies.table import Scalars, scalars

__all__ = [
    "FedAdamConfig",
    "FedAvgConfig",
    "FedYogiConfig",
    "FlowerConfig",
    "Scalars",
    "State",
    "StepConfig",
    "StrategyConfig",
    "Vector",
    "parameters_digest",
    "scalars",
    "state_digest",
    "step",
]
