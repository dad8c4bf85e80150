"""The multimodal model: components, seeds, missing modalities, three modalities, digests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secure_fed.data.records import Records
from secure_fed.errors import ConfigError, DataError
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.digest import parameters_digest
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.models.translators import translator_parts

ALL_PAIRS = [(a, b) for a in ("image", "report", "vitals") for b in ("image", "report", "vitals") if a != b]


@pytest.fixture
def model(records: Records) -> MultimodalModel:
    return build_model(records.schema, ModelConfig(), translator_parts(ModelConfig(), ALL_PAIRS), seed=1)


def test_every_parameter_belongs_to_exactly_one_component(model):
    named = [name for names in model.components().values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert len(named) == len(set(named))
    assert "encoder.image" in model.components()
    assert "translator.image_to_report" in model.components()
    assert "fusion" in model.components()


def test_a_component_survives_the_round_trip_through_its_flat_vector(model, records):
    for component, size in model.component_sizes().items():
        flat = np.arange(size, dtype=np.float32)
        model.set_component(component, flat)
        np.testing.assert_array_equal(model.get_component(component), flat)


def test_setting_one_component_leaves_all_others_alone(model):
    before = {name: model.get_component(name) for name in model.components()}
    model.set_component("encoder.report", before["encoder.report"] + 1)
    for name, flat in before.items():
        assert np.array_equal(model.get_component(name), flat) == (name != "encoder.report")


def test_a_flat_vector_is_a_copy(model):
    model.get_component("fusion")[:] = 7
    assert not model.get_component("fusion").any()


def test_a_vector_of_the_wrong_length_and_an_unknown_component_are_refused(model):
    with pytest.raises(ConfigError, match="fusion"):
        model.set_component("fusion", np.zeros(3, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"encoder\.sound.*encoder\.image"):
        model.get_component("encoder.sound")


def test_the_same_seed_gives_the_same_model_and_another_seed_another(records):
    digests = [
        build_model(records.schema, ModelConfig(), translator_parts(ModelConfig(), ALL_PAIRS), seed).digest()
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_initial_weights_depend_on_no_other_component_and_not_on_the_global_generator(records):
    many = build_model(records.schema, ModelConfig(), translator_parts(ModelConfig(), ALL_PAIRS), seed=3)
    torch.manual_seed(99)
    few = build_model(records.schema, ModelConfig(), translator_parts(ModelConfig(), [("vitals", "image")]), seed=3)
    after = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(after, torch.rand(1))
    for component in few.components():
        np.testing.assert_array_equal(few.get_component(component), many.get_component(component))


def test_the_digest_sees_a_change_in_the_last_bit(model):
    before = model.digest()
    flat = model.get_component("encoder.vitals")
    flat[-1] = np.nextafter(flat[-1], np.float32(1))
    model.set_component("encoder.vitals", flat)
    assert model.digest() != before


def test_a_models_hash_is_that_of_its_components(model):
    assert model.digest() == parameters_digest({name: model.get_component(name) for name in model.components()})


def test_rows_of_absent_modalities_have_zero_features_and_present_rows_do_not_notice(model, records):
    mixed = records.select(range(6))
    for i, name in enumerate(records.schema.names):
        mixed.presence[name][i] = False
        mixed.values[name][i] = "" if name == "report" else 0
    whole, holed = model.encode(model.prepare(records)), model.encode(model.prepare(mixed))
    for i, name in enumerate(records.schema.names):
        assert not holed[name][i].any()
        kept = [j for j in range(6) if j != i]
        torch.testing.assert_close(holed[name][kept], whole[name][kept])


def test_a_site_without_a_modality_classifies_from_the_others(model, records):
    model.set_component("fusion", np.ones(model.component_sizes()["fusion"], dtype=np.float32))
    features = model.encode(model.prepare(records.without(["image"])))
    assert not features["image"].any()
    assert model.classify(features).shape == (6, 3)


def test_an_untrained_translator_is_zero_filling_and_an_untrained_head_says_one_half(model, records):
    features = model.encode(model.prepare(records))
    for source, target in ALL_PAIRS:
        assert not model.translate(source, target, features[source]).any()
    assert not model.classify(features).any()


def test_features_have_the_configured_width_and_norm(records):
    config = ModelConfig(feature_width=16, feature_scale=3.0)
    model = build_model(records.schema, config, {}, seed=0)
    for name, feature in model.encode(model.prepare(records)).items():
        norms = feature.norm(dim=1)
        assert feature.shape == (6, 16)
        assert (norms <= 3.0).all()
        informative = [i for i in range(6) if name != "report" or i % 5 < 3]
        assert (norms[informative] > 2.0).all(), name


def test_a_record_without_a_known_word_has_a_bounded_gradient(records):
    model = build_model(records.schema, ModelConfig(), {}, seed=0)
    batch = model.prepare(records).select(torch.tensor([4]))
    model.encode_one(batch, "report").sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.component_parameters("encoder.report")])
    assert gradient.norm() < 1000


def test_unknown_labels_are_masked_and_never_nan(model, records):
    batch = model.prepare(records)
    assert batch.label_mask[0, 1] == 0
    assert batch.labels[0, 1] == 0
    assert batch.label_mask.sum() == 6 * 3 - 1


def test_selecting_from_a_batch_selects_every_field(model, records):
    batch = model.prepare(records)
    picked = batch.select(torch.tensor([4, 2]))
    assert len(picked) == 2
    direct = model.prepare(records.select([4, 2]))
    for name in records.schema.names:
        torch.testing.assert_close(picked.inputs[name], direct.inputs[name])
        assert torch.equal(picked.presence[name], direct.presence[name])
    assert torch.equal(picked.labels, direct.labels)


def test_a_batch_whose_fields_disagree_is_refused():
    with pytest.raises(DataError, match="presence"):
        Batch({"a": torch.zeros(2, 1)}, {"a": torch.ones(3, dtype=torch.bool)}, torch.zeros(2, 1), torch.ones(2, 1))


def test_no_records_make_an_empty_batch(model, records):
    batch = model.prepare(records.select([]))
    assert len(batch) == 0
    assert model.classify(model.encode(batch)).shape == (0, 3)


@pytest.mark.parametrize(
    ("config", "pairs", "named"),
    [
        ({"encoders": {"sound": {"name": "ngrams"}}}, [], "sound"),
        ({"encoders": {"report": {"name": "filterbank"}}}, [], "report"),
        ({}, [("image", "sound")], "sound"),
        ({}, [("image", "image")], "image"),
        ({}, [("image", "report")] * 2, "once"),
    ],
)
def test_a_model_that_does_not_fit_the_schema_is_refused_by_name(records, config, pairs, named):
    chosen = ModelConfig.model_validate(config)
    with pytest.raises(ConfigError, match=named):
        build_model(records.schema, chosen, translator_parts(chosen, pairs), seed=0)


def test_a_translator_that_was_not_built_is_refused_by_name(records):
    model = build_model(records.schema, ModelConfig(), translator_parts(ModelConfig(), [("image", "report")]), seed=0)
    with pytest.raises(ConfigError, match=r"report_to_image.*image_to_report"):
        model.translate("report", "image", torch.zeros(1, 32))
