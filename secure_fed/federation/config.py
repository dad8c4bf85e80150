"""The whole configuration of a run as frozen, validated objects; defaults live in configs/ alone.

`secure_fed.config` makes a `RunConfig` from Hydra's output once; nothing behind it reads anything else.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from secure_fed.data.config import DataConfig
from secure_fed.methods import AnyMethodConfig
from secure_fed.models.config import ModelConfig
from secure_fed.strategies import StrategyConfig


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PartitionConfig(Section):
    """How training records are spread over simulated sites, always by patient."""

    scheme: Literal["iid", "dirichlet", "column"]
    alpha: float = Field(gt=0)


class FederationConfig(Section):
    """Who takes part, for how long, and how many of them may be corrupt."""

    sites: int = Field(ge=1)
    rounds: int = Field(ge=1)
    ownership: str | dict[str, int]
    partition: PartitionConfig
    test_fraction: float = Field(gt=0, lt=1)
    corrupt: int = Field(ge=0)
    min_contributors: int = Field(ge=2)
    dropout: float = Field(ge=0, lt=1)
    spare_rounds: int = Field(ge=0)
    max_attempts: int = Field(ge=1)
    compliance: bool

    @field_validator("ownership", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 8:0:2 as the base-60 number 28802.
        if isinstance(value, int):
            raise ValueError(
                f"federation.ownership={value} is a number: YAML reads an unquoted 8:0:2 as base 60; quote it, "
                "federation.ownership='\"8:0:2\"'"
            )
        return value


class PrivacyConfig(Section):
    """Each site's guarantee: its (epsilon, delta) over the whole run, and the shape of DP-SGD."""

    mode: Literal["dp", "off"]
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    max_grad_norm: float = Field(gt=0)
    sample_rate: float = Field(gt=0, le=1)


class SecAggConfig(Section):
    """The masked sum: bits of a value in the ring, and the range that an update's coordinate is clipped to."""

    mode: Literal["on", "off"]
    value_bits: int = Field(ge=8, le=31)
    clip: float = Field(gt=0)


class TrainingConfig(Section):
    """Speed and optimizer options that cannot affect privacy."""

    optimizer: Literal["sgd", "adam"]
    momentum: float = Field(ge=0, lt=1)
    max_physical_batch: int = Field(ge=1)


class EngineConfig(Section):
    """How messages travel: in this process, or through Flower's Ray simulation."""

    name: Literal["in_process", "simulation"]
    workers: int = Field(ge=1)


class EvaluationConfig(Section):
    """When the coordinator scores the model on its public hold-out."""

    every: int = Field(ge=1)


class RunConfig(Section):
    """Everything that decides a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(ge=0, lt=2**32)
    run_dir: str
    insecure_reproducible: bool
    data: DataConfig
    model: ModelConfig
    method: AnyMethodConfig
    privacy: PrivacyConfig
    secagg: SecAggConfig
    federation: FederationConfig
    training: TrainingConfig
    strategy: StrategyConfig
    engine: EngineConfig
    evaluation: EvaluationConfig

    def weaknesses(self) -> tuple[str, ...]:
        """The switches of this run that a compliance policy refuses, as they are written on the command line."""
        asked = {
            "insecure_reproducible=true": self.insecure_reproducible,
            "privacy=off": self.privacy.mode == "off",
            "secagg=off": self.secagg.mode == "off",
        }
        return tuple(switch for switch, is_asked in asked.items() if is_asked)
