"""The `compare` command behind its door: sweeps or runs, told by what lies in their folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from secure_fed.errors import ConfigError, DataError
from secure_fed.files import require_place_for
from secure_fed.report import is_run
from secure_fed.report.formats import listed
from secure_fed.sweep import comparison, run_comparison, run_comparison_page, run_comparison_text
from secure_fed.sweep.record import MANIFEST

Kind = Literal["sweep", "run"]


def compare_command(folders: Sequence[Path], metric: str | None, page: Path | None, *, as_json: bool) -> None:
    """Compare two sweeps, or two runs or more, and print what came out, as JSON with `as_json`.

    Raises ConfigError for folders of both kinds, another number of sweeps than two, or a metric of runs; DataError for
    a folder that is neither, or damaged, or where there is no place for the page.
    """
    if page is not None:
        require_place_for(page)
    kinds = {folder: kind_of(folder) for folder in folders}
    if len(set(kinds.values())) > 1:
        sweeps = listed([str(folder) for folder, kind in kinds.items() if kind == "sweep"])
        runs = listed([str(folder) for folder, kind in kinds.items() if kind == "run"])
        raise ConfigError(
            f"{sweeps} and {runs} are sweeps and runs: compare two sweeps, or runs with runs. A sweep's cells are "
            "runs: SWEEP/cells/*"
        )
    if set(kinds.values()) == {"sweep"}:
        _sweeps(folders, metric, page, as_json)
    else:
        _runs(folders, metric, page, as_json)


def kind_of(folder: Path) -> Kind:
    """What lies there; raises DataError where it is neither a sweep nor a run."""
    if (folder / MANIFEST).is_file():
        return "sweep"
    if is_run(folder):
        return "run"
    raise DataError(
        f"{folder} is neither a sweep's folder (it has no {MANIFEST}) nor a run's (it has no config.yaml). Give "
        "folders that `secure-fed sweep` or `secure-fed run` printed last."
    )


def _sweeps(folders: Sequence[Path], metric: str | None, page: Path | None, as_json: bool) -> None:
    if len(folders) != 2:
        raise ConfigError(f"{len(folders)} sweeps were given: compare two, the earlier one first")
    before, after = folders
    found = comparison.compare(before, after, metric)
    if as_json:
        _print(comparison.to_json(found))
    else:
        comparison.render(found, Console())
    if page is not None:
        _say(comparison.write_page(found, page), as_json)


def _runs(folders: Sequence[Path], metric: str | None, page: Path | None, as_json: bool) -> None:
    if metric is not None:
        raise ConfigError(f"--metric {metric} is for sweeps; a comparison of runs has every score: leave it out")
    found = run_comparison.compare_runs(folders)
    if as_json:
        _print(run_comparison_text.to_json(found))
    else:
        run_comparison_text.render(found, Console())
    if page is not None:
        _say(run_comparison_page.write_page(found, page), as_json)


def _print(value: dict[str, object]) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201 - the command's output


def _say(page: Path, as_json: bool) -> None:
    print(f"page: {page}", file=sys.stderr if as_json else sys.stdout)
