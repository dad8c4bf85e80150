"""What choosing a run among many cost: the statement that a sweep leaves in the folder of the run it chose.

The file is read strictly: a report with no word on tuning is honest, one with a wrong figure is not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secure_fed.errors import DataError
from secure_fed.identity import describe
from secure_fed.report import formats

TUNING = "tuning.json"

Basis = Literal["own", "pld", "rdp", "rdp_repeat_and_select", "none"]
_BOUNDS: dict[str, tuple[bool | None, ...]] = {"own": (None,), "none": (None, False)}
_ALLOWED = {
    "public": {"own"},
    "composed": {"pld", "rdp", "none"},
    "repeat_select": {"rdp_repeat_and_select", "none"},
}


class Tuning(BaseModel):
    """`tuning.json`. epsilon is over all that the choice stands on; None beside bounded=False where it is infinite.

    runs: how many were counted, None with repeat_select, whose number must not be told: mean and shape are its law,
    shape None for Poisson. epsilon and bounded are both None where the run's own figure stands (basis `own`) or
    none is established (`none`).
    """

    # Later writers may add facts: an older report leaves out what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)

    schema_: Literal["secure_fed.tuning/1"] = Field(default="secure_fed.tuning/1", alias="schema")
    sweep: Annotated[str, Field(min_length=1, max_length=200)]
    mode: Literal["public", "composed", "repeat_select"]
    runs: Annotated[int, Field(ge=1)] | None
    mean: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    shape: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    bounded: bool | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    basis: Basis
    remarks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        """A mode has its own bases, and a figure has its delta."""
        bases = _ALLOWED[self.mode]
        bounds = _BOUNDS.get(self.basis, (True,))
        if self.basis not in bases:
            raise ValueError(f"basis={self.basis!r} cannot be with mode={self.mode!r}")
        if self.bounded not in bounds or (self.epsilon is not None) != (self.bounded is True):
            raise ValueError(
                f"epsilon={self.epsilon!r}, bounded={self.bounded!r} and basis={self.basis!r} do not agree"
            )
        if self.epsilon is not None and self.delta is None:
            raise ValueError("an epsilon needs its delta")
        random = self.mode == "repeat_select"
        if random != (self.runs is None) or random != (self.mean is not None):
            raise ValueError("repeat_select has a mean and tells no number of runs; the others have a number")
        return self

    @property
    def figure(self) -> float | None:
        """Epsilon with the choice counted; infinite where nothing bounds it, None where none is stated."""
        return math.inf if self.bounded is False else self.epsilon

    @property
    def law(self) -> str:
        """How the number of runs was drawn, in words."""
        return "Poisson" if self.shape is None else f"truncated negative binomial of shape {self.shape:g}"


def read_tuning(path: Path) -> Tuning:
    """Read a `tuning.json`; raises DataError where it is damaged, contradicts itself or is something else."""
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged or no statement of a sweep (secure_fed.tuning/1): {describe(error)}. Write it anew "
            "with: secure-fed report SWEEP"
        ) from error


def tuning_statements(tuning: Tuning) -> tuple[str, ...]:
    """How the run was chosen, what that cost, and against whom the figure holds."""
    return (_chosen(tuning), *_cost(tuning), *tuning.remarks)


def _chosen(tuning: Tuning) -> str:
    if tuning.runs is None:
        return (
            f"This run was selected by its score as the best of a random number of runs, {tuning.mean:g} on average "
            f"({tuning.law}), each of a candidate drawn at random (sweep {tuning.sweep})."
        )
    return f"This run was chosen by its score among {formats.plural(tuning.runs, 'run')} (sweep {tuning.sweep})."


def _cost(tuning: Tuning) -> tuple[str, ...]:
    if tuning.mode == "public":
        return (
            "The data that the choice was made on are claimed to be public or generated: the choice costs nothing, and "
            "the ε of this run stands.",
        )
    if tuning.figure is None:
        return ("What the choice cost is not established: the ε of this run alone understates what was released.",)
    if math.isinf(tuning.figure):
        return ("Nothing bounds what all of these runs released: with the choice counted, ε is infinite.",)
    at = f"ε = {formats.epsilon(tuning.figure)} at δ = {formats.small(tuning.delta)}"
    if tuning.mode == "composed":
        by = "PLD" if tuning.basis == "pld" else "RDP, as no one site spent most in every run"
        return (
            f"With the choice counted, {at}: the composition of all of these runs ({by}). It holds whatever is told of "
            "them.",
        )
    return (
        f"With the choice counted, {at}, by RDP (Papernot and Steinke 2022; no PLD is known for this).",
        "It holds against whoever is given this run alone, and neither the others, nor their scores, nor their number. "
        "The coordinator and the sites saw every run: against them all of these compose.",
    )
