"""The public vocabulary: negation and uncertainty count apart, rows are bounded, nothing is fitted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.data.vocabulary import ngram_counts, tokenise, vocabulary


def test_columns_are_unique_and_few_enough_for_a_small_encoder():
    assert len(set(vocabulary())) == len(vocabulary()) <= 600


@pytest.mark.parametrize(
    ("text", "present", "absent"),
    [
        ("Small left pleural effusion.", {"effusion", "pleural effusion", "left"}, {"NEG_effusion"}),
        ("No pleural effusion.", {"NEG_effusion", "NEG_pleural effusion"}, {"effusion", "pleural effusion"}),
        (
            "No focal consolidation, effusion, or pneumothorax.",
            {"NEG_consolidation", "NEG_pneumothorax"},
            set(),
        ),
        ("Edema without effusion.", {"edema", "NEG_effusion"}, {"NEG_edema", "effusion"}),
        ("No effusion but new edema.", {"NEG_effusion", "edema"}, {"NEG_edema"}),
        ("No effusion. There is edema.", {"NEG_effusion", "edema"}, {"NEG_edema"}),
        ("The effusion has resolved.", {"NEG_effusion"}, {"effusion"}),
        ("Resolved edema.", {"NEG_edema"}, {"edema"}),
        ("Negative for pneumonia.", {"NEG_pneumonia"}, {"pneumonia"}),
        ("Pneumonia cannot be excluded.", {"UNC_pneumonia"}, {"pneumonia", "NEG_pneumonia"}),
        ("Pneumonia is excluded.", {"NEG_pneumonia"}, {"pneumonia", "UNC_pneumonia"}),
        ("Possible atelectasis.", {"UNC_atelectasis"}, {"atelectasis"}),
        ("History of pneumonia.", {"UNC_pneumonia"}, {"pneumonia"}),
        ("Rule out pneumothorax.", {"UNC_pneumothorax"}, {"pneumothorax"}),
        ("Chest tube has been removed.", {"NEG_chest tube"}, {"chest tube"}),
        ("No possible fracture.", {"NEG_fracture"}, {"UNC_fracture", "fracture"}),
    ],
)
def test_what_is_denied_or_hedged_is_not_what_is_stated(text, present, absent):
    found = set(tokenise(text))
    assert present <= found
    assert not absent & found


def test_saying_a_thing_twice_counts_once():
    once, twice = ngram_counts(np.array(["Edema.", "Edema. Edema. Edema."], dtype=object))
    assert np.array_equal(once, twice)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_rows_are_binary_and_agree_with_tokenise_for_any_text(texts):
    rows = ngram_counts(np.array(texts, dtype=object))
    assert rows.shape == (len(texts), len(vocabulary()))
    assert rows.dtype == np.float32
    for row, text in zip(rows, texts, strict=True):
        assert {vocabulary()[i] for i in np.flatnonzero(row)} == set(tokenise(text))
        assert set(np.unique(row)) <= {0.0, 1.0}


def test_a_row_depends_on_its_own_text_alone():
    texts = np.array(["No effusion.", "Edema.", "Possible edema."], dtype=object)
    together = ngram_counts(texts)
    alone = np.concatenate([ngram_counts(texts[i : i + 1]) for i in range(3)])
    assert np.array_equal(together, alone)
    assert not ngram_counts(np.array([""], dtype=object)).any()
