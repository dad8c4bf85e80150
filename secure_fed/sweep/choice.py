"""Which models a sweep chooses, and the statement in their reports of what choosing them cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from secure_fed.files import write_whole
from secure_fed.report import write_epsilon_report, write_model_card, write_report
from secure_fed.report.tuning import TUNING, Tuning
from secure_fed.sweep.price import Price, is_complete
from secure_fed.sweep.record import CELLS, GRID, CellResult
from secure_fed.sweep.table import Results


def chosen(results: Results) -> tuple[CellResult, ...]:
    """The cells whose model a reader would take: the best private one of the grid for each value of the page's x axis.

    Of a search the best of all, of whose trials each may have an x of its own; with repeat_select too, and only once
    every draw has finished. A cell without a score is never chosen.
    """
    manifest = results.manifest
    scored = [cell for cell in results.finished if _may_be_chosen(cell, manifest.objective)]
    if manifest.tuning == "repeat_select":
        return (_best(scored, manifest.objective),) if scored and is_complete(results) else ()
    by_x: defaultdict[object, list[CellResult]] = defaultdict(list)
    for cell in scored:
        by_x[None if manifest.search_trials is not None else cell.factors.get(manifest.page.x)].append(cell)
    return tuple(_best(cells, manifest.objective) for cells in by_x.values())


def write_tuning(results: Results, price: Price) -> tuple[Path, ...]:
    """Say in the chosen cells' folders what the choice cost, and write their reports anew; returns the files.

    What an earlier choice left in other cells is taken away. Raises DataError where a folder cannot be written.
    """
    picked = [cell.id for cell in chosen(results)]
    for stale in sorted((results.folder / CELLS).glob(f"*/{TUNING}")):
        if stale.parent.name not in picked:
            stale.unlink()
            _report_anew(stale.parent)
    text = tuning_of(results, price).model_dump_json(by_alias=True, indent=2) + "\n" if picked else ""
    written = []
    for cell in picked:
        written.append(write_whole(results.folder / CELLS / cell / TUNING, text))
        _report_anew(results.folder / CELLS / cell)
    return tuple(written)


def tuning_of(results: Results, price: Price) -> Tuning:
    """What a chosen model's report says of its choice. Of repeat_select it tells the law, never the number."""
    manifest = results.manifest
    random = manifest.tuning == "repeat_select"
    finite = price.carried is not None and math.isfinite(price.carried)
    shape = manifest.repeat_select.shape
    notes = {"public": (), "composed": (price.composed_note,), "repeat_select": (price.repeat_select_note,)}
    return Tuning(
        sweep=manifest.name,
        mode=manifest.tuning,
        runs=None if random else price.runs,
        mean=manifest.repeat_select.mean if random else None,
        shape=shape if random and math.isfinite(shape) else None,
        epsilon=price.carried if finite else None,
        bounded=None if price.carried is None else finite,
        delta=price.delta,
        basis=price.carried_basis,
        remarks=notes[manifest.tuning],
    )


def _may_be_chosen(cell: CellResult, objective: str) -> bool:
    return cell.kind == GRID and cell.epsilon_spent is not None and cell.metrics.get(objective) is not None


def _best(cells: Sequence[CellResult], objective: str) -> CellResult:
    """The first of those with the highest score: which one of equals is taken must not depend on anything else."""
    return max(cells, key=lambda cell: cell.metrics[objective] or 0.0)


def _report_anew(folder: Path) -> None:
    # Who keeps a sweep's results may have thrown away the run around a cell's result.
    if (folder / "summary.json").is_file():
        write_epsilon_report([folder], folder)
        write_report(folder)
        write_model_card(folder)
