"""A public set that a hostile coordinator chose: what it makes of a record's loss, and that the bound holds still."""

from __future__ import annotations

import pytest
import torch
from dp_fixtures import make_batch, make_model, sensitivity

from secure_fed.methods.base import PublicContext, in_context
from secure_fed.methods.car_mfl import CarMfl, CarMflConfig
from secure_fed.methods.config import PhaseConfig
from secure_fed.privacy.dpsgd import clipped_gradient_sum
from secure_fed.privacy.sensitivity import TOLERANCE

COMPONENTS = ("encoder.image", "encoder.report", "encoder.vitals", "fusion")
STEPS = PhaseConfig(steps=1, learning_rate=1.0, unclipped_steps=1, unclipped_learning_rate=1.0)
K = 7


METHOD = CarMfl(CarMflConfig(name="car_mfl", neighbours=3, classify=STEPS))


def public(model, change) -> PublicContext:
    """What METHOD would make of K public records, their features changed by a hostile hand."""
    generator = torch.Generator().manual_seed(3)
    width = model.fusion.in_features // len(model.schema.names)
    features = {f"feature.{name}": change(torch.randn(K, width, generator=generator)) for name in model.schema.names}
    labels = (torch.rand(K, 3, generator=generator) < 0.5).float()
    return PublicContext({**features, "labels": labels, "label_mask": torch.ones(K, 3)})


HOSTILE = {
    "an ordinary one": lambda features: features,
    "nothing but zeros": torch.zeros_like,
    "all the same": lambda features: features[:1].expand_as(features).clone(),
    "enormous": lambda features: features * 1e18,
    "at the end of float32": lambda features: torch.full_like(features, 3e38),
    "infinite": lambda features: features * float("inf"),
    "not a number in every other record": lambda features: torch.where(
        torch.arange(K).unsqueeze(1) % 2 == 0, torch.nan, features
    ),
    "one that singles a direction out": lambda features: torch.eye(K, features.shape[1]) * 1e6,
}


@pytest.mark.parametrize("back_end", ["hooks", "ghost"])
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_public_set_lets_a_record_move_the_clipped_sum_by_more_than_the_bound(change, back_end) -> None:
    model = make_model()
    loss = in_context(METHOD.classification_loss, public(model, change))
    batch = make_batch(model, n=5)
    assert not all(bool(present.all()) for present in batch.presence.values()), "something is imputed"
    for bound in (0.01, 1.0):
        assert sensitivity(model, COMPONENTS, loss, batch, bound, back_end) <= 1 + TOLERANCE


def test_the_set_does_change_what_is_learnt_so_it_is_utility_that_a_hostile_one_can_harm() -> None:
    model = make_model()
    batch = make_batch(model, n=5)
    sums = [
        clipped_gradient_sum(
            model, COMPONENTS, in_context(METHOD.classification_loss, public(model, change)), batch, 1.0
        )
        for change in (HOSTILE["an ordinary one"], HOSTILE["enormous"])
    ]
    assert (sums[0] - sums[1]).norm() > 0.1


def test_a_context_that_couples_the_records_of_a_batch_is_what_breaks_the_bound() -> None:
    """Naive: the retrieval set is the batch itself, so a record's loss depends on the others."""
    model = make_model()

    def coupled(model, batch):
        if not len(batch):
            return METHOD.classification_loss(model, batch, public(model, HOSTILE["an ordinary one"]))
        with torch.no_grad():
            features = {f"feature.{name}": 50 * value for name, value in model.encode(batch).items()}
        context = PublicContext({**features, "labels": batch.labels, "label_mask": batch.label_mask})
        return METHOD.classification_loss(model, batch, context)

    worst = sensitivity(model, COMPONENTS, coupled, make_batch(model, n=5), 0.05)
    assert worst > 1 + 10 * TOLERANCE
