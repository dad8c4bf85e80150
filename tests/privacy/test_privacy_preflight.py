"""Preflight: the ways in which a loss or a model silently breaks DP-SGD are found on made-up records."""

from __future__ import annotations

import pytest
import torch
from dp_fixtures import ENCODERS_AND_FUSION, PAIRS, classification_loss, make_batch, make_model, translation_loss
from torch.nn import functional as F

from secure_fed.errors import PrivacyError
from secure_fed.privacy.preflight import leave_one_out_sensitivity, made_up_batch, preflight


@pytest.mark.parametrize("translator", ["mlp", "transformer"])
def test_the_houses_own_losses_pass_and_the_model_is_left_alone(translator):
    model = make_model(translator={"name": translator, **({"dropout": 0.1} if translator == "transformer" else {})})
    before = model.digest()
    preflight(model, ENCODERS_AND_FUSION, classification_loss, 1.0, seed=0)
    preflight(model, [f"translator.{a}_to_{b}" for a, b in PAIRS], translation_loss, 1.0, seed=0)
    assert model.digest() == before
    assert model.training


def contrastive(model, batch):
    feature = model.encode_one(batch, "vitals")
    return -torch.log_softmax(feature @ feature.T, dim=1).diagonal() + classification_loss(model, batch)


def batch_statistics(model, batch):
    logits = model.classify(model.encode(batch))
    return ((logits - logits.mean(dim=0)).square()).sum(dim=1)


@pytest.mark.parametrize("loss", [contrastive, batch_statistics])
def test_a_loss_that_couples_records_is_refused(loss):
    with pytest.raises(PrivacyError, match="company"):
        preflight(make_model(), ENCODERS_AND_FUSION, loss, 1.0, seed=0)


def test_a_coupled_loss_is_also_what_the_sensitivity_test_sees():
    model = make_model()
    batch = make_batch(model)
    batch.presence["vitals"][:] = True
    assert leave_one_out_sensitivity(model, ["encoder.vitals"], contrastive, batch, 0.01) > 1.1


def test_weights_used_past_their_layer_are_refused():
    def tied(model, batch):
        feature = model.encode_one(batch, "report")
        weight = model.translators["image_to_report"].body[0].weight  # used without calling its layer
        return model.translate("image", "report", feature).sum(dim=1) + F.linear(feature, weight).square().sum(dim=1)

    with pytest.raises(PrivacyError, match="add up"):
        preflight(make_model(), ["translator.image_to_report"], tied, 1.0, seed=0)


def test_a_reduced_loss_is_refused():
    with pytest.raises(PrivacyError, match="one value"):
        preflight(make_model(), ["fusion"], lambda m, b: classification_loss(m, b).mean(), 1.0, seed=0)


def test_the_made_up_records_fill_every_modality_and_miss_some():
    batch = made_up_batch(make_model(), count=40, seed=0)
    for present in batch.presence.values():
        assert present[0]
        assert 0 < present.sum() < 40
    assert batch.inputs["report"].abs().sum() > 0
    assert 0 < batch.label_mask.mean() < 1
