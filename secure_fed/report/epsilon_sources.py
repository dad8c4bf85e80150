"""What an epsilon report may stand on: ledgers and the verdict on them, and of a run folder its files too.

A ledger that cannot be trusted is no error here: it is what the report has to say first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secure_fed.errors import DataError, LedgerError
from secure_fed.identity import Roster, describe
from secure_fed.ledger import Row, Verdict, verify
from secure_fed.ledger.chain import Chain, read_chain
from secure_fed.ledger.verify import LEDGER
from secure_fed.report.run_folder import RunFolder, read_run
from secure_fed.report.tuning import TUNING, Tuning, read_tuning

AUDIT = "audit.json"
CROSS_CHECK = "cross_check.json"
AUDIT_SCHEMA = "secure_fed.audit/1"

Probability = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Audit(BaseModel):
    """An empirical audit's result: with `confidence`, the true epsilon is at least `epsilon_lower`."""

    # Later writers may add facts: an older report leaves out what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    schema_: Literal["secure_fed.audit/1"] = Field(alias="schema")
    method: Annotated[str, Field(min_length=1, max_length=200)]
    epsilon_lower: NotNegative
    delta: Probability
    confidence: Probability
    canaries: Annotated[int, Field(ge=1)]


class _CrossCheckedSite(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    site: str
    epsilon: NotNegative | None
    epsilon_prv: NotNegative | None = None
    prv_remark: str | None = None


class CrossCheck(BaseModel):
    """The part of `secure-fed verify --cross-check --json` that a report repeats."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    sites: tuple[_CrossCheckedSite, ...]


@dataclass(frozen=True)
class Book:
    """One ledger: its records as far as they are whole, and what the verification says of it."""

    chain: Chain
    row: Row


@dataclass(frozen=True)
class Sources:
    """Everything that a report stands on; `run` is None where only ledgers were given.

    `digests`: name of a file of the run -> SHA-256 in hex.
    """

    books: tuple[Book, ...]
    verdict: Verdict
    run: RunFolder | None
    audit: Audit | None
    cross_check: CrossCheck | None
    tuning: Tuning | None
    digests: Mapping[str, str]
    roster: Roster | None


def read_sources(
    paths: Sequence[Path],
    *,
    roster: Path | None = None,
    anchors: Sequence[Path] = (),
    audit: Path | None = None,
    cross_check: Path | None = None,
) -> Sources:
    """Read one run folder with its files, or any number of ledgers, homes and run folders for their ledgers alone.

    Raises ConfigError where a path holds no ledger or the roster cannot be read, DataError where a file of the run,
    the audit, the cross-check or what a sweep said of its tuning is damaged.
    """
    run = read_run(paths[0]) if len(paths) == 1 and is_run(paths[0]) else None
    if run is not None:
        audit = audit or _if_there(run.path / AUDIT)
        cross_check = cross_check or _if_there(run.path / CROSS_CHECK)
    said = _if_there(run.path / TUNING) if run is not None else None
    verdict = verify(paths, roster, anchors=anchors)
    given = Roster.load(roster) if roster is not None else None
    return Sources(
        books=_books(paths, verdict),
        verdict=verdict,
        run=run,
        audit=None if audit is None else _read_audit(audit),
        cross_check=None if cross_check is None else _read_cross_check(cross_check),
        tuning=None if said is None else read_tuning(said),
        digests=_digests(run.path) if run is not None else {},
        roster=given or (run.roster if run is not None else None),
    )


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder, and not a site's home or a ledger."""
    return (path / "config.yaml").is_file() or (path / "sites").is_dir()


def _books(paths: Sequence[Path], verdict: Verdict) -> tuple[Book, ...]:
    """The verdict's rows with their ledgers: `verify` goes through the files in this order."""
    files = [ledger for path in paths for ledger in _ledgers(path)]
    return tuple(Book(_chain(ledger, row), row) for ledger, row in zip(files, verdict.rows, strict=True))


def _chain(path: Path, row: Row) -> Chain:
    try:
        return read_chain(path)
    except LedgerError:  # the verdict has said so, without the path
        return Chain((), row.problem or "cannot be read", 0)


def _ledgers(path: Path) -> list[Path]:
    if (path / "sites").is_dir():
        return [p / LEDGER for p in sorted((path / "sites").iterdir()) if (p / LEDGER).is_file()]
    return [path / LEDGER if path.is_dir() else path]


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _read_audit(path: Path) -> Audit:
    try:
        return Audit.model_validate_json(_bytes(path))
    except ValidationError as error:
        raise DataError(f"{path} is damaged or no audit result ({AUDIT_SCHEMA}): {describe(error)}.") from error


def _read_cross_check(path: Path) -> CrossCheck:
    try:
        found = CrossCheck.model_validate_json(_bytes(path))
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged or no verdict: {describe(error)}. Write it with: secure-fed verify PATH... "
            "--cross-check --json"
        ) from error
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what a run was and what it gave."""
    names = ("config.yaml", "roster.json", "summary.json", "model.safetensors")
    found = {name: folder / name for name in names if (folder / name).is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def to_json_text(tree: Mapping[str, object]) -> str:
    """Indented JSON, the same for the same values; raises ValueError on NaN or infinity."""
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
