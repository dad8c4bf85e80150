"""Writes small trees in exactly the layouts of MIMIC-CXR-JPG, Open-I and CheXpert, from synthetic films and reports.

Beside the tests' folders so that every room's tests find it. Each writer returns the folder that `data.root` names.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from itertools import count

import numpy as np
from PIL import Image

from secure_fed.data import SyntheticCxrConfig, load
from secure_fed.data.open_i_terms import TERMS
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS

MIMIC_LABELS = tuple(sorted(CHEXPERT_LABELS))  # the released file has them in alphabetical order
METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_SECTION = re.compile(r"^([A-Z]+): ", flags=re.MULTILINE)


def films(patients=12, seed=0, **options):
    """Synthetic records to write."""
    return load(SyntheticCxrConfig(patients=patients, image_size=32, **options), seed).records


def write_mimic_cxr(records, root, *, reports=None, label_columns=MIMIC_LABELS, zipped=True, side=40):
    """MIMIC-CXR-JPG in `root`, its reports in `reports` (or there too). Every third study has a lateral film as well.

    Patients whose number ends in 0 are the test side, in 1 the validation side.
    """
    tables = {"metadata": [METADATA_COLUMNS], "split": [("dicom_id", "study_id", "subject_id", "split")]}
    tables["chexpert"] = [("subject_id", "study_id", *label_columns)]
    reports = reports or root
    for i, study in enumerate(_studies(records)):
        subject, number = f"1{int(study.patient[1:]):07d}", f"5{i:07d}"
        split = {"0": "test", "1": "validate"}.get(subject[-1], "train")
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{number}"
        folder.mkdir(parents=True)
        views = ["PA" if i % 2 else "AP", *(["LATERAL"] if i % 3 == 0 else [])]
        for view in views:
            dicom = "-".join(f"{(i * 7919 + k * 104729 + len(view)) % 2**32:08x}" for k in range(5))
            save(study.image, folder / f"{dicom}.jpg", side)
            row = (dicom, subject, number, "CHEST (PA AND LAT)", view, side, side, 21800506, "213014.5", "", "", "")
            tables["metadata"].append(row)
            tables["split"].append((dicom, number, subject, split))
        tables["chexpert"].append((subject, number, *(_cell(study.labels[name]) for name in label_columns)))
        beside = reports / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{number}.txt"
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(mimic_report(study.text))
    tables["negbio"] = tables["chexpert"]
    for name, rows in tables.items():
        write_csv(root / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if zipped else ''}", rows)
    return root


def mimic_report(text):
    """A report as MIMIC-CXR has it: indented headings, short lines, blanks for what was taken out."""
    body = _SECTION.sub(lambda heading: f"\n {heading.group(1)}:  \n \n ", text)
    wrapped = re.sub(r"(.{50,70}?) ", r"\1\n ", body)
    return f"{'FINAL REPORT':>45}\n EXAMINATION:  CHEST (PA AND LAT)\n \n TECHNIQUE:  Dr. ___ was told.\n{wrapped}\n"


def write_open_i_xml(records, root):
    """Open-I as its two archives unpack: ecgen-radiology/*.xml and PNGs. Each record is a patient of its own."""
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / "NLMCXR_png").mkdir()
    for uid, study in zip(count(1), _studies(records), strict=False):
        images = [f"CXR{uid}_IM-{uid:04d}-1001", f"CXR{uid}_IM-{uid:04d}-2001"]
        for name in images:
            save(study.image, root / "NLMCXR_png" / f"{name}.png")
        (root / "ecgen-radiology" / f"{uid}.xml").write_text(
            open_i_xml(uid, study.text, terms_of(study.labels), images)
        )
    return root


def open_i_xml(uid, text, terms, images):
    """One report as Open-I's XML has it."""
    sections = sections_in(text)
    parts = "".join(
        f'<AbstractText Label="{name}">{sections.get(name.lower(), "")}</AbstractText>'
        for name in ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
    )
    majors = "".join(f"<major>{term}</major>" for term in terms)
    figures = "".join(
        f'<parentImage id="{name}"><figureId>F{i}</figureId><caption>Xray Chest PA and Lateral</caption>'
        f'<panel type="single"><url>/hadoop/{name}.jpg</url><imgModality>7</imgModality></panel></parentImage>'
        for i, name in enumerate(images, start=1)
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<meta type="rr"/>\n<uId id="CXR{uid}"/>\n'
        f'<pmcId id="{uid}"/>\n<MedlineCitation Owner="Indiana University" Status="supplied by publisher">\n'
        f"<Article><Abstract>{parts}</Abstract></Article>\n<MeSH>{majors}</MeSH>\n</MedlineCitation>\n{figures}\n"
        "</eCitation>\n"
    )


def write_open_i_csv(records, root):
    """Open-I as two CSVs with PNGs; a frontal and a lateral film each."""
    folder = root / "images" / "images_normalized"
    folder.mkdir(parents=True)
    reports = [("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")]
    projections = [("uid", "filename", "projection")]
    for uid, study in zip(count(1), _studies(records), strict=False):
        for name, view in (
            (f"{uid}_IM-{uid:04d}-1001.dcm.png", "Frontal"),
            (f"{uid}_IM-{uid:04d}-2001.dcm.png", "Lateral"),
        ):
            save(study.image, folder / name)
            projections.append((uid, name, view))
        terms, sections = terms_of(study.labels), sections_in(study.text)
        texts = (sections.get(name, "") for name in ("indication", "comparison", "findings", "impression"))
        problems = ";".join(term.split("/")[0] for term in terms)
        reports.append((uid, ";".join(terms), problems, "Xray Chest PA and Lateral", *texts))
    write_csv(root / "indiana_reports.csv", reports)
    write_csv(root / "indiana_projections.csv", projections)
    return root


def write_chexpert(records, root, *, label_columns=CHEXPERT_LABELS, prefix="CheXpert-v1.0-small"):
    """CheXpert in `root`; every third study has a lateral film, and patients whose number ends in 0 are valid.csv's."""
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *label_columns)
    tables = {"train": [header], "valid": [header]}
    numbers: dict[str, int] = {}
    for i, study in enumerate(_studies(records)):
        patient = f"patient{int(study.patient[1:]):05d}"
        numbers[patient] = numbers.get(patient, 0) + 1
        split = "valid" if patient[-1] == "0" else "train"
        films_of = [
            ("frontal", "Frontal", "AP" if i % 2 else "PA"),
            *([("lateral", "Lateral", "")] if i % 3 == 0 else []),
        ]
        for k, (suffix, side, view) in enumerate(films_of, start=1):
            path = f"{split}/{patient}/study{numbers[patient]}/view{k}_{suffix}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            save(study.image, root / path)
            labels = (_cell(study.labels[name]) for name in label_columns)
            tables[split].append((f"{prefix}/{path}", "Female", 68, side, view, *labels))
    for name, rows in tables.items():
        write_csv(root / f"{name}.csv", rows)
    return root


def terms_of(labels):
    """Index terms that say these labels: the first of the table for each, with qualifiers."""
    first = {}
    for term, qualifier, label in TERMS:
        first.setdefault(label, f"{term.capitalize()}/{qualifier or 'mild'}")
    terms = [
        first[name] if labels[name] == 1 else f"{first[name]}/borderline"
        for name in CHEXPERT_LABELS
        if name in first and labels[name] in (1, -1)
    ]
    return terms or ["normal"]


def sections_in(text):
    """Sections of a synthetic report, which has one a line."""
    return {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in text.splitlines() if ": " in line}


def save(image, path, side=None):
    """A film as an 8-bit file, resized where `side` says so."""
    picture = Image.fromarray(np.rint(image[0] * 255).astype(np.uint8))
    picture = picture if side is None else picture.resize((side, side))
    picture.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def write_csv(path, rows):
    """Rows as CSV, gzipped where the name says so."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read_csv(path):
    """The rows of a table that was written here."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.reader(io.StringIO(text, newline="")))


class _Study:
    def __init__(self, records, i):
        self.patient = str(records.unit_ids[i])
        self.image = records.values["image"][i]
        self.text = str(records.values["text"][i])
        self.labels = dict(zip(records.schema.labels, records.labels[i].tolist(), strict=True))


def _studies(records):
    return (_Study(records, i) for i in range(len(records)))


def _cell(value):
    return "" if np.isnan(value) else f"{value:.1f}"
