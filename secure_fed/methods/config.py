"""The configuration that every method shares: how long and how fast it trains the classifier.

Methods extend it in their own files; `methods.build` turns a configuration into a method.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PhaseConfig(BaseModel):
    """Gradient steps a round and their learning rate for one phase, under DP and with privacy=off.

    Clipped gradients have norm `max_grad_norm` a record at the most, unclipped ones their own scale, and steps
    without noise cost nothing: one choice for both would flatter one of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    unclipped_steps: int = Field(ge=1)
    unclipped_learning_rate: float = Field(gt=0)


class MethodConfig(BaseModel):
    """Base of all method configurations; `name` tells them apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classify: PhaseConfig
