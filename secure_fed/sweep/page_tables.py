"""The page's tables, tiles and warnings as plain rows of text, from the same groups and intervals as the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from secure_fed.report import formats
from secure_fed.sweep import page_data
from secure_fed.sweep.contrasts import Comparison, Verdict, compare, verdict
from secure_fed.sweep.metrics import note_of
from secure_fed.sweep.page_data import Frontier, Group, kind_name, line_name, place_name
from secure_fed.sweep.price import Price
from secure_fed.sweep.record import GRID, CellRow, PhaseCost, Scalar
from secure_fed.sweep.statistics import Interval, Paired, holm
from secure_fed.sweep.table import Results

SHARES = "privacy.budget_shares."
"""Swept keys that begin so split a run's budget between its phases."""
MOST_TARGETS = 6
"""Up to so many values of epsilon each gets a column in the table of phases."""

# -- at a glance -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """One comparison in one panel: for each x (difference, interval, verdict)."""

    question: str
    what: str
    place: str
    cells: tuple[tuple[str, str, Verdict], ...]


def glance_rows(picture: Frontier, told: Sequence[Comparison]) -> list[Glance]:
    """What the summary's sentences say, difference by difference."""
    return [
        Glance(
            comparison.question,
            f"{subject} − {comparison.against}",
            place_name(picture.layout, panel),
            tuple(_glance(result) for result in row),
        )
        for comparison in told
        for panel, (subject, row) in enumerate(zip(comparison.subjects, comparison.results, strict=True))
        if any(row)
    ]


def _glance(result: Paired | None) -> tuple[str, str, Verdict]:
    if result is None:
        return formats.NOTHING, "", "unknown"
    interval = "one seed" if result.low is None else _range(result.low, result.high, "+")
    return _signed(result.difference), interval, verdict(result)


def x_names(picture: Frontier) -> list[str]:
    """The headings of columns along x."""
    layout = picture.layout
    return [""] if layout.x is None else [page_data.setting(layout.x, value) for value in layout.xs]


# -- the picture's tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The best line at one place, and whether it is beyond the noise; runs: (seed, the cell's id)."""

    place: str
    x: str
    line: str
    mean: str
    interval: str
    runs: tuple[tuple[str, str], ...]
    runner_up: str
    difference: str
    p: str
    verdict: str
    beyond: bool


def best_rows(results: Results, picture: Frontier) -> list[Best]:
    """For each panel and x the best line by mean, and the paired difference to the runner-up."""
    layout, drafts = picture.layout, []
    for panel in range(len(layout.places)):
        for x in range(len(layout.xs)):
            scored = [
                (mean, group) for group in picture.at(panel, x) if (mean := _interval_of(results, group)) is not None
            ]
            if scored:
                scored.sort(key=lambda pair: -pair[0].mean)
                drafts.append((panel, scored, compare(scored[1][1], scored[0][1], results) if scored[1:] else None))
    adjusted = holm([None if result is None else result.t_p for *_, result in drafts])
    return [
        Best(
            place=place_name(layout, panel),
            x=_x(picture, scored[0][1]),
            line=line_name(layout, scored[0][1].series),
            mean=formats.score(scored[0][0].mean),
            interval=_range(scored[0][0].low, scored[0][0].high),
            runs=tuple((str(cell.seed), cell.id) for cell in scored[0][1].cells),
            runner_up=line_name(layout, scored[1][1].series) if scored[1:] else formats.NOTHING,
            difference=_difference(result),
            p=formats.NOTHING if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
            verdict=_VERDICTS[verdict(result)] if scored[1:] else "nothing to compare with",
            beyond=verdict(result) == "higher",
        )
        for (panel, scored, result), p in zip(drafts, adjusted, strict=True)
    ]


_VERDICTS: dict[Verdict, str] = {
    "higher": "beyond noise",
    "lower": "the runner-up is ahead on common seeds",
    "alike": "no visible difference",
    "unknown": "not enough common seeds",
}


@dataclass(frozen=True)
class Numbers:
    """One mark of the picture, and what it differs from the references by."""

    place: str
    line: str
    x: str
    mean: str
    interval: str
    seeds: str
    spent: str
    against: tuple[str, ...]


def references_compared(picture: Frontier) -> list[str]:
    """Kinds of references, as the columns of `number_rows` name them."""
    return [kind_name(kind) for kind in reference_kinds(picture)]


def reference_kinds(picture: Frontier) -> list[str]:
    """Kinds that a finished reference has."""
    return list(dict.fromkeys(group.kind for group in picture.references))


def number_rows(results: Results, picture: Frontier) -> list[Numbers]:
    """Every mark of the picture, the grid's first."""
    layout, rows, kinds = picture.layout, [], reference_kinds(picture)
    for group in (*picture.grid, *picture.references):
        mean, grid = _interval_of(results, group), group.kind == GRID
        if mean is None:
            continue
        line = line_name(layout, group.series) if group.series is not None or grid else ""
        rows.append(
            Numbers(
                place=place_name(layout, group.panels[0]) if len(group.panels) == 1 else "every panel",
                line=line if grid else f"{kind_name(group.kind)}{', ' + line if line else ''}",
                x=_x(picture, group),
                mean=formats.score(mean.mean),
                interval=_range(mean.low, mean.high),
                seeds=str(mean.n),
                spent=_spent(group),
                against=tuple(
                    _difference(compare(picture.reference(kind, group), group, results)) if grid else ""
                    for kind in kinds
                ),
            )
        )
    return rows


def _interval_of(results: Results, group: Group) -> Interval | None:
    return group.interval(results.manifest.objective, results.manifest.confidence)


def _x(picture: Frontier, group: Group) -> str:
    layout = picture.layout
    if group.x is None or layout.x is None:
        return formats.NOTHING
    return page_data.shown(layout.xs[group.x])


def _range(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return formats.NOTHING
    return f"{low:{sign}.3f} to {high:{sign}.3f}".replace("-", "−")


def _difference(result: Paired | None) -> str:
    if result is None:
        return formats.NOTHING
    interval = "one seed" if result.low is None else _range(result.low, result.high, "+")
    return f"{_signed(result.difference)} ({interval})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _spent(group: Group) -> str:
    values = [page_data.guaranteed(cell) for cell in group.cells]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "∞"
    low, high = formats.epsilon(min(known)), formats.epsilon(max(known))
    return low if low == high else f"{low} to {high}"


# -- phases, price, cells, setup -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseTable:
    """What each phase cost: a row a method and phase; `targets` are the columns of epsilon alone."""

    targets: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str, str, tuple[str, ...], str, str], ...]


def phase_table(results: Results) -> PhaseTable:
    """Rows (method, phase, released, rounds, share, epsilon alone for each target, seconds, bytes) over the grid."""
    cells = [cell for cell in results.finished if cell.kind == GRID]
    targets = sorted({cell.epsilon_target for cell in cells if cell.epsilon_target is not None})
    found: dict[tuple[str, str, str], list[tuple[float | None, PhaseCost]]] = {}
    for cell in cells:
        for cost in cell.phases:
            found.setdefault((_split(cell), cost.phase, cost.artefact), []).append((cell.epsilon_target, cost))
    columns = targets if len(targets) <= MOST_TARGETS else []
    rows = []
    for (method, phase, artefact), costs in found.items():
        alone = tuple(
            _spread((cost.epsilon for target, cost in costs if columns == [] or target == column), formats.epsilon)
            for column in (columns or [0.0])
        )
        rows.append(
            (
                method,
                phase,
                artefact,
                _spread((float(cost.rounds) for _, cost in costs), "{:.0f}".format),
                _spread((cost.share for _, cost in costs), lambda share: f"{100 * share:.0f} %"),
                alone,
                _mean((cost.seconds for _, cost in costs), formats.duration),
                _mean((float(cost.bytes_up) for _, cost in costs), lambda size: formats.size(round(size))),
            )
        )
    return PhaseTable(tuple(f"{target:g}" for target in columns) or ("any",), tuple(rows))


def _split(cell: CellRow) -> str:
    """The method, and how the budget was told to be split between its phases where that was swept."""
    shares = [f"{page_data.short(k)} {page_data.shown(v)}" for k, v in cell.factors.items() if k.startswith(SHARES)]
    return ", ".join([cell.method, *shares])


def _spread(values: Iterable[float | None], written: Callable[[float], str]) -> str:
    """The least and the most, or the one value that all have."""
    known = [value for value in values if value is not None]
    if not known:
        return formats.NOTHING
    low, high = written(min(known)), written(max(known))
    return low if low == high else f"{low}–{high}"


def _mean(values: Iterable[float], written: Callable[[float], str]) -> str:
    known = list(values)
    return written(sum(known) / len(known)) if known else formats.NOTHING


def price_rows(price: Price) -> list[tuple[str, str, str]]:
    """Figures (what, epsilon, by what) of what the sweep as a whole spent."""

    def figure(value: float | None) -> str:
        return "not established" if value is None else formats.epsilon(value)

    by = (price.composed_basis or "").upper()
    found = [
        ("A single run, the largest", figure(price.single), "PLD, from its own ledgers"),
        (f"All {formats.plural(price.runs, 'run')} together, naive composition", figure(price.composed), by),
    ]
    if price.composed_private != price.composed:
        found[-1] = (*found[-1][:2], "runs without a guarantee among them")
        what = f"The {formats.plural(price.runs_private, 'run')} with privacy together, naive composition"
        found.append((what, figure(price.composed_private), by))
    law = {0.0: "logarithmic", 1.0: "geometric", math.inf: "Poisson"}.get(
        price.repeat_select_shape, f"truncated negative binomial, shape {price.repeat_select_shape:g}"
    )
    what = f"The best of a random number of runs ({law}, {price.repeat_select_mean:g} on average)"
    holds = "holds for this sweep" if price.repeat_select_holds else "does not hold for this sweep"
    return [*found, (what, figure(price.repeat_select), f"RDP only, there is no PLD for it; {holds}")]


def cell_name(row: CellRow) -> str:
    """A cell for people: its kind where it is a reference, its factors and seed."""
    kind = "" if row.kind == GRID else f"{kind_name(row.kind)}: "
    repeat = f", repeat {row.repeat}" if row.repeat else ""
    return f"{kind}{page_data.settings(row.factors) or row.method}, seed {row.seed}{repeat}"


def cell_columns(results: Results, picture: Frontier) -> list[tuple[str, str, bool]]:
    """Columns (key in the page's JSON, heading, whether it holds numbers) of the table of all cells."""
    swept = dict.fromkeys(name for cell in results.finished for name in cell.factors if name != page_data.SEED)
    factors = [
        (name, page_data.short(name), page_data.is_numeric([value])) for name, value in _examples(results, swept)
    ]
    return [
        ("id", "cell", False),
        ("kind", "kind", False),
        *factors,
        ("seed", "seed", True),
        *((metric.key, metric.label, True) for metric in page_data.metrics(results) if metric.main),
        ("spent", "ε spent", True),
        ("wall", "seconds", True),
        ("bytes", "MB", True),
    ]


def _examples(results: Results, names: Iterable[str]) -> list[tuple[str, Scalar]]:
    return [(name, next(c.factors[name] for c in results.finished if name in c.factors)) for name in names]


def setup_rows(results: Results) -> list[tuple[str, str]]:
    """How the sweep was run: (name, value)."""
    manifest = results.manifest
    axes = [f"{axis.name} = {', '.join(map(page_data.shown, axis.values))}" for axis in manifest.axes]
    rows = [
        ("Base", " ".join(manifest.base)),
        *((f"Axis {number}", axis) for number, axis in enumerate(axes, 1)),
        ("References", formats.listed([kind_name(kind) for kind in manifest.references]) or "none"),
        ("Objective", f"{manifest.objective}: {note_of(manifest.objective)}"),
        ("Confidence of intervals", f"{page_data.percent(manifest.confidence):g} %"),
        ("Tuning", manifest.tuning),
        ("Data", manifest.data),
        ("Code", manifest.code),
        *manifest.versions.items(),
    ]
    if manifest.search_trials is not None:
        rows.insert(2, ("Search", f"{formats.plural(manifest.search_trials, 'trial')} by Optuna"))
    return rows
