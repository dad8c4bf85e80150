"""The `run` command behind its door: Hydra's own flags to Hydra, one run to the runner, progress to a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from secure_fed.config import compose_config, config_dir, freeze
from secure_fed.errors import ConfigError, SecureFedError
from secure_fed.progress import LiveProgress


def run_command(arguments: Sequence[str], as_json: bool) -> int:
    """Run, resume, or let Hydra show or sweep; returns the exit code."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    flags = [argument for argument in arguments if argument.startswith("-")]
    resumed = [item.split("=", 1)[1] for item in overrides if item.startswith("resume=")]
    if resumed:
        if len(overrides) > 1 or flags:
            raise ConfigError(
                f"resume={resumed[0]} continues a run as it was configured; it takes nothing else, "
                f"and was given {' '.join([*flags, *overrides])}"
            )
        return _go_on(Path(resumed[0]), as_json)
    # Composed once beforehand: Hydra's own errors name neither the nearest key nor the way out.
    if not any(flag in {"--help", "-h", "--hydra-help", "--multirun", "-m"} for flag in flags):
        compose_config(overrides)
    return _through_hydra(list(arguments), as_json)


def _through_hydra(arguments: list[str], as_json: bool) -> int:
    codes: list[int] = []

    @hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
    def job(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            codes.append(_run(config, folder, as_json))
        except SecureFedError as error:
            # Inside Hydra an exception would come out as its traceback.
            Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {error}", style="red")
            codes.append(error.exit_code)
            _remove_if_empty(folder)
        except KeyboardInterrupt:
            Console(stderr=True, soft_wrap=True, markup=False).print(
                f"interrupted: the ledgers stand; continue with: secure-fed run resume={folder}", style="yellow"
            )
            codes.append(130)

    saved = sys.argv
    sys.argv = ["secure-fed run", *_with_run_dir(arguments)]
    try:
        job()
    finally:
        sys.argv = saved
    return max(codes, default=0)


def _with_run_dir(arguments: list[str]) -> list[str]:
    """`run_dir=X` as Hydra's own run folder; in a sweep the cells' parent."""
    given = [item.split("=", 1)[1] for item in arguments if item.startswith("run_dir=")]
    if not given:
        return arguments
    key = "hydra.sweep.dir" if {"--multirun", "-m"} & set(arguments) else "hydra.run.dir"
    kept = [item for item in arguments if not item.startswith("run_dir=")]
    return [*kept, f"{key}={given[-1]}"]


def _run(config: DictConfig, folder: Path, as_json: bool) -> int:
    from secure_fed.engines.runner import start

    with LiveProgress(quiet=as_json) as progress:
        start(freeze(config, folder), progress)
    return _finish(folder, as_json)


def _go_on(folder: Path, as_json: bool) -> int:
    from secure_fed.engines.runner import resume

    try:
        with LiveProgress(quiet=as_json) as progress:
            resume(folder, progress)
    except KeyboardInterrupt:
        Console(stderr=True, soft_wrap=True, markup=False).print(
            f"interrupted: the ledgers stand; continue with: secure-fed run resume={folder}", style="yellow"
        )
        return 130
    return _finish(folder, as_json)


def _finish(folder: Path, as_json: bool) -> int:
    from secure_fed.report import headline

    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(summary))  # noqa: T201 - the command's output
    else:
        console = Console()
        console.print(headline(summary))
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    print(f"run: {folder}")  # noqa: T201 - the last line, for scripts
    return 0


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the folder before the run is checked; an error should leave nothing behind."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
