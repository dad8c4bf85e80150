"""Where the cells of two sweeps meet: the same kind, the same factors, the same seed, whatever each of them swept.

What only one of them varies has one value in the other, which its cells' configuration tells.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secure_fed.sweep.differences import read_config, shown, value_at
from secure_fed.sweep.record import GRID, CellResult, Scalar
from secure_fed.sweep.table import Results, in_order

SEED = "seed"


@dataclass(frozen=True)
class Setting:
    """What cells that differ by their seed only have in common."""

    kind: str
    factors: tuple[tuple[str, Scalar], ...]

    def __str__(self) -> str:
        return self._text([name for name, _ in self.factors])

    @property
    def brief(self) -> str:
        """The same, with the last part of each key only: for a picture."""
        return self._text([name.rsplit(".", 1)[-1] for name, _ in self.factors])

    def _text(self, names: Sequence[str]) -> str:
        values = [shown(value) for _, value in self.factors]
        text = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) or "all cells"
        return text if self.kind == GRID else f"{self.kind}: {text}"


Place = tuple[Setting, int]
"""A setting and a seed; what repeat_select drew more than once is one place."""


@dataclass(frozen=True)
class Scored:
    """The finished cells at one place: the mean of their scores and of what they spent."""

    score: float
    epsilon: float | None
    cell: str


def places_of(results: Results, other: Results, axes: Sequence[str]) -> dict[str, Place]:
    """Cell -> where it stands; factors are in the order of `axes`, which both sweeps are given alike.

    A factor that only the other sweep varies has the value on which all finished cells' configurations agree here;
    without one the cells meet none of the other's. Raises DataError on a damaged configuration.
    """
    kinds = {row.kind: _names(results, row.kind) for _, row in in_order(results)}
    fixed = {kind: _fixed(results, kind, _names(other, kind) - names) for kind, names in kinds.items()}
    found = {}
    for _, row in in_order(results):
        factors = {**fixed[row.kind], **row.factors}
        factors.pop(SEED, None)
        known = [name for name in axes if name in factors]
        ordered = [*known, *sorted(factors.keys() - set(known))]
        found[row.id] = (Setting(row.kind, tuple((name, factors[name]) for name in ordered)), row.seed)
    return found


def _names(results: Results, kind: str) -> set[str]:
    """The factors that tell cells of a kind apart."""
    return {name for _, row in in_order(results) if row.kind == kind for name in row.factors}


def _fixed(results: Results, kind: str, names: set[str]) -> dict[str, Scalar]:
    """Those of `names` that have one value in the configuration of every finished cell of a kind."""
    if not names - {SEED}:
        return {}
    configs = [read_config(results.folder, cell.id) for cell in results.finished if cell.kind == kind]
    found: dict[str, Scalar] = {}
    for name in names:
        values = {value_at(config, name) for config in configs if config is not None}
        if len(values) == 1 and None not in values:
            found[name] = values.pop()
    return found


def scores_of(results: Results, places: Mapping[str, Place], metric: str) -> dict[Place, Scored]:
    """Where finished cells have a score, and which."""
    cells: defaultdict[Place, list[tuple[float, CellResult]]] = defaultdict(list)
    for cell in results.finished:
        score = cell.metrics.get(metric)
        if score is not None:
            cells[places[cell.id]].append((score, cell))
    return {
        place: Scored(mean([score for score, _ in found]), _spent(cell for _, cell in found), found[0][1].id)
        for place, found in cells.items()
    }


def _spent(cells: Iterable[CellResult]) -> float | None:
    values = [cell.epsilon_spent for cell in cells]
    return None if None in values else mean([value for value in values if value is not None])


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return math.fsum(values) / len(values)
