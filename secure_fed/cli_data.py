"""The data owner's door: what lies in a folder, before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secure_fed.doors import said_plainly

if TYPE_CHECKING:
    from secure_fed.data.checking import FilmSetConfig, Progress

data = typer.Typer(name="data", no_args_is_help=True, help="Look at a data set on disk before it is used.")
_SETS = ("mimic_cxr", "open_i", "chexpert")


@data.command(
    "check",
    epilog="Examples:\n\n"
    "secure-fed data check /data/CheXpert-v1.0-small\n\n"
    "secure-fed data check /data/mimic-cxr-jpg --reports /data/mimic-cxr --all\n\n"
    "Exit codes: 0 nothing wrong, 1 problems were found, 2 not a data set.",
)
def data_check(
    path: Annotated[Path, typer.Argument(help="The folder of MIMIC-CXR-JPG, Open-I or CheXpert, as released.")],
    name: Annotated[
        str | None,
        typer.Option("--data", help=f"Which set it should be, of {', '.join(_SETS)}; told by itself without."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="mimic_cxr: the folder of MIMIC-CXR, if it is another one.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Open the images and reports of so many studies.")] = 200,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Open every image and report.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Show counts below 10, too: not for mailing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable counts.")] = False,
) -> None:
    """Count what is there and what is wrong: aggregates only, no id and no report. Exit 0, or 1 with problems."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from secure_fed.data import survey
    from secure_fed.data.checking import examine
    from secure_fed.data_tables import render_examination

    with said_plainly():
        config = _config(path, name, reports)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            found = examine(
                config, survey, sample=None if everything else sample, exact=exact, progress=_shown_by(bars)
            )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        render_examination(found, Console())
    raise typer.Exit(1 if found.problems else 0)


def _config(path: Path, name: str | None, reports: Path | None) -> FilmSetConfig:
    from secure_fed.data.checking import kind_of
    from secure_fed.data.config import ChexpertConfig, MimicCxrConfig, OpenIConfig
    from secure_fed.errors import ConfigError

    kind = name or kind_of(path)
    if kind not in _SETS:
        raise ConfigError(f"--data {kind} cannot be checked: give one of {', '.join(_SETS)}")
    if reports is not None and kind != "mimic_cxr":
        raise ConfigError(f"--reports is for mimic_cxr, and this is {kind}: leave it out")
    if kind == "mimic_cxr":
        return MimicCxrConfig(root=path, reports=reports)
    return OpenIConfig(root=path) if kind == "open_i" else ChexpertConfig(root=path)


def _shown_by(bars: object) -> Progress:
    """Progress as one bar for each kind of work, drawn now and then."""
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    assert isinstance(bars, Bars)  # noqa: S101 - narrows what is imported lazily
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=of)
        if done % 50 == 0 or done + 1 == of:
            bars.update(tasks[what], completed=done + 1)

    return progress
