"""Adapters: the public network at first, few trained numbers, and nothing of the network in a component."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from public_checkpoints import bert_folder
from torch.utils.flop_counter import FlopCounterMode

from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import build_model

TEXTS = np.array(["small effusion", "no edema", ""], dtype=object)


def built(records, folder, **text):
    config = {"name": "bert_small", "weights": folder, "max_tokens": 8, **text}
    return build_model(records.schema, ModelConfig.model_validate({"text": config}), {}, seed=0)


@pytest.fixture
def folder(tmp_path):
    return bert_folder(tmp_path / "bert")


def test_the_adapted_network_is_the_public_one_at_the_start(records, folder):
    adapted, plain = (built(records, folder, train=train).encoders["report"] for train in ("adapters", "all"))
    tokens = plain.prepare(TEXTS)
    plain.linear.load_state_dict(adapted.linear.state_dict())
    torch.testing.assert_close(adapted(tokens), plain(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_components_hold_the_adapters_and_the_linear_layer_alone(records, folder, rank):
    model = built(records, folder, train="adapters", adapters={"rank": rank})
    assert model.component_sizes()["encoder.report"] == 2 * 2 * (2 * 16 * rank) + 16 * 32 + 32
    names = {name.rsplit(".", 2)[-2] for name in model.components()["encoder.report"]}
    assert names == {"down", "up", "linear"}
    assert not [name for name in model.state_dict() if "frozen" in name or "embeddings" in name]
    assert model.encoders["report"].public_parameters == sum(
        value.numel() for name, value in built(records, folder).encoders["report"].bert.state_dict().items()
    )


def test_an_adapter_adds_alpha_over_rank_times_up_of_down(records, folder):
    encoder = built(records, folder, train="adapters", adapters={"rank": 2, "alpha": 6.0}).encoders["report"]
    adapted = encoder.bert.encoder.layer[0].attention.self.query
    torch.nn.init.normal_(adapted.up.weight)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = x @ adapted.frozen.weight.T + adapted.frozen.bias + 3.0 * x @ adapted.down.weight.T @ adapted.up.weight.T
    torch.testing.assert_close(adapted(x), expected)
    assert type(encoder.bert.encoder.layer[0].attention.self.key) is torch.nn.Linear


def test_the_frozen_weights_are_shared_by_the_models_of_a_process_and_never_move(records, folder):
    one, other = (built(records, folder, train="adapters").encoders["report"].bert for _ in range(2))
    word = "embeddings.word_embeddings"
    before = one.get_submodule(word).weight.clone()
    assert one.get_submodule(word).weight.data_ptr() == other.get_submodule(word).weight.data_ptr()
    model = built(records, folder, train="adapters")
    model.set_component("encoder.report", np.ones(model.component_sizes()["encoder.report"], dtype=np.float32))
    assert torch.equal(other.get_submodule(word).weight, before)


def test_a_model_trained_in_full_has_weights_of_its_own(records, folder):
    trained, frozen = (built(records, folder, train=train) for train in ("all", "adapters"))
    trained.set_component("encoder.report", np.zeros(trained.component_sizes()["encoder.report"], dtype=np.float32))
    assert frozen.encoders["report"].bert.embeddings.word_embeddings.weight.any()


def test_a_copy_of_the_model_gives_the_same_and_the_flop_counter_runs(records, folder):
    encoder = built(records, folder, train="adapters").encoders["report"]
    tokens = encoder.prepare(TEXTS)
    assert torch.equal(copy.deepcopy(encoder)(tokens), encoder(tokens))
    with FlopCounterMode(display=False) as counter:
        encoder(tokens)
    assert counter.get_total_flops() > 0


def test_notes_name_rank_and_alpha(records, folder):
    notes = built(records, folder, train="adapters").encoders["report"].notes
    assert notes[-1] == "frozen but for adapters of rank 8 and alpha 16 beside query and value"
