"""The doors: run, verify, report, predict. Heavy imports wait until a command needs them.

Exit codes: 0 ok, 1 the verdict is negative, 2 usage or bad input, 3 refused by policy, 4 aborted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from secure_fed.errors import SecureFedError

app = typer.Typer(
    name="secure-fed",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Train one multimodal model across sites that show nobody their data: DP-SGD at every site, masked "
    "sums between them, and a signed ledger of every epsilon.",
    epilog="Exit codes: 0 ok, 1 negative verdict, 2 usage or bad input, 3 refused by policy, 4 aborted.",
)

site = typer.Typer(
    name="site",
    no_args_is_help=True,
    help="What a site's operator does: look at its state, check evidence, end a halt, change its key.",
)
app.add_typer(site)

_INTERRUPTED = 130


def main() -> None:
    """The console script."""
    app()


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn our errors into one message and their exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except SecureFedError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.secho("interrupted", fg=typer.colors.YELLOW, err=True)
        raise typer.Exit(_INTERRUPTED) from None


@app.command(
    # Whatever is not ours goes to Hydra as it stands, its flags included.
    context_settings={"ignore_unknown_options": True},
    options_metavar="[--json] [--cfg job] [--multirun]",
    epilog="Examples:\n\n"
    "secure-fed run                                  the default: FIN on synthetic films and reports, epsilon 8\n\n"
    "secure-fed run method=zero_fill privacy.epsilon=3 seed=1\n\n"
    "secure-fed run experiment=physionet2012 data.root=PATH\n\n"
    "secure-fed run experiment=small --multirun seed=0,1,2\n\n"
    "secure-fed run --cfg job                        show every value without running\n\n"
    "secure-fed run resume=runs/2026-01-31/12-00-00-fin",
)
def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any value of the configuration, or a group's option."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")] = False,
) -> None:
    """Train a federation. Takes Hydra overrides, key=value; --cfg job shows all keys, --multirun sweeps."""
    from secure_fed.running import run_command

    with _said_plainly():
        code = run_command(overrides or [], as_json)
    raise typer.Exit(code)


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, site homes or ledger files.")],
    roster: Annotated[Path | None, typer.Option(help="The roster, from a source other than what is verified.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable verdict.")] = False,
) -> None:
    """Recompute every epsilon from the ledgers and check chains and signatures. Exit 0 or 1."""
    from rich.console import Console

    from secure_fed.ledger import render
    from secure_fed.ledger import verify as verify_ledgers

    with _said_plainly():
        verdict = verify_ledgers(paths, roster)
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        render(verdict, Console())
    raise typer.Exit(0 if verdict.ok else 1)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")]) -> None:
    """Write a run's report.html and model card again from its files."""
    from secure_fed.report import write_model_card, write_report

    with _said_plainly():
        write_model_card(run_folder)
        path = write_report(run_folder)
    typer.echo(f"report: {path}")


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    data: Annotated[
        Path,
        typer.Option(
            help="A manifest CSV (columns: id, then a column per modality or feature; empty = missing), or for a "
            "physionet2012 run a folder as released."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Where the CSV goes; standard output without.")] = None,
) -> None:
    """Probabilities for new records, any modality missing, as CSV: id, one column a label."""
    from secure_fed.files import write_whole
    from secure_fed.prediction import predict_csv

    with _said_plainly():
        text = predict_csv(run_folder, data)
        if output is None:
            sys.stdout.write(text)
        else:
            write_whole(output, text)
            typer.echo(f"predictions: {output}", err=True)


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

    with _said_plainly():
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


@site.command("resume")
def site_resume(
    home: Annotated[Path, _HOME],
    reason: Annotated[str, typer.Option(help="Why the site may go on; it is written to the signed ledger.")],
) -> None:
    """Let a site that halted take part again. The reason goes on the ledger before anything else happens."""
    from secure_fed.client.halt import resume
    from secure_fed.client.home import Home

    with _said_plainly():
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

    with _said_plainly():
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

    with _said_plainly():
        content = check_evidence(path, Roster.load(roster))
    asked = ", ".join(request["action"] for request in content["requests"])
    typer.echo(f"{content['site']} halted at {content['time']} with {content['code']}: {content['detail']}")
    typer.echo(f"the site signed this file; the coordinator signed its requests ({asked})")


if __name__ == "__main__":
    main()
