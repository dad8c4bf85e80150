"""A site's budget as a person reads it: what was spent and what is left, run by run."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.client.books import filled_by_the_first
from secure_fed.client.overview import BudgetView, RunRow

_SHORT = 12  # of a run's id: enough to name it to `secure-fed site close`
_PROOFS = {"pld": "PLD over the charges of one run", "renyi filter": "Renyi filter over the charges of all runs"}


def render_budget(view: BudgetView, console: Console) -> None:
    """Print the table of runs, the figures over the whole life of the data, and the fingerprints."""
    table = Table(title=f"Privacy budget of {escape(view.site)}", title_justify="left")
    for heading in ("run", "method", "since", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rounds", "planned", "spent"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in view.runs:
        table.add_row(*_cells(row))
    if view.runs:
        console.print(table)
    else:
        console.print(f"[bold]Privacy budget of {escape(view.site)}[/]: no run has planned anything here yet")
    many = f", at most {view.max_records_per_unit} records each" if view.unit == "patient" else ""
    console.print(
        f"guarantee: epsilon over the whole life of {escape(view.data_set)} at delta {view.delta:g}, per "
        f"{view.unit}{many}; declared N {view.declared_n}"
        + ("" if view.lifetime_claim else " [yellow](no lifetime claim: these data are used elsewhere too)[/]")
    )
    left = "[red]nothing[/]" if view.further == 0 else f"[green]up to {view.further:.3f}[/]"
    console.print(f"limit      {view.limit:.4g}")
    console.print(f"spent      {_figure(view.spent)}  ({_PROOFS[view.proof]})")
    console.print(f"committed  {_figure(view.committed)}  (open runs with all that they may still charge)")
    console.print(f"left       {left} for a further run by itself (epsilons do not simply add)")
    if view.filled_by_the_first:
        console.print(f"           [yellow]{filled_by_the_first(view.limit)}[/]")
    console.print(f"key        {view.key}")
    console.print(f"policy     {view.policy}")
    console.print(f"ledger     {view.ledger or 'not begun'}  ({view.records} records)")


def _cells(row: RunRow) -> list[str]:
    style = {"open": "yellow", "off": "bold red"}.get(row.state, "default")
    planned = "-" if row.planned is None else f"{row.planned:.4f}"
    return [
        escape(row.run[:_SHORT]),
        escape(row.method),
        row.since[:10],
        f"[{style}]{row.state}[/]",
        str(row.rounds),
        planned,
        _figure(row.spent),
    ]


def _figure(value: float) -> str:
    return "[bold red]infinite[/]" if math.isinf(value) else f"{value:.4f}"
