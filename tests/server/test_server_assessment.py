"""The end of a run on the public hold-out: one assessment whose parts agree, in values that JSON holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from secure_fed.server.assessment import assess
from secure_fed.server.evaluation import ALL_PRESENT, evaluate


@pytest.fixture(scope="module")
def facts(kept_shape) -> dict:
    return assess(kept_shape.federation, kept_shape.model, kept_shape.records).facts()


def test_its_scores_are_those_that_a_round_is_given(shape, facts) -> None:
    scores = evaluate(shape.federation.method, shape.model, shape.holdout, shape.federation.schema.labels)
    assert facts["auroc_macro"] == scores[ALL_PRESENT].auroc_macro
    assert facts["auprc_macro"] == scores[ALL_PRESENT].auprc_macro
    for name in ("image", "text"):
        assert facts["auroc_macro_missing"][name] == scores[name].auroc_macro
        assert facts["auprc_macro_missing"][name] == scores[name].auprc_macro
    assert facts["labels_left_out"] == list(scores[ALL_PRESENT].left_out)


def test_rates_begin_and_end_at_those_scores_and_intervals_hold_them(facts) -> None:
    ends = {(point["modality"], point["rate"]): point["auroc_macro"] for point in facts["missing_rates"]}
    for name, missing in facts["auroc_macro_missing"].items():
        assert ends[name, 0.0] == pytest.approx(facts["auroc_macro"], abs=1e-12)
        assert ends[name, 1.0] == pytest.approx(missing, abs=1e-12)
    found = facts["intervals"]
    low, high = found["auroc_macro"]
    assert low < facts["auroc_macro"] < high
    assert (found["level"], found["draws"]) == (0.95, 1000)
    assert set(found["auroc_per_label"]) == set(facts["auroc_per_label"])


def test_intervals_are_over_patients_not_records(shape, facts) -> None:
    patients = len(set(shape.records.unit_ids))
    assert facts["intervals"]["patients"] == patients < len(shape.records)
    other = np.array([f"p{i}" for i in range(len(shape.records))])
    alone = assess(shape.federation, shape.model, replace(shape.records, unit_ids=other)).facts()
    assert alone["intervals"]["patients"] == len(shape.records)
    assert alone["auroc_macro"] == facts["auroc_macro"]
    assert alone["intervals"]["auroc_macro"] != facts["intervals"]["auroc_macro"]


def test_assessed_twice_it_is_the_same_and_json_holds_it(shape, facts) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = assess(shape.federation, shape.model, shape.records)
    assert again.facts() == facts
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(facts, allow_nan=False))["prevalence"] == facts["prevalence"]


def test_chance_of_auprc_is_the_mean_prevalence_of_the_labels_that_are_scored(shape, facts) -> None:
    known = shape.holdout.label_mask.numpy() > 0
    positive = (shape.holdout.labels.numpy() > 0).sum(axis=0) / known.sum(axis=0)
    shares = dict(zip(shape.federation.schema.labels, positive, strict=True))
    assert facts["prevalence"] == pytest.approx({name: shares[name] for name in facts["auprc_per_label"]})
    assert facts["auprc_chance"] == pytest.approx(np.mean(list(facts["prevalence"].values())))


def test_a_hold_out_without_any_label_of_both_classes_is_told_without_a_figure(shape) -> None:
    blank = replace(shape.records, labels=np.zeros_like(shape.records.labels))
    facts = assess(shape.federation, shape.model, blank).facts()
    assert facts["auroc_macro"] is facts["auprc_macro"] is facts["auprc_chance"] is None
    assert facts["intervals"]["auroc_macro"] is None
    assert set(facts["labels_left_out"]) == set(shape.federation.schema.labels)
    assert {point["auroc_macro"] for point in facts["missing_rates"]} == {None}
    json.dumps(facts, allow_nan=False)
