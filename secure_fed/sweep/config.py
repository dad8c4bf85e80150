"""The configuration of a sweep as frozen, validated objects; defaults live in configs/sweep and configs/launcher.

What a cell runs is a `RunConfig` of its own: nothing here reaches it but through `base`, axes and references.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceConfig(_Section):
    """Cells to compare with: `overrides` on top of the base, repeated along these of the sweep's `axes` only."""

    overrides: tuple[str, ...]
    axes: tuple[str, ...]


class PageConfig(_Section):
    """Which factors the frontier has on its x axis, as lines, and as small multiples. None: one panel, one line."""

    x: str
    log_x: bool
    series: str | None
    panels: str | None


class RepeatSelectConfig(_Section):
    """How many candidates tuning=repeat_select draws: `shape` inf is Poisson, 1 geometric, 0 logarithmic.

    Papernot and Steinke 2022, "Hyperparameter tuning with Renyi differential privacy", Definition 1.
    """

    mean: float = Field(ge=1, allow_inf_nan=False)
    shape: float = Field(ge=0)

    @field_serializer("shape", when_used="json")
    def _in_json(self, shape: float) -> float | str:
        """JSON has no infinity; `inf` is read as one."""
        return "inf" if math.isinf(shape) else shape


class SearchConfig(_Section):
    """A search by Optuna instead of the whole grid: each trial is scored by its mean over `seeds`."""

    trials: int = Field(ge=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    sampler: Literal["tpe", "random"]
    sampler_seed: int = Field(ge=0)


class SweepConfig(_Section):
    """What a sweep runs and how it is read.

    axes: key of the run's configuration -> Hydra's sweep syntax ("1,3,8", "range(0,3)"). bundles: axis name -> label ->
    overrides that go together. tuning: what the chosen model's report carries; None: `public` where the data are
    generated, `composed` elsewhere. confidence: of bands and intervals over seeds.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    dir: str
    base: tuple[str, ...]
    axes: dict[str, str]
    bundles: dict[str, dict[str, tuple[str, ...]]]
    references: dict[str, ReferenceConfig]
    objective: str
    tuning: Literal["public", "composed", "repeat_select"] | None
    repeat_select: RepeatSelectConfig
    search: SearchConfig | None
    page: PageConfig
    confidence: float = Field(gt=0.5, lt=1)


class LauncherConfig(_Section):
    """Where cells run. workers: None = one for each usable core that memory allows; pin: a core for each.

    address: of a Ray cluster, None = start one here; only for name=ray.
    """

    name: Literal["processes", "ray"]
    workers: int | None = Field(ge=1)
    memory_gib: float = Field(gt=0)
    pin: bool
    address: str | None
