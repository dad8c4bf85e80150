"""CAR-MFL borrows from the nearest public records: by labels in training, their mean where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fin_example import model_of, records_of, schema_of
from hypothesis import given
from hypothesis import strategies as st
from shipped_methods import CAR_MFL, context_for

from secure_fed.errors import ConfigError
from secure_fed.methods import build
from secure_fed.methods.base import PublicContext
from secure_fed.methods.car_mfl import distances, label_jaccard, most_like, nearest
from secure_fed.models.batch import Batch

SCHEMA = schema_of(3)
EVERYTHING = frozenset(SCHEMA.names)
METHOD = build(CAR_MFL)
MODEL = model_of(METHOD, SCHEMA, [EVERYTHING])
CONTEXT = context_for(METHOD, MODEL)
N = 30


def records_that_lack(*lacking: str, n: int = N) -> Batch:
    return MODEL.prepare(records_of(SCHEMA, {name: [name not in lacking] * n for name in SCHEMA.names}))


def borrowed(batch: Batch, target: str) -> torch.Tensor:
    return METHOD.impute(MODEL, batch, MODEL.encode(batch), CONTEXT)[target].mean


def test_what_is_borrowed_in_training_is_a_public_records_feature_with_the_likest_labels_among_the_nearest() -> None:
    batch = records_that_lack("labs")
    found = borrowed(batch, "labs")
    with torch.no_grad():
        features = MODEL.encode(batch)
    for i in range(N):
        apart = sum(
            (features[name][i] - CONTEXT.tensors[f"feature.{name}"]).square().sum(dim=1) for name in ("vitals", "notes")
        )
        near = apart.argsort()[: CAR_MFL.neighbours].tolist()
        own = batch.labels[i] > 0
        theirs = [CONTEXT.tensors["labels"][j] > 0 for j in near]
        likeness = [float((own & t).sum() / (own | t).sum()) if (own | t).any() else 1.0 for t in theirs]
        best = near[likeness.index(max(likeness))]  # the nearest of the likest: `near` is sorted
        torch.testing.assert_close(found[i], CONTEXT.tensors["feature.labs"][best])


def test_without_labels_the_mean_of_the_neighbours_is_borrowed_so_no_label_can_show_in_a_score() -> None:
    batch = records_that_lack("labs")
    found = borrowed(batch.unlabelled(), "labs")
    flipped = replace(batch, labels=1 - batch.labels).unlabelled()
    assert torch.equal(found, borrowed(flipped, "labs"))
    with torch.no_grad():
        features = MODEL.encode(batch)
    distance = distances(batch.presence, {name: features[name] for name in ("vitals", "notes")}, CONTEXT)
    near = distance.argsort(dim=1)[:, : CAR_MFL.neighbours]
    torch.testing.assert_close(found, CONTEXT.tensors["feature.labs"][near].mean(dim=1))


def test_only_sources_that_are_there_measure_the_distance() -> None:
    batch = records_that_lack("labs", "notes")
    other = replace(batch, inputs={**batch.inputs, "notes": batch.inputs["notes"] + 5})
    assert torch.equal(borrowed(batch, "labs"), borrowed(other, "labs"))
    nothing = borrowed(records_that_lack(*SCHEMA.names).unlabelled(), "labs")
    torch.testing.assert_close(nothing, CONTEXT.tensors["feature.labs"].mean(dim=0).expand(N, -1))


def test_a_public_record_that_stands_twice_changes_no_pick() -> None:
    """Ties: equal public records are equally far, and the first of them is taken."""
    batch = records_that_lack("labs")
    twice = PublicContext({name: torch.cat([value, value]) for name, value in CONTEXT.tensors.items()})
    features = MODEL.encode(batch)
    distance = distances(batch.presence, {name: features[name] for name in ("vitals", "notes")}, twice)
    assert torch.equal(distance[:, : len(distance[0]) // 2], distance[:, len(distance[0]) // 2 :])
    picks = most_like(label_jaccard(batch.labels, batch.label_mask, twice), distance, nearest(distance, 3))
    assert int(picks.max()) < len(CONTEXT.tensors["labels"])


def test_a_records_neighbours_do_not_change_with_its_company() -> None:
    batch = records_that_lack("labs")
    together = borrowed(batch, "labs")
    alone = torch.cat([borrowed(batch.select(torch.tensor([i])), "labs") for i in range(N)])
    torch.testing.assert_close(together, alone)
    # Not even a bit of a distance does: ties would be broken otherwise.
    features = {name: value for name, value in MODEL.encode(batch).items() if name != "labs"}
    distance = distances(batch.presence, features, CONTEXT)
    for i in range(N):
        row = {name: value[i : i + 1] for name, value in features.items()}
        there = {name: value[i : i + 1] for name, value in batch.presence.items()}
        assert torch.equal(distances(there, row, CONTEXT), distance[i : i + 1])


def test_no_gradient_reaches_anything_through_what_is_borrowed() -> None:
    assert not borrowed(records_that_lack("labs"), "labs").requires_grad


@given(st.integers(0, 2**32 - 1))
def test_label_jaccard_is_that_of_the_sets_of_labels_that_both_know(seed) -> None:
    rng = np.random.default_rng(seed)
    labels, known = rng.random((2, 4, 5)) < 0.5
    theirs, told = rng.random((2, 3, 5)) < 0.5
    as_tensor = lambda a: torch.from_numpy(a.astype(np.float32))  # noqa: E731
    context = PublicContext({"labels": as_tensor(theirs), "label_mask": as_tensor(told)})
    found = label_jaccard(as_tensor(labels), as_tensor(known), context)
    for i in range(4):
        for j in range(3):
            both = known[i] & told[j]
            union = (labels[i] | theirs[j]) & both
            expected = (labels[i] & theirs[j] & both).sum() / union.sum() if union.any() else 1.0
            assert abs(float(found[i, j]) - expected) < 1e-6


def test_fewer_public_records_than_neighbours_are_all_neighbours() -> None:
    distance = torch.rand(4, 3)
    assert nearest(distance, 10).all()


def test_without_its_context_it_refuses_rather_than_fill_with_zeros() -> None:
    with pytest.raises(ConfigError, match="without its context"):
        METHOD.impute(MODEL, records_that_lack("labs"), {})
