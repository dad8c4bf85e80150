"""Server steps as pure functions of (model, state, mean update), which a client can recompute.

Elementwise float32 numpy in a fixed order: no BLAS, no reductions, so the result is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Vector = npt.NDArray[np.float32]


class FedAvgConfig(BaseModel):
    """theta <- theta + learning_rate * mean update (McMahan et al. 2017)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["fedavg"]
    learning_rate: float = Field(gt=0)


class FedAdamConfig(BaseModel):
    """Adam on the mean update as pseudo-gradient (Reddi et al. 2021, algorithm 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["fedadam"]
    learning_rate: float = Field(gt=0)
    beta_1: float = Field(ge=0, lt=1)
    beta_2: float = Field(ge=0, lt=1)
    tau: float = Field(gt=0)


StrategyConfig = Annotated[FedAvgConfig | FedAdamConfig, Field(discriminator="name")]


@dataclass(frozen=True)
class State:
    """A component's optimizer state: moments [P] float32 and the number of steps taken."""

    steps: int = 0
    moments: Mapping[str, Vector] = field(default_factory=dict)


def step(config: FedAvgConfig | FedAdamConfig, parameters: Vector, state: State, mean: Vector) -> tuple[Vector, State]:
    """New parameters [P] and state of one component from its mean update [P], all float32."""
    if isinstance(config, FedAvgConfig):
        rate = np.float32(config.learning_rate)
        return parameters + rate * mean, State(state.steps + 1)

    beta_1, beta_2 = np.float32(config.beta_1), np.float32(config.beta_2)
    one = np.float32(1)
    zeros = np.zeros_like(mean)
    first = beta_1 * state.moments.get("first", zeros) + (one - beta_1) * mean
    second = beta_2 * state.moments.get("second", zeros) + (one - beta_2) * (mean * mean)
    corrected_first = first / (one - _power(beta_1, state.steps + 1))
    corrected_second = second / (one - _power(beta_2, state.steps + 1))
    root: Vector = np.sqrt(corrected_second)
    update: Vector = corrected_first / (root + np.float32(config.tau))
    moved: Vector = parameters + np.float32(config.learning_rate) * update
    return moved, State(state.steps + 1, {"first": first, "second": second})


def _power(base: np.float32, exponent: int) -> np.float32:
    """base^exponent by a running product: `pow` is not the same on every machine."""
    product = np.float32(1)
    for _ in range(exponent):
        product = product * base
    return product
