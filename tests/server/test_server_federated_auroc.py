"""AUROC from noised histograms: right without noise, honest about noise, silent where there is too little."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from secure_fed.federation.evaluation import binned
from secure_fed.server.federated_auroc import RELIABLE, ViewScore, score_view

BINS, RANGE, MIN_COUNT = 16, 8.0, 10
EDGES = np.linspace(-RANGE, RANGE, BINS + 1)[1:-1]


def histogram(truth: np.ndarray, logits: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Counts [L * 2 * bins] of records [n, L]."""
    place = binned(torch.from_numpy(logits), bins, RANGE).numpy()
    labels = truth.shape[1]
    cells = truth.astype(int) * bins + place + 2 * bins * np.arange(labels)
    return np.bincount(cells.ravel(), minlength=2 * bins * labels)


def scored(counts: np.ndarray, labels: int, deviation: float = 0.0, sites: int = 1) -> ViewScore:
    names = [f"site{i}" for i in range(sites)]
    return score_view(counts, [str(i) for i in range(labels)], names, [deviation] * sites, MIN_COUNT)


@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3), prevalence=st.floats(0.1, 0.6))
@settings(max_examples=60, deadline=None)
def test_without_noise_it_is_scikit_learns_auroc_of_the_binned_scores_and_near_that_of_the_scores(
    seed, shift, prevalence
):
    rng = np.random.default_rng(seed)
    truth = rng.random((400, 1)) < prevalence
    logits = rng.normal(-1.0 + shift * truth, 1.5)
    result = scored(histogram(truth, logits), 1)
    exact = roc_auc_score(truth[:, 0], logits[:, 0])
    in_bins = roc_auc_score(truth[:, 0], np.searchsorted(EDGES, logits[:, 0], side="right"))
    assert result.labels["0"].auroc.value == pytest.approx(in_bins, abs=1e-12)
    # Binning can only turn an order into a tie: half of the tied pairs bounds the difference.
    assert abs(result.labels["0"].auroc.value - exact) <= result.binning + 1e-12
    assert result.labels["0"].positives == truth.sum()


def test_a_score_on_an_edge_or_beyond_the_range_has_its_bin():
    logits = torch.tensor([-100.0, -8.0, -7.0, 0.0, 7.999, 8.0, 100.0, float("inf"), -float("inf")])
    assert binned(logits, BINS, RANGE).tolist() == [0, 0, 1, 8, 15, 15, 15, 15, 0]


def simulated_federation(
    rng: np.random.Generator, records: int, prevalence: float, shift: float, labels: int, deviation: float, sites: int
) -> np.ndarray:
    """Noised counts of records whose labels and scores are correlated over labels."""
    shared, own = np.sqrt(0.5), np.sqrt(0.5)
    truth = shared * rng.normal(size=(records, 1)) + own * rng.normal(size=(records, labels)) < norm.ppf(prevalence)
    error = shared * rng.normal(size=(records, 1)) + own * rng.normal(size=(records, labels))
    counts = histogram(truth, -2.0 + shift * truth + error).astype(float)
    for _ in range(sites):
        counts += np.round(rng.normal(0, deviation, counts.shape))
    return counts.astype(np.int64)


def true_auroc(shift: float) -> float:
    """Of the binned scores of the population that `simulated_federation` draws from."""
    negatives, positives = (np.diff(np.concatenate([[0], norm.cdf(EDGES + 2.0 - mean), [1]])) for mean in (0, shift))
    return float(positives @ (np.cumsum(negatives) - negatives / 2))


@pytest.mark.parametrize(
    ("records", "prevalence", "shift", "labels", "deviation"),
    [
        (1500, 0.15, 1.2, 1, 2.0),  # noise and sampling alike
        (1500, 0.15, 1.2, 1, 6.0),  # mostly noise, and some labels left out
        (1500, 0.15, 0.0, 1, 3.0),  # a model that knows nothing
        (1500, 0.15, 2.5, 1, 2.0),  # one that is nearly perfect
        (1500, 0.15, 1.2, 14, 3.0),  # the macro over labels that share their records
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(records, prevalence, shift, labels, deviation):
    rng = np.random.default_rng(2012)
    truth, federations = true_auroc(shift), 300
    figures = []
    for _ in range(federations):
        counts = simulated_federation(rng, records, prevalence, shift, labels, deviation, sites=5)
        result = scored(counts, labels, deviation, sites=5)
        if result.macro is not None:
            figures.append(result.macro)
    assert len(figures) > 0.8 * federations
    covered = np.mean([figure.low <= truth <= figure.high for figure in figures])
    # Nominal 0.95; of 300 the standard error is 0.013, so a figure below 0.90 is four of them away.
    assert covered >= 0.90
    # And not by being endless.
    assert np.median([figure.high - figure.low for figure in figures]) < 0.5


def test_an_interval_that_forgot_the_noise_would_not_cover():
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(200):
        counts = simulated_federation(rng, 1500, 0.15, 1.2, 1, 4.0, sites=5)
        forgetful = scored(counts, 1, 0.0)
        hits.append(forgetful.macro is not None and forgetful.macro.low <= true_auroc(1.2) <= forgetful.macro.high)
    assert np.mean(hits) < 0.7


def test_more_noise_gives_wider_intervals_and_more_sites_add_theirs():
    counts = simulated_federation(np.random.default_rng(1), 3000, 0.2, 1.2, 1, 0.0, sites=0)

    def width(deviation: float, sites: int) -> float:
        macro = scored(counts, 1, deviation, sites).macro
        assert macro is not None
        return macro.high - macro.low

    assert width(0, 1) < width(3, 1) < width(3, 4) < width(9, 4)


def test_a_label_that_nobody_has_is_left_out_and_named_whatever_the_noise_says():
    rng = np.random.default_rng(3)
    shown = 0
    for _ in range(300):
        truth = np.stack([rng.random(800) < 0.5, np.zeros(800, dtype=bool)], axis=1)
        counts = histogram(truth, rng.normal(size=(800, 2))) + np.round(rng.normal(0, 8.0, 4 * BINS)).astype(int)
        result = scored(counts, 2, 8.0)
        assert "0" in result.labels
        shown += "1" in result.labels
        if "1" not in result.labels:
            assert result.suppressed == ("1",)
    # Noise alone passes RELIABLE = 2 deviations in 2.3 % of the cases: 7 of 300, and 20 would be five errors away.
    assert RELIABLE == 2.0
    assert shown < 20


def test_few_positives_are_left_out_even_without_noise_and_without_any_label_there_is_no_mean():
    truth = np.zeros((200, 1), dtype=bool)
    truth[: MIN_COUNT - 1] = True
    result = scored(histogram(truth, np.zeros((200, 1))), 1)
    assert (result.macro, result.suppressed, result.labels) == (None, ("0",), {})
    truth[:MIN_COUNT] = True
    assert scored(histogram(truth, np.zeros((200, 1))), 1).suppressed == ()


def test_negative_counts_do_not_pull_the_auroc_to_the_middle():
    rng = np.random.default_rng(5)
    values = []
    for _ in range(400):
        counts = simulated_federation(rng, 4000, 0.15, 2.0, 1, 4.0, sites=4)
        assert counts.min() < 0
        macro = scored(counts, 1, 4.0, 4).macro
        assert macro is not None
        values.append(macro.value)
    # 400 figures whose deviation is below 0.05: the mean is known to 0.0025.
    assert np.mean(values) == pytest.approx(true_auroc(2.0), abs=0.01)


def test_figures_are_plain_values_within_zero_and_one():
    counts = simulated_federation(np.random.default_rng(1), 1500, 0.15, 2.5, 2, 6.0, sites=5)
    figures = scored(counts, 2, 6.0, 5).to_json()
    for score in (figures["macro"], *figures["labels"].values()):
        assert 0 <= score["low"] <= score["auroc"] <= score["high"] <= 1
