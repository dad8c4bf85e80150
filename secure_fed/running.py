"""The `run` command behind its door: Hydra's own flags to Hydra, one run to the runner, progress to a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from secure_fed.config import compose_config, config_dir, freeze
from secure_fed.errors import ConfigError, SecureFedError
from secure_fed.progress import LiveProgress

INTERRUPTED = 130
"""The exit code of a run that was stopped with Ctrl-C."""

_SWEEP = {"--multirun", "-m"}
_FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp", "--config-name", "-cn"}
_FLAGS_WITH_VALUE |= {"--config-dir", "-cd", "--experimental-rerun"}


def run_command(arguments: Sequence[str], as_json: bool) -> int:
    """Run, resume, or let Hydra show or sweep; returns the exit code."""
    overrides, flags = _split(arguments)
    resumed = [item.split("=", 1)[1] for item in overrides if item.startswith("resume=")]
    if resumed and resumed[-1] != "null":
        if len(overrides) > 1 or flags:
            raise ConfigError(
                f"resume={resumed[-1]} continues a run as it was configured and takes nothing else; it was given "
                f"{' '.join(arguments)}"
            )
        return _go_on(Path(resumed[-1]).absolute(), as_json)
    sweep = bool(_SWEEP & set(flags))
    # Composed once beforehand: Hydra's own errors name neither the nearest key nor the way out.
    for combination in _combinations(overrides) if sweep else [overrides]:
        compose_config(combination)
    # Hydra's parser wants the overrides in one piece.
    return _through_hydra([*(_with_sweep_dir(overrides) if sweep else overrides), *flags], as_json)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and Hydra's own flags with their values."""
    overrides: list[str] = []
    flags: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_flag = argument.startswith("-") or before in _FLAGS_WITH_VALUE
        (flags if is_flag else overrides).append(argument)
    return overrides, flags


def _combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Overrides such that each value of each swept key occurs in one of them."""
    parser = OverridesParser.create()
    choices: list[list[str]] = []
    for item in overrides:
        try:
            parsed = parser.parse_override(item)
        except HydraException:
            choices.append([item])  # composing it says what is wrong
            continue
        values = parsed.sweep_string_iterator() if parsed.is_discrete_sweep() else [None]
        choices.append([item if value is None else f"{parsed.get_key_element()}={value}" for value in values])
    count = max(map(len, choices), default=1)
    return [[options[n % len(options)] for options in choices] for n in range(count)]


def _through_hydra(arguments: list[str], as_json: bool) -> int:
    codes: list[int] = []

    @hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
    def job(config: DictConfig) -> None:
        swept = HydraConfig.get().mode == RunMode.MULTIRUN
        folder = Path(HydraConfig.get().runtime.output_dir) if swept else Path(str(config.run_dir)).absolute()
        try:
            codes.append(_run(config, folder, as_json))
        except SecureFedError as error:
            # Inside Hydra an exception would come out as its traceback.
            _say(f"error: {error}", "red")
            codes.append(error.exit_code)
            _remove_if_empty(folder)
        except KeyboardInterrupt:
            codes.append(_interrupted(folder))
            if swept:
                raise

    saved = sys.argv
    sys.argv = ["secure-fed run", *arguments]
    try:
        job()
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    finally:
        sys.argv = saved
    return max(codes, default=0)


def _with_sweep_dir(overrides: list[str]) -> list[str]:
    """In a sweep `run_dir=X` is the cells' parent."""
    given = [item.split("=", 1)[1] for item in overrides if item.startswith("run_dir=")]
    if given and Path(given[-1]).is_file():
        raise ConfigError(f"run_dir={given[-1]} is a file; give a folder that does not exist yet")
    return [
        item.replace("run_dir=", "hydra.sweep.dir=", 1) if item.startswith("run_dir=") else item for item in overrides
    ]


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
        return _interrupted(folder)
    return _finish(folder, as_json)


def _interrupted(folder: Path) -> int:
    begun = (folder / "config.yaml").is_file()
    way_on = f"continue with: secure-fed run resume={folder}" if begun else "nothing had begun"
    _say(f"interrupted: the ledgers stand; {way_on}" if begun else f"interrupted: {way_on}", "yellow")
    return INTERRUPTED


def _finish(folder: Path, as_json: bool) -> int:
    from secure_fed.report import headline

    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if as_json:
        # One object a run and no other word: a sweep's output is JSON Lines.
        print(json.dumps({**summary, "run_dir": str(folder)}))  # noqa: T201 - the command's output
        return 0
    console = Console()
    console.print(headline(summary))
    for what, name in (("report", "report.html"), ("epsilon report", "epsilon_report.html")):
        console.print(f"{what}: {folder / name}", soft_wrap=True, highlight=False, markup=False)
    print(f"run: {folder}")  # noqa: T201 - the last line, for scripts
    return 0


def _say(message: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message, style=style)


def _remove_if_empty(folder: Path) -> None:
    """In a sweep Hydra makes a cell's folder before the run is checked; an error should leave nothing in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
