"""From studies as a reader found them to records: views, sections, labels, splits and caps, alike for every set.

A reader makes a `Survey`, which is cheap: no image and no report file is opened for it. `data check` looks at the
survey, `records_of` makes what is trained on.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secure_fed.data.config import LabelValue, RadiologyConfig, View
from secure_fed.data.images import LazyImages
from secure_fed.data.records import BoolArray, FloatArray, ModalitySpec, Records, Schema, ValueArray
from secure_fed.data.report_sections import joined, sections_of
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.data.tables import Faults, Place, read_text
from secure_fed.errors import DataError

UNCERTAIN = -1.0
BLANK = math.nan
HELD_OUT = frozenset({"test", "valid"})
"""Names of the official splits that are a set's own test side."""
_VALUE_OF: Mapping[LabelValue, float] = {"zeros": 0.0, "ones": 1.0, "ignore": math.nan}
_CELLS = {"": BLANK, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, "-1": UNCERTAIN, "-1.0": UNCERTAIN}


@dataclass(frozen=True)
class Film:
    """One image: its file, how it was taken, and the row that names it."""

    file: str
    view: View
    place: Place


@dataclass(frozen=True)
class Study:
    """What was made of a patient at one time.

    report: sections by name, or where the file of the whole report would lie; None where the set has none.
    labels: 14 of 1, 0, UNCERTAIN or BLANK in CheXpert's order; None where nobody labelled the study.
    split: the official one, "" where there is none.
    """

    patient: str
    films: tuple[Film, ...]
    report: Mapping[str, str] | Place | None
    labels: tuple[float, ...] | None
    split: str = ""


@dataclass(frozen=True)
class Survey:
    """All studies of a set, in its own order, and what the reader counted on the way."""

    studies: tuple[Study, ...]
    notes: Mapping[str, int]


@dataclass(frozen=True)
class Sides:
    """What is trained on, and the set's own hold-out where its official split is used."""

    training: Records
    holdout: Records | None
    notes: Mapping[str, int]


def radiology_schema(config: RadiologyConfig) -> Schema:
    """Modalities image [1, S, S] and text (the report), and the 14 CheXpert labels: the same for every set."""
    size = config.image_size
    return Schema((ModalitySpec("image", "image", (1, size, size)), ModalitySpec("text", "text", ())), CHEXPERT_LABELS)


def label_cells(cells: Mapping[str, str], place: Place, faults: Faults) -> tuple[float, ...] | None:
    """The 14 labels of a row, by name; None, and a fault, where a cell is none of 1, 0, -1 and blank."""
    values = []
    for name in CHEXPERT_LABELS:
        value = _CELLS.get(cells[name])
        if value is None:
            faults.add(place, f"label {name!r} is none of 1, 0, -1 and blank")
            return None
        values.append(value)
    return tuple(values)


def report_of(study: Study, faults: Faults) -> Mapping[str, str] | None:
    """The cleaned sections of a study's report; None where there is no report, or it cannot be read."""
    if not isinstance(study.report, Place):
        return study.report
    if not study.report.file.is_file():
        return None
    text = read_text(study.report, faults)
    return None if text is None else sections_of(text)


def records_of(survey: Survey, config: RadiologyConfig, key: str = "data") -> Sides:
    """Records of the wanted studies. Raises DataError where none is left, or a file that is needed is missing.

    `key` is where `config` stands, for messages.
    """
    notes = dict(survey.notes)
    studies = _with_wanted_films(survey.studies, config, notes, key)
    official = config.split == "official"
    if official:
        _refuse_patients_on_two_sides(studies, key)
    used = [study for study in studies if _is_used(study, official)]
    notes["studies of splits that are not used"] = len(studies) - len(used)
    training = [study for study in used if not (official and study.split in HELD_OUT)]
    sides = [_records(_capped(training, config, notes), config, notes, key)]
    if official:
        holdout = [study for study in used if study.split in HELD_OUT]
        sides.append(_records(_capped(holdout, config, notes), config, notes, key))
    notes["records"] = sum(len(side) for side in sides)
    notes["patients"] = sum(len(set(side.unit_ids.tolist())) for side in sides)
    notes["records without text"] = sum(int((~side.presence["text"]).sum()) for side in sides)
    return Sides(sides[0], sides[1] if official else None, notes)


def _is_used(study: Study, official: bool) -> bool:
    """Officially train and the test side are; split by patient, all but CheXpert's valid.csv.

    Its labels were read by radiologists and mean something else than those of train.csv.
    """
    return study.split == "train" or study.split in HELD_OUT if official else study.split != "valid"


def _with_wanted_films(
    studies: Iterable[Study], config: RadiologyConfig, notes: dict[str, int], key: str
) -> list[Study]:
    """Studies with the films to use: wanted views that are on disk, best view first, then by file name."""
    kept, without, missing = [], 0, 0
    for study in studies:
        films = [film for film in study.films if film.view in config.views]
        there = [film for film in films if os.path.isfile(film.file)]
        if len(there) < len(films):
            if config.missing_files == "error":
                gone = next(film for film in films if not os.path.isfile(film.file))
                raise DataError(
                    f"image {gone.file} does not exist ({gone.place} names it): `secure-fed data check` counts such "
                    f"images; fetch them, or leave them out with {key}.missing_files=skip"
                )
            missing += len(films) - len(there)
        if not there:
            without += 1
            continue
        there.sort(key=lambda film: (config.views.index(film.view), os.path.basename(film.file)))
        kept.append(replace(study, films=tuple(there[: 1 if config.records == "study" else None])))
    notes["studies without an image of the wanted views"] = without
    notes["images that are not on disk, left out"] = missing
    return kept


def _refuse_patients_on_two_sides(studies: Sequence[Study], key: str) -> None:
    held_out = {study.patient for study in studies if study.split in HELD_OUT}
    both = held_out & {study.patient for study in studies if study.split == "train"}
    if both:
        raise DataError(
            f"the official split has {len(both)} patients on both sides: is it the one that was released? "
            f"{key}.split=patient splits by patient instead"
        )


def _capped(studies: list[Study], config: RadiologyConfig, notes: dict[str, int]) -> list[Study]:
    """Whole patients, in the order of a public hash of their ids, while there are no more than max_records."""
    if config.max_records is None:
        return studies
    size: dict[str, int] = {}
    for study in studies:
        size[study.patient] = size.get(study.patient, 0) + len(study.films)
    kept: set[str] = set()
    total = 0
    for patient in sorted(size, key=_place_in_subset):
        if total + size[patient] > config.max_records:
            break
        total += size[patient]
        kept.add(patient)
    left = [study for study in studies if study.patient in kept]
    beyond = "studies beyond max_records, left out"
    notes[beyond] = notes.get(beyond, 0) + len(studies) - len(left)
    return left


def _place_in_subset(patient: str) -> bytes:
    return hashlib.sha256(f"secure_fed subset/{patient}".encode()).digest()


def _records(studies: Sequence[Study], config: RadiologyConfig, notes: dict[str, int], key: str) -> Records:
    """A record for each film of each study, in order. Raises DataError where there is none."""
    if not studies:
        raise DataError(
            f"no record is left with {key}.views={list(config.views)}, {key}.split={config.split} and "
            f"{key}.max_records={config.max_records}: `secure-fed data check` shows what the set holds"
        )
    rows = [(study, film) for study in studies for film in study.films]
    faults = Faults()
    texts = {
        id(study): joined(sections, config.sections) if (sections := report_of(study, faults)) else ""
        for study in studies
    }
    text = np.array([texts[id(study)] for study, _ in rows], dtype=object)
    if config.sections and not any(text) and (named := next((s.report for s in studies if s.report is not None), None)):
        where = f" ({named.file} does not exist)" if isinstance(named, Place) and not named.file.is_file() else ""
        raise DataError(
            f"no report with {key}.sections={list(config.sections)} was found{where}: give the folder of reports "
            f"({key}.reports of mimic_cxr) or other sections, or {key}.sections=[] to use the films alone"
        )
    notes["studies without labels"] = notes.get("studies without labels", 0) + sum(s.labels is None for s in studies)
    return Records(
        schema=radiology_schema(config),
        values={"image": LazyImages([film.file for _, film in rows], config.image_size), "text": text},
        presence={"image": np.ones(len(rows), dtype=bool), "text": _there(text)},
        labels=_labels([study.labels for study, _ in rows], config),
        unit_ids=np.array([study.patient for study, _ in rows], dtype=np.str_),
    )


def _there(text: ValueArray) -> BoolArray:
    return np.array([entry != "" for entry in text], dtype=bool)


def _labels(rows: Sequence[tuple[float, ...] | None], config: RadiologyConfig) -> FloatArray:
    """float32 [n, 14] of 0, 1 and NaN: uncertain and blank ones as configured, a study that nobody labelled unknown."""
    nobody = (BLANK,) * len(CHEXPERT_LABELS)
    values = np.array([nobody if row is None else row for row in rows], dtype=np.float32)
    labelled = np.array([row is not None for row in rows], dtype=bool)[:, None]
    blank, uncertain = np.isnan(values), values == UNCERTAIN
    values[blank & labelled] = _VALUE_OF[config.blank]
    values[uncertain] = _VALUE_OF[config.uncertain]
    return values
