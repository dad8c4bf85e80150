"""One's own data: what is written is read back, and every mistake names file, line, column and value."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from secure_fed.data import (
    DataConfig,
    ManifestConfig,
    SyntheticCxrConfig,
    load,
    manifest_for,
    read_manifest,
    schema_of,
    write_manifest,
)
from secure_fed.errors import DataError

MODALITIES = {
    "film": {"kind": "image", "column": "png", "height": 16, "width": 12},
    "report": {"kind": "text", "column": "text"},
    "vitals": {"kind": "tabular", "columns": {"hr": [40, 140], "temp": [34, 40]}},
}
COLUMNS = ["id", "patient", "hospital", "png", "text", "hr", "temp", "edema", "fracture"]
ROW = {
    "id": "r1", "patient": "p1", "hospital": "north", "png": "a.png", "text": "No edema.", "hr": "90",
    "temp": "37", "edema": "0", "fracture": "",
}  # fmt: skip


def config(folder, **changes):
    values = {"path": folder / "data.csv", "modalities": MODALITIES, "labels": ("edema", "fracture"), **changes}
    return ManifestConfig(**values)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.full((16, 12), 51, np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def write(folder, *rows, columns=COLUMNS):
    with (folder / "data.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_a_row_becomes_a_record(folder):
    write(folder, ROW, {**ROW, "id": "r2", "png": "", "temp": "", "fracture": "1", "hospital": "south"})
    loaded = load(config(folder, site="hospital"), seed=0)
    records = loaded.records
    assert records.schema == schema_of(config(folder))
    assert records.values["film"][0] == pytest.approx(51 / 255)
    assert list(records.presence["film"]) == [True, False]
    # hr 90 of 40..140 is 0, temp 37 of 34..40 is 0: both observed; then temp missing
    assert records.schema.modality("vitals").features == ("hr", "hr_observed", "temp", "temp_observed")
    assert records.values["vitals"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert np.isnan(records.labels[0, 1])
    assert records.labels[1, 1] == 1.0
    assert list(records.groups) == ["north", "south"]
    assert loaded.notes["records without film"] == 1
    assert loaded.notes["labels left empty (unknown)"] == 1


def test_values_outside_their_declared_range_are_clipped_and_counted(folder):
    write(folder, {**ROW, "hr": "500", "temp": "20"})
    loaded = load(config(folder), seed=0)
    assert loaded.records.values["vitals"].tolist() == [[1, 1, -1, 1]]
    assert loaded.notes["values of vitals clipped to their declared range"] == 2


def test_a_record_with_no_cell_of_a_modality_lacks_it(folder):
    write(folder, {**ROW, "hr": "", "temp": "", "text": ""})
    records = load(config(folder), seed=0).records
    assert not records.presence["vitals"][0]
    assert not records.values["vitals"].any()
    assert not records.presence["report"][0]


def test_images_of_another_size_depth_or_colour_become_grey_values(folder):
    Image.fromarray(np.full((40, 30), 0.2 * 65535, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (33, 44), (51, 51, 51)).save(folder / "colour.jpg", quality=95)
    write(folder, {**ROW, "png": "deep.png"}, {**ROW, "id": "r2", "png": "colour.jpg"})
    films = load(config(folder), seed=0).records.values["film"]
    assert films.shape == (2, 1, 16, 12)
    assert films == pytest.approx(0.2, abs=0.01)  # JPEG and 8 bits round


def test_text_may_lie_in_files(folder):
    (folder / "one.txt").write_text("Edema, naïve.\n", encoding="utf-8")
    write(folder, {**ROW, "text": "one.txt"})
    modalities = {**MODALITIES, "report": {"kind": "text", "column": "text", "file": True}}
    assert load(config(folder, modalities=modalities), seed=0).records.values["report"][0] == "Edema, naïve.\n"


def test_quoted_line_breaks_and_a_byte_order_mark_are_no_problem(folder):
    write(folder, {**ROW, "text": 'Line one,\n"two"'})
    path = folder / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(config(folder), seed=0).records.values["report"][0] == 'Line one,\n"two"'


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hr": "abc"}, r"data.csv, line 3, column 'hr': 'abc' is not a number"),
        ({"hr": "nan"}, r"line 3, column 'hr': 'nan' is not a number"),
        ({"edema": "2"}, r"line 3, column 'edema': label is '2': write 1, 0, or nothing"),
        ({"edema": "-1"}, r"line 3, column 'edema': label is '-1'"),
        ({"id": "r1"}, r"line 3, column 'id': 'r1' was given before, in .*data.csv, line 2"),
        ({"id": ""}, r"line 3, column 'id': is empty"),
        ({"patient": ""}, r"line 3, column 'patient': is empty"),
        ({"png": "b.png"}, r"line 3, column 'png': image .*b.png does not exist"),
        ({"png": "cut.png"}, r"line 3, column 'png': image .*cut.png is cut off or no image"),
        ({"png": "text.png"}, r"line 3, column 'png': image .*text.png is cut off or no image"),
        ({"png": "."}, r"line 3, column 'png': image .* is cut off or no image"),
    ],
)
def test_a_wrong_cell_is_named(folder, changes, text):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) - 25])
    (folder / "text.png").write_text("not an image")
    write(folder, ROW, {**ROW, "id": "r2", **changes})
    with pytest.raises(DataError, match=text):
        load(config(folder), seed=0)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"data.csv: is empty"),
        (b"id,patient\n", r"line 1: has no column 'png', 'text'.*its columns are id, patient"),
        (",".join(COLUMNS).encode() + b"\n", r"has a header and no records"),
        (",".join([*COLUMNS, "id"]).encode() + b"\n", r"line 1: names the column 'id' twice"),
        (",".join(COLUMNS).encode() + b"\nr1,p1,north\n", r"line 2: has 3 cells where the header has 9"),
        (",".join(COLUMNS).encode() + b'\nr1,"p1"x,north\n', r"line 2: is not CSV"),
        (",".join(COLUMNS).encode() + b"\nr1,p\xe91,,,,,,,\n", r"line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_file_of_another_format_is_named(folder, content, text):
    (folder / "data.csv").write_bytes(content)
    with pytest.raises(DataError, match=text):
        load(config(folder), seed=0)


def test_a_missing_manifest_or_text_file_is_named(folder):
    with pytest.raises(DataError, match=r"data.csv: cannot be read"):
        load(config(folder), seed=0)
    write(folder, {**ROW, "text": "gone.txt"})
    modalities = {"report": {"kind": "text", "column": "text", "file": True}}
    with pytest.raises(DataError, match=r"line 2, column 'text': .*gone.txt: cannot be read"):
        load(config(folder, modalities=modalities), seed=0)


def test_prediction_needs_neither_labels_nor_patients_and_keeps_the_record_ids(folder):
    columns = [name for name in COLUMNS if name not in {"patient", "hospital", "edema", "fracture"}]
    write(folder, ROW, columns=columns)
    with pytest.raises(DataError, match="has no column 'patient'"):
        read_manifest(config(folder))
    records, _ = read_manifest(config(folder), require_labels=False)
    assert list(records.unit_ids) == ["r1"]
    assert np.isnan(records.labels).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"modalities": {}}, "at least 1 item"),
        ({"modalities": {"Film": MODALITIES["film"]}}, r"\[a-z\]"),
        ({"labels": ("edema", "edema")}, "used for two things: edema"),
        ({"labels": ("hr",)}, "used for two things: hr"),
        ({"unit": "hr"}, "'hr' is the unit or site, and also a feature or a label"),
        ({"site": "edema"}, "'edema' is the unit or site"),
        ({"modalities": {"vitals": {"kind": "tabular", "columns": {"hr": [5, 5]}}}}, "lo < hi"),
        ({"modalities": {"vitals": {"kind": "tabular", "columns": {"hr": [0, float("inf")]}}}}, "lo < hi"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_a_declaration_with_two_meanings_is_refused(tmp_path, changes, text):
    with pytest.raises(ValidationError, match=text):
        config(tmp_path, **changes)


def test_the_readers_are_told_apart_by_name():
    adapter = TypeAdapter(DataConfig)
    assert adapter.validate_python({"name": "synthetic_cxr", "patients": 7}) == SyntheticCxrConfig(patients=7)
    with pytest.raises(ValidationError, match="mimic"):
        adapter.validate_python({"name": "mimic"})


def test_what_is_written_is_read_back(tmp_path):
    records = load(SyntheticCxrConfig(patients=5), seed=2).records
    mixed = records.select(np.arange(4))
    labels = mixed.labels.copy()
    labels[0, 3] = np.nan
    presence = {"image": np.array([True, True, False, True]), "text": np.array([True, False, True, True])}
    values = {name: value.copy() for name, value in mixed.values.items()}
    values["image"][2], values["text"][1] = 0.0, ""
    mixed = type(mixed)(mixed.schema, values, presence, labels, mixed.unit_ids, np.array(["a", "b", "a", "b"]))
    written = write_manifest(mixed, tmp_path / "out")
    back = load(written, seed=0).records
    assert back.schema == mixed.schema
    for name in mixed.schema.names:
        assert np.array_equal(back.presence[name], mixed.presence[name])
    assert np.array_equal(back.values["image"], mixed.values["image"])  # films have 256 levels: no loss
    assert list(back.values["text"]) == list(mixed.values["text"])
    assert np.array_equal(back.labels, mixed.labels, equal_nan=True)
    assert np.array_equal(back.unit_ids, mixed.unit_ids)
    assert np.array_equal(back.groups, mixed.groups)
    with pytest.raises(DataError, match="exists already"):
        write_manifest(mixed, tmp_path / "out")


def test_a_run_takes_new_records_of_its_own_schema(folder):
    write(folder, ROW, {**ROW, "id": "r2", "temp": "38.3"})
    records = load(config(folder), seed=0).records
    written = write_manifest(records, folder / "again")
    assert written == manifest_for(records.schema, folder / "again" / "manifest.csv")
    back = load(written, seed=0).records
    assert back.schema == records.schema
    # Scaling [-1, 1] to itself costs one rounding in double and one in single precision.
    assert np.allclose(back.values["vitals"], records.values["vitals"], atol=1e-6)
