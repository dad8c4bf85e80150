"""Scores on the hold-out: AUROC as scikit-learn counts it, labels that cannot be scored, and missing modalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.facts import Federation
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


def test_auroc_is_that_of_scikit_learn_over_the_records_where_the_label_is_known(scored) -> None:
    labels, probabilities = scored
    result = score(LABELS, batch_of(labels), probabilities)
    assert result.per_label["rare"] == pytest.approx(roc_auc_score(labels[:, 0], probabilities[:, 0]), abs=1e-12)
    assert result.per_label["common"] == pytest.approx(roc_auc_score(labels[20:, 1], probabilities[20:, 1]), abs=1e-12)
    assert result.auroc_macro == pytest.approx(np.mean(list(result.per_label.values())), abs=1e-12)


def test_tied_scores_count_half_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((300, 4)) < 0.3).astype(np.float64)
    labels[rng.random((300, 4)) < 0.2] = np.nan
    coarse = np.round(rng.random((300, 4)), 1)
    result = score(LABELS, batch_of(labels), coarse)
    for column, label in enumerate(LABELS):
        known = ~np.isnan(labels[:, column])
        expected = roc_auc_score(labels[known, column], coarse[known, column])
        assert result.per_label[label] == pytest.approx(expected, abs=1e-12)


def test_labels_with_one_class_or_none_known_are_left_out_and_named(scored) -> None:
    labels, probabilities = scored
    result = score(LABELS, batch_of(labels), probabilities)
    assert set(result.per_label) == {"rare", "common"}
    assert result.left_out == ("unknown", "constant")
    assert math.isfinite(result.auroc_macro)


@pytest.fixture
def trained_shape(make_config):
    """A federation with an untrained model of which no layer is zero, and its prepared hold-out."""
    config = make_config()
    simulated = simulate(config)
    federation = Federation(config, simulated.members)
    model = federation.new_model()
    rng = np.random.default_rng(0)
    for name, size in model.component_sizes().items():
        model.set_component(name, rng.normal(0, 0.3, size).astype(np.float32))
    return federation, model, model.prepare(simulated.holdout)


def test_a_view_without_a_modality_cannot_depend_on_it(trained_shape) -> None:
    federation, model, holdout = trained_shape
    spoiled = {**holdout.inputs, "image": torch.randn_like(holdout.inputs["image"])}
    other = Batch(spoiled, holdout.presence, holdout.labels, holdout.label_mask)
    seen, unseen = (predict(federation.method, model, batch) for batch in (holdout, other))
    assert np.abs(seen - unseen).max() > 1e-3, "the model ignores images: the test could not fail"
    blind, also_blind = (predict(federation.method, model, batch.without({"image"})) for batch in (holdout, other))
    np.testing.assert_array_equal(blind, also_blind)
    assert np.abs(seen - blind).max() > 1e-3


def test_evaluation_has_a_view_with_everything_and_one_without_each_modality(trained_shape) -> None:
    federation, model, holdout = trained_shape
    scores = evaluate(federation.method, model, holdout, federation.schema.labels)
    assert set(scores) == {ALL_PRESENT, "image", "text"}
    for name, view in {ALL_PRESENT: holdout, "image": holdout.without({"image"})}.items():
        probabilities = predict(federation.method, model, view)
        assert scores[name] == score(federation.schema.labels, view, probabilities)
    assert holdout.presence["image"].all(), "evaluation changed the batch that it was given"


def test_predictions_do_not_depend_on_how_records_are_cut_into_chunks(trained_shape) -> None:
    federation, model, holdout = trained_shape
    whole = predict(federation.method, model, holdout, chunk=len(holdout))
    np.testing.assert_allclose(predict(federation.method, model, holdout, chunk=7), whole, atol=1e-6)
    assert ((whole >= 0) & (whole <= 1)).all()


def test_a_model_that_predicts_no_number_is_not_scored_as_if_it_did(trained_shape) -> None:
    federation, model, holdout = trained_shape
    model.set_component("fusion", np.full(model.component_sizes()["fusion"], np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        evaluate(federation.method, model, holdout, federation.schema.labels)
