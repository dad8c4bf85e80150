"""Intervals over patients: those of a plain loop that draws patients again and scores with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from secure_fed.server import bootstrap
from secure_fed.server.bootstrap import intervals

LABELS = ("common", "rare", "constant")


@pytest.fixture
def scored():
    """90 records of 40 patients, two labels with some unknown and one with a single class; two views."""
    rng = np.random.default_rng(3)
    patients = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 50)]))
    truth = np.stack([rng.random(90) < 0.4, rng.random(90) < 0.06, np.zeros(90, dtype=bool)], axis=1)
    known = rng.random((90, 3)) < 0.9
    informed = np.round(rng.random((90, 3)) + 0.4 * truth, 2)
    return {"none": informed, "image": rng.random((90, 3))}, truth & known, known, patients


def naive(scores, truth, known, weights):
    """Macro scores of each draw, one at a time; a label with one class in the draw is left out of it."""
    found = []
    for draw in range(weights.shape[1]):
        auroc, auprc = [], []
        for label in range(truth.shape[1]):
            rows = known[:, label]
            weight, positive = weights[rows, draw], truth[rows, label]
            if weight[positive].sum() and weight[~positive].sum():
                auroc.append(roc_auc_score(positive, scores[rows, label], sample_weight=weight))
                auprc.append(average_precision_score(positive, scores[rows, label], sample_weight=weight))
        found.append((np.mean(auroc), np.mean(auprc)))
    return np.array(found)


def test_intervals_are_those_of_a_plain_loop_over_the_same_draws(scored) -> None:
    views, truth, known, patients = scored
    weights = bootstrap.draw_patients(np.random.default_rng(5), patients, 60)
    found = intervals(LABELS, views, truth, known, patients, draws=60, seed=5)
    for view, scores in views.items():
        expected = np.quantile(naive(scores, truth, known, weights), [0.025, 0.975], axis=0)
        assert found[view].auroc_macro == pytest.approx(tuple(expected[:, 0]), abs=1e-12)
        assert found[view].auprc_macro == pytest.approx(tuple(expected[:, 1]), abs=1e-12)


def test_a_draw_takes_whole_patients_as_many_as_there_are(scored) -> None:
    *_, patients = scored
    weights = bootstrap.draw_patients(np.random.default_rng(0), patients, 400)
    for patient in range(40):
        assert (np.ptp(weights[patients == patient], axis=0) == 0).all(), "records of one patient come together"
    first = weights[np.searchsorted(patients, np.arange(40))]
    assert (first.sum(axis=0) == 40).all()
    # Each patient's count is binomial(40, 1/40): mean 1, variance 0.975; 16,000 of them.
    assert first.mean() == 1.0
    assert first.var() == pytest.approx(0.975, abs=0.05)


def test_patients_with_many_records_make_wider_intervals_than_as_many_records_of_different_patients() -> None:
    rng = np.random.default_rng(9)
    truth = np.repeat(rng.random((60, 1)) < 0.4, 10, axis=0)
    scores = np.repeat(rng.normal(size=(60, 1)), 10, axis=0) + 0.8 * truth
    known = np.ones_like(truth)
    widths = [
        np.ptp(intervals(("a",), {"none": scores}, truth, known, patients)["none"].auroc_macro)
        for patients in (np.repeat(np.arange(60), 10), np.arange(600))
    ]
    # Ten copies of each: a factor of the root of ten, and the draws' own spread.
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.25)


def test_the_interval_covers_what_a_fresh_hold_out_scores_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(100):
        truth = rng.random((200, 1)) < 0.5
        scores = rng.normal(size=(200, 1)) + truth  # AUROC of two unit normals one apart: Phi(1 / sqrt 2)
        one = intervals(("a",), {"none": scores}, truth, np.ones_like(truth), np.arange(200), draws=200)
        low, high = one["none"].auroc_macro
        covered += low <= 0.760250 <= high
    # Binomial(100, 0.95) lies in 87 to 100 but for 0.1 % of the time; percentile intervals are a little short.
    assert covered >= 87


def test_the_same_hold_out_has_the_same_intervals_however_draws_are_cut_into_parts(scored, monkeypatch) -> None:
    views, truth, known, patients = scored
    once = intervals(LABELS, views, truth, known, patients, draws=64)
    assert once == intervals(LABELS, views, truth, known, patients, draws=64)
    monkeypatch.setattr(bootstrap, "_LARGEST", 90 * 7)
    assert intervals(LABELS, views, truth, known, patients, draws=64) == once


def test_a_label_with_one_class_has_no_interval_and_a_hold_out_without_any_score_none_at_all(scored) -> None:
    views, truth, known, patients = scored
    found = intervals(LABELS, views, truth, known, patients, draws=20)["none"]
    assert set(found.auroc_per_label) == set(found.auprc_per_label) == {"common", "rare"}
    nothing = intervals(LABELS, views, np.zeros_like(truth), known, patients, draws=20)["none"]
    assert (nothing.auroc_macro, nothing.auprc_macro, nothing.auroc_per_label) == (None, None, {})
