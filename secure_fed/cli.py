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


if __name__ == "__main__":
    main()
