"""Progress of a run for a person: a live bar over the latest figures on a terminal, a line a round in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from secure_fed.federation.config import RunConfig
from secure_fed.report.formats import plural


class LiveProgress:
    """An observer of a run: round, AUROC, largest epsilon spent, participants, survivors, time left."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._quiet = quiet
        self._total = 0
        self._began = 0.0
        self._done_before = 0
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._figures = Text()
        self._scored: dict[str, Any] = {}

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, config: RunConfig, done: int, notes: Sequence[str] = ()) -> None:
        """Say what is about to run, warnings first, and what was made of public weights (`notes`)."""
        if self._quiet:
            return
        for weak, cost in config.weaknesses().items():
            self._console.print(f"[bold red]warning:[/] {weak}: {cost}")
        rounds = config.federation.rounds
        # One more step evaluates the final model at the sites.
        self._total = rounds + (config.evaluation.name == "federated")
        self._done_before, self._began = done, time.monotonic()
        target = (
            f"epsilon {config.privacy.epsilon:g}, delta {config.privacy.delta:g}"
            if config.privacy.mode == "dp"
            else "no privacy"
        )
        self._console.print(
            f"{config.method.name} on {config.data.name}: {plural(config.federation.members, 'site')}, "
            f"{plural(rounds, 'round')}, {target}, engine {config.engine.name}"
        )
        for note in notes:
            self._console.print(note, markup=False)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._bar.add_task("", total=self._total, completed=done)
            # The figures have a line of their own: beside the bar they do not fit 80 columns.
            self._live = Live(Group(self._bar, self._figures), console=self._console)
            self._live.start()

    def round(self, line: dict[str, Any]) -> None:
        """Show a round that ended."""
        if self._quiet:
            return
        done = line["step"] + 1
        phases = "+".join(line["phases"])
        if self._bar is not None:
            # Between two evaluations the last scores stay in sight.
            self._scored |= {key: line[key] for key in ("auroc_macro", "auroc_macro_missing") if key in line}
            self._figures.plain = _figures(self._scored | line)
            self._bar.update(self._bar.task_ids[0], completed=done, description=phases)
            return
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, done - self._done_before) * (self._total - done)
        self._console.print(
            f"round {done:>3}/{self._total}  {phases:<9}  {_figures(line)}  left {left:.0f} s", markup=False
        )


def _figures(line: dict[str, Any]) -> str:
    parts = []
    if "auroc_macro" in line:
        parts.append(f"AUROC {line['auroc_macro']:.3f}")
        parts += [f"no {name} {value:.3f}" for name, value in line["auroc_macro_missing"].items()]
    for view, score in line.get("evaluation", {}).items():
        if score["macro"] is not None:
            parts.append(f"from {view} {score['macro']['auroc']:.3f}")
    if "epsilon_max" in line:
        parts.append(f"eps {line['epsilon_max']:.2f}")
    parts.append(f"sites {line['participants']}, survivors {line['survivors']}")
    return "  ".join(parts)
