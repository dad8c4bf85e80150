"""Scores between nobody and everybody missing a modality: the same as scoring records that really lack it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secure_fed.models.batch import Batch
from secure_fed.server.evaluation import predict, score, views_of
from secure_fed.server.missing_rates import ANY, RATES, SUBSETS, missing_rates

LABELS = ("a", "b")
NAMES = ("image", "text", "age")


@pytest.fixture
def holdout() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        inputs={name: torch.zeros(400, 1) for name in NAMES},
        presence={name: torch.ones(400, dtype=torch.bool) for name in NAMES},
        labels=torch.tensor(rng.random((400, 2)) < 0.3, dtype=torch.float32),
        label_mask=torch.ones(400, 2),
    )


@pytest.fixture
def predictions(holdout) -> dict[str, np.ndarray]:
    """Three modalities that tell more, less and nothing; without everything nothing is left of it."""
    rng = np.random.default_rng(1)
    truth, noise = holdout.labels.numpy(), rng.normal(size=(400, 2))
    return {
        "none": 2 * truth + noise,
        "image": 0.5 * truth + noise,
        "text": 1.2 * truth + noise,
        "age": 2 * truth + noise,
    }


def by_place(found) -> dict[tuple[str, float], tuple[float, float]]:
    return {(point.modality, point.rate): (point.auroc_macro, point.auprc_macro) for point in found}


def test_the_ends_are_the_scores_of_the_two_views(holdout, predictions) -> None:
    found = by_place(missing_rates(LABELS, holdout, predictions))
    assert set(found) == {(name, rate) for name in (*NAMES, ANY) for rate in RATES}
    everything = score(LABELS, holdout, predictions["none"])
    for name in NAMES:
        nothing = score(LABELS, holdout, predictions[name])
        assert found[name, 0.0] == pytest.approx((everything.auroc_macro, everything.auprc_macro), abs=1e-12)
        assert found[name, 1.0] == pytest.approx((nothing.auroc_macro, nothing.auprc_macro), abs=1e-12)
    assert found[ANY, 0.0] == found["image", 0.0]


def test_scores_fall_as_more_records_lack_what_tells_something_and_one_of_them_lies_between(
    holdout, predictions
) -> None:
    found = by_place(missing_rates(LABELS, holdout, predictions))
    for name in ("image", "text", ANY):
        aurocs = [found[name, rate][0] for rate in RATES]
        assert aurocs == sorted(aurocs, reverse=True), name
    unchanged = [found["age", rate][0] for rate in RATES]
    assert unchanged == pytest.approx([found["age", 0.0][0]] * len(RATES), abs=1e-12), "nothing is lost with it"
    assert found["image", 1.0][0] < found[ANY, 1.0][0] < found["age", 1.0][0]


def test_a_higher_rate_takes_it_from_the_same_records_and_more_of_them(holdout, monkeypatch) -> None:
    """Read off predictions that say in which view a record was scored."""
    taken: list[np.ndarray] = []

    def watched(labels, batch, mixed):
        taken.append(mixed[:, 0] > 0)
        return score(labels, batch, mixed)

    monkeypatch.setattr("secure_fed.server.missing_rates.score", watched)
    missing_rates(LABELS, holdout, {"none": np.zeros((400, 2)), "image": np.ones((400, 2))})
    assert [int(lost.sum()) for lost in taken] == [0, *[100] * SUBSETS, *[200] * SUBSETS, *[300] * SUBSETS, 400]
    for subset in range(SUBSETS):
        low, middle, high = (taken[1 + part * SUBSETS + subset] for part in range(3))
        assert (low <= middle).all()
        assert (middle <= high).all()


def test_who_loses_it_depends_on_neither_scores_nor_method(holdout, predictions) -> None:
    first = missing_rates(LABELS, holdout, predictions)
    assert first == missing_rates(LABELS, holdout, predictions)
    alone = missing_rates(LABELS, holdout, {name: predictions[name] for name in ("none", "image")})
    assert [point.modality for point in alone] == ["image"] * len(RATES), "one modality: there is no lot"


def test_mixing_predictions_is_predicting_for_the_mixed_hold_out(shape) -> None:
    federation, model, holdout = shape.federation, shape.model, shape.holdout
    views = {name: predict(federation.method, model, view) for name, view in views_of(holdout).items()}
    lost = torch.from_numpy(np.random.default_rng(0).random(len(holdout)) < 0.5)
    part = holdout.without({"text"})
    mixed = Batch(
        inputs={**holdout.inputs, "text": torch.where(lost.unsqueeze(1), 0, holdout.inputs["text"])},
        presence={**holdout.presence, "text": torch.where(lost, part.presence["text"], holdout.presence["text"])},
        labels=holdout.labels,
        label_mask=holdout.label_mask,
    )
    expected = np.where(lost.numpy()[:, None], views["text"], views["none"])
    np.testing.assert_allclose(predict(federation.method, model, mixed), expected, atol=1e-6)
