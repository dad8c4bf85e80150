"""Progress of a run for a person: one live line on a terminal, a line a round in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from secure_fed.federation.config import RunConfig


class LiveProgress:
    """An observer of a run: round, AUROC, largest epsilon spent, participants, survivors, time left."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._quiet = quiet
        self._total = 0
        self._began = 0.0
        self._done_before = 0
        self._bar: Progress | None = None

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, config: RunConfig, done: int) -> None:
        """Say what is about to run, warnings first."""
        if self._quiet:
            return
        for weak in config.weaknesses():
            self._console.print(f"[bold red]warning:[/] {weak}: this run gives no guarantee, for comparison only")
        self._total, self._done_before, self._began = config.federation.rounds, done, time.monotonic()
        target = (
            f"epsilon {config.privacy.epsilon:g}, delta {config.privacy.delta:g}"
            if config.privacy.mode == "dp"
            else "no privacy"
        )
        self._console.print(
            f"{config.method.name} on {config.data.name}: {config.federation.sites} sites, "
            f"{self._total} rounds, {target}, engine {config.engine.name}"
        )
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task("", total=self._total, completed=done)
            self._bar.start()

    def round(self, line: dict[str, Any]) -> None:
        """Show a round that ended."""
        if self._quiet:
            return
        done = line["step"] + 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=_describe(line))
            return
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, done - self._done_before) * (self._total - done)
        self._console.print(f"round {done:>3}/{self._total}  {_describe(line)}  left {left:.0f} s")


def _describe(line: dict[str, Any]) -> str:
    parts = [f"{'+'.join(line['phases']):<9}"]
    if "auroc_macro" in line:
        parts.append(f"AUROC {line['auroc_macro']:.3f}")
        parts += [f"no {name} {value:.3f}" for name, value in line["auroc_macro_missing"].items()]
    if "epsilon_max" in line:
        parts.append(f"eps {line['epsilon_max']:.2f}")
    parts.append(f"sites {line['participants']}, survivors {line['survivors']}")
    return "  ".join(parts)
