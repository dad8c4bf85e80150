"""The doors of sweeps: run or resume one, compare two, export one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_fed.doors import said_plainly


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        context_settings={"ignore_unknown_options": True},
        options_metavar="[--json] [--dry-run] [--cfg job]",
        epilog="Examples:\n\n"
        "secure-fed sweep                                    what epsilon costs, and whether imputation helps\n\n"
        "secure-fed sweep --dry-run                          list the cells\n\n"
        "secure-fed sweep sweep=clipping privacy.epsilon=1,8 seed='range(0,5)'\n\n"
        "secure-fed sweep sweep.dir=sweeps/mine method=zero_fill,fin sweep.tuning=composed\n\n"
        "secure-fed sweep experiment=physionet2012 data.root=PATH launcher.workers=2\n\n"
        "secure-fed sweep sweep/search=tpe privacy.max_grad_norm='tag(log,interval(0.1,10))'\n\n"
        "secure-fed sweep resume=sweeps/mine                 go on: finished cells are not run again",
    )(sweep)
    app.command(
        options_metavar="[--json]",
        epilog="Examples:\n\n"
        "secure-fed compare sweeps/before sweeps/after --page difference.html\n\n"
        "secure-fed compare runs/zero_fill runs/fin --page methods.html\n\n"
        "secure-fed compare sweeps/mine/cells/*              the cells of a sweep are runs, too",
    )(compare)
    app.command(epilog="Example: secure-fed export sweeps/mine --mlflow http://localhost:5000")(export)


def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE[,VALUE]...]...",
            help="sweep=NAME, sweep.*, launcher=processes|ray, launcher.*; any value of a run, several at once.",
        ),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object for each cell, and one for the sweep.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the cells.")] = False,
    cfg: Annotated[str | None, typer.Option("--cfg", metavar="job", help="Show the sweep's configuration.")] = None,
) -> None:
    """Run a grid or a search of runs in parallel, resumable, and draw what came out. Exit 1 where cells are broken."""
    with said_plainly():
        from secure_fed.errors import ConfigError
        from secure_fed.sweeping import sweep_command

        if cfg not in (None, "job"):
            raise ConfigError(f"--cfg {cfg} is unknown: give --cfg job")
        code = sweep_command(overrides or [], as_json=as_json, dry_run=dry_run, show=cfg is not None)
    raise typer.Exit(code)


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Two sweeps' folders, or two or more runs'.")
    ],
    metric: Annotated[
        str | None, typer.Option(help="Of sweeps: compare by this score; without, by their objective.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the comparison as a page, too.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable comparison.")] = False,
) -> None:
    """What changed between two sweeps, or runs side by side: scores, imputation and cost, in pairs over seeds."""
    with said_plainly():
        from secure_fed.sweep.comparing import compare_command

        compare_command(folders, metric, page, as_json=as_json)


def export(
    folder: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's folder.")],
    mlflow: Annotated[
        str, typer.Option(help="MLflow's tracking URI: a server, or a local database as sqlite:///FILE.db.")
    ],
    experiment: Annotated[str | None, typer.Option(help="MLflow's experiment; without, the sweep's name.")] = None,
) -> None:
    """Export a sweep to MLflow: a run for it and one for each cell, never keys or private files."""
    with said_plainly():
        from secure_fed.sweep.mlflow_export import export as export_sweep
        from secure_fed.sweep.mlflow_export import without_password

        count = export_sweep(folder, mlflow, experiment)
    typer.echo(f"{count} cells of {folder} are in {without_password(mlflow)}")


def rewrite_sweep(folder: Path, *, alone: bool) -> None:
    """What `report` does with a sweep's folder: its tables and page anew, from its cells; `alone`: without options."""
    with said_plainly():
        if not alone:
            from secure_fed.errors import ConfigError

            raise ConfigError(
                f"{folder} is a sweep, whose report takes no options: leave them out, or name a cell's run"
            )
        from secure_fed.sweep.rewriting import report_command

        typer.echo(f"page: {report_command(folder)}")
