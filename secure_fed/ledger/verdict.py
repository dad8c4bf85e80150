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
    epsilon: float | None = None
    rdp_epsilon: float | None = None
    delta: float | None = None
    unit: str | None = None
    relation: str | None = None
    epsilon_by_run: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    rotations: tuple[Rotation, ...] = ()
    problem: str | None = None  # without the site's name


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. `roster` says whose public keys the signatures were checked against."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    roster: str

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

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; an infinite epsilon is null with `privacy_off` true. Holds no path and no host
        name.
        """
        return {
            "ok": self.ok,
            "first_problem": self.first_problem,
            "problems": list(self.problems),
            "roster": self.roster,
            "tail": TAIL,
            "accountant": "pld",
            "epsilon_max": _finite(self.epsilon_max),
            "sites": [_row_json(row) for row in self.rows],
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _row_json(row: Row) -> dict[str, object]:
    return {
        "site": row.site,
        "records": row.records,
        "rounds": row.rounds,
        "epsilon": _finite(row.epsilon),
        "epsilon_rdp": _finite(row.rdp_epsilon),
        "epsilon_by_run": {run: _finite(value) for run, value in row.epsilon_by_run.items()},
        "privacy_off": row.epsilon == math.inf,
        "delta": row.delta,
        "unit": row.unit,
        "relation": row.relation,
        "flags": list(row.flags),
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
    table = Table(title="Privacy ledgers, recomputed")
    table.add_column("site", no_wrap=True)
    for heading in ("records", "rounds", "epsilon (PLD)", "RDP"):
        table.add_column(heading, justify="right")
    if len(guarantees) > 1:
        table.add_column("guarantee")
    table.add_column("remarks")
    for row in verdict.rows:
        remarks = [f"[bold red]{escape(row.problem)}[/]"] if row.problem else []
        remarks += [f"[yellow]{escape(flag)}[/]" for flag in row.flags if flag not in shared_flags]
        remarks += map(str, row.rotations)
        table.add_row(
            escape(row.site),
            str(row.records),
            str(row.rounds),
            _figure(row.epsilon, "{:.4f}"),
            _figure(row.rdp_epsilon, "{:.4f}"),
            *([escape(_guarantee(row))] if len(guarantees) > 1 else []),
            "\n".join(remarks),
        )
    console.print(table)
    if len(guarantees) == 1:
        console.print(f"guarantee: {escape(guarantees.pop())}")
    for flag in sorted(shared_flags):
        console.print(f"every site: [yellow]{escape(flag)}[/]")
    console.print(f"roster: {escape(verdict.roster)}")
    console.print(f"tail: {TAIL}")
    if verdict.ok:
        console.print(f"[bold green]verdict: holds[/], largest epsilon {_figure(verdict.epsilon_max, '{:.4f}')}")
    else:
        console.print(f"[bold red]verdict: DOES NOT HOLD[/]: {escape(verdict.problems[0])}")
        for problem in verdict.problems[1:]:
            console.print(f"  also: {escape(problem)}")


def _guarantee(row: Row) -> str:
    return f"delta {_figure(row.delta, '{:g}')}, per {row.unit or '?'}, {row.relation or '?'}"


def _figure(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
