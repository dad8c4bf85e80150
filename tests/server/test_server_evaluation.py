"""Scores on the hold-out: AUROC and AUPRC as scikit-learn has them, labels without a score, missing modalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from secure_fed.methods.base import Imputation
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.server.evaluation import ALL_PRESENT, evaluate, predict, score

LABELS = ("rare", "common", "unknown", "constant")


def batch_of(labels: np.ndarray) -> Batch:
    known = ~np.isnan(labels)
    return Batch(
        inputs={},
        presence={},
        labels=torch.tensor(np.nan_to_num(labels), dtype=torch.float32),
        label_mask=torch.tensor(known, dtype=torch.float32),
    )


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.stack(
        [rng.random(200) < 0.05, rng.random(200) < 0.5, np.full(200, np.nan), np.ones(200)], axis=1
    ).astype(np.float64)
    labels[:20, 1] = np.nan
    return labels, rng.random((200, 4))


def test_both_scores_are_those_of_scikit_learn_over_the_records_where_the_label_is_known(scored) -> None:
    labels, probabilities = scored
    result = score(LABELS, batch_of(labels), probabilities)
    for column, (label, known) in enumerate({"rare": slice(0, None), "common": slice(20, None)}.items()):
        case = labels[known, column], probabilities[known, column]
        assert result.auroc_per_label[label] == pytest.approx(roc_auc_score(*case), abs=1e-12)
        assert result.auprc_per_label[label] == pytest.approx(average_precision_score(*case), abs=1e-12)
        assert result.prevalence[label] == pytest.approx(case[0].mean(), abs=1e-12)
    assert result.auroc_macro == pytest.approx(np.mean(list(result.auroc_per_label.values())), abs=1e-12)
    assert result.auprc_macro == pytest.approx(np.mean(list(result.auprc_per_label.values())), abs=1e-12)


def test_tied_scores_count_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((300, 4)) < 0.3).astype(np.float64)
    labels[rng.random((300, 4)) < 0.2] = np.nan
    coarse = np.round(rng.random((300, 4)), 1)
    result = score(LABELS, batch_of(labels), coarse)
    for column, label in enumerate(LABELS):
        known = ~np.isnan(labels[:, column])
        case = labels[known, column], coarse[known, column]
        assert result.auroc_per_label[label] == pytest.approx(roc_auc_score(*case), abs=1e-12)
        assert result.auprc_per_label[label] == pytest.approx(average_precision_score(*case), abs=1e-12)


def test_labels_with_one_class_or_none_known_are_left_out_and_named(scored) -> None:
    labels, probabilities = scored
    result = score(LABELS, batch_of(labels), probabilities)
    assert set(result.auroc_per_label) == set(result.auprc_per_label) == set(result.prevalence) == {"rare", "common"}
    assert result.left_out == ("unknown", "constant")
    assert math.isfinite(result.auroc_macro)
    nothing = score(LABELS[2:], batch_of(labels[:, 2:]), probabilities[:, 2:])
    assert nothing.left_out == ("unknown", "constant")
    assert math.isnan(nothing.auroc_macro)
    assert math.isnan(nothing.auprc_macro)


def test_a_view_without_a_modality_cannot_depend_on_it(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    spoiled = {**holdout.inputs, "image": torch.randn_like(holdout.inputs["image"])}
    other = Batch(spoiled, holdout.presence, holdout.labels, holdout.label_mask)
    seen, unseen = (predict(federation.method, model, batch) for batch in (holdout, other))
    assert np.abs(seen - unseen).max() > 1e-3, "the model ignores images: the test could not fail"
    blind, also_blind = (predict(federation.method, model, batch.without({"image"})) for batch in (holdout, other))
    np.testing.assert_array_equal(blind, also_blind)
    assert np.abs(seen - blind).max() > 1e-3


def test_evaluation_has_a_view_with_everything_and_one_without_each_modality(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    scores = evaluate(federation.method, model, holdout, federation.schema.labels)
    assert set(scores) == {ALL_PRESENT, "image", "text"}
    for name, view in {ALL_PRESENT: holdout, "image": holdout.without({"image"})}.items():
        probabilities = predict(federation.method, model, view)
        assert scores[name] == score(federation.schema.labels, view, probabilities)
    assert holdout.presence["image"].all(), "evaluation changed the batch that it was given"


def test_predictions_do_not_depend_on_how_records_are_cut_into_chunks(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    whole = predict(federation.method, model, holdout, chunk=len(holdout))
    np.testing.assert_allclose(predict(federation.method, model, holdout, chunk=7), whole, atol=1e-6)
    assert ((whole >= 0) & (whole <= 1)).all()


class Drawing(ZeroFill):
    """Fills in random numbers, in training and at test."""

    def impute(self, model, batch, features, context=None):
        return {name: Imputation(torch.rand_like(value)) for name, value in features.items()}


def test_a_method_that_draws_what_it_fills_in_predicts_the_same_at_every_call(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    method = Drawing(federation.config.method)
    view = holdout.without({"image"})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = predict(method, model, view)
    assert torch.equal(torch.get_rng_state(), before), "training's draws must not depend on how often it is scored"
    torch.manual_seed(2)
    np.testing.assert_array_equal(predict(method, model, view), first)
    assert np.abs(first - predict(federation.method, model, view)).max() > 1e-3


class Peeking(ZeroFill):
    """Looks at the labels of the record that it fills in."""

    def impute(self, model, batch, features, context=None):
        return {
            name: Imputation(value + batch.labels[:, :1] * batch.label_mask[:, :1]) for name, value in features.items()
        }


def test_no_method_can_look_at_the_answer_of_what_is_scored(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    view = holdout.without({"image"})
    seen, none = (predict(method(federation.config.method), model, view) for method in (Peeking, ZeroFill))
    np.testing.assert_array_equal(seen, none)


def test_a_model_that_predicts_no_number_is_not_scored_as_if_it_did(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    model.set_component("fusion", np.full(model.component_sizes()["fusion"], np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        evaluate(federation.method, model, holdout, federation.schema.labels)
