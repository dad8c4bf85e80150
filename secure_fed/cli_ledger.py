"""The auditor's doors to a ledger: what is on it, and a copy to hand over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secure_fed.doors import said_plainly

ledger = typer.Typer(
    name="ledger",
    no_args_is_help=True,
    help="Look at a site's signed ledger, and export it for an auditor.",
)


@ledger.command("show")
def ledger_show(
    path: Annotated[Path, typer.Argument(help="A ledger file, a site's home or a run folder.")],
    run: Annotated[str | None, typer.Option(help="Only the records of this run.")] = None,
    tail: Annotated[int | None, typer.Option(help="Only the last so many records.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable records and standing.")] = False,
) -> None:
    """List the records of a ledger and what is spent. Exit 0, or 1 where a chain or a signature does not hold."""
    from rich.console import Console

    from secure_fed.ledger.listing import list_ledgers, render_listings

    with said_plainly():
        found = list_ledgers(path, run=run, tail=tail)
        if as_json:
            typer.echo(json.dumps([listing.to_json() for listing in found], indent=2, allow_nan=False))
        else:
            render_listings(found, Console())
    raise typer.Exit(1 if any(listing.problem for listing in found) else 0)


@ledger.command("export")
def ledger_export(
    path: Annotated[Path, typer.Argument(help="A site's home or a ledger file.")],
    output: Annotated[Path, typer.Option(help="Where the copy goes; never overwritten.")],
    anchors: Annotated[Path | None, typer.Option(help="Where the anchors go that the home kept of others.")] = None,
) -> None:
    """Copy a ledger, byte for byte, to hand it over. Refused where a record names a path or this machine."""
    from secure_fed.ledger.export import export_ledger

    with said_plainly():
        done = export_ledger(path, output, anchors)
    typer.echo(f"{output}: {done.records} records of {done.site}, {done.length} bytes")
    if done.torn:
        typer.secho(f"{done.torn} bytes of an unfinished record were left out", fg=typer.colors.YELLOW, err=True)
    if done.anchors is not None:
        typer.echo(f"{anchors}: {done.anchors} anchors of others")


@ledger.command("schema")
def ledger_schema() -> None:
    """Print the JSON Schema (draft 2020-12) of a ledger's record."""
    from secure_fed.ledger.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
