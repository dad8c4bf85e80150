"""Reads PhysioNet / CinC Challenge 2012, set A, as released: vitals and labs of 48 hours, and death.

Silva et al., "Predicting In-Hospital Mortality of ICU Patients", CinC 39:245-248, 2012. What cannot be used
is counted and skipped; a file that is not what it should be is an error that names file and line.
"""

from __future__ import annotations

import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from secure_fed.data.physionet2012_variables import DESCRIPTORS, ICU_TYPES, LABS, VITALS, Variable
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.errors import DataError

_STATS = ("mean", "min", "max", "first", "last")
_HEADER = "Time,Parameter,Value"
_OUTCOME_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
_TIMES = {f"{m // 60:02d}:{m % 60:02d}": m for m in range(48 * 60 + 1)}  # the window: 00:00 to 48:00
_BY_NAME = {variable.name: variable for variable in (*VITALS, *LABS, *DESCRIPTORS)}
_DESCRIPTOR_NAMES = frozenset(variable.name for variable in DESCRIPTORS) | {"ICUType"}


def _names(variables: tuple[Variable, ...]) -> list[str]:
    return [
        f"{variable.name}_{stat}" for variable in variables for stat in (*(() if variable.flag else _STATS), "observed")
    ]


_VITAL_FEATURES = (
    *_names(VITALS),
    *(name for variable in DESCRIPTORS for name in (variable.name, f"{variable.name}_observed")),
)
_LAB_FEATURES = tuple(_names(LABS))
SCHEMA = Schema(
    modalities=(
        ModalitySpec("vitals", "tabular", (len(_VITAL_FEATURES),), _VITAL_FEATURES),
        ModalitySpec("labs", "tabular", (len(_LAB_FEATURES),), _LAB_FEATURES),
    ),
    labels=("in_hospital_death",),
)


@dataclass
class _Tally:
    """What was read and what was skipped, in the order in which a person reads it."""

    stays: int = 0
    rows: int = 0
    without_outcome: int = 0
    without_stay: int = 0
    not_numbers: int = 0
    times: int = 0
    implausible: int = 0
    unknown_parameters: int = 0
    unknown_descriptors: int = 0
    unknown_icu: int = 0
    without_vitals: int = 0
    without_labs: int = 0

    def notes(self) -> dict[str, int]:
        return {
            "stays used": self.stays,
            "rows read": self.rows,
            "skipped: stays without outcome": self.without_outcome,
            "skipped: outcomes without stay": self.without_stay,
            "skipped: values that are not numbers": self.not_numbers,
            "skipped: times outside 00:00-48:00": self.times,
            "skipped: implausible values": self.implausible,
            "skipped: rows of unknown parameters": self.unknown_parameters,
            "descriptors given as unknown (-1)": self.unknown_descriptors,
            "stays of unknown ICU type": self.unknown_icu,
            "stays without any vital sign": self.without_vitals,
            "stays without any lab value": self.without_labs,
        }


@dataclass
class _Stay:
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    descriptors: dict[str, float] = field(default_factory=dict)


def read_physionet2012(root: Path, key: str = "data") -> tuple[Records, Mapping[str, int]]:
    """Records of all stays with an outcome, by RecordID, and the notes of what was counted and skipped.

    `root` is a folder that holds Outcomes-a.txt and set-a/ or set-a.tar.gz, or that tar.gz itself. Groups are
    the ICU types. Raises DataError for a file that is missing or malformed, with its name and line;
    `key` is where the configuration stands, for messages.
    """
    folder = root.parent if root.is_file() else root
    deaths = _read_outcomes(folder / "Outcomes-a.txt", root, key)
    tally = _Tally()
    stays: dict[str, _Stay] = {}
    unlabelled: set[str] = set()
    for where, raw in _stay_files(root, key):
        record_id = PurePosixPath(where).stem
        if record_id in stays or record_id in unlabelled:
            raise DataError(f"{where}: stay {record_id} occurs twice: keep one of the files")
        stay = _read_stay(where, raw, tally)
        if deaths.get(record_id) is None:
            unlabelled.add(record_id)
        else:
            stays[record_id] = stay
    if not stays:
        raise DataError(f"{root}: no stay with an outcome was found; expected set-a/<RecordID>.txt and Outcomes-a.txt")
    tally.stays, tally.without_outcome = len(stays), len(unlabelled)
    tally.without_stay = len(deaths.keys() - stays.keys() - unlabelled)
    return _records(stays, deaths, tally), tally.notes()


def _read_outcomes(path: Path, root: Path, key: str) -> dict[str, int | None]:
    """RecordID -> death (0, 1), or None where the cell is empty."""
    if not root.exists():
        raise DataError(
            f"{root} does not exist: {key}.root should be the folder of the released set-a and Outcomes-a.txt"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it lists the outcomes and is released beside set-a, so "
            f"{key}.root={root} is not the released folder"
        ) from error
    lines = _text(str(path), raw).splitlines()
    if not lines or lines[0].strip() != _OUTCOME_HEADER:
        raise DataError(f"{path}, line 1: expected the header {_OUTCOME_HEADER!r}, found {lines[:1]}")
    deaths: dict[str, int | None] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 6 or not cells[0].isdigit():
            raise DataError(f"{path}, line {number}: expected a RecordID and 5 values, found {line!r}")
        if cells[0] in deaths:
            raise DataError(f"{path}, line {number}: RecordID {cells[0]} occurs twice: keep one of the lines")
        if cells[5] not in {"0", "1", ""}:
            raise DataError(f"{path}, line {number}: In-hospital_death is {cells[5]!r}: expected 0, 1 or nothing")
        deaths[cells[0]] = int(cells[5]) if cells[5] else None
    return deaths


def _stay_files(root: Path, key: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every stay, from the unpacked folder where there is one, else from the archive."""
    folder, archive = root / "set-a", root if root.is_file() else root / "set-a.tar.gz"
    if folder.is_dir():
        for path in sorted(folder.glob("*.txt")):
            if path.stem.isdigit():
                yield str(path), path.read_bytes()
        return
    if not archive.is_file():
        raise DataError(f"{root}: holds neither set-a/ nor set-a.tar.gz; {key}.root should be the released folder")
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                handle = tar.extractfile(member) if name.suffix == ".txt" and name.stem.isdigit() else None
                if handle is not None:
                    yield f"{archive}:{member.name}", handle.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: is not a whole tar.gz archive ({error}); fetch it again") from error


def _text(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: is not UTF-8 text (byte {raw[error.start]:#04x})") from error


def _read_stay(where: str, raw: bytes, tally: _Tally) -> _Stay:
    lines = _text(where, raw).splitlines()
    if not lines or lines[0].strip() != _HEADER:
        raise DataError(f"{where}, line 1: expected the header {_HEADER!r}, found {lines[:1]}")
    stay = _Stay()
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        if len(cells) != 3:
            if not line.strip():
                continue
            raise DataError(f"{where}, line {number}: expected Time,Parameter,Value, found {line!r}")
        tally.rows += 1
        _read_row(stay, cells[0].strip(), cells[1].strip(), cells[2].strip(), tally)
    return stay


def _read_row(stay: _Stay, time: str, name: str, text: str, tally: _Tally) -> None:
    if name == "RecordID":
        return  # the file's name has it
    minute = _TIMES.get(time)
    if minute is None:
        tally.times += 1
        return
    variable = _BY_NAME.get(name)
    if variable is None and name != "ICUType":
        tally.unknown_parameters += 1
        return
    value = _number(text)
    if value is None:
        tally.not_numbers += 1
    elif value == -1 and name in _DESCRIPTOR_NAMES:
        tally.unknown_descriptors += 1
    elif variable is None:
        stay.descriptors.setdefault("ICUType", value)
    elif not variable.least <= value <= variable.most:
        tally.implausible += 1
    elif name in _DESCRIPTOR_NAMES:
        stay.descriptors.setdefault(name, value)
    else:
        stay.series.setdefault(name, []).append((minute, value))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _records(stays: Mapping[str, _Stay], deaths: Mapping[str, int | None], tally: _Tally) -> Records:
    ids = sorted(stays)
    vitals = np.zeros((len(ids), len(_VITAL_FEATURES)), dtype=np.float32)
    labs = np.zeros((len(ids), len(_LAB_FEATURES)), dtype=np.float32)
    presence = {name: np.zeros(len(ids), dtype=bool) for name in SCHEMA.names}
    groups = []
    for i, record_id in enumerate(ids):
        stay = stays[record_id]
        presence["vitals"][i] = any(variable.name in stay.series for variable in VITALS)
        presence["labs"][i] = any(variable.name in stay.series for variable in LABS)
        if presence["vitals"][i]:
            vitals[i] = [*_summaries(stay, VITALS), *_descriptors(stay)]
        if presence["labs"][i]:
            labs[i] = _summaries(stay, LABS)
        groups.append(ICU_TYPES.get(int(stay.descriptors.get("ICUType", 0)), "unknown"))
    tally.unknown_icu = groups.count("unknown")
    tally.without_vitals = int((~presence["vitals"]).sum())
    tally.without_labs = int((~presence["labs"]).sum())
    labels: npt.NDArray[np.float32] = np.array([[deaths[record_id]] for record_id in ids], dtype=np.float32)
    return Records(
        schema=SCHEMA,
        values={"vitals": vitals, "labs": labs},
        presence=presence,
        labels=labels,
        unit_ids=np.array(ids),
        groups=np.array(groups),
    )


def _summaries(stay: _Stay, variables: tuple[Variable, ...]) -> list[float]:
    """Of each variable mean, min, max, first and last, scaled, and 1 where it was observed; else zeros."""
    row: list[float] = []
    for variable in variables:
        series = stay.series.get(variable.name)
        if not series:
            row += [0.0] * (1 if variable.flag else len(_STATS) + 1)
            continue
        if variable.flag:
            row.append(1.0)
            continue
        series.sort(key=lambda at: at[0])
        values = [value for _, value in series]
        stats = (sum(values) / len(values), min(values), max(values), values[0], values[-1])
        row += [*(variable.scale(value) for value in stats), 1.0]
    return row


def _descriptors(stay: _Stay) -> list[float]:
    row: list[float] = []
    for variable in DESCRIPTORS:
        value = stay.descriptors.get(variable.name)
        row += [0.0, 0.0] if value is None else [variable.scale(value), 1.0]
    return row
