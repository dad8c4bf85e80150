"""Where each cell stands on the page: groups of cells that differ by seed only, their intervals, and all of it as JSON.

Every number is computed here; the page's script only draws. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from pydantic import JsonValue

from secure_fed.report import formats
from secure_fed.sweep.metrics import MACRO, MISSING, name_of, note_of
from secure_fed.sweep.record import GRID, CellResult, CellRow, Manifest, Scalar
from secure_fed.sweep.statistics import Interval, mean_interval
from secure_fed.sweep.table import Results

SEED, EPSILON = "seed", "privacy.epsilon"
_SHORT = {EPSILON: "ε", "privacy.mode": "privacy", "secagg": "secure aggregation", "secagg.mode": "secure aggregation"}
_KINDS = {"non_private": ("without privacy", "∞", "no privacy"), "single_site": ("a site alone", "alone", "one site")}
"""Kind -> how a sentence names it, the sign at its column, and a brief name below that."""
ONLY = "this configuration"
"""The single place on an x axis where nothing but the seed was swept."""


@dataclass(frozen=True)
class Layout:
    """Which factors the picture shows where. `places`: values of `panels`, one tuple a panel; a factor None is absent.

    joined: whether means are joined by lines and bands: along numbers of a grid, where what lies between has a meaning.
    """

    x: str | None
    xs: tuple[Scalar, ...]
    series: str | None
    lines: tuple[Scalar, ...]
    panels: tuple[str, ...]
    places: tuple[tuple[Scalar, ...], ...]
    numeric: bool
    log: bool
    joined: bool


@dataclass(frozen=True)
class Group:
    """Finished cells with the same factors but for the seed; x, series, panels are indices into the layout.

    x None: a reference that does not vary along x. series None: it belongs to no line. panels: where it is drawn.
    """

    kind: str
    factors: Mapping[str, Scalar]
    x: int | None
    series: int | None
    panels: tuple[int, ...]
    cells: tuple[CellResult, ...]

    def scores(self, metric: str) -> dict[Hashable, float]:
        """(seed, repeat) -> the metric, where the cell has it: what is paired shares that key."""
        values: dict[Hashable, float | None] = {
            (cell.seed, cell.repeat): cell.metrics.get(metric) for cell in self.cells
        }
        return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}

    def interval(self, metric: str, confidence: float) -> Interval | None:
        """The mean over its cells; None where none has the metric."""
        scores = self.scores(metric)
        return mean_interval(list(scores.values()), confidence) if scores else None


@dataclass(frozen=True)
class Frontier:
    """The picture: its layout, the grid's groups along each line, and the references'."""

    layout: Layout
    grid: tuple[Group, ...]
    references: tuple[Group, ...]

    def at(self, panel: int, x: int) -> list[Group]:
        """The groups that compete at one place."""
        return [group for group in self.grid if group.x == x and panel in group.panels]

    def reference(self, kind: str, group: Group) -> Group | None:
        """The reference of that kind which has the group's factors, as far as it varies."""
        agreeing = (
            other
            for other in self.references
            if other.kind == kind and all(group.factors.get(name) == value for name, value in other.factors.items())
        )
        return next(agreeing, None)


def frontier(results: Results) -> Frontier:
    """Group the finished cells and place them."""
    layout = _layout(results)
    grouped: dict[tuple[object, ...], list[CellResult]] = {}
    for cell in results.finished:
        grouped.setdefault((cell.kind, *sorted(_without_seed(cell).items())), []).append(cell)
    groups = [_group(cells, layout) for cells in grouped.values()]
    groups.sort(key=lambda group: (group.kind, group.panels, _first(group.series), _first(group.x)))
    grid = tuple(group for group in groups if group.kind == GRID)
    return Frontier(layout, grid, tuple(group for group in groups if group.kind != GRID))


def _first(index: int | None) -> int:
    return -1 if index is None else index


def _without_seed(cell: CellRow) -> dict[str, Scalar]:
    return {name: value for name, value in cell.factors.items() if name != SEED}


def _group(cells: Sequence[CellResult], layout: Layout) -> Group:
    factors, kind = _without_seed(cells[0]), cells[0].kind

    def index(name: str | None, values: Sequence[Scalar]) -> int | None:
        return values.index(factors[name]) if name is not None and name in factors else None

    x = 0 if layout.x is None and kind == GRID else index(layout.x, layout.xs)
    shown = [name for name in layout.panels if name in factors]
    panels = tuple(
        number
        for number, place in enumerate(layout.places)
        if all(factors[name] == place[layout.panels.index(name)] for name in shown)
    )
    return Group(kind, factors, x, index(layout.series, layout.lines), panels, tuple(cells))


def _layout(results: Results) -> Layout:
    manifest = results.manifest
    rows = [*manifest.cells, *results.finished, *results.broken]
    values = _values(manifest, rows)
    page, search = manifest.page, manifest.search_trials is not None
    asked = {page.series, page.panels}
    free = [name for name in values if name not in asked]
    ranked = [*filter(lambda name: is_numeric(values[name]), free), *free, page.series, page.panels]
    x = page.x if page.x in values else next((name for name in ranked if name in values), None)
    series = page.series if page.series in values and page.series != x else None
    # Whatever else was swept gets panels of its own: a mean over it would hide what it does.
    taken = {x, series, page.panels}
    rest = [] if search else [name for name in values if name not in taken and len(values[name]) > 1]
    panels = tuple(name for name in [page.panels, *rest] if name is not None and name in values and name != x)
    occurring = dict.fromkeys(
        tuple(row.factors.get(name) for name in panels) for row in rows if row.kind == GRID and panels
    )
    places = [place for place in product(*(values[name] for name in panels)) if place in occurring]
    xs = values[x] if x is not None else (ONLY,)
    numeric = is_numeric(xs)
    return Layout(
        x=x,
        xs=xs,
        series=series,
        lines=values[series] if series is not None else (),
        panels=panels,
        places=tuple(places) or ((),),
        numeric=numeric,
        log=numeric and page.log_x and x == page.x and all(value > 0 for value in _numbers(xs)),
        joined=numeric and len(xs) > 1 and not search,
    )


def _values(manifest: Manifest, rows: Iterable[CellRow]) -> dict[str, tuple[Scalar, ...]]:
    """Swept factor -> its values that occur, numbers ascending, others as they were swept.

    A reference may stand where the grid has no cell: beside a search, or where the grid's cells are not there yet.
    """
    found: dict[str, dict[Scalar, None]] = {axis.name: {} for axis in manifest.axes if axis.name != SEED}
    for row in rows:
        for name, value in row.factors.items():
            if name != SEED:
                found.setdefault(name, {})[value] = None
    swept = {axis.name: list(axis.values) for axis in manifest.axes}

    def order(name: str, values: Iterable[Scalar]) -> tuple[Scalar, ...]:
        values = tuple(values)
        if is_numeric(values):
            return tuple(sorted(values, key=lambda value: float(value)))  # type: ignore[arg-type]
        known = swept.get(name, [])
        return tuple(sorted(values, key=lambda value: known.index(value) if value in known else len(known)))

    return {name: order(name, values) for name, values in found.items() if values}


def is_numeric(values: Sequence[Scalar]) -> bool:
    """Whether all values are finite numbers, and there is one."""
    return bool(values) and len(_numbers(values)) == len(values)


def _numbers(values: Iterable[Scalar]) -> list[float]:
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]


# -- names ---------------------------------------------------------------------------------------------------


def short(factor: str) -> str:
    """A factor's name for people: the last part of its key."""
    return _SHORT.get(factor, factor.rpartition(".")[2].replace("_", " "))


def shown(value: Scalar) -> str:
    """A factor's value as it was written."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def setting(factor: str, value: Scalar) -> str:
    """`ε = 3`, `ownership 5:1:4`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{short(factor)}{' = ' if number else ' '}{shown(value)}"


def settings(factors: Mapping[str, Scalar]) -> str:
    """All factors of a cell but the seed, in one line."""
    return ", ".join(setting(name, value) for name, value in factors.items() if name != SEED)


def place_name(layout: Layout, panel: int) -> str:
    """What a panel holds; empty where there is one only."""
    return ", ".join(setting(name, value) for name, value in zip(layout.panels, layout.places[panel], strict=True))


def choice_name(factor: str, value: Scalar) -> str:
    """A value in a sentence: with its factor, as `on` or `3` alone say nothing; a method's name is enough."""
    return shown(value) if factor == "method" else setting(factor, value)


def line_name(layout: Layout, series: int | None) -> str:
    """A line's name."""
    return "all cells" if series is None or layout.series is None else choice_name(layout.series, layout.lines[series])


def kind_name(kind: str) -> str:
    """A reference for people."""
    return _KINDS[kind][0] if kind in _KINDS else kind.replace("_", " ")


@dataclass(frozen=True)
class Metric:
    """A score that the picture can show; `main` ones get a button of their own, the others share a list."""

    key: str
    label: str
    note: str
    main: bool


def metrics(results: Results) -> list[Metric]:
    """Metrics that a finished cell has a value of: the objective first, then macro and missing, then the others."""
    found = dict.fromkeys(
        name for cell in results.finished for name, value in cell.metrics.items() if value is not None
    )
    main = {results.manifest.objective: None}
    main |= {name: None for name in found if name == MACRO or name.startswith(MISSING)}
    return [Metric(name, name_of(name), note_of(name), name in main) for name in main | dict.fromkeys(sorted(found))]


# -- JSON ----------------------------------------------------------------------------------------------------


def guaranteed(cell: CellResult) -> float | None:
    """The epsilon that a cell spent; None where nothing is guaranteed: privacy off, or noise that can be repeated."""
    return None if cell.privacy == "off" or cell.insecure_reproducible else cell.epsilon_spent


def page_json(results: Results, picture: Frontier) -> dict[str, JsonValue]:
    """All numbers of the page; cells by column, as 2,000 of them must stay small."""
    layout, manifest = picture.layout, results.manifest
    names = [metric.key for metric in metrics(results)]
    number = {cell.id: index for index, cell in enumerate(results.finished)}
    groups = [*picture.grid, *picture.references]
    kinds = dict.fromkeys(group.kind for group in picture.references)
    return {
        "schema": "secure_fed.sweep_page/1",
        "name": manifest.name,
        "confidence": percent(manifest.confidence),
        "replicate": "run" if manifest.draws else "seed",
        "axis": {
            "values": list(layout.xs) if layout.numeric else [shown(value) for value in layout.xs],
            "numeric": layout.numeric,
            "log": layout.log,
            "joined": layout.joined,
            "short": short(layout.x) if layout.x is not None else "",
            "label": axis_label(results, layout),
            "brief": axis_label(results, layout, brief=True),
        },
        "series": [line_name(layout, index) for index in range(len(layout.lines))],
        "panels": [place_name(layout, index) for index in range(len(layout.places))],
        "metrics": [{"key": metric.key, "label": metric.label} for metric in metrics(results)],
        "kinds": [_kind_json(kind, picture) for kind in kinds],
        "groups": [
            {
                "kind": group.kind,
                "series": group.series,
                "panels": list(group.panels),
                "x": group.x,
                "cells": [number[cell.id] for cell in group.cells],
                "stats": {name: _stats(group.interval(name, manifest.confidence)) for name in names},
            }
            for group in groups
        ],
        "cells": _columns(results, names),
    }


def _kind_json(kind: str, picture: Frontier) -> JsonValue:
    name, sign, brief = _KINDS.get(kind, (kind_name(kind), kind_name(kind), ""))
    column = any(group.x is None for group in picture.references if group.kind == kind)
    return {"key": kind, "label": name, "sign": sign, "brief": brief, "column": column}


def _stats(found: Interval | None) -> JsonValue:
    """[mean, low, high, number of cells, standard deviation], rounded to six digits; None where there is no score."""
    if found is None:
        return None
    return [_rounded(found.mean), _rounded(found.low), _rounded(found.high), found.n, _rounded(found.sd)]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


def _columns(results: Results, names: Sequence[str]) -> JsonValue:
    cells = results.finished
    factors = dict.fromkeys(name for cell in cells for name in cell.factors if name != SEED)
    return {
        "id": [cell.id for cell in cells],
        "kind": ["grid" if cell.kind == GRID else kind_name(cell.kind) for cell in cells],
        "method": [cell.method for cell in cells],
        "ownership": [cell.ownership for cell in cells],
        "seed": [cell.seed for cell in cells],
        "repeat": [cell.repeat for cell in cells],
        "factors": {name: [cell.factors.get(name) for cell in cells] for name in factors},
        "target": [cell.epsilon_target for cell in cells],
        "spent": [_rounded(guaranteed(cell)) for cell in cells],
        "wall": [_rounded(cell.wall_s) for cell in cells],
        "bytes": [cell.bytes_up + cell.bytes_down for cell in cells],
        "metrics": {name: [_rounded(cell.metrics.get(name)) for cell in cells] for name in names},
    }


def axis_label(results: Results, layout: Layout, *, brief: bool = False) -> str:
    """What stands below the x axis: name, delta, and that it is logarithmic."""
    if layout.x is None:
        return ""
    scale = ", log scale" if layout.log else ""
    if layout.x != EPSILON:
        return f"{short(layout.x)}{scale}"
    deltas = sorted({row.delta for row in results.manifest.cells if row.delta is not None})
    at = f", δ = {formats.listed([formats.small(delta) for delta in deltas], 'or')}" if deltas else ""
    return f"ε{at}{scale}" if brief else f"privacy budget ε of each site{at}{scale}"


def percent(confidence: float) -> float:
    """0.95 as 95, for people."""
    return round(100 * confidence, 6)


def embedded(data: JsonValue) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
