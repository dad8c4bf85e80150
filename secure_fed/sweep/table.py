"""A sweep folder as frozen values, and its results as tables: one row a cell in CSV, Parquet and JSON.

Every file is read strictly; whatever is missing or damaged is named, with the way out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from secure_fed.errors import DataError
from secure_fed.files import write_whole
from secure_fed.identity import describe
from secure_fed.sweep.record import BROKEN, CELLS, MANIFEST, RESULT, CellError, CellResult, CellRow, Manifest, Scalar

CSV, PARQUET, JSON = "sweep.csv", "sweep.parquet", "sweep_results.json"
TABLE_SCHEMA, RESULTS_SCHEMA = "secure_fed.sweep_table/1", "secure_fed.sweep_results/1"
ROW = ("id", "kind", "status", "repeat", "method", "ownership", "seed", "privacy", "secagg")
"""The first columns: what every cell has, finished or not."""
_OUTCOME = ("epsilon_target", "epsilon_spent", "delta")
_COST = ("rounds", "rounds_burned", "wall_s", "cpu_s", "peak_mib", "bytes_up", "bytes_down")
_ORIGIN = ("insecure_reproducible", "model_sha256", "data", "run", "report", "error")
_FIXED = {*ROW, *_OUTCOME, *_COST, *_ORIGIN}
_PHASE = ("epsilon", "share", "rounds", "seconds", "bytes_up")
_INTEGERS = {"repeat", "seed", "rounds", "rounds_burned", "bytes_up", "bytes_down"}
_BOOLEANS = {"insecure_reproducible"}
_FLOATS = {*_OUTCOME, "wall_s", "cpu_s", "peak_mib"}

_ANEW = "remove {file} alone and resume the sweep: the cell runs again, and what its ledgers hold still counts"
"""Never the folder by hand: its ledgers are all that is known of what the run spent."""

Kind = Literal["string", "float", "integer", "boolean"]
_R = TypeVar("_R", bound=BaseModel)


@dataclass(frozen=True)
class Results:
    """What a sweep is and what became of its cells, each in the manifest's order; `missing` have not run to an end."""

    folder: Path
    manifest: Manifest
    finished: tuple[CellResult, ...]
    broken: tuple[CellError, ...]
    missing: tuple[CellRow, ...]


def read_results(folder: Path) -> Results:
    """Read a sweep's folder, finished or not; raises DataError naming the file that is missing or damaged.

    Of a search only the first cells may stand in the manifest: the others are found by what lies in the folder.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} is not a sweep's folder: it has no {MANIFEST}. Give the folder that `secure-fed sweep` printed."
        )
    manifest = _read(folder / MANIFEST, Manifest)
    finished: list[CellResult] = []
    broken: list[CellError] = []
    missing: list[CellRow] = []
    for row in manifest.cells:
        found = _read_cell(folder / CELLS / row.id)
        _check_same(folder / CELLS / row.id, found, row)
        _sort(found, row, finished, broken, missing)
    for cell in _unlisted(folder, manifest):
        found = _read_cell(cell)
        if found is not None:
            _sort(found, found, finished, broken, missing)
    return Results(folder, manifest, tuple(finished), tuple(broken), tuple(missing))


def _sort(
    found: CellResult | CellError | None,
    row: CellRow,
    finished: list[CellResult],
    broken: list[CellError],
    missing: list[CellRow],
) -> None:
    if isinstance(found, CellResult):
        finished.append(found)
    elif isinstance(found, CellError):
        broken.append(found)
    else:
        missing.append(row)


def _read_cell(cell: Path) -> CellResult | CellError | None:
    """What became of a cell; a result counts more than an error of an earlier try."""
    if (cell / RESULT).is_file():
        return _read(cell / RESULT, CellResult)
    if (cell / BROKEN).is_file():
        return _read(cell / BROKEN, CellError)
    return None


def _check_same(cell: Path, found: CellRow | None, row: CellRow) -> None:
    """Raise DataError where a cell's own file contradicts the manifest: one of them was changed or copied."""
    if found is None:
        return
    for name in CellRow.model_fields:
        if getattr(found, name) != getattr(row, name):
            file = RESULT if isinstance(found, CellResult) else BROKEN
            raise DataError(
                f"{cell / file} has {name}={getattr(found, name)!r}, {MANIFEST} has {getattr(row, name)!r} for this "
                f"cell: one of them was changed. Restore it, or {_ANEW.format(file=file)}."
            )


def _unlisted(folder: Path, manifest: Manifest) -> list[Path]:
    """Folders of cells that the manifest does not list: a search's trials, else DataError."""
    cells, known = folder / CELLS, {row.id for row in manifest.cells}
    found = sorted(p for p in cells.iterdir() if p.is_dir() and p.name not in known) if cells.is_dir() else []
    if found and manifest.search_trials is None:
        raise DataError(f"{found[0]} is no cell of this sweep ({MANIFEST} does not list it): remove it.")
    return found


def _read(path: Path, kind: type[_R]) -> _R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged or of another version: {describe(error)}. Restore it; of a cell you may also "
            f"{_ANEW.format(file='that file')}."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


# -- tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of the table, a value or None for each cell in the order of the rows."""

    name: str
    kind: Kind
    values: tuple[Scalar, ...]


def write_tables(folder: Path) -> None:
    """Write sweep.csv, sweep.parquet and sweep_results.json from what lies in the folder, each whole or not at all.

    Raises DataError naming the file that cannot be read or written.
    """
    results = read_results(folder)
    table = columns(results)
    write_whole(folder / CSV, to_csv(table))
    _write_parquet(folder / PARQUET, table, results.manifest)
    write_whole(folder / JSON, json.dumps(to_json(results), indent=1, allow_nan=False) + "\n")


def columns(results: Results) -> tuple[Column, ...]:
    """The table: a row a cell in the manifest's order, broken and missing ones too, told apart by `status`.

    `phase.<name>.*` are a phase's costs; a factor whose name is taken by another column, with other values, is called
    `factor.<name>`.
    """
    rows = _rows(results)
    factors = _factor_names(results, rows)
    metrics = _first_seen(cell.metrics for cell in results.finished)
    phases = _first_seen({phase.phase: None for phase in cell.phases} for cell in results.finished)
    phase_columns = [f"phase.{phase}.{cost}" for phase in phases for cost in _PHASE]
    names = [*ROW, *factors, *metrics, *_OUTCOME, *phase_columns, *_COST, *_ORIGIN]
    return tuple(_column(name, [row.get(name) for row in rows], name in factors) for name in dict.fromkeys(names))


def to_csv(table: Sequence[Column]) -> str:
    """RFC 4180, but for its line ends: text is always in quotes, so `"1"` and `"true"` are text; None is empty.

    Floats are written so that they read back to the last bit.
    """
    lines = [",".join(_quoted(column.name) for column in table)]
    lines += [",".join(map(_written, values)) for values in zip(*(column.values for column in table), strict=True)]
    return "\n".join(lines) + "\n"


def to_json(results: Results) -> dict[str, object]:
    """The sweep with all that its cells' files say, but for tracebacks: those name folders of this machine."""
    sweep = results.manifest.model_dump(mode="json", by_alias=True, exclude={"cells"})
    cells = [_as_json(cell, status) for status, cell in in_order(results)]
    return {"schema": RESULTS_SCHEMA, "sweep": sweep, "cells": cells}


def in_order(results: Results) -> list[tuple[str, CellRow]]:
    """Every cell with its status (finished, broken, missing), in the manifest's order; a search's trials last."""
    place = {row.id: number for number, row in enumerate(results.manifest.cells)}
    cells: list[tuple[str, CellRow]] = [("finished", cell) for cell in results.finished]
    cells += [("broken", cell) for cell in results.broken]
    cells += [("missing", cell) for cell in results.missing]
    return sorted(cells, key=lambda pair: (place.get(pair[1].id, len(place)), pair[1].id))


def _as_json(cell: CellRow, status: str) -> dict[str, object]:
    return {"status": status, **cell.model_dump(mode="json", exclude={"schema_", "traceback"})}


def _rows(results: Results) -> list[dict[str, Scalar]]:
    rows = []
    for status, cell in in_order(results):
        fixed = {name: getattr(cell, name) for name in (*ROW, "epsilon_target", "delta") if name != "status"}
        row: dict[str, Scalar] = {f"factor.{name}": value for name, value in cell.factors.items()}
        row |= {name: value for name, value in cell.factors.items() if name not in _FIXED}
        row |= fixed | {"status": status}
        if isinstance(cell, CellResult):
            row |= cell.metrics | {name: getattr(cell, name) for name in ("epsilon_spent", *_COST)}
            row |= {name: getattr(cell, name) for name in _ORIGIN if name not in ("report", "error")}
            for phase in cell.phases:
                row |= {f"phase.{phase.phase}.{cost}": getattr(phase, cost) for cost in _PHASE}
            row["report"] = f"{CELLS}/{cell.id}/report.html"
        elif isinstance(cell, CellError):
            row["error"] = " ".join(f"{cell.error}: {cell.message}".split())
        rows.append(row)
    return rows


def _factor_names(results: Results, rows: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Columns of the factors, the manifest's axes first."""
    names = {axis.name: None for axis in results.manifest.axes}
    names |= _first_seen(cell.factors for _, cell in in_order(results))
    found = []
    for name in names:
        if name not in _FIXED:
            found.append(name)
        elif any(row.get(f"factor.{name}") not in (None, row.get(name)) for row in rows):
            found.append(f"factor.{name}")
    return found


def _first_seen(mappings: Iterable[Mapping[str, object]]) -> dict[str, None]:
    return dict.fromkeys(name for mapping in mappings for name in mapping)


def _column(name: str, values: Sequence[Scalar], factor: bool) -> Column:
    kind = _factor_kind(values) if factor else _fixed_kind(name)
    return Column(name, kind, tuple(None if value is None else _cast(value, kind) for value in values))


def _fixed_kind(name: str) -> Kind:
    field = name.rsplit(".", 1)[-1] if name.startswith("phase.") else name
    if field in _BOOLEANS:
        return "boolean"
    if field in _INTEGERS:
        return "integer"
    texts = {*ROW, *_ORIGIN} - _INTEGERS
    return "string" if field in texts else "float"  # all metrics are floats


def _factor_kind(values: Sequence[Scalar]) -> Kind:
    """One type for all of a factor's values: text where they have no other in common."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "integer"
    return "float" if kinds and kinds <= {int, float} else "string"


def _cast(value: str | int | float | bool, kind: Kind) -> Scalar:
    if kind == "float":
        return float(value)
    return str(value) if kind == "string" else value


def _written(value: Scalar) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _write_parquet(path: Path, table: Sequence[Column], manifest: Manifest) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "string": pa.dictionary(pa.int32(), pa.string()),
        "float": pa.float64(),
        "integer": pa.int64(),
        "boolean": pa.bool_(),
    }
    about = {"schema": TABLE_SCHEMA, "name": manifest.name, "code": manifest.code}
    schema = pa.schema(
        [(column.name, types[column.kind]) for column in table],
        metadata={f"secure_fed.{key}": value for key, value in about.items()},
    )
    arrow = pa.table([pa.array(column.values, types[column.kind]) for column in table], schema=schema)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
            whole = Path(aside) / path.name
            pq.write_table(arrow, whole)
            whole.chmod(0o644)
            whole.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Make room and the folder writable.") from error
