"""One's own data: a CSV with a row a record: image paths, texts, numeric columns with declared ranges.

Every error names file, line, column and value. `write_manifest` exports records in exactly the layout that
`read_manifest` takes, as an example and for moving data about.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secure_fed.data.config import ImageColumn, ManifestConfig, TabularColumns, TextColumn, value_columns
from secure_fed.data.images import read_grey
from secure_fed.data.records import ModalitySpec, Records, Schema, ValueArray, blank_values
from secure_fed.errors import DataError

_Column = ImageColumn | TextColumn | TabularColumns


@dataclass(frozen=True)
class _Row:
    """One line of the CSV; `where` begins every message about it."""

    where: str
    cells: Mapping[str, str]

    def fail(self, column: str, problem: str) -> DataError:
        return DataError(f"{self.where}, column {column!r}: {problem}")


def schema_of_manifest(config: ManifestConfig) -> Schema:
    """The schema that a manifest's declaration gives, without reading the file."""
    return Schema(
        modalities=tuple(_spec(name, column) for name, column in config.modalities.items()),
        labels=config.labels,
    )


def read_manifest(
    config: ManifestConfig, *, require_labels: bool = True, key: str = "data"
) -> tuple[Records, Mapping[str, int]]:
    """Records in the order of the file, and notes of what was counted.

    With require_labels=False (prediction) the label, unit and site columns may be missing, and so may all the
    columns of a modality, which is then missing everywhere; missing labels are NaN, and `unit_ids` holds the
    record ids. `key` is where `config` stands, for messages. Raises DataError, naming file, line, column, value
    and way out.
    """
    rows = _read_rows(config, require_labels, key)
    schema = schema_of_manifest(config)
    values: dict[str, ValueArray] = {}
    presence = {}
    notes = {"records read": len(rows)}
    for spec in schema.modalities:
        column = config.modalities[spec.name]
        value, present = blank_values(spec, len(rows)), np.zeros(len(rows), dtype=bool)
        clipped = 0
        for i, row in enumerate(rows):
            if all(row.cells[name] == "" for name in value_columns(column)):
                continue
            present[i] = True
            if isinstance(column, TabularColumns):
                value[i], outside = _tabular(row, column)
                clipped += outside
            else:
                value[i] = _single(row, column, config.path.parent)
        values[spec.name], presence[spec.name] = value, present
        notes[f"records without {spec.name}"] = int((~present).sum())
        if isinstance(column, TabularColumns):
            notes[f"values of {spec.name} clipped to their declared range"] = clipped
    labels = np.array([[_label(row, name) for name in config.labels] for row in rows], dtype=np.float32)
    if require_labels:
        notes["labels left empty (unknown)"] = int(np.isnan(labels).sum())
    unit = config.unit if require_labels else config.id
    site = config.site if require_labels else None
    records = Records(
        schema=schema,
        values=values,
        presence=presence,
        labels=labels,
        unit_ids=_identifiers(rows, unit),
        groups=None if site is None else _identifiers(rows, site),
    )
    return records, notes


def manifest_for(schema: Schema, path: Path) -> ManifestConfig:
    """The manifest in which records of `schema` can be given from outside, as `write_manifest` writes them.

    Columns: id, patient, one for each image (a path) or text, one for each tabular feature (scaled to
    [-1, 1]), and the labels.
    """
    modalities: dict[str, _Column] = {}
    for spec in schema.modalities:
        if spec.kind == "image":
            modalities[spec.name] = ImageColumn(column=spec.name, height=spec.shape[1], width=spec.shape[2])
        elif spec.kind == "text":
            modalities[spec.name] = TextColumn(column=spec.name)
        else:
            ranges = dict.fromkeys(spec.features, (-1.0, 1.0))
            modalities[spec.name] = TabularColumns(columns=ranges, observed_indicators=False)
    return ManifestConfig(path=path, modalities=modalities, labels=schema.labels)


def write_manifest(records: Records, folder: Path) -> ManifestConfig:
    """Writes manifest.csv and, for images, PNG files of 8 bits under `folder`; returns what reads them back.

    Raises DataError where the folder holds a manifest already.
    """
    config = manifest_for(records.schema, folder / "manifest.csv")
    if records.groups is not None:
        config = config.model_copy(update={"site": "site"})
    folder.mkdir(parents=True, exist_ok=True)
    if config.path.exists():
        raise DataError(f"{config.path} exists already: give another folder")
    columns = [name for spec in config.modalities.values() for name in value_columns(spec)]
    header = [config.id, config.unit, *([config.site] if config.site else []), *columns, *config.labels]
    with config.path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        for i in range(len(records)):
            record_id = f"r{i:06d}"
            cells = [record_id, str(records.unit_ids[i])]
            if records.groups is not None:
                cells.append(str(records.groups[i]))
            for spec in records.schema.modalities:
                cells += _cells_of(records, spec, i, record_id, folder)
            cells += ["" if np.isnan(label) else str(int(label)) for label in records.labels[i]]
            writer.writerow(cells)
    return config


def _spec(name: str, column: _Column) -> ModalitySpec:
    if isinstance(column, ImageColumn):
        return ModalitySpec(name, "image", (1, column.height, column.width))
    if isinstance(column, TextColumn):
        return ModalitySpec(name, "text", ())
    features = tuple(column.columns)
    if column.observed_indicators:
        features = tuple(part for feature in features for part in (feature, f"{feature}_observed"))
    return ModalitySpec(name, "tabular", (len(features),), features)


def _read_rows(config: ManifestConfig, require_labels: bool, key: str) -> list[_Row]:
    text = _read_text(config.path, f"{key}.path should be a CSV file with a header line")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = [] if require_labels else _columns_left_out(config, header)
        columns = [name for spec in config.modalities.values() for name in value_columns(spec)]
        wanted = [config.id, *(name for name in columns if name not in absent)]
        if require_labels:
            wanted += [config.unit, *([config.site] if config.site else []), *config.labels]
        _require_header(config.path, header, wanted)
        rows = []
        for cells in reader:
            where = f"{config.path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: has {len(cells)} cells where the header has {len(header)}: quote cells "
                    "that hold commas or line breaks"
                )
            filled = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            rows.append(_Row(where, dict.fromkeys(absent, "") | filled))
    except csv.Error as error:
        raise DataError(f"{config.path}, line {reader.line_num}: is not CSV ({error})") from error
    if not rows:
        raise DataError(f"{config.path}: has a header and no records")
    _require_ids(rows, config, require_labels)
    return rows


def _columns_left_out(config: ManifestConfig, header: list[str]) -> list[str]:
    """The columns of modalities that a file for prediction leaves out altogether; none where it leaves out all."""
    columns = [value_columns(spec) for spec in config.modalities.values()]
    absent = [name for names in columns if not set(names) & set(header) for name in names]
    if len(absent) == sum(map(len, columns)):
        return []
    known = {config.id, config.unit, config.site, *config.labels, *(name for names in columns for name in names)}
    strangers = [name for name in header if name not in known]
    for name in absent:
        # `image_path` for `image` would otherwise become a prediction without the image, and nobody would know.
        if close := difflib.get_close_matches(name, strangers, n=1):
            raise DataError(
                f"{config.path}, line 1: has no column {name!r}, but {close[0]!r}: rename it, or drop it where "
                "the modality is missing"
            )
    return absent


def _read_text(path: Path, expected: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {expected}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {raw[error.start]:#04x} is not UTF-8: save the file as UTF-8"
        ) from error


def _require_header(path: Path, header: list[str], wanted: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: is empty: expected a header line with {', '.join(wanted[:6])} ...")
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"{path}, line 1: has no column {', '.join(map(repr, missing[:6]))}; its columns are "
            f"{', '.join(header[:20])}"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: names the column {twice[0]!r} twice: rename one")


def _require_ids(rows: list[_Row], config: ManifestConfig, require_labels: bool) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        for column in (config.id, config.unit, config.site) if require_labels else (config.id,):
            if column is not None and row.cells[column] == "":
                raise row.fail(column, "is empty: every record needs one")
        record_id = row.cells[config.id]
        if record_id in seen:
            raise row.fail(config.id, f"{record_id!r} was given before, in {seen[record_id]}: make it unique")
        seen[record_id] = row.where


def _identifiers(rows: list[_Row], column: str) -> Any:
    return np.array([row.cells[column] for row in rows], dtype=np.str_)


def _label(row: _Row, column: str) -> float:
    text = row.cells.get(column, "")
    if text == "":
        return math.nan
    if text in {"0", "0.0"}:
        return 0.0
    if text in {"1", "1.0"}:
        return 1.0
    raise row.fail(column, f"label is {text!r}: write 1, 0, or nothing where it is unknown or uncertain")


def _tabular(row: _Row, spec: TabularColumns) -> tuple[list[float], int]:
    """Scaled features of one record, and how many lay outside their declared range."""
    features: list[float] = []
    outside = 0
    for column, (lo, hi) in spec.columns.items():
        text = row.cells[column]
        scaled = 0.0
        if text:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise row.fail(column, f"{text!r} is not a number: write one, or leave the cell empty")
            outside += not lo <= value <= hi
            scaled = 2.0 * (min(hi, max(lo, value)) - lo) / (hi - lo) - 1.0
        features.append(scaled)
        if spec.observed_indicators:
            features.append(1.0 if text else 0.0)
    return features, outside


def _single(row: _Row, spec: ImageColumn | TextColumn, folder: Path) -> Any:
    """What one cell holds or points to."""
    text = row.cells[spec.column]
    if isinstance(spec, TextColumn) and not spec.file:
        return text
    try:
        if isinstance(spec, ImageColumn):
            return read_grey(folder / text, spec.height, spec.width)
        return _read_text(folder / text, "paths are relative to the CSV")
    except DataError as error:
        raise row.fail(spec.column, str(error)) from error


def _cells_of(records: Records, spec: ModalitySpec, i: int, record_id: str, folder: Path) -> list[str]:
    value = records.values[spec.name][i]
    if not records.presence[spec.name][i]:
        return [""] * max(1, len(spec.features))
    if spec.kind == "tabular":
        return [str(number) for number in value]
    if spec.kind == "text":
        return [str(value)]
    relative = Path(spec.name) / f"{record_id}.png"
    (folder / spec.name).mkdir(exist_ok=True)
    Image.fromarray(np.rint(value[0] * 255.0).astype(np.uint8)).save(folder / relative)
    return [relative.as_posix()]
