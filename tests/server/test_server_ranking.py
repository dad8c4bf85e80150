"""AUROC and average precision for weighted records: scikit-learn's values, ties, and labels with one class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from sklearn.metrics import average_precision_score, roc_auc_score

from secure_fed.server.ranking import RankedLabel


@st.composite
def labelled(draw):
    """Coarse scores, so that many are tied, truth, what is known, and four weightings with zeros among them."""
    n = draw(st.integers(1, 40))
    scores = draw(of_numpy.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])))
    truth, known = draw(of_numpy.arrays(bool, n)), draw(of_numpy.arrays(bool, n))
    weights = draw(of_numpy.arrays(np.float64, (n, 4), elements=st.integers(0, 3).map(float)))
    return scores, truth, known, weights


@given(labelled())
def test_both_areas_are_those_of_scikit_learn_under_any_weights_and_ties(given_label) -> None:
    scores, truth, known, weights = given_label
    areas = RankedLabel(scores, truth, known).areas(weights)
    for draw in range(weights.shape[1]):
        weight = weights[known, draw]
        positives, negatives = weight[truth[known]].sum(), weight[~truth[known]].sum()
        if not positives or not negatives:
            assert np.isnan(areas.auroc[draw])
            assert np.isnan(areas.auprc[draw]), "one class only: there is nothing to tell apart"
            continue
        case = {"y_true": truth[known], "y_score": scores[known], "sample_weight": weight}
        # Sums of small whole numbers are exact: what is left is the rounding of at most 40 quotients.
        assert areas.auroc[draw] == pytest.approx(roc_auc_score(**case), abs=1e-12)
        assert areas.auprc[draw] == pytest.approx(average_precision_score(**case), abs=1e-12)


def test_a_weight_of_two_is_the_record_twice() -> None:
    rng = np.random.default_rng(0)
    scores, truth = np.round(rng.random(60), 1), rng.random(60) < 0.3
    weights = rng.integers(0, 4, 60)
    again = np.repeat(np.arange(60), weights)
    weighted = RankedLabel(scores, truth, np.ones(60, dtype=bool)).areas(weights[:, None].astype(float))
    everybody = np.ones(len(again), dtype=bool)
    repeated = RankedLabel(scores[again], truth[again], everybody).areas(np.ones((len(again), 1)))
    assert weighted.auroc[0] == pytest.approx(repeated.auroc[0], abs=1e-12)
    assert weighted.auprc[0] == pytest.approx(repeated.auprc[0], abs=1e-12)


def test_tied_scores_have_the_prevalence_as_their_average_precision_and_half_as_their_auroc() -> None:
    truth = np.arange(50) < 7
    areas = RankedLabel(np.full(50, 0.3), truth, np.ones(50, dtype=bool)).areas(np.ones((50, 1)))
    assert areas.auroc[0] == 0.5
    assert areas.auprc[0] == pytest.approx(7 / 50)


def test_what_is_unknown_counts_nowhere_whatever_its_score() -> None:
    rng = np.random.default_rng(1)
    scores, truth, known = rng.random(80), rng.random(80) < 0.4, rng.random(80) < 0.7
    spoiled = np.where(known, scores, 7.0)
    once = np.ones((80, 1))
    assert RankedLabel(scores, truth, known).areas(once) == RankedLabel(spoiled, ~known | truth, known).areas(once)
