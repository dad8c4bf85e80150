"""The cells of tuning=repeat_select: how many and which, from the operating system's randomness alone.

The guarantee is of the best of exactly these draws (accounting/selection.py), so they are made once, before the first
cell, and kept in the manifest. Neither their number nor anything but the best may leave the consortium.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from secure_fed.accounting import Mechanism, draw_repetitions
from secure_fed.engines.runner import federation_of
from secure_fed.engines.simulated_sites import made_up_members
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.plan import plan_for
from secure_fed.files import write_whole
from secure_fed.sweep.cells import Cell, Sweep, repeated
from secure_fed.sweep.record import CANDIDATES, CandidatePlan, Candidates, Charges, Manifest

_MOST_REPEAT = 2**31 - 1


def draw(sweep: Sweep) -> Sweep:
    """The sweep with cells drawn from its candidates, which are `sweep.cells`: as many as the law says, maybe none.

    Each draw is uniform and independent, so a candidate may come again, as a run of its own. `repeat` is random too:
    a count would tell, by a cell's id, how many were drawn. Raises ConfigError where a candidate has no guarantee.
    """
    _require_private(sweep.cells)
    law = sweep.config.repeat_select
    drawn: dict[str, Cell] = {}
    for _ in range(draw_repetitions(law.mean, law.shape)):
        candidate = secrets.choice(sweep.cells)
        cell = _another(candidate)
        while cell.row.id in drawn:
            cell = _another(candidate)
        drawn[cell.row.id] = cell
    return _with(sweep, tuple(drawn.values()))


def drawn_before(sweep: Sweep, manifest: Manifest) -> Sweep:
    """The sweep with the cells that its manifest says were drawn; raises ConfigError where one is no candidate now."""
    rows = {row.id: row for row in manifest.cells}
    cells = []
    for drawn in manifest.draws:
        row = rows.get(drawn)
        found = next((cell for cell in sweep.cells if row is not None and cell.row.factors == row.factors), None)
        again = None if found is None or row is None else repeated(found, row.repeat)
        if again is None or again.row != row:
            raise ConfigError(
                f"cell {drawn} was drawn when the sweep began and is none of its candidates now: the draws of "
                "repeat_select are never changed; begin a new sweep in another folder"
            )
        cells.append(again)
    return _with(sweep, tuple(cells))


def write_candidates(folder: Path, candidates: Sequence[Cell]) -> None:
    """Write the plan of every candidate into the sweep's folder, before the first cell: what the guarantee stands on.

    A plan follows from phases and modalities, not from the records. Raises ConfigError where one cannot be calibrated.
    """
    plans: dict[str, tuple[Charges, ...]] = {}
    found = []
    for cell in candidates:
        key = cell.config.model_copy(update={"seed": 0}).model_dump_json()
        if key not in plans:
            plans[key] = planned(cell.config)
        found.append(CandidatePlan(factors=cell.row.factors, charges=plans[key]))
    text = Candidates(plans=tuple(found)).model_dump_json(by_alias=True, indent=2)
    write_whole(folder / CANDIDATES, text + "\n")


def planned(config: RunConfig) -> tuple[Charges, ...]:
    """All that each group of sites may be charged in a run of this configuration, spare rounds included."""
    federation = federation_of(config, made_up_members(config))
    groups: defaultdict[tuple[Mechanism, ...], list[str]] = defaultdict(list)
    costs: dict[tuple[Mechanism, ...], float] = {}
    for site in federation.sites:
        plan = plan_for(federation, site)
        if plan is None:
            raise ConfigError("privacy=off has no plan: no candidate of sweep.tuning=repeat_select may have it")
        groups[plan.mechanisms].append(site.name)
        costs[plan.mechanisms] = plan.epsilon
    return tuple(
        Charges(sites=tuple(sites), epsilon=costs[mechanisms], mechanisms=mechanisms)
        for mechanisms, sites in groups.items()
    )


def _another(candidate: Cell) -> Cell:
    return repeated(candidate, 1 + secrets.randbelow(_MOST_REPEAT))


def _with(sweep: Sweep, cells: tuple[Cell, ...]) -> Sweep:
    rows = tuple(cell.row for cell in cells)
    changed = {"cells": rows, "draws": tuple(row.id for row in rows), "references": ()}
    return replace(sweep, cells=cells, manifest=sweep.manifest.model_copy(update=changed))


def _require_private(candidates: Iterable[Cell]) -> None:
    """Raise ConfigError where selection could release a run that nothing protects."""
    for cell in candidates:
        values = ", ".join(f"{name}={value}" for name, value in cell.row.factors.items())
        if cell.row.privacy == "off":
            raise ConfigError(
                f"sweep.tuning=repeat_select with privacy=off ({values}): no ε holds for the best of candidates one of "
                "which has none; leave that value out, or give sweep.tuning=composed"
            )
        if cell.config.insecure_reproducible:
            raise ConfigError(
                f"sweep.tuning=repeat_select with insecure_reproducible=true ({values}): runs whose noise comes from "
                "the seed are not independent draws; leave it out"
            )
