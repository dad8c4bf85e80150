"""The whole configuration of a run as frozen, validated objects; defaults live in configs/ alone.

`secure_fed.config` makes a `RunConfig` from Hydra's output once; nothing behind it reads anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from secure_fed.data.config import DataConfig
from secure_fed.data.partition import SCHEMES, Scheme
from secure_fed.methods import AnyMethodConfig
from secure_fed.models.config import ModelConfig
from secure_fed.strategies import StrategyConfig


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PartitionConfig(Section):
    """How training records are spread over simulated sites, always by patient."""

    scheme: Scheme
    alpha: float = Field(gt=0)

    @field_validator("scheme", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        # Who looks for the ICU types does not find them by the names alone.
        if value not in SCHEMES:
            raise ValueError(
                "give iid (patients dealt evenly), dirichlet (labels unevenly, by alpha), or column (by the data's own "
                "sites: the ICU type of physionet2012, the column data.site of a manifest)"
            )
        return value


class FederationConfig(Section):
    """Who takes part, for how long, and how many of them may be corrupt.

    `alone`: the data are split over all `sites`, and only this one of them trains: what it can do by itself.
    `homes` and `lifetime_epsilon` are for simulated sites: a folder of homes that outlive the run, and what their
    owners allow over all runs.
    `public_fraction`: of the patients who are not in the hold-out and have a record with every modality; the
    coordinator holds such records of theirs as a public paired set, and no site has them, whatever the method.
    `public_set`: SHA-256 (hex) of that set, where the method needs one; written by who begins the run.
    """

    sites: int = Field(ge=1)
    alone: str | None = Field(min_length=1)
    rounds: int = Field(ge=1)
    ownership: str | dict[str, int]
    partition: PartitionConfig
    test_fraction: float = Field(gt=0, lt=1)
    public_fraction: float = Field(ge=0, lt=1)
    public_set: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    corrupt: int = Field(ge=0)
    min_contributors: int = Field(ge=2)
    dropout: float = Field(ge=0, lt=1)
    spare_rounds: int = Field(ge=0)
    homes: Path | None
    lifetime_epsilon: float | None = Field(gt=0, allow_inf_nan=False)
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

    @property
    def members(self) -> int:
        """How many sites take part."""
        return self.sites if self.alone is None else 1


class PrivacyConfig(Section):
    """Each site's guarantee: its (epsilon, delta) over the whole run, for a unit; and the shape of DP-SGD.

    `max_noise_ratio`: a site whose home has little budget left may add up to so many times the noise that `epsilon`
    needs; one that would have to add more stays out, as its noise would drown what the others learn.

    `budget_shares`: training phase -> its part of the sum over the schedule of steps * (sample_rate / noise)^2. The
    phases that are not named share the rest as they would all of it; without any, all phases have the same noise.
    """

    mode: Literal["dp", "off"]
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["record", "patient"]
    max_records_per_patient: int = Field(ge=1)
    max_grad_norm: float = Field(gt=0, allow_inf_nan=False)
    sample_rate: float = Field(gt=0, le=1)
    max_noise_ratio: float = Field(ge=1, allow_inf_nan=False)
    budget_shares: dict[str, Annotated[float, Field(gt=0, le=1)]]

    @property
    def max_records_per_unit(self) -> int:
        """Most records of one unit that are used: 1 where the record is the unit."""
        return self.max_records_per_patient if self.unit == "patient" else 1


class SecAggConfig(Section):
    """The masked sum: its ring and range, its graph, and the lower floors that owners of components opted for."""

    mode: Literal["on", "off"]
    value_bits: int = Field(ge=8, le=31)
    clip: float = Field(gt=0)
    max_attempts: int = Field(ge=1)
    min_cohort: int = Field(ge=1)
    graph: Literal["complete", "k_regular"]
    max_dropout: float = Field(ge=0, lt=1)
    floors: dict[str, int]
    threads: int = Field(ge=1)


class TrainingConfig(Section):
    """Speed and optimizer options that cannot affect privacy."""

    optimizer: Literal["sgd", "adam"]
    momentum: float = Field(ge=0, lt=1)
    max_physical_batch: int = Field(ge=1)
    back_end: Literal["hooks", "ghost"]


class EngineConfig(Section):
    """How messages travel: in this process, or through Flower's Ray simulation."""

    name: Literal["in_process", "simulation"]
    workers: int = Field(ge=1)
    timeout_s: float = Field(gt=0, allow_inf_nan=False)


class HoldoutEvaluation(Section):
    """How often the coordinator scores the model on its public hold-out."""

    name: Literal["holdout"]
    every: int = Field(ge=1)


class FederatedEvaluation(Section):
    """Beside that, scores of records that the sites hold out: noised counts, planned and charged.

    fraction: of the patients, never trained on. bins: of one histogram, over logits in [-logit_range, logit_range].
    views: what scores are computed from; all of them, or everything present only. noise: relative to the training
    phases' noise multiplier. min_count: fewer positives or negatives, by their noised counts, and a label is left out.
    """

    name: Literal["federated"]
    every: int = Field(ge=1)
    evaluations: int = Field(ge=1)
    fraction: float = Field(gt=0, lt=1)
    views: Literal["all", "full"]
    bins: int = Field(ge=2, le=256)
    logit_range: float = Field(gt=0, le=100)
    noise: float = Field(gt=0, allow_inf_nan=False)
    min_count: int = Field(ge=1)


EvaluationConfig = Annotated[HoldoutEvaluation | FederatedEvaluation, Field(discriminator="name")]


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

    @model_validator(mode="after")
    def _back_end_serves_the_unit(self) -> RunConfig:
        if self.privacy.unit == "patient" and self.training.back_end == "ghost":
            raise ValueError(
                "training.back_end=ghost with privacy.unit=patient: ghost norms are those of single records and cannot "
                "be had for a patient's sum; give training.back_end=hooks"
            )
        if self.privacy.max_records_per_unit > self.training.max_physical_batch:
            raise ValueError(
                f"privacy.max_records_per_patient={self.privacy.max_records_per_patient} is more than "
                f"training.max_physical_batch={self.training.max_physical_batch}, and a patient is never split over "
                "physical batches; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _alone_without_masks(self) -> RunConfig:
        if self.federation.alone is not None and self.secagg.mode == "on":
            raise ValueError(
                f"federation.alone={self.federation.alone} with secagg=on: masks hide an update among others, and one "
                "site alone has none; give secagg=off"
            )
        return self

    @property
    def server_step(self) -> Literal["verified", "unverified"]:
        """Whether sites recompute the server's step: not without masked sums to recompute it from, nor Flower's."""
        return "unverified" if self.secagg.mode == "off" or self.strategy.name == "flower" else "verified"

    def weaknesses(self) -> dict[str, str]:
        """What a compliance policy refuses: each switch as it is written on the command line, and what it costs."""
        nothing = "this run gives no guarantee, for comparison only"
        asked = {
            "insecure_reproducible=true": (self.insecure_reproducible, nothing),
            "privacy=off": (self.privacy.mode == "off", nothing),
            "secagg=off": (self.secagg.mode == "off", "the coordinator sees every site's update, for comparison only"),
            "secagg.graph=k_regular": (
                self.secagg.mode == "on" and self.secagg.graph == "k_regular",
                "masks hold against a server that is at worst semi-malicious",
            ),
            "strategy=flower": (self.strategy.name == "flower", "no site can check the server's step"),
        }
        return {switch: cost for switch, (is_asked, cost) in asked.items() if is_asked}
