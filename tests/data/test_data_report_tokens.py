"""Reports as tokens: what is written again says to a text encoder what the report said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.data.config import SyntheticCxrConfig
from secure_fed.data.report_tokens import (
    BEGIN,
    END,
    PAD,
    SPECIAL,
    UNKNOWN,
    body,
    report_ids,
    report_texts,
    vocabulary_size,
    words,
)
from secure_fed.data.synthetic_cxr import generate_synthetic_cxr
from secure_fed.data.vocabulary import ngram_counts


def texts(*reports: str) -> np.ndarray:
    return np.array(reports, dtype=object)


@pytest.fixture(scope="module")
def reports() -> np.ndarray:
    return generate_synthetic_cxr(SyntheticCxrConfig(name="synthetic_cxr", patients=150, image_size=32), 1).values[
        "text"
    ]


def test_a_report_written_from_its_tokens_says_to_the_text_encoder_what_its_body_says(reports):
    written = report_texts(report_ids(reports, 200))
    np.testing.assert_array_equal(ngram_counts(written), ngram_counts(texts(*map(body, reports))))


def test_every_word_of_the_shipped_reports_is_public(reports):
    assert not (report_ids(reports, 200) == UNKNOWN).any()


def test_every_word_of_the_n_gram_vocabulary_has_one_id_and_marks_come_first():
    known = words()
    assert known[:3] == (".", ",", ";")
    assert len(set(known)) == len(known) == vocabulary_size() - SPECIAL
    assert {"cardiomegaly", "effusion", "the", "no"} <= set(known)
    assert list(known[3:]) == sorted(known[3:])


@given(st.lists(st.integers(SPECIAL, vocabulary_size() - 1), max_size=9))
def test_what_is_written_is_read_as_the_same_tokens(tokens):
    ids = np.array([[*tokens, END, *[PAD] * (9 - len(tokens))]])
    if tokens:  # a report without a word is an absent one
        np.testing.assert_array_equal(report_ids(report_texts(ids), 10), ids)
    else:
        assert report_texts(ids)[0] == ""


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("INDICATION: Edema.\nFINDINGS: Clear.\nIMPRESSION: Normal chest.", " clear.\n  normal chest."),
        ("Findings :\n Clear.", "\n clear."),
        ("INDICATION: fall. IMPRESSION: No fracture.", " no fracture."),
        ("No effusion. Incidental findings are below.", "no effusion. incidental findings are below."),
    ],
)
def test_what_comes_before_the_findings_is_left_out(report, expected):
    assert body(report) == expected


def test_an_absent_report_has_no_tokens_and_one_that_is_too_long_has_no_end():
    ids = report_ids(texts("", "no effusion, 3 cm", "zyzzyva effusion", "___"), 4)
    no, effusion, comma = (SPECIAL + words().index(word) for word in ("no", "effusion", ","))
    cm = UNKNOWN
    assert ids.tolist() == [
        [PAD] * 4,
        [no, effusion, comma, cm],
        [UNKNOWN, effusion, END, PAD],
        [END, PAD, PAD, PAD],
    ]
    assert report_texts(np.array([[BEGIN, UNKNOWN, no, PAD, effusion, END, comma]])).tolist() == ["no effusion"]
