"""The files of a sweep as frozen values: what it is (`sweep.json`), and what became of each cell.

A cell's folder is a run folder; `cell.json` in it says that it is finished, `error.json` that it broke.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from secure_fed.ledger.record import MechanismField
from secure_fed.sweep.config import PageConfig, RepeatSelectConfig

Scalar = str | int | float | bool | None

MANIFEST, RESULT, BROKEN, CELLS = "sweep.json", "cell.json", "error.json", "cells"
CANDIDATES, ABANDONED = "candidates.json", "abandoned.jsonl"
GRID = "grid"
"""The kind of a cell that is no reference."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Charges(_Record):
    """All that these sites' ledgers hold for the cell's run, alike at each, and its PLD epsilon at the cell's delta."""

    sites: tuple[str, ...]
    epsilon: float
    mechanisms: tuple[MechanismField, ...]


class PhaseCost(_Record):
    """What one phase cost: `epsilon` by itself, as if the others had not run, at the site that spent most among those
    in the most phases.

    share: of the sum over phases of steps * (sample_rate / noise_multiplier)^2. seconds: of rounds in which the phase
    ran alone, evenly divided where several ran. epsilon and share are None with privacy off.
    """

    phase: str
    artefact: str
    rounds: int
    epsilon: float | None
    share: float | None
    seconds: float
    bytes_up: int


class CellRow(_Record):
    """What tells a cell from the others. factors: axis or bundle -> its value, typed; seed among them if swept."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    kind: str
    factors: dict[str, Scalar]
    method: str
    ownership: str
    seed: int
    privacy: Literal["dp", "off"]
    secagg: Literal["on", "off"]
    epsilon_target: float | None
    delta: float | None
    repeat: int = 0


class CellResult(CellRow):
    """A finished cell. epsilon_spent is recomputed from the ledgers; None: no guarantee.

    metrics: `auroc_macro`, `auroc_macro_missing.<modality>`, `auroc.<label>`, the same of `auprc_macro`,
    `auroc_rate.<modality or any>.<rate>`, `imputation_{cosine,mse_over_variance,rank}.<modality>`, and what later
    evaluations add.
    """

    schema_: Literal["secure_fed.cell/1"] = Field(default="secure_fed.cell/1", alias="schema")
    metrics: dict[str, float | None]
    epsilon_spent: float | None
    charges: tuple[Charges, ...]
    phases: tuple[PhaseCost, ...]
    rounds: int
    rounds_burned: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    bytes_up: int
    bytes_down: int
    insecure_reproducible: bool
    model_sha256: str
    data: str
    run: str


class CellError(CellRow):
    """A broken cell: what was raised, in one line, and the traceback for the researcher. It stays in the folder."""

    schema_: Literal["secure_fed.cell_error/1"] = Field(default="secure_fed.cell_error/1", alias="schema")
    error: str
    message: str
    traceback: str


class AxisRecord(_Record):
    """An axis as it was swept: its values' labels in order."""

    name: str
    values: tuple[Scalar, ...]


class Manifest(_Record):
    """`sweep.json`: what the sweep is. code: the version of secure_fed and the digest of its sources.

    tuning is resolved, never None. draws: with repeat_select, the ids of the cells that were drawn, in order; they
    and their number must not leave the consortium.
    """

    schema_: Literal["secure_fed.sweep/1"] = Field(default="secure_fed.sweep/1", alias="schema")
    name: str
    code: str
    arguments: tuple[str, ...]
    base: tuple[str, ...]
    axes: tuple[AxisRecord, ...]
    references: tuple[str, ...]
    objective: str
    tuning: Literal["public", "composed", "repeat_select"]
    repeat_select: RepeatSelectConfig
    page: PageConfig
    confidence: float
    search_trials: int | None
    data: str
    cells: tuple[CellRow, ...]
    draws: tuple[str, ...] = ()
    versions: dict[str, str]


class CandidatePlan(_Record):
    """What a run of one candidate may release at most, spare rounds included, by groups of sites planned alike."""

    factors: dict[str, Scalar]
    charges: tuple[Charges, ...]


class Candidates(_Record):
    """`candidates.json`: all that repeat_select may draw from, written before the first cell."""

    schema_: Literal["secure_fed.candidates/1"] = Field(default="secure_fed.candidates/1", alias="schema")
    plans: tuple[CandidatePlan, ...]


Unbounded = Literal["privacy_off", "insecure_reproducible", "no_noise", "damaged_ledger"]


class Spent(_Record):
    """A run that did not become a finished cell, and what its ledgers hold: a line of `abandoned.jsonl`.

    run: as its ledgers name it. unbounded: why no epsilon bounds what it released, None where one does.
    """

    cell: str
    run: str
    unbounded: Unbounded | None
    charges: tuple[Charges, ...]
