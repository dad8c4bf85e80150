"""Chest film sets as they lie on disk: what is read is what was written, labels by name, patients kept together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from radiology_trees import (
    MIMIC_LABELS,
    films,
    read_csv,
    save,
    write_chexpert,
    write_csv,
    write_mimic_cxr,
    write_open_i_csv,
    write_open_i_xml,
)

from secure_fed.config import compose_config, freeze
from secure_fed.data import load, schema_of, survey
from secure_fed.data.config import ChexpertConfig, MimicCxrConfig, OpenIConfig
from secure_fed.data.images import LazyImages
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.data.tables import Faults
from secure_fed.errors import DataError

WRITERS = {
    "mimic_cxr": (write_mimic_cxr, MimicCxrConfig),
    "open_i_csv": (write_open_i_csv, OpenIConfig),
    "open_i_xml": (write_open_i_xml, OpenIConfig),
    "chexpert": (write_chexpert, ChexpertConfig),
}
FRONTAL_OR_NOT = ("pa", "ap", "frontal", "unknown")


@pytest.fixture(scope="module")
def source():
    return films()


@pytest.fixture(scope="module")
def trees(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return {name: writer(source, folder / name) for name, (writer, _) in WRITERS.items()}


def read(trees, name, **options):
    config = WRITERS[name][1](root=trees[name], image_size=32, views=FRONTAL_OR_NOT, **options)
    return load(config, seed=0)


def used(source, name):
    """Rows that a set keeps when it is split by patient: CheXpert's valid.csv stays out."""
    ends_in_0 = np.array([unit.endswith("0") for unit in source.unit_ids])
    return np.flatnonzero(~ends_in_0) if name == "chexpert" else np.arange(len(source))


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read_back(source, trees, name):
    loaded = read(trees, name)
    records, rows = loaded.records, used(source, name)
    assert records.schema == schema_of(WRITERS[name][1](root=trees[name], image_size=32))
    assert records.schema.labels == CHEXPERT_LABELS
    assert len(records) == len(rows)
    order = np.arange(len(rows)) if name != "open_i_xml" else _by_file_name(len(rows))
    assert np.array_equal(records.labels, source.labels[rows][order])
    # JPEG changes grey values a little and the film was stored larger; PNG does not.
    images, written = np.asarray(records.values["image"]), source.values["image"][rows][order]
    assert np.abs(images - written).mean() < (0.0001 if name.startswith("open_i") else 0.03)
    assert loaded.notes["records"] == len(records)


@pytest.mark.parametrize("name", ["mimic_cxr", "open_i_csv", "open_i_xml"])
def test_reports_keep_the_wanted_sections_alone(source, trees, name):
    records = read(trees, name, sections=["impression"]).records
    order = np.arange(len(source)) if name != "open_i_xml" else _by_file_name(len(source))
    for text, written in zip(records.values["text"], source.values["text"][order], strict=True):
        lines = [line for line in written.splitlines() if line.startswith("IMPRESSION")]
        assert text == (" ".join(lines[0].split()) if lines else "")
    assert np.array_equal(records.presence["text"], [text != "" for text in records.values["text"]])
    both = read(trees, name).records.values["text"]
    assert all(text.startswith("FINDINGS: ") for text in both)
    assert not any("INDICATION" in text or "TECHNIQUE" in text or "_" in text for text in both)


def test_a_set_whose_reports_are_not_found_is_refused_unless_films_alone_are_wanted(source, tmp_path):
    root = write_mimic_cxr(source, tmp_path / "jpg", reports=tmp_path / "text")
    with pytest.raises(DataError, match=r"no report .* does not exist\): give .*data.reports.*data.sections=\[\]"):
        load(MimicCxrConfig(root=root, image_size=32), 0)
    assert load(MimicCxrConfig(root=root, reports=tmp_path / "text", image_size=32), 0).records.presence["text"].all()
    assert not load(MimicCxrConfig(root=root, sections=(), image_size=32), 0).records.presence["text"].any()


def test_chexpert_has_the_text_modality_and_no_report(trees):
    records = read(trees, "chexpert").records
    assert records.schema.names == ("image", "text")
    assert not records.presence["text"].any()


@pytest.mark.parametrize(("name", "patient"), [("mimic_cxr", "1{:07d}"), ("chexpert", "patient{:05d}")])
def test_the_unit_is_the_patient(source, trees, name, patient):
    rows = used(source, name)
    expected = [patient.format(int(unit[1:])) for unit in source.unit_ids[rows]]
    assert read(trees, name).records.unit_ids.tolist() == expected


def test_a_report_of_open_i_is_a_patient(source, trees):
    assert len(set(read(trees, "open_i_csv").records.unit_ids.tolist())) == len(source)


@pytest.mark.parametrize("columns", [CHEXPERT_LABELS, tuple(reversed(CHEXPERT_LABELS)), MIMIC_LABELS])
@pytest.mark.parametrize(("writer", "config"), [(write_mimic_cxr, MimicCxrConfig), (write_chexpert, ChexpertConfig)])
def test_labels_go_by_name_whatever_the_order_of_columns(source, tmp_path, writer, config, columns):
    root = writer(source, tmp_path / "tree", label_columns=columns)
    records = load(config(root=root, image_size=32), seed=0).records
    rows = used(source, "chexpert" if config is ChexpertConfig else "mimic_cxr")
    assert np.array_equal(records.labels, source.labels[rows])


@pytest.mark.parametrize(("uncertain", "blank"), [("zeros", "ignore"), ("ones", "zeros"), ("ignore", "ones")])
def test_uncertain_and_blank_labels_become_what_is_asked_for(source, tmp_path, uncertain, blank):
    root = write_chexpert(source, tmp_path / "tree")
    rows = read_csv(root / "train.csv")
    column = rows[0].index("Edema")
    rows[1][column], rows[2][column], rows[3][column] = "-1.0", "", "1.0"
    write_csv(root / "train.csv", [row for row in rows if "lateral" not in row[0]])
    config = ChexpertConfig(root=root, image_size=32, uncertain=uncertain, blank=blank)
    edema = load(config, 0).records.labels[:, CHEXPERT_LABELS.index("Edema")]
    frontal = [row for row in rows[1:] if "lateral" not in row[0]]
    meaning = {"zeros": 0.0, "ones": 1.0, "ignore": np.nan}
    value = {"-1.0": meaning[uncertain], "": meaning[blank], "1.0": 1.0, "0.0": 0.0}
    assert np.array_equal(edema, [value[row[column]] for row in frontal], equal_nan=True)


def test_a_study_without_labels_is_unknown_whatever_blank_means(source, tmp_path):
    root = write_mimic_cxr(source, tmp_path / "tree", zipped=False)
    table = root / "mimic-cxr-2.0.0-chexpert.csv"
    rows = read_csv(table)
    write_csv(table, [rows[0], *rows[2:]])
    loaded = load(MimicCxrConfig(root=root, image_size=32, blank="zeros"), 0)
    assert np.isnan(loaded.records.labels[0]).all()
    assert not np.isnan(loaded.records.labels[1:]).any()
    assert loaded.notes["studies without labels"] == 1


@pytest.mark.parametrize("config", [MimicCxrConfig, OpenIConfig, ChexpertConfig])
def test_the_command_line_s_defaults_are_the_reader_s(config, tmp_path):
    by_hydra = freeze(compose_config([f"data={config().name}", f"data.root={tmp_path}"]), tmp_path / "run").data
    assert by_hydra == config(root=tmp_path)


# -- views, studies and images ----------------------------------------------------------------------


def test_a_record_is_a_study_with_its_first_frontal_film_or_an_image(source, trees):
    lateral = len([i for i in range(len(source)) if i % 3 == 0])
    per_study = load(MimicCxrConfig(root=trees["mimic_cxr"], image_size=32), 0)
    assert len(per_study.records) == len(source)
    every = MimicCxrConfig(root=trees["mimic_cxr"], image_size=32, views=("pa", "ap", "lateral"), records="image")
    assert len(load(every, 0).records) == len(source) + lateral
    only_pa = load(MimicCxrConfig(root=trees["mimic_cxr"], image_size=32, views=("pa",)), 0)
    assert len(only_pa.records) == len(source) // 2
    assert only_pa.notes["studies without an image of the wanted views"] == len(source) - len(source) // 2


@pytest.mark.parametrize(
    ("written", "view"),
    [("PA", "pa"), ("AP", "ap"), ("LATERAL", "lateral"), ("LL", "lateral"), ("", "unknown"), ("AP AXIAL", "unknown")],
)
def test_view_positions_of_mimic_cxr_are_told_apart(source, tmp_path, written, view):
    root = write_mimic_cxr(source.select([1]), tmp_path / "tree", zipped=False)
    table = root / "mimic-cxr-2.0.0-metadata.csv"
    rows = read_csv(table)
    write_csv(table, [rows[0], [*rows[1][:4], written, *rows[1][5:]]])
    studies = survey(MimicCxrConfig(root=root), Faults()).studies
    assert [film.view for study in studies for film in study.films] == [view]


@pytest.mark.parametrize(
    ("side", "written", "view"),
    [("Frontal", "PA", "pa"), ("Frontal", "AP", "ap"), ("Frontal", "RL", "frontal"), ("Lateral", "", "lateral")],
)
def test_views_of_chexpert_are_told_apart(source, tmp_path, side, written, view):
    root = write_chexpert(source.select([1]), tmp_path / "tree")
    table = next(root / f"{name}.csv" for name in ("train", "valid") if len(read_csv(root / f"{name}.csv")) > 1)
    rows = read_csv(table)
    write_csv(table, [rows[0], [*rows[1][:3], side, written, *rows[1][5:]]])
    studies = survey(ChexpertConfig(root=root), Faults()).studies
    assert [film.view for study in studies for film in study.films] == [view]


def test_the_best_view_of_a_study_is_the_first_of_the_wanted_ones(source, trees):
    table = read_csv_of_mimic(trees["mimic_cxr"])
    for views, laterals in ((("lateral", "pa", "ap"), (len(source) + 2) // 3), (("ap", "pa", "lateral"), 0)):
        records = load(MimicCxrConfig(root=trees["mimic_cxr"], image_size=32, views=views), 0).records
        chosen = [table[Path(file).stem] for file in records.values["image"].files]
        assert len(chosen) == len(source)
        assert chosen.count("LATERAL") == laterals


def read_csv_of_mimic(root):
    """Image -> how it was taken."""
    return {row[0]: row[4] for row in read_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz")}


def test_open_i_without_projections_takes_a_studys_first_image_unless_views_are_asked_for(trees):
    assert len(load(OpenIConfig(root=trees["open_i_xml"], image_size=32), 0).records)
    with pytest.raises(DataError, match=r"indiana_projections.csv beside it.*data.views=\[frontal,unknown\]"):
        load(OpenIConfig(root=trees["open_i_xml"], image_size=32, views=("frontal",)), 0)


def test_projections_beside_the_xml_say_which_films_are_frontal(source, tmp_path, trees):
    root = write_open_i_xml(source, tmp_path / "xml")
    table = trees["open_i_csv"] / "indiana_projections.csv"
    (root / "indiana_projections.csv").write_bytes(table.read_bytes())
    records = load(OpenIConfig(root=root, image_size=32), 0).records
    assert len(records) == len(source)
    assert all(str(file).endswith("1001.png") for file in records.values["image"].files)


# -- splits and caps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mimic_cxr", "chexpert"])
def test_the_official_split_gives_a_hold_out_of_other_patients(source, trees, name):
    loaded = read(trees, name, split="official")
    training, held_out = set(loaded.records.unit_ids.tolist()), set(loaded.holdout.unit_ids.tolist())
    assert training
    assert held_out
    assert not training & held_out
    assert all(unit.endswith("0") for unit in held_out)


def test_an_official_split_with_a_patient_on_both_sides_is_refused_without_naming_him(source, tmp_path):
    root = write_mimic_cxr(films(studies_per_patient=4), tmp_path / "tree", zipped=False)
    table = root / "mimic-cxr-2.0.0-split.csv"
    rows = read_csv(table)
    patients = [row[2] for row in rows]
    twice = next(i for i, row in enumerate(rows) if row[3] == "train" and patients.count(row[2]) > 3)
    study = rows[twice][1]
    for row in rows:
        if row[1] == study:
            row[3] = "test"
    write_csv(table, rows)
    with pytest.raises(DataError, match="1 patients on both sides") as refused:
        load(MimicCxrConfig(root=root, image_size=32, split="official"), 0)
    assert rows[twice][2] not in str(refused.value)


def test_open_i_has_no_official_split():
    with pytest.raises(ValueError, match="split"):
        OpenIConfig(root="x", split="official")


def test_a_cap_keeps_whole_patients_and_always_the_same_ones(trees):
    whole = read(trees, "mimic_cxr").records
    counts = {patient: whole.unit_ids.tolist().count(patient) for patient in whole.unit_ids.tolist()}
    before: set[str] = set()
    for cap in (5, 10, 15):
        capped = read(trees, "mimic_cxr", max_records=cap).records
        kept = capped.unit_ids.tolist()
        assert 0 < len(kept) <= cap
        assert all(kept.count(patient) == counts[patient] for patient in kept)
        assert before <= set(kept)
        before = set(kept)


# -- lazy images -------------------------------------------------------------------------------------


def test_nothing_is_opened_until_values_are_asked_for(source, tmp_path):
    root = write_chexpert(source, tmp_path / "tree")
    for file in root.rglob("*.jpg"):
        file.write_bytes(b"not an image")
    records = load(ChexpertConfig(root=root, image_size=32), 0).records
    images = records.select([2, 0]).values["image"]
    assert isinstance(images, LazyImages)
    assert images.shape == (2, 1, 32, 32)
    with pytest.raises(DataError, match=r"view1_frontal.jpg is cut off or no image"):
        np.asarray(images)
    # Taking a modality away must not look at it either.
    assert not np.asarray(records.without({"image"}).values["image"]).any()


def test_a_truncated_image_names_itself_where_it_is_read(source, tmp_path):
    root = write_open_i_csv(source, tmp_path / "tree")
    file = sorted((root / "images" / "images_normalized").glob("*1001.dcm.png"))[0]
    file.write_bytes(file.read_bytes()[:200])
    records = load(OpenIConfig(root=root, image_size=32), 0).records
    with pytest.raises(DataError, match=file.name):
        np.asarray(records.values["image"])


def test_a_missing_image_is_refused_or_left_out(source, tmp_path):
    root = write_chexpert(source, tmp_path / "tree")
    gone = next(root.glob("train/*/study1/view1_frontal.jpg"))
    gone.unlink()
    with pytest.raises(DataError, match=r"does not exist \(train.csv, line \d+ names it\).*missing_files=skip"):
        load(ChexpertConfig(root=root, image_size=32), 0)
    loaded = load(ChexpertConfig(root=root, image_size=32, missing_files="skip"), 0)
    assert loaded.notes["images that are not on disk, left out"] == 1
    assert str(gone) not in loaded.records.values["image"].files.tolist()


def test_another_size_or_another_file_changes_the_digest_of_images(source, tmp_path):
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.png"))
        save(source.values["image"][i], tmp_path / f"{i}.png")
    digests = {LazyImages(files, 32).digest(), LazyImages(files, 64).digest(), LazyImages(files[::-1], 32).digest()}
    save(source.values["image"][7], tmp_path / "0.png")
    digests |= {LazyImages(files, 32).digest(), LazyImages([*files[:2], ""], 32).digest()}
    assert len(digests) == 5


def _by_file_name(n):
    """XML files are read in the order of their names: 1, 10, 11, 2 ..."""
    return np.array(sorted(range(n), key=lambda i: str(i + 1) + ".xml"))
