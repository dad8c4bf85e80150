"""Reads MIMIC-CXR-JPG as released, with the reports of MIMIC-CXR where they lie beside it or elsewhere.

Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs" (arXiv 1901.07042).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from secure_fed.data.config import MimicCxrConfig, View
from secure_fed.data.radiology import Film, Study, Survey, label_cells
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.data.tables import Faults, Place, Row, find_table, read_table
from secure_fed.errors import DataError

METADATA = "mimic-cxr-2.0.0-metadata.csv"
SPLIT = "mimic-cxr-2.0.0-split.csv"
_SPLITS = frozenset({"train", "validate", "test"})
_NUMBER = re.compile(r"\d{8}")
_IMAGE = re.compile(r"[0-9a-f-]{1,64}")  # hexadecimal with dashes, so no path of its own
_VIEWS: dict[str, View] = {"PA": "pa", "AP": "ap", "LATERAL": "lateral", "LL": "lateral", "RL": "lateral"}

_Key = tuple[str, str]  # patient, study


@dataclass
class _Found:
    """A study while the tables are read."""

    split: str
    films: list[Film] = field(default_factory=list)


def survey_mimic_cxr(config: MimicCxrConfig, root: Path, faults: Faults, key: str = "data") -> Survey:
    """Every study that the metadata names. Raises DataError where `root` does not hold the tables that are needed."""
    metadata, labels = find_table(root, METADATA), find_table(root, f"mimic-cxr-2.0.0-{config.labeller}.csv")
    splits = find_table(root, SPLIT)
    if metadata is None or labels is None:
        missing = METADATA if metadata is None else f"mimic-cxr-2.0.0-{config.labeller}.csv"
        raise DataError(f"{key}.root={root} holds no {missing}(.gz): give the folder of MIMIC-CXR-JPG")
    if splits is None and config.split == "official":
        raise DataError(f"{key}.root={root} holds no {SPLIT}.gz: fetch it, or give {key}.split=patient")
    split_of = {} if splits is None else _splits(splits, faults)
    found: dict[_Key, _Found] = {}
    images: set[str] = set()
    for row in read_table(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"), faults):
        _add_film(row, root, split_of, splits is not None, found, images, faults)
    labelled = _labels(labels, faults)
    reports = config.reports or root
    studies = tuple(
        Study(
            patient, tuple(one.films), _report(reports, patient, study), labelled.pop((patient, study), None), one.split
        )
        for (patient, study), one in found.items()
    )
    notes = {"studies read": len(studies), "images named": len(images), "labelled studies without image": len(labelled)}
    return Survey(studies, notes)


def _splits(path: Path, faults: Faults) -> dict[str, tuple[_Key, str]]:
    """Image -> its study and its official split."""
    found: dict[str, tuple[_Key, str]] = {}
    for row in read_table(path, ("dicom_id", "study_id", "subject_id", "split"), faults):
        key = _key(row, faults)
        image, split = row.cells["dicom_id"], row.cells["split"]
        if key is None:
            continue
        if split not in _SPLITS:
            faults.add(row.place, "split is none of train, validate and test")
        elif image in found:
            faults.add(row.place, "names an image that an earlier row names too")
        else:
            found[image] = (key, split)
    return found


def _add_film(
    row: Row,
    root: Path,
    split_of: dict[str, tuple[_Key, str]],
    has_splits: bool,
    found: dict[_Key, _Found],
    images: set[str],
    faults: Faults,
) -> None:
    key = _key(row, faults)
    image = row.cells["dicom_id"]
    if key is None:
        return
    if not _IMAGE.fullmatch(image):
        faults.add(row.place, "dicom_id is not hexadecimal with dashes")
        return
    if image in images:
        faults.add(row.place, "names an image that an earlier row names too")
        return
    split = ""
    if has_splits:
        of_study, split = split_of.get(image, (None, ""))
        if of_study != key:
            faults.add(row.place, f"does not agree with {SPLIT} about this image's patient and study")
            return
    images.add(image)
    patient, study = key
    file = root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{image}.jpg"
    view = _VIEWS.get(row.cells["ViewPosition"].upper(), "unknown")
    one = found.setdefault(key, _Found(split))
    if one.split != split:
        faults.add(row.place, "has another split than an earlier image of the same study")
        return
    one.films.append(Film(str(file), view, row.place))


def _labels(path: Path, faults: Faults) -> dict[_Key, tuple[float, ...]]:
    found: dict[_Key, tuple[float, ...]] = {}
    for row in read_table(path, ("subject_id", "study_id", *CHEXPERT_LABELS), faults):
        key = _key(row, faults)
        if key is None:
            continue
        if key in found:
            faults.add(row.place, "names a study that an earlier row names too")
        elif (labels := label_cells(row.cells, row.place, faults)) is not None:
            found[key] = labels
    return found


def _key(row: Row, faults: Faults) -> _Key | None:
    """Patient and study of a row; None, and a fault, where they are not numbers of eight digits."""
    key = (row.cells["subject_id"], row.cells["study_id"])
    if all(_NUMBER.fullmatch(part) for part in key):
        return key
    faults.add(row.place, "subject_id and study_id are not both numbers of 8 digits")
    return None


def _report(reports: Path, patient: str, study: str) -> Place:
    """Where the report of a study would lie. What is shown of it names nobody."""
    file = reports / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
    return Place(file, "a report under files/")
