"""What a server step is configured with: ours, which every site recomputes, or any of Flower's, which nobody can.

Scalars are float32 from the start: a value that float32 cannot hold is refused here, not rounded away later.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

_SMALLEST_NORMAL = 2.0**-126


def _float32(value: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        single = float(np.float32(value))
    if not _SMALLEST_NORMAL <= single < float("inf"):
        raise ValueError("is outside of float32's normal numbers, 1.2e-38 to 3.4e38")
    return value


def _decay(value: float) -> float:
    if value == 0:
        return value
    if float(np.float32(value)) >= 1:
        raise ValueError("is 1 in float32, so the moment would never forget; the largest possible is 0.99999994")
    return _float32(value)


Positive = Annotated[float, Field(gt=0), AfterValidator(_float32)]
Decay = Annotated[float, Field(ge=0, lt=1), AfterValidator(_decay)]


class _Strategy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FedAvgConfig(_Strategy):
    """theta <- theta + learning_rate * mean update (McMahan et al. 2017)."""

    name: Literal["fedavg"]
    learning_rate: Positive


class _AdaptiveConfig(_Strategy):
    """Both of Reddi et al. 2021, algorithm 2, with the bias correction that the paper leaves out."""

    learning_rate: Positive
    beta_1: Decay
    beta_2: Decay
    tau: Positive


class FedAdamConfig(_AdaptiveConfig):
    """Adam on the mean update as pseudo-gradient: v <- beta_2 * v + (1 - beta_2) * mean^2."""

    name: Literal["fedadam"]


class FedYogiConfig(_AdaptiveConfig):
    """Yogi on the mean update as pseudo-gradient: v <- v - (1 - beta_2) * mean^2 * sign(v - mean^2)."""

    name: Literal["fedyogi"]


class FlowerConfig(_Strategy):
    """A strategy of flwr.serverapp, or of one's own derived from it, over the opened means.

    `target` is its dotted path and `options` are its constructor's arguments. Sites cannot recompute its step.
    """

    name: Literal["flower"]
    target: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    options: dict[str, JsonValue]


StepConfig = FedAvgConfig | FedAdamConfig | FedYogiConfig
StrategyConfig = Annotated[StepConfig | FlowerConfig, Field(discriminator="name")]
