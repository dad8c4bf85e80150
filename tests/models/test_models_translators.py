"""Translators one by one: the paper's decoder, what they begin as, what they read, and those with two heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secure_fed.config import compose_config, freeze
from secure_fed.errors import ConfigError
from secure_fed.models.config import ModelConfig, TransformerTranslatorConfig
from secure_fed.models.translators import (
    GaussianTranslator,
    MemoryDecoder,
    Translator,
    build_gaussian_translator,
    build_translator,
    translator_parts,
)

DECODER = TransformerTranslatorConfig(depth=2, heads=2, feed_forward=12, width=8, memory_tokens=3, dropout=0.5)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def decoder(**options) -> Translator:
    torch.manual_seed(0)
    made = build_translator(DECODER.model_copy(update=options), 6, 3.0, 6)
    nn.init.normal_(made.last.weight)
    return made


def test_the_papers_decoder_is_a_preset_of_its_size(tmp_path) -> None:
    overrides = ["model/translator=paper", "model.feature_width=256"]
    config = freeze(compose_config(overrides), tmp_path / "run").model
    paper = TransformerTranslatorConfig(
        depth=6, heads=4, feed_forward=1024, width=256, memory_tokens=10, dropout=0.1, normalise_output=True
    )
    assert config.translator == paper
    made = translator_parts(config, [("image", "text")])["translator.image_to_text"]()
    assert isinstance(made.body, MemoryDecoder)
    # An attention is four W x W layers: 6 (8 (W^2 + W) + 2 W F + F + W + 6 W) with W = 256 and F = 1024.
    assert count(made.body.layers) == 6_320_640
    assert count(made.body.memory) == 10 * 256
    assert count(made) == 6_320_640 + 10 * 256 + 2 * 256 * 257


def test_a_decoder_layer_computes_what_torchs_does() -> None:
    """The same weights in nn.TransformerDecoderLayer (post-norm, ReLU), whose attention Opacus cannot hook."""
    made = decoder(depth=1).eval()
    layer = made.body.layers[0]
    theirs = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True).eval()
    with torch.no_grad():
        for attention, own in (
            (theirs.self_attn, layer.self_attention),
            (theirs.multihead_attn, layer.memory_attention),
        ):
            attention.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
            attention.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
            attention.out_proj.load_state_dict(own.out.state_dict())
        theirs.linear1.load_state_dict(layer.expand.state_dict())
        theirs.linear2.load_state_dict(layer.contract.state_dict())
        x, memory = torch.randn(5, 1, 8), torch.randn(5, 3, 8)
        torch.testing.assert_close(layer(x, memory), theirs(x, memory), rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    made, feature = decoder(), torch.randn(4, 6)
    assert not torch.equal(made.train()(feature), made(feature))
    assert torch.equal(made.eval()(feature), made(feature))


def test_a_translation_depends_on_its_own_record_and_on_the_memory() -> None:
    made, feature = decoder().eval(), torch.randn(4, 6)
    together = made(feature)
    torch.testing.assert_close(torch.cat([made(row[None]) for row in feature]), together)
    nn.init.zeros_(made.body.memory.weight)
    assert not torch.allclose(made(feature), together)


@pytest.mark.parametrize("name", ["linear", "mlp", "transformer"])
def test_a_translator_may_read_more_numbers_than_it_writes(name) -> None:
    config = ModelConfig.model_validate({"feature_width": 6, "translator": {"name": name}})
    parts = translator_parts(config, [("image", "text"), ("text", "image")], {"image": 11, "text": 5})
    assert parts["translator.image_to_text"]()(torch.randn(3, 11)).shape == (3, 6)
    assert parts["translator.text_to_image"]()(torch.randn(3, 5)).shape == (3, 6)


@pytest.mark.parametrize("name", ["linear", "mlp", "transformer"])
def test_a_translator_with_two_heads_begins_as_the_prior_and_translates_by_its_mean(name) -> None:
    config = ModelConfig.model_validate({"feature_width": 6, "translator": {"name": name}})
    pairs = [("image", "text")]
    made = translator_parts(config, pairs, build=build_gaussian_translator)["translator.image_to_text"]()
    assert isinstance(made, GaussianTranslator)
    feature = torch.randn(4, 6)
    mean, variance = made.distribution(feature)
    assert not mean.any()
    torch.testing.assert_close(variance, torch.full((4, 6), 9 / 6))
    nn.init.normal_(made.last.weight)
    torch.testing.assert_close(made.distribution(feature)[0], made(feature))


def test_a_pair_of_one_modality_or_named_twice_is_refused() -> None:
    for pairs in ([("image", "image")], [("image", "text"), ("image", "text")]):
        with pytest.raises(ConfigError, match="two modalities"):
            translator_parts(ModelConfig(), pairs)
