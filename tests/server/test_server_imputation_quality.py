"""Imputed against real features: what perfect, constant, random and zero imputations score, and a method's own."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from secure_fed.methods.base import Imputation
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.server import imputation_quality as room
from secure_fed.server.imputation_quality import imputation_quality, likeness, quality


@pytest.fixture
def real() -> np.ndarray:
    """Features as encoders give them: of one length, around a common direction."""
    features = np.random.default_rng(0).normal(0.5, 1, size=(300, 16))
    return 3 * features / np.linalg.norm(features, axis=1, keepdims=True)


def test_the_real_features_themselves_are_perfect(real) -> None:
    found = likeness(real, real)
    assert found.cosine == pytest.approx(1)
    assert (found.mse, found.mse_over_variance, found.rank, found.recall_at_10) == (0, 0, 0, 1)


def test_the_constant_mean_has_error_one_over_variance_and_chance_rank_whatever_its_cosine(real) -> None:
    found = quality(real + 1, real).constant_mean
    assert found.mse_over_variance == 1
    assert found.mse == pytest.approx(real.var(axis=0).mean())
    assert found.rank == pytest.approx(0.5, abs=1e-12), "every record's own feature has each place once"
    assert found.recall_at_10 == pytest.approx(10 / 300, abs=1e-12)
    assert 0.3 < found.cosine < 0.6, "a constant is no stranger: the yardstick that cosine needs"


def test_zeros_have_no_cosine_more_error_than_the_mean_and_a_tied_rank(real) -> None:
    found = likeness(np.zeros_like(real), real)
    assert found.cosine is None
    assert found.mse_over_variance == pytest.approx(np.square(real).mean() / real.var(axis=0).mean())
    assert found.mse_over_variance > 1
    # All real features are as long: none is nearer to zero than another but for the last bits, which decide nothing.
    assert found.rank == 0.5
    assert found.recall_at_10 == pytest.approx(10 / 300)
    as_float32 = likeness(np.zeros_like(real), real.astype(np.float32).astype(np.float64))
    assert (as_float32.rank, as_float32.recall_at_10) == (0.5, pytest.approx(10 / 300))


def test_figures_are_those_of_plain_formulas(real) -> None:
    imputed = real + np.random.default_rng(1).normal(0, 1.2, real.shape)
    found = likeness(imputed, real)
    assert found.cosine == pytest.approx(np.diag(cosine_similarity(imputed, real)).mean())
    assert found.mse == pytest.approx(mean_squared_error(real, imputed))
    ranks = np.diag(rankdata(euclidean_distances(imputed, real), axis=1))
    assert found.rank == pytest.approx((ranks - 1).mean() / 299)
    assert found.recall_at_10 == pytest.approx((ranks <= 10).mean())
    assert 0 < found.rank < 0.2


def test_the_same_feature_twice_shares_its_ranks() -> None:
    pair = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
    found = likeness(pair, pair)
    # Ranks 1.5, 1.5 and 1 of three.
    assert found.rank == pytest.approx((0.5 + 0.5 + 0) / 3 / 2)


def test_ranks_do_not_depend_on_how_records_are_cut_into_parts(real) -> None:
    imputed = real + np.random.default_rng(2).normal(0, 1, real.shape)
    whole, parts = (room._neighbours(imputed, real, rows=rows) for rows in (300, 7))
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_features_that_do_not_vary_have_no_error_over_variance_and_one_record_no_rank() -> None:
    constant = np.full((20, 4), 0.1)
    assert likeness(constant + 1, constant).mse_over_variance is None
    alone = likeness(np.ones((1, 4)), np.full((1, 4), 2.0))
    assert (alone.rank, alone.recall_at_10, alone.mse_over_variance) == (None, None, None)
    assert alone.cosine == pytest.approx(1)


def test_a_stated_variance_is_calibrated_at_one_and_twice_too_small_at_two(real) -> None:
    rng = np.random.default_rng(3)
    spread = rng.uniform(0.1, 2, real.shape)
    imputed = real + rng.normal(0, np.sqrt(spread))
    # 4,800 squares of unit normals: their mean has a deviation of 0.02.
    assert quality(imputed, real, spread).calibration == pytest.approx(1, abs=0.08)
    assert quality(imputed, real, spread / 2).calibration == pytest.approx(2, abs=0.16)
    assert quality(imputed, real).calibration is None
    assert quality(imputed, real, np.zeros_like(real)).calibration is None


# -- of a method -------------------------------------------------------------------------------------------------


class Knowing(ZeroFill):
    """Imputes image from text by a rule that the test knows, with a variance."""

    def impute(self, model, batch, features, context=None):
        assert not batch.label_mask.any(), "nothing that is scored may look at the answer"
        hidden = [name for name, present in batch.presence.items() if not present.any()]
        assert len(hidden) == 1, "one modality is hidden from all records"
        assert not features[hidden[0]].any()
        other = {"image": features["text"], "text": features["image"]}
        return {name: Imputation(2 * value, torch.full_like(value, 0.5)) for name, value in other.items()}


def test_a_methods_imputation_is_held_against_the_real_features_of_records_that_have_everything(shape) -> None:
    method = Knowing(shape.federation.config.method)
    lacking = shape.holdout.presence["text"].clone()
    lacking[:5] = False
    some = replace(shape.holdout, presence={**shape.holdout.presence, "text": lacking})
    found = imputation_quality(method, shape.model, some)
    assert set(found) == {"image", "text"}
    complete = shape.holdout.select(torch.arange(5, len(shape.holdout)))
    with torch.no_grad():
        real = {name: value.double().numpy() for name, value in shape.model.encode(complete).items()}
    for target, source in (("image", "text"), ("text", "image")):
        expected = quality(2 * real[source], real[target], np.full_like(real[target], 0.5))
        assert found[target].records == len(complete) == len(shape.holdout) - 5
        for name in ("imputed", "constant_mean"):
            one, other = (dataclasses.asdict(getattr(of, name)) for of in (found[target], expected))
            assert one == pytest.approx(other, rel=1e-5), name
        assert found[target].calibration == pytest.approx(expected.calibration, rel=1e-5)


def test_zero_filling_is_no_better_than_nothing_and_fin_with_random_weights_worse_than_the_mean(shape) -> None:
    zeros = imputation_quality(ZeroFill(shape.federation.config.method), shape.model, shape.holdout)["text"].imputed
    assert (zeros.cosine, zeros.rank) == (None, pytest.approx(0.5, abs=0.02))
    assert zeros.mse_over_variance > 1
    fin = imputation_quality(shape.federation.method, shape.model, shape.holdout)["text"].imputed
    assert fin.cosine is not None
    assert fin.mse_over_variance > 1


class Drawing(ZeroFill):
    """Imputes random numbers."""

    def impute(self, model, batch, features, context=None):
        return {name: Imputation(torch.rand_like(value)) for name, value in features.items()}


def test_random_imputations_have_the_same_figures_at_every_call(shape) -> None:
    method = Drawing(shape.federation.config.method)
    assert imputation_quality(method, shape.model, shape.holdout) == imputation_quality(
        method, shape.model, shape.holdout
    )


def test_more_records_than_can_be_compared_are_a_fixed_choice(shape, monkeypatch) -> None:
    monkeypatch.setattr(room, "_MOST", 20)
    first = imputation_quality(shape.federation.method, shape.model, shape.holdout)
    assert first["text"].records == 20
    assert first == imputation_quality(shape.federation.method, shape.model, shape.holdout)


def test_without_a_record_that_has_everything_there_is_nothing_to_say(shape) -> None:
    assert imputation_quality(shape.federation.method, shape.model, shape.holdout.without({"text"})) == {}
