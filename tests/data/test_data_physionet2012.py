"""PhysioNet 2012: what cannot be used is counted and skipped, what is malformed names itself and the line."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from secure_fed.data import PhysioNet2012Config, load, schema_of
from secure_fed.errors import DataError

HEADER = "Time,Parameter,Value"
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"


def stay(record_id, *rows, icu=3):
    descriptors = [f"00:00,RecordID,{record_id}", "00:00,Age,55", "00:00,Gender,1", "00:00,Height,-1"]
    return "\n".join([HEADER, *descriptors, f"00:00,ICUType,{icu}", "00:00,Weight,80", *rows]) + "\n"


def write(folder, stays, outcomes):
    (folder / "set-a").mkdir(parents=True)
    for record_id, text in stays.items():
        (folder / "set-a" / f"{record_id}.txt").write_text(text)
    lines = [OUTCOMES, *(f"{record_id},6,1,5,-1,{death}" for record_id, death in outcomes.items())]
    (folder / "Outcomes-a.txt").write_text("\n".join(lines) + "\n")
    return folder


TWO_STAYS = {
    "132539": stay("132539", "00:07,HR,80", "01:10,HR,100", "30:00,HR,60", "02:00,Lactate,2.5"),
    "132540": stay("132540", "00:07,HR,90", icu=1),
}


@pytest.fixture
def released(tmp_path):
    return write(tmp_path / "released", TWO_STAYS, {"132539": 0, "132540": 1})


def read(root):
    return load(PhysioNet2012Config(root=root), seed=0)


def feature(records, modality, name):
    return records.values[modality][:, records.schema.modality(modality).features.index(name)]


def test_summaries_are_scaled_by_public_ranges_and_missing_values_are_zero(released):
    records = read(released).records
    # HR's public range is 40 to 140: 80 -> -0.2, 60 -> -0.6, 100 -> 0.2
    assert [float(feature(records, "vitals", f"HR_{s}")[0]) for s in ("mean", "min", "max", "first", "last")] == (
        pytest.approx([-0.2, -0.6, 0.2, -0.2, -0.6], abs=1e-6)
    )
    assert list(feature(records, "vitals", "HR_observed")) == [1.0, 1.0]
    assert list(feature(records, "vitals", "Temp_observed")) == [0.0, 0.0]
    assert list(feature(records, "vitals", "Temp_mean")) == [0.0, 0.0]
    assert list(feature(records, "vitals", "Height_observed")) == [0.0, 0.0]
    assert list(feature(records, "vitals", "Age_observed")) == [1.0, 1.0]
    assert records.schema == schema_of(PhysioNet2012Config(root=released))


def test_a_modality_without_any_value_is_absent_from_that_record(released):
    loaded = read(released)
    assert list(loaded.records.presence["labs"]) == [True, False]
    assert not loaded.records.values["labs"][1].any()
    assert loaded.notes["stays without any lab value"] == 1


def test_labels_units_and_icu_types_come_with_the_stay(released):
    records = read(released).records
    assert list(records.unit_ids) == ["132539", "132540"]
    assert records.labels[:, 0].tolist() == [0.0, 1.0]
    assert list(records.groups) == ["medical", "coronary"]


def test_the_archive_says_what_the_folder_says(released, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "set-a.tar.gz", "w:gz") as tar:
        tar.add(released / "set-a", "set-a")
    (packed / "Outcomes-a.txt").write_bytes((released / "Outcomes-a.txt").read_bytes())
    from_folder = read(released).records
    for root in (packed, packed / "set-a.tar.gz"):
        records = read(root).records
        for name in records.schema.names:
            assert np.array_equal(records.values[name], from_folder.values[name])
        assert np.array_equal(records.labels, from_folder.labels)


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ("01:00,HR,abc", "skipped: values that are not numbers"),
        ("01:00,HR,nan", "skipped: values that are not numbers"),
        ("01:00,HR,inf", "skipped: values that are not numbers"),
        ("01:00,HR,1_00", "skipped: values that are not numbers"),
        ("01:00,HR,", "skipped: values that are not numbers"),
        ("48:01,HR,300", "skipped: times outside 00:00-48:00"),
        ("1:00,HR,300", "skipped: times outside 00:00-48:00"),
        ("01:60,HR,300", "skipped: times outside 00:00-48:00"),
        ("-1:00,HR,300", "skipped: times outside 00:00-48:00"),
        (",HR,300", "skipped: times outside 00:00-48:00"),
        ("01:00,HR,0", "skipped: implausible values"),
        ("01:00,pH,735", "skipped: implausible values"),
        ("01:00,HR,-1", "skipped: implausible values"),
        ("01:00,Weight,-1", "descriptors given as unknown (-1)"),
        ("01:00,Mood,3", "skipped: rows of unknown parameters"),
        ("01:00,,3", "skipped: rows of unknown parameters"),
    ],
)
def test_what_cannot_be_used_is_counted_and_changes_nothing(tmp_path, row, note):
    texts = {"132539": stay("132539", "00:07,HR,80", "02:00,pH,7.3")}
    clean = read(write(tmp_path / "clean", texts, {"132539": 0}))
    texts = {"132539": stay("132539", "00:07,HR,80", row, "02:00,pH,7.3")}
    odd = read(write(tmp_path / "odd", texts, {"132539": 0}))
    assert odd.notes[note] == clean.notes[note] + 1
    for name in odd.records.schema.names:
        assert np.array_equal(odd.records.values[name], clean.records.values[name])


def test_the_last_minute_of_the_window_counts(tmp_path):
    root = write(tmp_path / "r", {"1": stay("1", "48:00,HR,100")}, {"1": 0})
    assert feature(read(root).records, "vitals", "HR_last")[0] == pytest.approx(0.2, abs=1e-6)


def test_rows_out_of_order_are_put_in_order(tmp_path):
    root = write(tmp_path / "r", {"1": stay("1", "10:00,HR,100", "02:00,HR,60")}, {"1": 0})
    records = read(root).records
    assert feature(records, "vitals", "HR_first")[0] < feature(records, "vitals", "HR_last")[0]


def test_a_stay_without_outcome_is_counted_and_skipped(tmp_path):
    loaded = read(
        write(tmp_path / "r", TWO_STAYS | {"7": stay("7", "00:07,HR,80")}, {"132539": 0, "132540": "", "9": 1})
    )
    assert list(loaded.records.unit_ids) == ["132539"]
    assert loaded.notes["skipped: stays without outcome"] == 2
    assert loaded.notes["skipped: outcomes without stay"] == 1


def test_a_missing_folder_archive_or_outcome_file_is_named(tmp_path, released):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        read(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"Outcomes-a.txt: cannot be read"):
        read(empty)
    (empty / "Outcomes-a.txt").write_text(OUTCOMES + "\n1,6,1,5,-1,0\n")
    with pytest.raises(DataError, match=r"neither set-a/ nor set-a.tar.gz"):
        read(empty)
    (empty / "set-a").mkdir()
    with pytest.raises(DataError, match="no stay with an outcome"):
        read(empty)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"132540.txt, line 1: expected the header"),
        (b"RecordID;Time\n", r"132540.txt, line 1: expected the header"),
        (b"Time,Parameter,Value\n00:00,HR\n", r"132540.txt, line 2: expected Time,Parameter,Value"),
        (b"Time,Parameter,Value\n00:00,HR,1\n00:00,HR,1,5\n", r"132540.txt, line 3: expected"),
        (b"Time,Parameter,Value\n00:00,HR,80\n\xff\xfe,HR,80\n", r"132540.txt, line 3: is not UTF-8"),
    ],
)
def test_a_malformed_stay_names_file_and_line(released, content, text):
    (released / "set-a" / "132540.txt").write_bytes(content)
    with pytest.raises(DataError, match=text):
        read(released)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", r"Outcomes-a.txt, line 1: expected the header"),
        ("a,b,c\n", r"Outcomes-a.txt, line 1: expected the header"),
        (OUTCOMES + "\n132539,6,1,5,-1\n", r"line 2: expected a RecordID and 5 values"),
        (OUTCOMES + "\nx,6,1,5,-1,0\n", r"line 2: expected a RecordID"),
        (OUTCOMES + "\n132539,6,1,5,-1,2\n", r"line 2: In-hospital_death is '2'"),
        (OUTCOMES + "\n132539,6,1,5,-1,0\n132539,6,1,5,-1,0\n", r"line 3: RecordID 132539 occurs twice"),
    ],
)
def test_malformed_outcomes_name_file_and_line(released, content, text):
    (released / "Outcomes-a.txt").write_text(content)
    with pytest.raises(DataError, match=text):
        read(released)


def test_a_damaged_archive_is_an_error_and_not_fewer_stays(released, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "Outcomes-a.txt").write_bytes((released / "Outcomes-a.txt").read_bytes())
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        tar.add(released / "set-a", "set-a")
    for damaged in (whole.getvalue()[: len(whole.getvalue()) // 2], b"no archive", b""):
        (packed / "set-a.tar.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"set-a.tar.gz: is not a whole tar.gz archive"):
            read(packed)


def test_a_stay_given_twice_in_the_archive_is_refused(released):
    with tarfile.open(released / "set-a.tar.gz", "w:gz") as tar:
        for folder in ("set-a", "again"):
            tar.add(released / "set-a" / "132539.txt", f"{folder}/132539.txt")
    for path in (released / "set-a").iterdir():
        path.unlink()
    (released / "set-a").rmdir()
    with pytest.raises(DataError, match="stay 132539 occurs twice"):
        read(released)


@pytest.mark.physionet
@pytest.mark.skipif("SECURE_FED_PHYSIONET2012" not in os.environ, reason="SECURE_FED_PHYSIONET2012 is not set")
def test_the_real_set_is_read_whole_and_quickly():
    start = time.perf_counter()
    loaded = read(Path(os.environ["SECURE_FED_PHYSIONET2012"]))
    assert time.perf_counter() - start < 15
    assert len(loaded.records) == 4000
    assert loaded.notes["rows read"] == 1_678_892
    assert loaded.records.labels.mean() == pytest.approx(0.1385)
    counts = dict(zip(*np.unique(loaded.records.groups, return_counts=True), strict=True))
    assert counts == {"coronary": 577, "cardiac_surgery": 874, "medical": 1481, "surgical": 1068}
    for name in loaded.records.schema.names:
        assert np.abs(loaded.records.values[name]).max() <= 1.0
