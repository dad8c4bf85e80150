"""Sections of reports and Open-I's terms: public rules, written down in docs/data.md, and held to it here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from radiology_trees import films, mimic_report, terms_of

from secure_fed.data.open_i_terms import NOT_INDEXED, TERMS, UNCERTAIN_QUALIFIERS, labels_of
from secure_fed.data.report_sections import cleaned, joined, sections_of
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  Radiographs of ___.
 
 FINDINGS: 
 
 There is no focal consolidation, pleural effusion or
 pneumothorax.  Lungs: clear.
 
 IMPRESSION: 
 
 No acute process.
 
 NOTIFICATION:  Told to Dr. ___ by telephone.
 
 IMPRESSION:  Addendum: none.
"""  # noqa: W291, W293 - as the released files are


def test_a_report_of_mimic_cxr_falls_into_its_sections():
    assert sections_of(MIMIC) == {
        "indication": "F with new onset ascites // eval for infection",
        "comparison": "Radiographs of .",
        "findings": "There is no focal consolidation, pleural effusion or pneumothorax. Lungs: clear.",
        "impression": "No acute process. Addendum: none.",
    }


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("FINDINGS", "findings"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("SINGLE PORTABLE VIEW OF THE CHEST", "findings"),
        ("CONCLUSION", "impression"),
        ("HISTORY", "indication"),
        ("REASON FOR EXAMINATION", "indication"),
        ("EXAMINATION", None),
        ("CHEST RADIOGRAPH TECHNIQUE", None),
        ("TYPE OF EXAMINATION", None),
        ("WET READ", None),
        ("NOTIFICATION", None),
        ("Lungs", None),
    ],
)
def test_headings_name_their_sections(heading, section):
    assert sections_of(f" {heading}:  Something is here.\n") == ({section: "Something is here."} if section else {})


def test_a_report_without_headings_has_no_section():
    assert sections_of("There is no effusion.") == {}
    assert sections_of("") == {}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Seen by ___ at ____.", "Seen by at ."),
        ("Normal chest x-XXXX. XXXX.", "Normal chest x- . ."),
        ("Told [**Name 12**]\n\n today", "Told today"),
        ("a_b and XX stay", "a_b and XX stay"),
    ],
)
def test_what_was_taken_out_of_a_report_leaves_nothing_behind(text, kept):
    assert cleaned({"findings": text}) == {"findings": kept}


def test_a_section_of_blanks_alone_is_absent():
    assert cleaned({"findings": "___ .\n", "impression": " \n ", "comparison": "None."}) == {"comparison": "None."}


def test_wanted_sections_come_in_the_wanted_order():
    sections = {"findings": "a", "impression": "b"}
    assert joined(sections, ("impression", "comparison", "findings")) == "IMPRESSION: b\nFINDINGS: a"
    assert joined(sections, ("comparison",)) == ""


def test_every_synthetic_report_survives_the_layout_of_mimic_cxr():
    for text in films(patients=40).values["text"]:
        expected = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in text.splitlines()}
        assert sections_of(mimic_report(text)) == expected


@given(st.text(max_size=300))
def test_no_text_breaks_the_rules(text):
    for body in sections_of(text).values():
        assert body == " ".join(body.split())
        assert body


# -- Open-I's terms ----------------------------------------------------------------------------------


def row_of(**values):
    return tuple(float(values.get(name, 0.0)) for name in CHEXPERT_LABELS)


@pytest.mark.parametrize(
    ("terms", "labels"),
    [
        (["normal"], {"No Finding": 1}),
        (["Scoliosis/thoracic vertebrae/mild", "Calcified Granuloma/lung"], {"No Finding": 1}),
        (["Cardiomegaly/mild", "Pleural Effusion/right/small"], {"Cardiomegaly": 1, "Pleural Effusion": 1}),
        (["Cardiomegaly/borderline"], {"Cardiomegaly": -1}),
        (["Cardiomegaly/borderline", "Cardiac Shadow/enlarged/mild"], {"Cardiomegaly": 1}),
        (["Cardiac Shadow/enlarged/mild", "Cardiomegaly/borderline"], {"Cardiomegaly": 1}),
        (["Cardiac Shadow/irregular"], {"No Finding": 1}),
        (
            ["Thickening/pleura/apex/left", "Costophrenic Angle/left/blunted"],
            {"Pleural Other": 1, "Pleural Effusion": 1},
        ),
        (["Hydropneumothorax/left"], {"Pneumothorax": 1, "Pleural Effusion": 1}),
        (["Catheters, Indwelling/right", "normal"], {"Support Devices": 1, "No Finding": 1}),
        (["Fractures, Bone/ribs", " OPACITY/lung/base "], {"Fracture": 1, "Lung Opacity": 1}),
        (["no indexing", "Pneumonia"], {"Pneumonia": 1}),
    ],
)
def test_terms_become_labels(terms, labels):
    assert labels_of(terms) == row_of(**labels)


@pytest.mark.parametrize("terms", [[], [""], ["no indexing"], ["Technical Quality of Image Unsatisfactory"]])
def test_a_report_that_was_not_indexed_says_nothing(terms):
    assert labels_of(terms) is None


def test_every_label_but_no_finding_has_a_term():
    assert {label for _, _, label in TERMS} == set(CHEXPERT_LABELS) - {"No Finding"}


@given(st.lists(st.sampled_from([1.0, 0.0, -1.0]), min_size=13, max_size=13))
def test_any_findings_can_be_said_in_terms(findings):
    labels = dict(zip(CHEXPERT_LABELS[1:], findings, strict=True))
    labels["No Finding"] = float(not any(value for name, value in labels.items() if name != "Support Devices"))
    assert labels_of(terms_of(labels)) == tuple(labels[name] for name in CHEXPERT_LABELS)


def test_the_documented_table_is_the_one_in_the_code():
    section = DOCS.split("### Open-I's terms", 1)[1].split("\n## ", 1)[0]
    documented = {}
    for label, terms in re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", section, flags=re.MULTILINE)[1:]:
        documented[label] = set(re.findall(r"`([^`]+)`", terms))
    in_code: dict[str, set[str]] = {}
    for term, qualifier, label in TERMS:
        in_code.setdefault(label, set()).add(f"{term}/{qualifier}" if qualifier else term)
    assert documented == in_code
    for word in (*UNCERTAIN_QUALIFIERS, *NOT_INDEXED):
        assert f"`{word}`" in section
