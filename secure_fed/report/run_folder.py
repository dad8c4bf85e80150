"""A run folder as frozen values: what a report may know stands in these files, and nowhere else.

Every file is read strictly; whatever is missing or damaged is named, with the way out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from secure_fed.errors import ConfigError, DataError, LedgerError
from secure_fed.identity import Roster, describe
from secure_fed.report.assessment import AssessmentFacts
from secure_fed.report.evaluation import EvaluationFacts

SUMMARY_SCHEMA = "secure_fed.summary/1"


class _FromFile(BaseModel):
    # Later writers may add facts: an older report leaves out what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")


class MemberFacts(_FromFile):
    """One site: its modalities, public record count, noise multiplier (None without privacy) and phases."""

    owns: tuple[str, ...]
    declared_n: int
    noise_multiplier: float | None = None
    phases: tuple[str, ...] = ()


class ComponentFacts(_FromFile):
    """One part of the model or one statistic: its parameters, the sites that upload it, the fewest that open its sum.

    `floor` is None where no masked sum of it is made. `dp_only`: its owners opted for a lower floor. `kept`: rounds in
    which it stayed masked, because too few owners survived.
    """

    parameters: int
    owners: tuple[str, ...]
    floor: int | None
    dp_only: bool
    kept: int


class HoldoutFacts(_FromFile):
    """The coordinator's public test set."""

    records: int
    patients: int


class PublicSetFacts(_FromFile):
    """The public paired set: complete records of patients who are at no site. No phase: this method uses none."""

    records: int
    patients: int
    phases: tuple[str, ...]


class MaskedRound(_FromFile):
    """One round of secure aggregation as the coordinator saw it."""

    step: int
    round: int
    participants: int
    survivors: int
    bytes_up: int
    bytes_down: int


class GraphFacts(_FromFile):
    """Who masks with whom; of a k-regular graph also how many neighbours, and how many shares open a secret."""

    name: Literal["complete", "k_regular"]
    degree: int | None = None
    threshold: int | None = None


class SecAggFacts(_FromFile):
    """The masked sum's parameters and its rounds; `mode` is "off" where updates travelled in the clear."""

    mode: Literal["on", "off"]
    threshold: int | None = None
    corrupt: int | None = None
    min_cohort: int | None = None
    graph: GraphFacts | None = None
    value_bits: int | None = None
    wire_bits: int | None = None
    cautions: tuple[str, ...] = ()
    bytes_up_per_parameter: float | None
    bytes_down_per_parameter: float | None
    rounds: tuple[MaskedRound, ...] = ()


class Summary(AssessmentFacts):
    """`summary.json`: the figures of a finished run."""

    schema_: Literal["secure_fed.summary/1"] = Field(alias="schema")
    run: str
    name: str
    status: str
    method: str
    data: str
    seed: int
    evaluation: EvaluationFacts
    holdout: HoldoutFacts
    public_set: PublicSetFacts | None = None
    epsilon: dict[str, float | None]
    epsilon_max: float | None
    epsilon_target: float | None
    delta: float | None
    accountant: str
    privacy: Literal["dp", "off"]
    unit: str
    relation: Literal["add_or_remove_one", "replace_one"]
    rounds: int
    rounds_burned: int
    rounds_charged_again: int
    rounds_skipped: int = 0
    resumed: int
    sites: int
    members: dict[str, MemberFacts]
    components: dict[str, ComponentFacts]
    statistics: dict[str, ComponentFacts]
    server_step: Literal["verified", "unverified"]
    engine: str
    wall_s: float
    insecure_reproducible: bool
    model_sha256: str | None = None
    warnings: tuple[str, ...]
    secagg: SecAggFacts
    data_notes: dict[str, JsonValue]
    model_notes: dict[str, list[str]] = Field(default_factory=dict)
    public_parameters: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str]

    @property
    def summed(self) -> dict[str, ComponentFacts]:
        """All that sites upload and the server opens as sums: components, then statistics."""
        return {**self.components, **self.statistics}

    @property
    def dp_only(self) -> dict[str, int]:
        """Name -> floor of what differential privacy alone protects, as its owners opted for."""
        found = {name: facts.floor for name, facts in self.summed.items() if facts.dp_only}
        return {name: floor for name, floor in found.items() if floor is not None}


class Step(_FromFile):
    """One line of `metrics.jsonl`: a scheduled step that was closed."""

    step: int
    round: int
    attempts: int = 1
    phases: tuple[str, ...] = ()
    auroc_macro: float | None = None
    auroc_macro_missing: dict[str, float | None] = Field(default_factory=dict)
    epsilon_max: float | None = None
    participants: int
    survivors: int
    contributors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    kept: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True)
class RunFolder:
    """Everything that a report stands on. `ledgers`: site -> path of its ledger, absent where it has none.

    `settings` are the values of config.yaml.
    """

    path: Path
    summary: Summary
    steps: tuple[Step, ...]
    settings: Mapping[str, JsonValue]
    roster: Roster
    ledgers: Mapping[str, Path]


def read_run(run: Path) -> RunFolder:
    """Read a finished run's files; raises DataError naming the file that is missing or damaged."""
    if not (run / "config.yaml").is_file():
        raise DataError(
            f"{run} is not a run folder: it has no config.yaml. Give the folder that `secure-fed run` printed last."
        )
    if not (run / "summary.json").is_file():
        raise DataError(
            f"{run} is unfinished: it has no summary.json yet. Continue it with: secure-fed run resume={run}"
        )
    summary = parse_summary(_json(run / "summary.json", _text(run / "summary.json")), str(run / "summary.json"))
    roster = _roster(run / "roster.json", summary)
    config = _text(run / "config.yaml")
    return RunFolder(
        path=run,
        summary=summary,
        steps=_steps(run / "metrics.jsonl"),
        settings=_mapping(run / "config.yaml", config),
        roster=roster,
        ledgers=_ledgers(run, summary),
    )


def parse_summary(value: object, name: str = "summary") -> Summary:
    """A `Summary` from plain values; raises DataError naming `name` and the first wrong field."""
    try:
        return Summary.model_validate(value)
    except ValidationError as error:
        raise DataError(
            f"{name} is damaged or of another version (expected {SUMMARY_SCHEMA}): {describe(error)}. "
            "Restore it, or run again."
        ) from error


def _steps(path: Path) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        value = _json(path, line, number)
        try:
            steps.append(Step.model_validate(value))
        except ValidationError as error:
            raise DataError(f"{path}, line {number} is damaged: {describe(error)}.") from error
    if not steps:
        raise DataError(f"{path} holds no round: the run trained nothing. Run again.")
    return tuple(steps)


def _ledgers(run: Path, summary: Summary) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for site in summary.members:
        path = run / "sites" / site / "ledger.jsonl"
        if path.is_file():
            found[site] = path
    return found


def _roster(path: Path, summary: Summary) -> Roster:
    try:
        roster = Roster.load(path)
    except (ConfigError, LedgerError) as error:
        raise DataError(f"{path}: {error}") from error
    # Site names become paths: only those that the roster's strict schema let through may.
    for site in summary.members:
        if site not in roster.known:
            raise DataError(f"{path} lacks {site}, which summary.json names as a member: one of them was changed.")
    return roster


def _mapping(path: Path, text: str) -> dict[str, JsonValue]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is damaged, it is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} is damaged: expected a mapping of values, found {type(tree).__name__}.")
    return tree


def _json(path: Path, text: str, line: int | None = None) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{path}, line {line}" if line else str(path)
        raise DataError(f"{where} is damaged, it is not JSON: {error}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the run folder is incomplete. Restore it, or run again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: byte {error.start} is not UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
