"""What `results.py` reads: sweeps as studies, each a table a setting and a row a method, paired over seeds.

All figures come from the files of the sweeps' folders; nothing is averaged over settings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from secure_fed.errors import DataError
from secure_fed.report.run_folder import Summary, parse_summary
from secure_fed.sweep.differences import shown
from secure_fed.sweep.record import CELLS, CellResult, CellRow, Scalar
from secure_fed.sweep.statistics import Interval, Paired, holm, mean_interval, paired
from secure_fed.sweep.table import Results, read_results

_K = TypeVar("_K")

BASELINE = "zero_fill"
ROW_FACTOR = {"methods": None, "link": None, "paired_sites": None, "icu": None, "fin_ablation": "variant"}
"""The studies, in the order of the page, by the name in sweep.json: which factor beside the method tells rows apart."""
_NO_SETTING = {"seed", "method", "privacy.epsilon"}


@dataclass(frozen=True)
class View:
    """What a record has at test time: `metric` is the macro AUROC's name, `average_precision` the macro AUPRC's."""

    title: str
    metric: str
    average_precision: str

    @property
    def missing(self) -> str | None:
        """The modality that is taken away, None with everything present."""
        return self.metric.partition(".")[2] or None


@dataclass(frozen=True)
class Setting:
    """What the cells of a table share. `epsilon` is what a site allows; None: privacy is off."""

    factors: tuple[tuple[str, Scalar], ...]
    epsilon: float | None

    def __str__(self) -> str:
        return ", ".join((*(value for _, value in self.named), self.privacy))

    @property
    def place(self) -> str:
        """The factors alone, in words: `2:2:6 with patients 5000`."""
        return " with ".join(value for _, value in self.named)

    @property
    def privacy(self) -> str:
        """`ε = 8` or `without privacy`."""
        return privacy_of(self.epsilon)

    @property
    def named(self) -> list[tuple[str, str]]:
        """(factor's last part, its value), the ownership's value alone as it says what it is."""
        return [
            (name, shown(value) if name in ("federation.ownership", "split") else f"{_last(name)} {shown(value)}")
            for name, value in self.factors
        ]


@dataclass(frozen=True)
class Gain:
    """A row minus another over common seeds. holm_p: Student's p, adjusted within the table; None without a test."""

    paired: Paired
    holm_p: float | None


@dataclass(frozen=True)
class Row:
    """One method, or one variant of one, in a setting: its cells by seed."""

    name: str
    cells: Mapping[int, CellResult]

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> score, of the seeds that have one."""
        found = {seed: cell.metrics.get(metric) for seed, cell in self.cells.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def interval(self, metric: str, confidence: float) -> Interval | None:
        """The mean over seeds; None without a score."""
        scores = self.scores(metric)
        return mean_interval(list(scores.values()), confidence) if scores else None

    @property
    def spent(self) -> float | None:
        """The most that a cell spent; None where one has no guarantee."""
        values = [cell.epsilon_spent for cell in self.cells.values()]
        return None if None in values else max(value for value in values if value is not None)


@dataclass(frozen=True)
class Table:
    """All rows of one setting, in the sweep's order."""

    setting: Setting
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        """The row with this name."""
        return next((row for row in self.rows if row.name == name), None)

    def gains(self, metrics: Sequence[str], confidence: float) -> dict[tuple[str, str], Gain]:
        """(row, metric) -> its gain over the baseline; Holm's family is all of these. Empty without a baseline."""
        base = self.row(BASELINE)
        if base is None:
            return {}
        found: dict[tuple[str, str], Paired] = {}
        for row in self.rows:
            for metric in metrics:
                if row is not base and (result := difference(base, row, metric, confidence)) is not None:
                    found[row.name, metric] = result
        return tested(found)


def tested(found: Mapping[_K, Paired]) -> dict[_K, Gain]:
    """Each difference with its p-value, adjusted for all of them together."""
    adjusted = holm([result.t_p for result in found.values()])
    return {key: Gain(result, p) for (key, result), p in zip(found.items(), adjusted, strict=True)}


@dataclass(frozen=True)
class Study:
    """A sweep that the page knows, with its tables in the order of the sweep."""

    name: str
    results: Results
    tables: tuple[Table, ...]

    @property
    def confidence(self) -> float:
        """Of all intervals."""
        return self.results.manifest.confidence

    @property
    def views(self) -> tuple[View, ...]:
        """Everything present, then each modality missing, as the cells' metrics have them."""
        names = [name for cell in self.results.finished[:1] for name in cell.metrics]
        missing = [name.partition(".")[2] for name in names if name.startswith("auroc_macro_missing.")]
        return (
            View("both" if len(missing) == 2 else "all", "auroc_macro", "auprc_macro"),
            *(View(f"no {m}", f"auroc_macro_missing.{m}", f"auprc_macro_missing.{m}") for m in missing),
        )

    @property
    def seeds(self) -> list[int]:
        """The seeds of all cells."""
        return sorted({cell.seed for cell in self.results.finished})

    @property
    def hours(self) -> float:
        """The cells' wall time, added up."""
        return sum(cell.wall_s for cell in self.results.finished) / 3600

    @property
    def complete(self) -> bool:
        """Whether every cell has finished."""
        return not self.results.broken and not self.results.missing and bool(self.results.finished)

    def at(self, epsilon: float | None) -> list[Table]:
        """The tables with this budget."""
        return [table for table in self.tables if table.setting.epsilon == epsilon]

    @property
    def budgets(self) -> list[float | None]:
        """Without privacy first, then epsilons as the sweep names them."""
        found = list(dict.fromkeys(table.setting.epsilon for table in self.tables))
        return sorted(found, key=lambda epsilon: (epsilon is not None, -(epsilon or 0.0)))

    def summaries(self, table: Table) -> Iterator[tuple[Row, Summary]]:
        """Each row with the summary of its first cell; raises DataError where a run folder was not kept."""
        for row in table.rows:
            yield row, read_summary(self.results.folder, next(iter(row.cells.values())))


def read_studies(folders: Sequence[Path]) -> dict[str, Study]:
    """Name -> study; raises DataError on a folder that is no sweep, no known study, or the second of one name."""
    found: dict[str, Study] = {}
    for folder in folders:
        results = read_results(folder)
        name = results.manifest.name
        if name not in ROW_FACTOR:
            raise DataError(f"{folder} is the sweep {name!r}, and the page has sections for {', '.join(ROW_FACTOR)}.")
        if name in found:
            raise DataError(f"{folder} and {found[name].results.folder} are both the sweep {name!r}: give one of them.")
        found[name] = Study(name, results, _tables(results, ROW_FACTOR[name]))
    return {name: found[name] for name in ROW_FACTOR if name in found}


def _tables(results: Results, row_factor: str | None) -> tuple[Table, ...]:
    cells: defaultdict[Setting, dict[str, dict[int, CellResult]]] = defaultdict(dict)
    finished = {cell.id: cell for cell in results.finished}
    for row in results.manifest.cells:
        cell = finished.get(row.id)
        if cell is not None:
            setting = Setting(_factors(row, row_factor), row.epsilon_target)
            cells[setting].setdefault(_name(row, row_factor), {})[row.seed] = cell
    # References stand behind the grid in the manifest; the baseline is read first wherever it was run.
    return tuple(
        Table(setting, tuple(Row(name, rows[name]) for name in sorted(rows, key=lambda name: name != BASELINE)))
        for setting, rows in cells.items()
    )


def _factors(row: CellRow, row_factor: str | None) -> tuple[tuple[str, Scalar], ...]:
    return tuple((key, value) for key, value in row.factors.items() if key not in _NO_SETTING | {row_factor})


def _name(row: CellRow, row_factor: str | None) -> str:
    # A preset of a method (fin_paper) has the method's name in the row, and its own among the factors.
    value = row.factors.get(row_factor or "method")
    return row.method if value is None else shown(value)


def difference(first: Row, second: Row, metric: str, confidence: float) -> Paired | None:
    """`second - first` over the seeds that both have a score of; None where there are none."""
    return paired(first.scores(metric), second.scores(metric), confidence)


def read_summary(folder: Path, cell: CellResult) -> Summary:
    """A cell's summary.json; raises DataError where it was not kept or is damaged."""
    path = folder / CELLS / cell.id / "summary.json"
    try:
        return parse_summary(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. The page needs the cells' run folders.") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged, it is not JSON: {error}.") from error


def privacy_of(epsilon: float | None) -> str:
    """`ε = 8` or `without privacy`."""
    return "without privacy" if epsilon is None else f"ε = {epsilon:g}"


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
