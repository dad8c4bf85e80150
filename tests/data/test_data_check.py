"""`secure-fed data check` counts what is there and what is wrong, and prints nothing that is somebody's."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from radiology_trees import (
    films,
    read_csv,
    write_chexpert,
    write_csv,
    write_mimic_cxr,
    write_open_i_csv,
    write_open_i_xml,
)
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.data import load
from secure_fed.data.checking import kind_of, section_shown, shown
from secure_fed.data.config import ChexpertConfig, MimicCxrConfig
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.errors import DataError

WRITERS = {
    "mimic_cxr": write_mimic_cxr,
    "open_i": write_open_i_csv,
    "open_i_xml": write_open_i_xml,
    "chexpert": write_chexpert,
}


@pytest.fixture(scope="module")
def source():
    return films(patients=60)


@pytest.fixture(scope="module")
def trees(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return {name: writer(source, folder / name) for name, writer in WRITERS.items()}


def check(*arguments, code=0):
    done = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout


def found(*arguments, code=0):
    return json.loads(check(*arguments, "--json", code=code))


@pytest.mark.parametrize("name", WRITERS)
def test_the_set_is_told_by_what_lies_there(trees, name):
    assert kind_of(trees[name]) == name.removesuffix("_xml")


def test_counts_are_those_of_what_was_written(source, trees):
    told = found(trees["mimic_cxr"], "--exact", "--all")
    n, lateral = len(source), len([i for i in range(len(source)) if i % 3 == 0])
    totals = told["totals"]
    assert (totals["patients"], totals["studies"], totals["images"]) == (60, n, n + lateral)
    assert totals["studies with a report"] == totals["reports opened"] == n
    assert totals["images opened"] == n + lateral
    assert told["views"] == {"ap": (n + 1) // 2, "pa": n // 2, "lateral": lateral}
    for j, label in enumerate(CHEXPERT_LABELS):
        positive = int(source.labels[:, j].sum())
        assert told["labels"][label]["positive"] == positive
        assert told["labels"][label]["negative"] == n - positive
        assert told["labels"][label]["prevalence_of_known"] == pytest.approx(positive / n, abs=1e-4)
    with_impression = sum("IMPRESSION" in text for text in source.values["text"])
    assert told["sections"]["impression"] == with_impression


@pytest.mark.parametrize("name", ["open_i", "chexpert"])
def test_every_layout_has_the_same_label_counts(source, trees, name):
    told = found(trees[name], "--exact")
    assert [told["labels"][label]["positive"] for label in CHEXPERT_LABELS] == source.labels.sum(axis=0).tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_small_counts_are_not_shown_unless_asked_for(trees, name):
    told, exact = (found(trees[name], *more) for more in ((), ("--exact",)))
    for label, cells in exact["labels"].items():
        for value in ("positive", "negative"):
            seen = told["labels"][label][value]
            assert seen == cells[value] or seen in ("<10", "hidden")
            assert cells[value] >= 10 or seen == "<10"
    rare = [label for label in CHEXPERT_LABELS if exact["labels"][label]["positive"] < 10]
    assert rare
    for label in rare:
        # The number of labelled studies is shown: with the negatives beside it, it would give the positives away.
        assert told["labels"][label]["negative"] == "hidden"
        assert told["labels"][label]["prevalence_of_known"] is None


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 60), min_size=1, max_size=6))
def test_what_is_hidden_does_not_follow_from_the_total(counts):
    cells = shown(counts, exact=False)
    hidden = [name for name, cell in cells.items() if isinstance(cell, str)]
    assert all(cells[name] == "<10" for name in counts if counts[name] < 10)
    assert all(cells[name] == counts[name] for name in counts if name not in hidden)
    if hidden and len(hidden) < len(counts):
        assert len(hidden) > 1
        assert sum(counts[name] for name in hidden) >= 10
        small = [name for name in hidden if counts[name] < 10]
        # What remains possible to somebody who knows the total, what is shown, and the rule.
        total, others = sum(counts[name] for name in hidden), len(hidden) - len(small)
        most = min(counts[name] for name in counts if name not in hidden)
        least = max(0, total - 9 * (len(small) - 1) - most * others)
        assert min(9, total - 10 * others) - least >= 5


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [
        ({"pa": 900, "ap": 40, "lateral": 9, "unknown": 9}, {"ap", "lateral", "unknown"}),  # 18 is 9 and 9
        ({"pa": 900, "ap": 10, "lateral": 0}, {"pa", "ap", "lateral"}),  # 10 is 10 and 0
        ({"pa": 900, "ap": 40, "lateral": 5, "unknown": 6}, {"lateral", "unknown"}),
        ({"pa": 900, "ap": 40}, set()),
    ],
)
def test_a_sum_that_only_one_pair_of_small_counts_has_gives_them_away(counts, hidden):
    assert {name for name, cell in shown(counts, exact=False).items() if isinstance(cell, str)} == hidden


def test_a_section_that_almost_every_report_has_is_hidden_since_the_rest_are_few():
    assert [section_shown(count, 200, exact=False) for count in (200, 199, 191, 190, 10, 9)] == [
        200, "hidden", "hidden", 190, 10, "<10"
    ]  # fmt: skip
    assert section_shown(199, 200, exact=True) == 199


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_that_is_printed_names_a_patient_or_quotes_a_report(source, name, tmp_path):
    """Broken on purpose, so that the messages are printed too: ids, images' names and words of a report stay away."""
    texts = np.array([text.replace(". ", ". Zebrafish. ") for text in source.values["text"]], dtype=object)
    quotable = replace(source, values={**source.values, "text": texts})
    root = WRITERS[name](quotable, tmp_path / "tree")
    images = sorted(file for file in root.rglob("*") if file.suffix in (".jpg", ".png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:150])
    for file in sorted(file for file in root.rglob("*") if file.suffix in (".txt", ".xml"))[:2]:
        file.write_bytes(file.read_bytes() + b"\xe9")
    for table in root.glob("*.csv"):
        rows = read_csv(table)
        write_csv(table, [*rows[:-1], [*rows[-1], "Zebrafish"]])
    for printed in (check(root, "--all", "--exact", code=1), check(root, "--all", "--json", code=1)):
        ids = r"p?1\d{7}|s?5\d{7}|patient\d|view\d|CXR\d|IM-\d|\.jpg|\.png|\d\.xml|[0-9a-f]{8}-[0-9a-f]{8}"
        assert not re.search(ids, printed)
        assert "zebrafish" not in printed.lower()
        assert str(tmp_path) not in printed


@pytest.mark.parametrize("name", ["mimic_cxr", "open_i", "chexpert"])
def test_missing_and_unreadable_images_are_counted_by_the_row_that_names_them(source, tmp_path, name):
    root = WRITERS[name](source, tmp_path / "tree")
    images = sorted(file for file in root.rglob("*") if file.suffix in (".jpg", ".png"))
    for file in images[:3]:
        file.unlink()
    for file in images[3:5]:
        file.write_bytes(file.read_bytes()[:150])
    told = found(root, "--all", code=1)
    assert told["totals"]["images not on disk"] == 3
    assert told["totals"]["images that cannot be read"] == 2
    assert told["totals"]["malformed rows and files"] == 0
    kinds = {problem["problem"]: problem["times"] for problem in told["problems"]}
    assert kinds == {"names an image that is not on disk": 3, "names an image that is cut off or no image": 2}
    assert all(problem["file"].endswith((".csv", ".csv.gz")) and problem["lines"] for problem in told["problems"])


def test_every_malformed_row_is_told_with_file_and_line(source, tmp_path):
    root = write_chexpert(source, tmp_path / "tree")
    rows = read_csv(root / "train.csv")
    rows[1][rows[0].index("Edema")], rows[4][0] = "maybe", "elsewhere.jpg"
    rows[6] = rows[6][:-1]
    write_csv(root / "train.csv", rows)
    printed = check(root, code=1)
    for line in ("train.csv: label 'Edema' is none of 1, 0, -1 and blank (1 times: line 2)", "line 5)", "line 7)"):
        assert line in printed
    assert "maybe" not in printed
    assert "elsewhere" not in printed


def test_a_sample_opens_so_many_studies_and_always_the_same(trees):
    assert found(trees["chexpert"], "--sample", 0)["totals"]["images opened"] == 0
    few = found(trees["open_i"], "--sample", 7)["totals"]
    assert (few["reports opened"], few["images opened"]) == (7, 14)
    assert found(trees["open_i"], "--sample", 7)["sections"] == found(trees["open_i"], "--sample", 7)["sections"]


def test_a_sample_does_not_pass_for_everything(trees):
    assert "not every image and report was opened" in check(trees["chexpert"], "--sample", 7)
    assert "not every image" not in check(trees["chexpert"], "--all")


@pytest.mark.parametrize(
    ("writer", "table", "named"),
    [(write_mimic_cxr, "*-split.csv*", "mimic-cxr-2.0.0-split.csv(.gz)"), (write_chexpert, "valid.csv", "valid.csv")],
)
def test_a_set_without_its_official_split_is_whole_and_told_what_a_run_could_not_ask_for(
    source, tmp_path, writer, table, named
):
    root = writer(source, tmp_path / "tree")
    assert found(root)["notes"] == []
    next(root.glob(table)).unlink()
    told = found(root)
    assert told["problems"] == []
    (note,) = told["notes"]
    assert f"{named} would name: a run with data.split=official would be refused" in note
    assert note in check(root)
    # And so it would be.
    kind = {write_mimic_cxr: MimicCxrConfig, write_chexpert: ChexpertConfig}[writer]
    with pytest.raises(DataError, match=r"split=official|fetch it, or give data\.split=patient"):
        load(kind(root=root, split="official"), 0)


def test_open_i_which_has_no_official_split_is_told_nothing_of_one(trees):
    assert found(trees["open_i"])["notes"] == []


def test_what_is_no_data_set_is_told_by_exit_code_2(tmp_path):
    check(tmp_path, code=2)
    check(tmp_path / "nothing", code=2)
    (tmp_path / "set-a").mkdir()  # PhysioNet 2012: a set of ours, and none that is checked
    with pytest.raises(DataError, match="No other set can be checked: a run reads physionet2012"):
        kind_of(tmp_path)
    with pytest.raises(
        DataError, match=r"train.csv or valid.csv: give the folder of MIMIC-CXR-JPG, Open-I or CheXpert"
    ):
        kind_of(tmp_path)


def test_the_kind_can_be_forced_and_a_wrong_one_is_refused(trees):
    assert found(trees["open_i"], "--data", "open_i")["set"] == "open_i"
    check(trees["open_i"], "--data", "chexpert", code=2)
    check(trees["open_i"], "--data", "synthetic_cxr", code=2)
    check(trees["open_i"], "--reports", trees["mimic_cxr"], code=2)


def test_reports_in_a_folder_of_their_own_are_found(source, tmp_path):
    root = write_mimic_cxr(source, tmp_path / "jpg", reports=tmp_path / "text")
    told = found(root, code=1)
    assert told["totals"]["studies with a report"] == 0
    assert "no such report was found: give --reports" in told["problems"][0]["problem"]
    told = found(root, "--reports", tmp_path / "text")
    assert told["totals"]["studies with a report"] == len(source)


def test_uncertain_and_blank_labels_are_counted_apart(source, tmp_path):
    labels = source.labels.copy()
    edema = CHEXPERT_LABELS.index("Edema")
    labels[:20, edema], labels[20:45, edema] = -1.0, np.nan
    written = replace(source, labels=np.abs(labels))
    root = write_chexpert(written, tmp_path / "tree")
    for name in ("train.csv", "valid.csv"):
        rows = read_csv(root / name)
        column = rows[0].index("Edema")
        write_csv(
            root / name,
            [[*row[:column], "-1.0" if row[column] == "1.0" else row[column], *row[column + 1 :]] for row in rows],
        )
    cells = found(root, "--exact")["labels"]["Edema"]
    assert cells["blank"] == 25
    assert cells["uncertain"] == int((np.abs(labels[:, edema]) == 1).sum())
    assert cells["positive"] == 0
