"""Encoders and translators one by one: public preparation and sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from secure_fed.data.config import SyntheticCxrConfig
from secure_fed.data.synthetic_cxr import generate_synthetic_cxr
from secure_fed.models.bert import HashedTokeniser
from secure_fed.models.config import ModelConfig
from secure_fed.models.filterbank import filterbank, filterbank_width, public_constants
from secure_fed.models.multimodal import build_model
from secure_fed.models.translators import translator_parts


def built(records, **config):
    chosen = ModelConfig.model_validate(config)
    return build_model(records.schema, chosen, translator_parts(chosen, [("image", "report")]), seed=0)


@pytest.mark.parametrize("name", ["filterbank", "small_cnn"])
def test_the_small_image_encoders_stay_under_twenty_thousand_parameters(records, name):
    assert built(records, image={"name": name}).component_sizes()["encoder.image"] < 20_000


def test_preparation_has_no_parameters_and_depends_on_each_record_alone(records):
    model = built(records)
    whole = model.prepare(records)
    for i in range(len(records)):
        alone = model.prepare(records.select([i]))
        for name in records.schema.names:
            torch.testing.assert_close(alone.inputs[name][0], whole.inputs[name][i])
            assert not whole.inputs[name].requires_grad


def test_the_filter_bank_tells_orientation_and_place():
    stripes = torch.zeros(2, 1, 64, 64)
    stripes[0, 0, ::4, :32] = 1.0
    stripes[1, 0, :, :32:4] = 1.0
    horizontal, vertical = filterbank(stripes)
    assert (horizontal - vertical).norm() > 1.0
    mirrored = filterbank(stripes.flip(-1))
    assert (mirrored[0] - horizontal).norm() > 1.0


def test_a_brighter_film_moves_only_the_intensity_features():
    film = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    moved = (filterbank(film + 0.25) - filterbank(film)).abs()[0] > 1e-3
    assert moved[:64].all()
    assert not moved[64:].any()


def test_the_shipped_constants_centre_films_that_they_were_not_measured_on():
    films = generate_synthetic_cxr(SyntheticCxrConfig(patients=150), seed=7).values["image"]
    mean, deviation = public_constants()
    assert mean.shape == deviation.shape == (filterbank_width(),)
    standard = (filterbank(torch.from_numpy(films)) - mean) / deviation
    # About 300 films, two to a patient: a standard error of .08 a feature, so .4 is far out for all of 480.
    assert standard.mean(dim=0).abs().max() < 0.4
    assert 0.9 < standard.std(dim=0).mean() < 1.1


def test_films_of_another_size_are_resampled_to_the_same_width():
    assert filterbank(torch.rand(1, 1, 100, 80)).shape == filterbank(torch.rand(1, 1, 64, 64)).shape


@pytest.mark.parametrize("image", ["small_cnn", "resnet18", "resnet50"])
def test_convolutional_encoders_have_neither_batch_norm_nor_in_place_operations(records, image):
    model = built(records, image={"name": image})
    for module in model.modules():
        assert not isinstance(module, nn.modules.batchnorm._NormBase)
        assert not getattr(module, "inplace", False)
    assert model.encode_one(model.prepare(records.select([0, 1])), "image").shape == (2, 32)


def test_known_words_have_their_own_token_and_unknown_ones_a_stable_bucket():
    tokenise = HashedTokeniser(buckets=8)
    ids = tokenise("Effusion, qwertyuiop effusion")
    assert ids[1] == ids[4]
    assert tokenise.size - 8 <= ids[3] < tokenise.size
    assert HashedTokeniser(buckets=8)("qwertyuiop")[1] == ids[3]


def test_a_long_report_is_cut_and_still_ends_with_its_separator(records):
    encoder = built(records, text={"name": "bert_small", "max_tokens": 8}).encoders["report"]
    ids = encoder.prepare(np.array(["effusion " * 50, ""], dtype=object))
    assert ids.shape == (2, 8)
    assert ids[0, -1] == 2
    assert ids[1].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]


def test_padding_does_not_change_what_bert_says(records):
    short = built(records, text={"name": "bert_small", "max_tokens": 16}).encoders["report"]
    prepared = short.prepare(np.array(["small effusion"], dtype=object))
    torch.testing.assert_close(short(prepared), short(prepared[:, :4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "linear", "transformer"])
def test_a_normalised_translator_lies_on_the_feature_sphere(records, name):
    model = built(records, translator={"name": name, "normalise_output": True})
    out = model.translate("image", "report", torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    assert ((out.norm(dim=1) > 2.0) & (out.norm(dim=1) <= 3.0)).all()


def test_the_papers_translator_can_be_asked_for(records):
    fin = {"name": "transformer", "depth": 6, "heads": 4, "feed_forward": 1024, "width": 256, "dropout": 0.1}
    sizes = built(records, translator=fin, feature_width=256).component_sizes()
    # 6 layers of 2 attentions, a feed-forward and 3 norms: 6.32M parameters without our two projections.
    assert sizes["translator.image_to_report"] == pytest.approx(6.32e6 + 2 * 256 * 257, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        {"image": {"name": "resnet101"}},
        {"image": {"name": "ngrams"}},
        {"text": {"name": "bert_small", "hidden": 30, "heads": 4}},
        {"translator": {"name": "transformer", "width": 30, "heads": 4}},
        {"translator": {"name": "mlp", "depth": 2}},
        {"feature_width": 0},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_means_nothing_is_refused(config):
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(config)


def test_an_encoder_can_be_chosen_for_one_modality_by_name(records):
    model = built(records, encoders={"vitals": {"name": "mlp", "hidden": 7}})
    assert model.component_sizes()["encoder.vitals"] == 5 * 7 + 7 + 7 * 32 + 32
