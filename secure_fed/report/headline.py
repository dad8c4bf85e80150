"""The numbers at the end of `secure-fed run`, as something rich can print."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secure_fed.report import assessment, evaluation, formats
from secure_fed.report.notices import standing_warnings
from secure_fed.report.run_folder import Summary, parse_summary


def headline(summary: Mapping[str, object]) -> RenderableType:
    """Warnings, then figures, from the values of `summary.json`; raises DataError on malformed ones."""
    facts = parse_summary(summary)
    return Group(*_warnings(facts), _table(facts))


def _warnings(summary: Summary) -> list[RenderableType]:
    found: list[RenderableType] = []
    for warning in standing_warnings(summary):
        style = "bold red" if warning.level == "danger" else "yellow"
        found.append(Panel(Text(warning.text), title=Text(warning.title), title_align="left", border_style=style))
    return found


def _table(summary: Summary) -> Table:
    # Text objects, not markup: a name such as "[red]" must be printed as it is.
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")

    def row(name: str, value: str, note: str = "") -> None:
        table.add_row(Text(name), Text(value), Text(note))

    found = summary.intervals
    everything = assessment.with_interval("every modality present", found.auroc_macro)
    row("AUROC, macro", formats.score(summary.auroc_macro), everything)
    for modality, value in summary.auroc_macro_missing.items():
        note = assessment.with_interval(f"{modality} missing at test", found.auroc_macro_missing.get(modality))
        row(f"  without {modality}", formats.score(value), note)
    chance = f"average precision; chance {formats.score(summary.auprc_chance)}"
    row("AUPRC, macro", formats.score(summary.auprc_macro), chance)
    for figures in evaluation.headline_rows(summary.evaluation):
        row(*figures)
    row("largest ε spent", *_spent(summary))
    survivors = [item.survivors for item in summary.secagg.rounds]
    fewest = f"fewest in a round: {min(survivors)}" if survivors else ""
    row("sites", formats.count(summary.sites), fewest)
    row("rounds", formats.count(summary.rounds), _rounds_note(summary))
    row("wall time", formats.duration(summary.wall_s), f"engine {summary.engine}")
    return table


def _spent(summary: Summary) -> tuple[str, str]:
    if summary.privacy == "off":
        return "∞", "privacy is off"
    if summary.insecure_reproducible:
        return formats.epsilon(summary.epsilon_max), "void: the noise can be repeated"
    target = "" if summary.epsilon_target is None else f"of {formats.limit(summary.epsilon_target)} "
    return formats.epsilon(summary.epsilon_max), f"{target}at δ = {formats.small(summary.delta)}"


def _rounds_note(summary: Summary) -> str:
    notes = [
        (summary.rounds_burned, "burned"),
        (summary.rounds_charged_again, "charged again after an interruption"),
        (summary.rounds_skipped, "left out for want of budget"),
    ]
    return ", ".join(f"{value} {name}" for value, name in notes if value)
