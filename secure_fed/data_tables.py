"""What `secure-fed data check` found, as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from secure_fed.data.checking import Examination

_MOST_PROBLEMS = 20


def render_examination(found: Examination, console: Console) -> None:
    """Totals, views, splits, sections, labels, and what is wrong."""
    console.print(_pairs(f"data={found.kind}", found.totals))
    for title, counts in (("images by view", found.views), ("studies by official split", found.splits)):
        console.print(_pairs(title, counts))
    if found.totals["reports opened"]:
        console.print(_pairs("opened reports with a section", found.sections))
    labels = Table("label", title="studies by label; positives of those known", title_justify="left")
    values = list(next(iter(found.labels.values())))
    for heading in (*values, "of known"):
        labels.add_column(heading, justify="right")
    for name, cells in found.labels.items():
        share = found.prevalence[name]
        labels.add_row(
            name,
            *(_said(cells[value]) for value in values),
            "" if share is None else f"{share:.1%}",
        )
    console.print(labels)
    for problem in found.problems[:_MOST_PROBLEMS]:
        console.print(str(problem), style="red", highlight=False, markup=False, soft_wrap=True)
    if (more := len(found.problems) - _MOST_PROBLEMS) > 0:
        console.print(f"and {more} more kinds of problems; --json lists all", style="red")
    for note in found.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if not found.problems:
        console.print("no problem found", style="green")
    if found.totals["images opened"] + found.totals["images not on disk"] < found.totals["images"]:
        console.print("not every image and report was opened: --all does", soft_wrap=True)


def _pairs(title: str, counts: Mapping[str, int | str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=len(title))
    table.add_column()
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name, _said(count))
    return table


def _said(count: int | str) -> str:
    return count if isinstance(count, str) else f"{count:,}"
