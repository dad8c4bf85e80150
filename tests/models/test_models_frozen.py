"""Frozen public networks: exactly the checkpoint's features, in no component, each record's own, computed once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from public_checkpoints import IMAGENET_MEAN, IMAGENET_STD, bert_folder, random_resnet, resnet_state
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertModel

from secure_fed.models import frozen
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import build_model
from secure_fed.models.prepared import PreparedCache


@pytest.fixture
def checkpoints(tmp_path):
    save_file(resnet_state(), tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors", bert_folder(tmp_path / "bert")


@pytest.fixture
def config(checkpoints):
    image, text = checkpoints
    return ModelConfig.model_validate(
        {
            "image": {"name": "resnet18", "weights": image, "train": "head"},
            "text": {"name": "bert_small", "weights": text, "train": "head", "max_tokens": 8},
        }
    )


@pytest.fixture
def model(records, config):
    return build_model(records.schema, config, {}, seed=0)


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    fresh = PreparedCache()
    monkeypatch.setattr(frozen, "_PREPARED", fresh)
    return fresh


def standardised(features):
    return F.layer_norm(features, features.shape[1:]) * 0.3


def test_a_frozen_resnet_gives_torchvisions_pooled_features_batch_norm_included(records, model):
    network = random_resnet()
    network.fc = nn.Identity()
    images = torch.from_numpy(records.values["image"])
    with torch.no_grad():
        expected = network((images - IMAGENET_MEAN) / IMAGENET_STD)
    torch.testing.assert_close(model.prepare(records).inputs["image"], standardised(expected), rtol=1e-4, atol=1e-5)


def test_a_frozen_bert_gives_transformers_own_first_state(records, model, checkpoints):
    reference = BertModel.from_pretrained(checkpoints[1], add_pooling_layer=False).eval()
    ids = torch.tensor([[2, 5, 6, 7, 3, 0, 0, 0]])
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    found = model.encoders["report"].prepare(np.array(["small effusions"], dtype=object))
    torch.testing.assert_close(found, standardised(expected), rtol=1e-4, atol=1e-5)


def test_a_records_features_are_the_same_bits_in_any_company_and_any_order(records, model, cache):
    whole = model.prepare(records)
    order = [4, 2, 0, 5, 1, 3]
    for index in ([3], order, [1, 4]):
        cache._kept.clear()
        again = model.prepare(records.select(index))
        for name in ("image", "report"):
            assert torch.equal(again.inputs[name], whole.inputs[name][index])


def test_only_the_linear_layer_is_a_component_and_no_weight_or_buffer_of_the_backbone_is_in_the_model(model):
    assert model.component_sizes()["encoder.image"] == 512 * 32 + 32
    assert model.component_sizes()["encoder.report"] == 16 * 32 + 32
    assert not list(model.buffers())
    assert set(model.state_dict()) == {name for names in model.components().values() for name in names}
    counts = {name: encoder.public_parameters for name, encoder in model.encoders.items()}
    assert counts["image"] > 11_000_000
    assert counts["vitals"] == 0


def test_models_of_a_process_and_their_copies_share_one_backbone(records, config, model):
    other = build_model(records.schema, config, {}, seed=1)
    for twin in (other, copy.deepcopy(model)):
        for name in ("image", "report"):
            assert twin.encoders[name].backbone is model.encoders[name].backbone


def test_the_same_weights_at_another_size_are_another_backbone(records, config, model):
    image = config.image.model_copy(update={"side": 32})
    smaller = build_model(records.schema, config.model_copy(update={"image": image}), {}, seed=0)
    assert smaller.encoders["image"].backbone is not model.encoders["image"].backbone
    one, other = (m.prepare(records).inputs["image"] for m in (smaller, model))
    assert not torch.allclose(one, other, atol=1e-3)


def test_features_are_computed_once_for_records_that_are_alike_blank_ones_included(records, model, monkeypatch):
    encoder, calls = model.encoders["image"], []
    forward = encoder.backbone._pooled
    monkeypatch.setattr(encoder.backbone, "_pooled", lambda raw: calls.append(len(raw)) or forward(raw))
    raw = records.values["image"].copy()
    raw[2:5] = 0.0
    first = encoder.prepare(raw)
    assert calls == [1, 1, 1, 1]
    assert torch.equal(encoder.prepare(raw[::-1]), first.flip(0))
    assert len(calls) == 4
    assert encoder.prepare(raw[:0]).shape == (0, 512)


def test_other_weights_are_never_answered_from_the_cache(records, config, model, tmp_path):
    other = resnet_state(seed=1)
    save_file(other, tmp_path / "other.safetensors")
    image = config.image.model_copy(update={"weights": tmp_path / "other.safetensors"})
    second = build_model(records.schema, config.model_copy(update={"image": image}), {}, seed=0)
    one, two = (m.prepare(records).inputs["image"] for m in (model, second))
    assert not torch.allclose(one, two, atol=1e-3)


def test_the_flop_counter_sees_the_backbone_where_features_are_made(records, model):
    with FlopCounterMode(display=False) as counter:
        batch = model.prepare(records.select([0]))
    backbone = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.encode(batch)
    assert backbone > 100 * counter.get_total_flops() > 0


def test_notes_say_that_it_is_frozen_and_by_which_weights(model):
    image, report = (model.encoders[name].notes for name in ("image", "report"))
    assert "SHA-256" in image[0]
    assert "frozen: batch norms keep the checkpoint's statistics as public constants" in image
    assert "frozen" in report


def test_a_state_without_running_statistics_cannot_be_frozen(records, config, tmp_path):
    state = {n: v for n, v in resnet_state().items() if "running" not in n}
    save_file(state, tmp_path / "group.safetensors")
    image = config.image.model_copy(update={"weights": tmp_path / "group.safetensors"})
    with pytest.raises(Exception, match="no running means and variances"):
        build_model(records.schema, config.model_copy(update={"image": image}), {}, seed=0)


def test_loading_leaves_the_file_s_tensors_alone_when_the_model_is_trained(records, checkpoints):
    config = ModelConfig.model_validate({"image": {"name": "resnet18", "weights": checkpoints[0]}})
    first = build_model(records.schema, config, {}, seed=0)
    first.set_component("encoder.image", np.zeros(first.component_sizes()["encoder.image"], dtype=np.float32))
    second = build_model(records.schema, config, {}, seed=0)
    stored = load_file(checkpoints[0])
    assert torch.equal(second.encoders["image"].resnet.conv1.weight, stored["conv1.weight"])
