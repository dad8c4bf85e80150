"""Reads CheXpert as released: train.csv and valid.csv beside their images. It has no reports.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels", AAAI 2019 (arXiv 1901.07031).
"""

from __future__ import annotations

import re
from pathlib import Path

from secure_fed.data.config import ChexpertConfig, View
from secure_fed.data.radiology import Film, Study, Survey, label_cells
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.data.tables import Faults, Row, find_table, read_table
from secure_fed.errors import DataError

_COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
# CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; the first folder is that of the archive.
_PATH = re.compile(
    r"(?:CheXpert-v1\.0(?:-small)?/)?((?:train|valid)/(patient\d+)/(study\d+)/view\d+_\w+\.(?:jpe?g|png))"
)
_FOLDERS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0")
_FRONTAL: dict[str, View] = {"AP": "ap", "PA": "pa"}


def chexpert_folder(root: Path) -> Path | None:
    """The folder below (or at) `root` that holds train.csv or valid.csv."""
    places = (root / name for name in _FOLDERS)
    return next((at for at in places if find_table(at, "train.csv") or find_table(at, "valid.csv")), None)


def survey_chexpert(config: ChexpertConfig, root: Path, faults: Faults, key: str = "data") -> Survey:
    """Every study that the tables name, one for all its rows. Raises DataError where `root` holds neither table."""
    folder = chexpert_folder(root)
    if folder is None:
        raise DataError(f"{key}.root={root} holds no train.csv or valid.csv: give the folder of CheXpert")
    studies: dict[tuple[str, str, str], Study] = {}
    seen: set[str] = set()
    rows = 0
    for split in ("train", "valid"):
        table = find_table(folder, f"{split}.csv")
        if table is None:
            continue
        for row in read_table(table, _COLUMNS, faults):
            rows += 1
            _add(row, split, folder, studies, seen, faults)
    return Survey(tuple(studies.values()), {"rows read": rows, "studies read": len(studies), "images named": len(seen)})


def _add(
    row: Row, split: str, folder: Path, studies: dict[tuple[str, str, str], Study], seen: set[str], faults: Faults
) -> None:
    match = _PATH.fullmatch(row.cells["Path"])
    if match is None:
        faults.add(row.place, "Path is not of the form CheXpert-v1.0/train/patient.../study.../view...jpg")
        return
    file, patient, study = match.groups()
    if file in seen:
        faults.add(row.place, "names an image that an earlier row names too")
        return
    labels = label_cells(row.cells, row.place, faults)
    view = _view(row, faults)
    if labels is None or view is None:
        return
    seen.add(file)
    film = Film(str(folder / file), view, row.place)
    key = (split, patient, study)
    before = studies.get(key)
    if before is None:
        studies[key] = Study(patient, (film,), None, labels, split)
        return
    if str(before.labels) != str(labels):  # as text: a blank is NaN, which equals nothing
        faults.add(row.place, "has other labels than an earlier image of the same study")
        return
    studies[key] = Study(patient, (*before.films, film), None, labels, split)


def _view(row: Row, faults: Faults) -> View | None:
    side = row.cells["Frontal/Lateral"].lower()
    if side == "lateral":
        return "lateral"
    if side == "frontal":
        return _FRONTAL.get(row.cells["AP/PA"].upper(), "frontal")
    faults.add(row.place, "Frontal/Lateral is neither Frontal nor Lateral")
    return None
