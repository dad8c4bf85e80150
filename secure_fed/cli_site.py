"""The site operator's doors: a site's state and budget, evidence, the end of a halt, another key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secure_fed.doors import said_plainly

site = typer.Typer(
    name="site",
    no_args_is_help=True,
    help="What a site's operator does: look at its state and budget, check evidence, end a halt, change its key.",
)

_HOME = typer.Argument(metavar="HOME", help="The site's home folder: where policy.yaml and ledger.jsonl lie.")


@site.command("status")
def site_status(
    home: Annotated[Path, _HOME],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable state.")] = False,
) -> None:
    """Say whether a site takes part or is halted, and where its evidence lies. Exit 0, or 1 where it is halted."""
    from secure_fed.client.halt import evidence_of, halted
    from secure_fed.client.home import Home
    from secure_fed.identity import fingerprint

    with said_plainly():
        opened = Home(home)
        found = halted(opened)
        name = opened.policy().site
        public = opened.signing_key().public_bytes
        evidence = evidence_of(opened)
    if as_json:
        state = {"site": name, "public_key": public.hex(), "halted": None if found is None else vars(found)}
        typer.echo(json.dumps(state, indent=2))
        raise typer.Exit(0 if found is None else 1)
    typer.echo(f"{name}: key {fingerprint(public)}")
    if found is None:
        typer.echo(f"{name}: takes part")
    else:
        typer.secho(f"{name}: halted since {found.time} with {found.code}", fg=typer.colors.RED)
        typer.echo(f"evidence: {evidence} (SHA-256 {found.sha256})")
        typer.echo(f"Look at it with the others, then: secure-fed site resume {home} --reason '...'")
    raise typer.Exit(0 if found is None else 1)


@site.command("budget")
def site_budget(
    home: Annotated[Path, _HOME],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable budget.")] = False,
) -> None:
    """Show what the data of a site have been charged over all runs, what is left, and the fingerprints to compare."""
    from rich.console import Console

    from secure_fed.client.home import Home
    from secure_fed.client.overview import budget_of
    from secure_fed.site_tables import render_budget

    with said_plainly():
        view = budget_of(Home(home))
    if as_json:
        typer.echo(json.dumps(view.to_json(), indent=2))
    else:
        render_budget(view, Console())


@site.command("close")
def site_close(
    home: Annotated[Path, _HOME],
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or its beginning.")],
) -> None:
    """End a run that will not go on: it charges nothing any more, and what it had planned is free for other runs."""
    from secure_fed.client.home import Home
    from secure_fed.client.overview import close_open_run

    with said_plainly():
        closed = close_open_run(Home(home), run)
    typer.echo(f"run {closed} is closed on the ledger: what it charged counts, what it had planned beyond is free")


@site.command("resume")
def site_resume(
    home: Annotated[Path, _HOME],
    reason: Annotated[str, typer.Option(help="Why the site may go on; it is written to the signed ledger.")],
) -> None:
    """Let a site that halted take part again. The reason goes on the ledger before anything else happens."""
    from secure_fed.client.halt import resume
    from secure_fed.client.home import Home

    with said_plainly():
        found = resume(Home(home), reason)
    typer.echo(f"the site takes part again after {found.code}; the reason is on its ledger")


@site.command("rotate-key")
def site_rotate_key(
    home: Annotated[Path, _HOME],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result.")] = False,
) -> None:
    """Give a site a new signing key. It takes part again once the consortium has published a roster with that key."""
    from secure_fed.client.home import Home
    from secure_fed.client.rotation import rotate_key
    from secure_fed.identity import fingerprint

    with said_plainly():
        found = rotate_key(Home(home))
    told = {
        "site": found.site,
        "fingerprint": fingerprint(found.public),
        "public_key": found.public.hex(),
        "record": found.record,
    }
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"{found.site} has a new key\nfingerprint: {told['fingerprint']}\npublic key:  {told['public_key']}")
    if found.record is None:
        typer.echo("there is no ledger yet: it will begin with this key")
    else:
        typer.echo(f"the old key handed over to it in record {found.record} of the ledger")
    typer.secho(
        "Give both to the consortium: it has to publish a roster of a higher version with this key. Until then this "
        "site cannot take part; what it had under way is void. Destroy every copy of the old key.",
        fg=typer.colors.YELLOW,
    )


@site.command("evidence")
def site_evidence(
    path: Annotated[Path, typer.Argument(metavar="EVIDENCE", help="A .json file of a site's evidence folder.")],
    roster: Annotated[Path, typer.Option(help="The roster that names the coordinator's key.")],
) -> None:
    """Check the signatures of an evidence file, the site's and the coordinator's, and say what it shows."""
    from secure_fed.client.halt import check_evidence
    from secure_fed.identity import Roster

    with said_plainly():
        content = check_evidence(path, Roster.load(roster))
    asked = ", ".join(request["action"] for request in content["requests"])
    typer.echo(f"{content['site']} halted at {content['time']} with {content['code']}: {content['detail']}")
    typer.echo(f"the site signed this file; the coordinator signed its requests ({asked})")
