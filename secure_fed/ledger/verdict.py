"""The answer of a verification: a row a site, the problems found, as JSON for machines and a table for
people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.identity import fingerprint
from secure_fed.ledger.chain import Rotation

TAIL = "unanchored: records cut off a ledger's end are not noticed"


@dataclass(frozen=True)
class Row:
    """One ledger. Figures are None where its records cannot be trusted; epsilon is inf with privacy off."""

    site: str
    records: int
    rounds: int = 0
    epsilon: float | None = None  # PLD of one run, the filter's figure of several
    pld_epsilon: float | None = None  # of several runs: had their plans been fixed beforehand
    rdp_epsilon: float | None = None
    prv_epsilon: float | None = None
    prv_remark: str | None = None  # why a cross-check gave no figure
    replace_one_epsilon: float | None = None
    delta: float | None = None
    unit: str | None = None
    relation: str | None = None
    epsilon_by_run: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    rotations: tuple[Rotation, ...] = ()
    anchored: int = 0  # so many records, from the first, are vouched for by anchors that others kept
    problem: str | None = None  # without the site's name

    @property
    def tail(self) -> str:
        """How far the ledger's end can be trusted. Records are counted from 1 here."""
        if not self.anchored:
            return "unanchored"
        return f"anchored up to record {self.anchored} of {self.records}"


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. `roster` says whose public keys the signatures were checked against."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    roster: str
    remarks: tuple[str, ...] = ()  # on what was given beside the ledgers

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. Weaknesses do not count: they stand in the rows' flags."""
        return not self.problems

    @property
    def first_problem(self) -> str | None:
        """The first thing that is wrong, naming site and record."""
        return self.problems[0] if self.problems else None

    @property
    def epsilon_max(self) -> float | None:
        """The largest epsilon over the sites; None where one of them is unknown."""
        values = [row.epsilon for row in self.rows]
        return None if not values or None in values else max(v for v in values if v is not None)

    @property
    def tail(self) -> str:
        """What can and cannot be seen at the ledgers' ends."""
        if not any(row.anchored for row in self.rows):
            return TAIL
        if all(row.anchored == row.records for row in self.rows):
            return "anchored: others saw every ledger up to its last record"
        return "anchored in part: records cut off behind a ledger's last anchor are not noticed"

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; an infinite epsilon is null with `privacy_off` true. Holds no path and no host
        name.
        """
        return {
            "ok": self.ok,
            "first_problem": self.first_problem,
            "problems": list(self.problems),
            "roster": self.roster,
            "tail": self.tail,
            "remarks": list(self.remarks),
            "accountant": "pld",
            "epsilon_max": finite(self.epsilon_max),
            "sites": [_row_json(row) for row in self.rows],
        }


def finite(value: float | None) -> float | None:
    """The value as JSON has it: null where it is infinite."""
    return value if value is not None and math.isfinite(value) else None


def _row_json(row: Row) -> dict[str, object]:
    return {
        "site": row.site,
        "records": row.records,
        "rounds": row.rounds,
        "epsilon": finite(row.epsilon),
        "epsilon_basis": None if row.epsilon is None else "pld" if row.pld_epsilon is None else "filter",
        "epsilon_if_planned_beforehand": finite(row.epsilon if row.pld_epsilon is None else row.pld_epsilon),
        "epsilon_rdp": finite(row.rdp_epsilon),
        "epsilon_prv": finite(row.prv_epsilon),
        "prv_remark": row.prv_remark,
        "epsilon_replace_one": finite(row.replace_one_epsilon),
        "epsilon_by_run": {run: finite(value) for run, value in row.epsilon_by_run.items()},
        "privacy_off": row.epsilon == math.inf,
        "delta": row.delta,
        "unit": row.unit,
        "relation": row.relation,
        "flags": list(row.flags),
        "anchored_records": row.anchored,
        "tail": row.tail,
        "rotations": [_rotation_json(rotation) for rotation in row.rotations],
        "problem": row.problem,
    }


def _rotation_json(rotation: Rotation) -> dict[str, object]:
    return {
        "record": rotation.seq,
        "time": rotation.time,
        "from": fingerprint(bytes.fromhex(rotation.old)),
        "to": fingerprint(bytes.fromhex(rotation.new)),
    }


def render(verdict: Verdict, console: Console) -> None:
    """Print the table, whose keys were trusted, what cannot be seen, and the verdict.

    What is the same for every site stands once below the table.
    """
    guarantees = {_guarantee(row) for row in verdict.rows}
    shared_flags = set.intersection(*(set(row.flags) for row in verdict.rows)) if verdict.rows else set()
    checked = any(row.prv_epsilon is not None or row.prv_remark for row in verdict.rows)
    anchored = any(row.anchored for row in verdict.rows)
    table = Table(title="Privacy ledgers, recomputed")
    table.add_column("site", no_wrap=True)
    for heading in ("records", "rounds", "epsilon", "RDP", *(["PRV"] if checked else []), "replace one"):
        table.add_column(heading, justify="right", no_wrap=True)
    if len(guarantees) > 1:
        table.add_column("guarantee")
    if anchored:
        table.add_column("anchored", justify="right", no_wrap=True)
    table.add_column("remarks")
    for row in verdict.rows:
        table.add_row(
            escape(row.site),
            str(row.records),
            str(row.rounds),
            _figure(row.epsilon, "{:.4f}"),
            _figure(row.rdp_epsilon, "{:.4f}"),
            *([_figure(row.prv_epsilon, "{:.4f}")] if checked else []),
            _figure(row.replace_one_epsilon, "{:.4f}"),
            *([escape(_guarantee(row))] if len(guarantees) > 1 else []),
            *([f"{row.anchored}/{row.records}"] if anchored else []),
            "\n".join(_remarks(row, shared_flags)),
        )
    console.print(table)
    if len(guarantees) == 1:
        console.print(f"guarantee: {escape(guarantees.pop())}")
    for flag in sorted(shared_flags):
        console.print(f"every site: [yellow]{escape(flag)}[/]")
    console.print(f"roster: {escape(verdict.roster)}")
    console.print(f"tail: {verdict.tail}")
    for remark in verdict.remarks:
        console.print(f"[yellow]{escape(remark)}[/]")
    if verdict.ok:
        console.print(f"[bold green]verdict: holds[/], largest epsilon {_figure(verdict.epsilon_max, '{:.4f}')}")
    else:
        console.print(f"[bold red]verdict: DOES NOT HOLD[/]: {escape(verdict.problems[0])}")
        for problem in verdict.problems[1:]:
            console.print(f"  also: {escape(problem)}")


def _remarks(row: Row, elsewhere: set[str]) -> list[str]:
    """What the table says beside a row's figures, as markup; flags in `elsewhere` stand below the table."""
    remarks = [f"[bold red]{escape(row.problem)}[/]"] if row.problem else []
    remarks += [f"[yellow]{escape(flag)}[/]" for flag in row.flags if flag not in elsewhere]
    if row.pld_epsilon is not None:
        remarks.append(f"{_figure(row.pld_epsilon, '{:.4f}')} by PLD, had the plans been fixed beforehand")
    if row.prv_remark:
        remarks.append(f"no PRV figure: {escape(row.prv_remark)}")
    return [*remarks, *map(str, row.rotations)]


def _guarantee(row: Row) -> str:
    return f"delta {_figure(row.delta, '{:g}')}, per {row.unit or '?'}, {row.relation or '?'}"


def _figure(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
