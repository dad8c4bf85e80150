"""The configuration that methods share: how long and how fast a phase trains, and which rounds are whose.

Methods extend it in their own files; `methods.build` turns a configuration into a method.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from secure_fed.errors import ConfigError
from secure_fed.methods.base import GradientPhase, Loss

Schedule = Literal["last", "every_round"]
"""When what imputes is trained: in the last rounds, on encoders that no longer move, or beside these in each round."""


class PhaseConfig(BaseModel):
    """Gradient steps a round and their learning rate for one phase, under DP and with privacy=off.

    Clipped gradients have norm `max_grad_norm` a record at the most, unclipped ones their own scale, and steps
    without noise cost nothing: one choice for both would flatter one of them.
    `noise`: this phase's noise multiplier over that of the others, unless privacy.budget_shares sets its share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    unclipped_steps: int = Field(ge=1)
    unclipped_learning_rate: float = Field(gt=0)
    noise: float = Field(default=1.0, gt=0)

    def phase(
        self,
        name: str,
        components: tuple[str, ...],
        loss: Loss,
        start: int,
        stop: int,
        still_loss: Loss | None = None,
    ) -> GradientPhase:
        """The phase that trains `components` so in the schedule's steps [start, stop)."""
        return GradientPhase(
            name=name,
            components=components,
            loss=loss,
            steps=self.steps,
            learning_rate=self.learning_rate,
            unclipped_steps=self.unclipped_steps,
            unclipped_learning_rate=self.unclipped_learning_rate,
            start=start,
            stop=stop,
            still_loss=still_loss,
            noise=self.noise,
        )


class MethodConfig(BaseModel):
    """Base of all method configurations; `name` tells them apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classify: PhaseConfig


def turns(rounds: int, schedule: Schedule, share: float, what: str) -> tuple[int, int]:
    """The round before which the classifier's training stops, and the one in which that of `what` begins.

    schedule `last` gives `what` the last `share` of the rounds, at least one, to itself: encoders that are trained
    after what imputes make it stale. Raises ConfigError where there is no round for each.
    """
    if schedule == "every_round":
        return rounds, 0
    if rounds < 2:
        raise ConfigError(
            f"federation.rounds={rounds} leaves method.schedule=last no round for both classifier and {what}; give at "
            "least 2 rounds or method.schedule=every_round"
        )
    start = rounds - min(rounds - 1, max(1, round(rounds * share)))
    return start, start
