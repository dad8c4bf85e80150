"""What a phase does to privacy, in one frozen object that knows its mechanism; apart, what it does not.

Sensitivity is the clip bound by construction: it is never a parameter of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from secure_fed.accounting.mechanisms import Mechanism
from secure_fed.errors import PrivacyError
from secure_fed.models.units import Unit

BackEnd = Literal["hooks", "ghost"]
"""How clipped gradients are computed: from per-record gradients, or from their norms and a second backward pass."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """`steps` Poisson samples at `sample_rate` of a data set that is declared to hold `declared_n` units.

    A unit is a record, or a patient with at most `max_records_per_unit` records, which are sampled together.
    All of these numbers are public; the true count is private and appears nowhere. Raises PrivacyError.
    """

    phase: str
    sample_rate: float
    steps: int
    declared_n: int
    unit: Unit = "record"
    max_records_per_unit: int = 1

    def __post_init__(self) -> None:
        _require(self.phase, "sample_rate", self.sample_rate, 0.0 < self.sample_rate <= 1.0, "in (0, 1]")
        _require(self.phase, "steps", self.steps, self.steps >= 1, "at least 1")
        _require(self.phase, "declared_n", self.declared_n, self.declared_n >= 1, "at least 1")
        _require_unit(self.phase, self.unit, self.max_records_per_unit)

    @property
    def expected_batch(self) -> float:
        """Units in a sample on average: the public denominator of every gradient sum."""
        return self.sample_rate * self.declared_n


@dataclass(frozen=True, kw_only=True)
class GaussianPlan(SamplingPlan):
    """DP-SGD (Abadi et al., arXiv 1607.00133) on one phase.

    The gradient of each unit (the sum over its records) is clipped to `max_grad_norm` in L2; these are summed, and
    noised with standard deviation `noise_multiplier * max_grad_norm`. Neighbouring data sets differ by adding or
    removing one unit.
    """

    max_grad_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.phase, "max_grad_norm", self.max_grad_norm)
        _require_positive(self.phase, "noise_multiplier", self.noise_multiplier)

    def mechanism(self) -> Mechanism:
        """What the accountant composes for one run of this phase."""
        return Mechanism(
            kind="poisson_gaussian",
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps,
        )


@dataclass(frozen=True, kw_only=True)
class StatisticPlan:
    """One noisy sum over all units: vectors clipped to `bound` in L2, noise `noise_multiplier * bound`.

    A unit's vector is the sum of its records' vectors, of which at most `max_records_per_unit` are used.
    """

    phase: str
    bound: float
    noise_multiplier: float
    unit: Unit = "record"
    max_records_per_unit: int = 1

    def __post_init__(self) -> None:
        _require_unit(self.phase, self.unit, self.max_records_per_unit)
        _require_positive(self.phase, "bound", self.bound)
        _require_positive(self.phase, "noise_multiplier", self.noise_multiplier)

    def mechanism(self) -> Mechanism:
        """What the accountant composes for one release of this statistic."""
        return Mechanism(kind="gaussian", noise_multiplier=self.noise_multiplier, sample_rate=1.0, steps=1)


class TrainingOptions(BaseModel):
    """How noised gradients are used: post-processing and speed, so nothing here can change a guarantee.

    max_physical_batch: records whose gradients are held at one time; a unit is never split over two such parts.
    back_end: how clipped gradients are computed; `ghost` serves the record as unit only (`privacy.ghost`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: PositiveFloat = 1.0
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: NonNegativeFloat = 0.0
    max_physical_batch: PositiveInt = 256
    back_end: BackEnd = "hooks"


def _require(phase: str, name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise PrivacyError(f"phase {phase!r}: Expected {name}={value} to be {expected}")


def _require_unit(phase: str, unit: str, records: int) -> None:
    if unit not in get_args(Unit):
        raise PrivacyError(f"phase {phase!r}: Expected unit={unit!r} to be one of {', '.join(get_args(Unit))}")
    _require(phase, "max_records_per_unit", records, records >= 1, "at least 1")
    if unit == "record":
        _require(phase, "max_records_per_unit", records, records == 1, "1 with unit='record', or give unit='patient'")


def _require_positive(phase: str, name: str, value: float) -> None:
    _require(phase, name, value, math.isfinite(value) and value > 0, "finite and > 0")
