"""The doors: run, verify, report, predict. Heavy imports wait until a command needs them.

Exit codes: 0 ok, 1 the verdict is negative, 2 usage or bad input, 3 refused by policy, 4 aborted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secure_fed.cli_data import data as data_door
from secure_fed.cli_ledger import ledger
from secure_fed.cli_site import site
from secure_fed.cli_sweep import register, rewrite_sweep
from secure_fed.doors import said_plainly

if TYPE_CHECKING:
    from secure_fed.accounting import Mechanism

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

app.add_typer(site)
app.add_typer(ledger)
app.add_typer(data_door)
register(app)


def main() -> None:
    """The console script."""
    app()


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

    with said_plainly():
        code = run_command(overrides or [], as_json)
    raise typer.Exit(code)


@app.command(
    epilog="Examples:\n\n"
    "secure-fed verify runs/2026-01-31/12-00-00-fin\n\n"
    "secure-fed verify ledger.jsonl --roster roster.json --anchor anchors.jsonl\n\n"
    "secure-fed verify HOME --anchor OTHER_HOME --cross-check --json",
)
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, site homes or ledger files.")],
    roster: Annotated[Path | None, typer.Option(help="The roster, from a source other than what is verified.")] = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(
            help="What others saw of these ledgers: a file of anchors, another site's home, or a run folder. "
            "Repeatable. Without, records cut off a ledger's end are not noticed."
        ),
    ] = None,
    *,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Compare with Opacus's PRV accountant as well; needs torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable verdict.")] = False,
) -> None:
    """Recompute every epsilon from the ledgers and check chains, signatures and tails. Exit 0 or 1."""
    from rich.console import Console

    from secure_fed.ledger import render
    from secure_fed.ledger import verify as verify_ledgers

    with said_plainly():
        second = _second_accountant() if cross_check else None
        verdict = verify_ledgers(paths, roster, anchors=anchor or (), cross_check=second)
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        render(verdict, Console())
    raise typer.Exit(0 if verdict.ok else 1)


def _second_accountant() -> Callable[[Iterable[Mechanism], float], float | None]:
    try:
        from secure_fed.privacy.prv import prv_epsilon
    except ImportError as error:
        from secure_fed.errors import ConfigError

        raise ConfigError(f"--cross-check needs torch and opacus ({error}): leave it out, or install them") from error
    return prv_epsilon


@app.command(
    epilog="Examples:\n\n"
    "secure-fed report RUN                                  a run's page, model card and epsilon report\n\n"
    "secure-fed report SWEEP                                a sweep's tables and page, anew from its cells\n\n"
    "secure-fed report site01/ledger.jsonl site02/ledger.jsonl --roster roster.json --output audit",
)
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN | SWEEP | LEDGER...", help="A run's or a sweep's folder, or site homes and ledger files."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the epsilon report; without, a run's own, else the current one.")
    ] = None,
    roster: Annotated[Path | None, typer.Option(help="The roster, from a source other than what is reported.")] = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(help="What others saw of these ledgers, as for verify. Repeatable."),
    ] = None,
    audit: Annotated[Path | None, typer.Option(help="An audit's result; without, RUN/audit.json.")] = None,
    cross_check: Annotated[
        Path | None, typer.Option(help="What verify --cross-check --json printed; without, RUN/cross_check.json.")
    ] = None,
) -> None:
    """Write the epsilon report, for a run its page and model card too. Exit 1 where the ledgers do not hold."""
    if len(paths) == 1 and (paths[0] / "sweep.json").is_file():
        rewrite_sweep(paths[0], alone=not any((output, roster, anchor, audit, cross_check)))
        return
    from secure_fed.report import is_run, write_epsilon_report, write_model_card, write_report

    run = paths[0] if len(paths) == 1 and is_run(paths[0]) else None
    with said_plainly():
        written = write_epsilon_report(
            paths, output or run or Path(), roster=roster, anchors=anchor or (), audit=audit, cross_check=cross_check
        )
        typer.echo(f"epsilon report: {written.page}")
        if run is not None:
            write_model_card(run)
            typer.echo(f"report: {write_report(run)}")
    if not written.ok:
        typer.secho(f"the ledgers do not hold: {written.first_problem}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)


@app.command(
    options_metavar="[--json]",
    epilog="Examples:\n\n"
    "secure-fed plan                                     the default run\n\n"
    "secure-fed plan privacy.epsilon=3 privacy.unit=patient\n\n"
    "secure-fed plan federation.homes=homes              what homes with a past would make of it",
)
def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The overrides of the run that is planned."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable plan.")] = False,
) -> None:
    """Show what each site would spend before anything runs. Exit 3 where a home's budget does not admit it."""
    from rich.console import Console

    from secure_fed.plan_tables import render_plan
    from secure_fed.planning import plan_view

    with said_plainly():
        view = plan_view(overrides or [])
    if as_json:
        typer.echo(json.dumps(view.to_json(), indent=2))
    else:
        render_plan(view, Console())
    raise typer.Exit(3 if view.refused else 0)


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
    from secure_fed.files import require_place_for, write_whole
    from secure_fed.prediction import predict_csv

    with said_plainly():
        if output is not None:
            require_place_for(output)
        text = predict_csv(run_folder, data)
        if output is None:
            sys.stdout.write(text)
        else:
            write_whole(output, text)
            typer.echo(f"predictions: {output}", err=True)


if __name__ == "__main__":
    main()
