"""Damaged chest film sets: an error names file and line and never what a cell holds; a check collects all of them."""

from __future__ import annotations

import gzip

import pytest
from radiology_trees import (
    films,
    read_csv,
    write_chexpert,
    write_csv,
    write_mimic_cxr,
    write_open_i_csv,
    write_open_i_xml,
)

from secure_fed.data import load, survey
from secure_fed.data.config import ChexpertConfig, MimicCxrConfig, OpenIConfig
from secure_fed.data.tables import Faults
from secure_fed.errors import DataError

IN_A_CELL = "Mrs Jones"


@pytest.fixture(scope="module")
def source():
    return films(patients=4)


def mimic(root):
    return MimicCxrConfig(root=root, image_size=32)


def open_i(root):
    return OpenIConfig(root=root, image_size=32, views=("frontal", "unknown"))


def chexpert(root):
    return ChexpertConfig(root=root, image_size=32)


def refused(config, match):
    """Training on it is refused with `match`; a check finds it too, and neither repeats a cell."""
    with pytest.raises(DataError, match=match) as error:
        load(config, 0)
    assert IN_A_CELL not in str(error.value)
    faults = Faults(collect=True)
    survey(config, faults)
    assert faults.found
    assert not any(IN_A_CELL in fault.problem + str(fault.place) for fault in faults.found)
    return faults.found


def change(table, row, column, value):
    rows = read_csv(table)
    rows[row][rows[0].index(column)] = value
    write_csv(table, rows)


TABLES = {
    "mimic metadata": (write_mimic_cxr, mimic, "mimic-cxr-2.0.0-metadata.csv", "ViewPosition"),
    "mimic split": (write_mimic_cxr, mimic, "mimic-cxr-2.0.0-split.csv", "split"),
    "mimic labels": (write_mimic_cxr, mimic, "mimic-cxr-2.0.0-chexpert.csv", "Pleural Other"),
    "chexpert": (write_chexpert, chexpert, "train.csv", "AP/PA"),
    "open_i reports": (write_open_i_csv, open_i, "indiana_reports.csv", "MeSH"),
    "open_i projections": (write_open_i_csv, open_i, "indiana_projections.csv", "projection"),
}


@pytest.fixture(params=TABLES)
def table(request, source, tmp_path):
    """(configuration, table of a fresh tree, one of its columns)."""
    writer, config, name, column = TABLES[request.param]
    options = {"zipped": False} if writer is write_mimic_cxr else {}
    root = writer(source, tmp_path / "tree", **options)
    return config(root), root / name, column


def test_a_missing_column_is_named(table):
    config, path, column = table
    rows = read_csv(path)
    at = rows[0].index(column)
    write_csv(path, [row[:at] + row[at + 1 :] for row in rows])
    refused(config, rf"{path.name}, line 1: has no column '{column}'")


def test_a_column_that_is_named_twice_is_refused(table):
    config, path, column = table
    write_csv(path, [[*row, column if i == 0 else ""] for i, row in enumerate(read_csv(path))])
    refused(config, rf"{path.name}, line 1: names the column '{column}' twice")


def test_a_row_with_a_cell_too_many_is_told_by_its_line(table):
    config, path, _ = table
    rows = read_csv(path)
    rows[2] = [*rows[2], IN_A_CELL]
    write_csv(path, rows)
    found = refused(config, rf"{path.name}, line \d+: has {len(rows[2])} cells where the header has {len(rows[0])}")
    assert found[0].place.line >= 3


def test_a_row_given_twice_is_refused(table):
    config, path, _ = table
    rows = read_csv(path)
    write_csv(path, [*rows, rows[1]])
    refused(config, r"that an earlier row names too")


def test_text_that_is_not_utf_8_is_told_by_its_line(table):
    config, path, _ = table
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b",", b",\xe9", 1)
    path.write_bytes(b"".join(lines))
    found = refused(config, rf"{path.name}, line \d+: is not UTF-8")
    assert found[0].place.line == 2 or "reports" in path.name  # a report may hold line breaks


def test_a_stray_quote_is_no_csv(table):
    config, path, _ = table
    path.write_bytes(path.read_bytes() + b'"' + IN_A_CELL.encode() + b'" x,1\n')
    refused(config, rf"{path.name}, line \d+: is not CSV")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("subject_id", IN_A_CELL, "not both numbers of 8 digits"),
        ("study_id", "../5", "not both numbers of 8 digits"),
        ("dicom_id", "../../etc/passwd", "not hexadecimal with dashes"),
        ("dicom_id", "abc", "does not agree with mimic-cxr-2.0.0-split.csv"),
    ],
)
def test_mimic_metadata_that_cannot_be_right_is_refused(source, tmp_path, column, value, problem):
    root = write_mimic_cxr(source, tmp_path / "tree", zipped=False)
    change(root / "mimic-cxr-2.0.0-metadata.csv", 2, column, value)
    refused(mimic(root), f"mimic-cxr-2.0.0-metadata.csv, line 3: .*{problem}")


@pytest.mark.parametrize(
    ("name", "column", "value", "problem"),
    [
        ("split", "split", IN_A_CELL, "split is none of train, validate and test"),
        ("chexpert", "Edema", IN_A_CELL, "label 'Edema' is none of 1, 0, -1 and blank"),
    ],
)
def test_mimic_tables_with_an_impossible_cell_are_refused(source, tmp_path, name, column, value, problem):
    root = write_mimic_cxr(source, tmp_path / "tree", zipped=False)
    change(root / f"mimic-cxr-2.0.0-{name}.csv", 1, column, value)
    refused(mimic(root), f"mimic-cxr-2.0.0-{name}.csv, line 2: {problem}")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("Path", f"CheXpert-v1.0-small/train/{IN_A_CELL}/x.jpg", "Path is not of the form"),
        ("Path", "CheXpert-v1.0-small/train/../../etc/view1_frontal.jpg", "Path is not of the form"),
        ("Frontal/Lateral", IN_A_CELL, ".*neither Frontal nor Lateral"),
        ("Fracture", "2", "label 'Fracture' is none of"),
    ],
)
def test_chexpert_rows_that_cannot_be_right_are_refused(source, tmp_path, column, value, problem):
    root = write_chexpert(source, tmp_path / "tree")
    change(root / "train.csv", 1, column, value)
    refused(chexpert(root), f"train.csv, line 2: {problem}")


def test_two_images_of_a_study_with_different_labels_are_refused(source, tmp_path):
    root = write_chexpert(source, tmp_path / "tree")
    rows = read_csv(root / "train.csv")
    lateral = next(i for i, row in enumerate(rows) if "lateral" in row[0])
    column = rows[0].index("Edema")
    change(root / "train.csv", lateral, "Edema", "1.0" if rows[lateral][column] == "0.0" else "0.0")
    refused(chexpert(root), "other labels than an earlier image of the same study")


def test_a_gzip_file_that_was_cut_off_is_refused(source, tmp_path):
    root = write_mimic_cxr(source, tmp_path / "tree")
    table = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table.write_bytes(table.read_bytes()[:-12])
    refused(mimic(root), r"chexpert.csv.gz, line \d+: cannot be read on \(EOFError\)")
    table.write_bytes(gzip.decompress(gzip.compress(b"no gzip")))
    refused(mimic(root), r"cannot be read on \(BadGzipFile\)")


def test_a_report_that_is_not_utf_8_names_its_file_inside_the_site(source, tmp_path):
    root = write_mimic_cxr(source, tmp_path / "tree")
    report = sorted(root.rglob("*.txt"))[0]
    report.write_bytes(report.read_bytes() + b"caf\xe9")
    with pytest.raises(DataError, match=rf"{report.name}, line \d+: is not UTF-8"):
        load(mimic(root), 0)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (lambda xml: xml.replace("</eCitation>", ""), "not well-formed XML"),
        (lambda xml: xml[: len(xml) // 2], "not well-formed XML"),
        (lambda xml: "", "not well-formed XML"),
        (
            lambda xml: xml.replace("<eCitation>", '<!DOCTYPE e [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><eCitation>'),
            "declares a document type or entities",
        ),
        (
            lambda xml: xml.replace("<eCitation>", '<!doctype e SYSTEM "file:///etc/passwd"><eCitation>'),
            "declares a document type or entities",
        ),
        (lambda xml: xml.replace('id="CXR1"', 'id="CXR2"'), "uId that an earlier file has too"),
        (lambda xml: xml.replace('parentImage id="CXR1_', 'parentImage id="../CXR1_'), "whose id is not the name"),
        (lambda xml: xml + " " * 2**20, "is larger than"),
    ],
)
def test_xml_that_is_broken_or_could_blow_up_is_refused(source, tmp_path, what, problem):
    root = write_open_i_xml(source, tmp_path / "tree")
    # Number 1 is the first by name; as another's id it is met before the file that it belongs to.
    file = root / "ecgen-radiology" / "1.xml"
    file.write_text(what(file.read_text()))
    found = refused(open_i(root), rf"ecgen-radiology/\d+.xml.*: .*{problem}")
    assert found[0].place.shown.startswith("ecgen-radiology/*.xml, number ")  # a file's own name is its patient


def test_xml_that_is_not_utf_8_is_refused(source, tmp_path):
    root = write_open_i_xml(source, tmp_path / "tree")
    file = root / "ecgen-radiology" / "1.xml"
    file.write_bytes(file.read_text().encode("utf-16"))
    refused(open_i(root), "is not UTF-8")


def test_an_image_row_of_an_unknown_report_is_refused(source, tmp_path):
    root = write_open_i_csv(source, tmp_path / "tree")
    change(root / "indiana_projections.csv", 1, "uid", "999999")
    refused(open_i(root), "indiana_projections.csv, line 2: has a uid that indiana_reports.csv does not have")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (mimic, r"holds no mimic-cxr-2.0.0-metadata.csv\(.gz\)"),
        (open_i, "holds neither ecgen-radiology"),
        (chexpert, "holds no train.csv or valid.csv"),
    ],
)
def test_a_folder_that_holds_no_such_set_is_refused(tmp_path, config, problem):
    with pytest.raises(DataError, match=problem):
        load(config(tmp_path), 0)


def test_nothing_left_to_train_on_is_refused_with_what_was_asked_for(source, tmp_path):
    root = write_chexpert(source, tmp_path / "tree")
    config = ChexpertConfig(root=root, image_size=32, views=("unknown",))
    with pytest.raises(DataError, match=r"no record is left with data.views=\['unknown'\]"):
        load(config, 0)
