"""The synthetic chest films: reproducible, with realistic labels, each modality saying only part of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from secure_fed.data import SyntheticCxrConfig, load, schema_of
from secure_fed.data.cxr_anatomy import FINDINGS, Anatomy, Placement
from secure_fed.data.film import draw_films
from secure_fed.data.partition import split_by_unit
from secure_fed.data.report_grammar import write_reports
from secure_fed.data.vocabulary import ngram_counts, vocabulary


@pytest.fixture(scope="module")
def records():
    return load(SyntheticCxrConfig(patients=2000), seed=3).records


def fingerprint(records):
    digest = hashlib.sha256(records.values["image"].tobytes())
    digest.update("\0".join(records.values["text"]).encode())
    digest.update(records.labels.tobytes() + records.unit_ids.tobytes())
    return digest.hexdigest()


def label(records, name):
    return records.labels[:, records.schema.labels.index(name)].astype(bool)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    small = SyntheticCxrConfig(patients=90)
    prints = [fingerprint(load(small, seed).records) for seed in (5, 5, 6)]
    assert prints[0] == prints[1] != prints[2]


def test_labels_are_chexperts_in_its_order(records):
    assert records.schema.labels == (
        "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
        "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
        "Fracture", "Support Devices",
    )  # fmt: skip
    assert records.schema == schema_of(SyntheticCxrConfig())


def test_no_finding_excludes_every_finding_but_devices(records):
    pathology = records.labels[:, 1:-1].any(axis=1)
    assert np.array_equal(label(records, "No Finding"), ~pathology)
    assert (label(records, "No Finding") & label(records, "Support Devices")).any()


def test_prevalences_and_co_occurrence_are_those_of_a_hospital(records):
    # n is about 4,000: three standard errors of a prevalence of .24 are .02, wider here as patients repeat.
    for name, prevalence in (("Pleural Effusion", 0.24), ("Support Devices", 0.29), ("Pneumothorax", 0.05)):
        assert label(records, name).mean() == pytest.approx(prevalence, abs=0.03)
    edema, heart, effusion = (label(records, n) for n in ("Edema", "Cardiomegaly", "Pleural Effusion"))
    assert heart[edema].mean() > 1.5 * heart.mean()
    assert effusion[edema].mean() > 1.5 * effusion.mean()


def test_patients_have_several_studies_and_resemble_themselves(records):
    _, unit_of, counts = np.unique(records.unit_ids, return_inverse=True, return_counts=True)
    assert counts.mean() == pytest.approx(2.0, abs=0.1)
    first, last = (np.array([np.flatnonzero(unit_of == u)[k] for u in np.flatnonzero(counts > 1)]) for k in (0, -1))
    heart = label(records, "Cardiomegaly")
    assert heart[last][heart[first]].mean() > 1.5 * heart.mean()


def test_images_are_grey_values_of_an_8_bit_film(records):
    films = records.values["image"]
    assert films.shape[1:] == (1, 64, 64)
    assert films.min() >= 0.0
    assert films.max() <= 1.0
    levels = films[:50] * 255.0
    # float32 division and multiplication by 255 each round by at most 2^-24 of the value: far below 1e-3
    assert np.abs(levels - np.rint(levels)).max() < 1e-3


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_changes_the_film_where_it_sits_and_nothing_without_evidence(finding):
    place = Placement.draw(np.random.default_rng(1), 8)
    body = Anatomy.draw(np.random.default_rng(2), 8, np.arange(8))
    films = []
    for level in (-3.0, 0.0, 3.0):
        evidence = np.full((8, len(FINDINGS)), -3.0)
        evidence[:, FINDINGS.index(finding)] = level
        films.append(draw_films(np.random.default_rng(4), evidence, body, place, 64)[:, 0])
    assert np.array_equal(films[0], films[1])  # below the threshold of what a film shows
    changed = np.abs(films[2] - films[0]) > 0.05
    assert (changed.sum(axis=(1, 2)) >= 4).mean() > 0.7
    assert changed.mean() < 0.35  # a finding is somewhere, not a change of exposure


def test_the_report_places_a_finding_on_the_side_of_the_film():
    place = Placement.draw(np.random.default_rng(1), 300)
    evidence = np.full((300, len(FINDINGS)), -3.0)
    evidence[:, FINDINGS.index("Pleural Effusion")] = 3.0
    body = Anatomy.draw(np.random.default_rng(2), 300, np.arange(300))
    films = draw_films(np.random.default_rng(3), evidence, body, place, 64)[:, 0]
    reports = write_reports(np.random.default_rng(4), evidence, place)
    base = films[:, 36:46]
    brighter_on_the_patients_left = base[:, :, 40:58].mean(axis=(1, 2)) - base[:, :, 6:24].mean(axis=(1, 2))
    left = np.array(["left" in text for text in reports])
    right = np.array(["right" in text for text in reports])
    assert brighter_on_the_patients_left[left & ~right].mean() > 0.1
    assert brighter_on_the_patients_left[right & ~left].mean() < -0.1


def test_reports_state_hedge_deny_and_distract(records):
    text = "\n".join(records.values["text"])
    for phrase in (
        "cannot be excluded",
        "No pleural effusion",
        "may represent",
        "INDICATION: rule out",
        "resolved",
    ):
        assert phrase in text
    # Naming an effusion is no proof of one: denials, doubts and past effusions name it too.
    effusion = label(records, "Pleural Effusion")
    named = np.array(["effusion" in report.lower() for report in records.values["text"]])
    stated = ngram_counts(records.values["text"])[:, vocabulary().index("effusion")] > 0
    assert effusion[stated].mean() > 1.5 * effusion[named].mean()


def test_size_link_and_number_follow_the_configuration():
    one = load(SyntheticCxrConfig(patients=40, studies_per_patient=1.0, image_size=32), seed=0).records
    assert one.values["image"].shape == (40, 1, 32, 32)
    assert len(set(one.unit_ids)) == 40


def score(features, records):
    train, test = split_by_unit(records, 0.25, seed=0)
    x = StandardScaler().fit(features[train]).transform(features)
    names = ["Cardiomegaly", "Lung Opacity", "Edema", "Atelectasis", "Pleural Effusion", "Support Devices"]
    aurocs = []
    for name in names:  # the six frequent ones: about 150 positives each in the test set
        y = label(records, name)
        model = LogisticRegression(C=1e-3).fit(x[train], y[train])
        aurocs.append(roc_auc_score(y[test], model.decision_function(x[test])))
    return np.mean(aurocs)


def test_each_modality_says_only_part_of_the_label(records):
    pooled = records.values["image"].reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(len(records), -1)
    text = ngram_counts(records.values["text"])
    image_only, text_only = score(pooled, records), score(text, records)
    both = score(np.concatenate([pooled, text], axis=1), records)
    # An AUROC's standard error is about .02 a label here, under .01 for the mean of six.
    assert 0.70 < image_only < 0.90
    assert 0.70 < text_only < 0.90
    assert both > max(image_only, text_only) + 0.03


def test_one_modality_says_something_of_the_other(records):
    text = ngram_counts(records.values["text"])
    told = text[:, vocabulary().index("effusion")] > 0
    pooled = records.values["image"].reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(len(records), -1)
    train, test = split_by_unit(records, 0.25, seed=0)
    x = StandardScaler().fit(pooled[train]).transform(pooled)
    model = LogisticRegression(C=1e-3).fit(x[train], told[train])
    assert roc_auc_score(told[test], model.decision_function(x[test])) > 0.65
