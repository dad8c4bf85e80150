"""FIN: which translators there are, what they read, what trains when, and what a missing feature becomes."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from fin_example import NAMES, PLAN, TRAINING, complete_batch, model_of, records_of, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secure_fed.data.records import ModalitySpec, Schema
from secure_fed.errors import ConfigError
from secure_fed.methods import build
from secure_fed.methods.base import in_context, masked_bce, shared_pairs, translator_name
from secure_fed.methods.fin import FinConfig, TranslationError, cosine_error, squared_error, translation_loss
from secure_fed.methods.zero_fill import ZeroFillConfig
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import dp_sgd
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.plan import TrainingOptions
from secure_fed.privacy.preflight import preflight

FIN = FinConfig(name="fin", **TRAINING)
EVERYTHING = frozenset(NAMES)
TWO = schema_of(2)
BOTH = (("vitals", "labs"), ("labs", "vitals"))


def fin(**options):
    return build(FinConfig(name="fin", **{**TRAINING, **options}))


@st.composite
def federations(draw):
    """Three or four modalities, sites that own any subset, and records that have any part of them."""
    schema = schema_of(draw(st.integers(3, 4)))
    subsets = st.frozensets(st.sampled_from(schema.names), min_size=1)
    owned = draw(st.lists(subsets, min_size=1, max_size=5))
    presence = {name: draw(st.lists(st.booleans(), min_size=6, max_size=6)) for name in schema.names}
    return schema, owned, presence


@settings(max_examples=40, deadline=None)
@given(federations())
def test_every_ordered_pair_that_a_site_owns_has_a_translator_and_an_imputation_is_the_mean_of_those_present(case):
    schema, owned, presence = case
    expected = {pair for modalities in owned for pair in itertools.permutations(sorted(modalities), 2)}
    method = fin()
    if not expected:
        with pytest.raises(ConfigError, match="owns two modalities"):
            method.pairs(schema, owned)
        return
    assert set(method.pairs(schema, owned)) == expected
    model = model_of(method, schema, owned)
    assert {name for name in model.components() if name.startswith("translator.")} == set(
        map(translator_name, expected)
    )
    batch = model.prepare(records_of(schema, presence))
    features = model.encode(batch)
    imputed = method.impute(model, batch, features)
    for row, target in itertools.product(range(len(batch)), schema.names):
        says = [
            model.translate(source, target, features[source][row : row + 1])
            for source in schema.names
            if (source, target) in expected and presence[source][row]
        ]
        mean = torch.stack(says).mean(dim=0) if says else torch.zeros(1, 6)
        torch.testing.assert_close(imputed[target].mean[row : row + 1], mean, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(federations())
def test_a_record_teaches_exactly_the_translators_between_what_it_has(case):
    schema, _, presence = case
    method = fin()
    pairs = method.pairs(schema, [frozenset(schema.names)])
    model = model_of(method, schema, [frozenset(schema.names)])
    batch = model.prepare(records_of(schema, presence))
    features = {name: value.detach() for name, value in model.encode(batch).items()}
    expected = torch.zeros(len(batch))
    for row, (source, target) in itertools.product(range(len(batch)), pairs):
        if presence[source][row] and presence[target][row]:
            error = model.translate(source, target, features[source][row : row + 1]) - features[target][row]
            expected[row] += error.square().sum()
    torch.testing.assert_close(translation_loss(model, batch, pairs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", get_args(TranslationError))
def test_translators_are_trained_on_frozen_encoders_and_head(loss) -> None:
    method = fin(loss=loss)
    model = model_of(method, TWO, [EVERYTHING])
    found = {found.name: found for found in method.phases(TWO, BOTH, 20, 6)}["translate"]
    before = {component: model.get_component(component) for component in model.components()}
    options = TrainingOptions(learning_rate=0.1, max_physical_batch=64)
    dp_sgd(
        model,
        found.components,
        in_context(found.loss, None),
        complete_batch(model),
        PLAN,
        options,
        ReproducibleNoise(0),
    )
    moved = {name for name, values in before.items() if not np.array_equal(values, model.get_component(name))}
    assert moved == {translator_name(pair) for pair in BOTH}


# -- losses -----------------------------------------------------------------------------------------------


def test_the_cosine_error_ignores_the_length_of_a_translation_and_is_the_squared_error_at_the_right_one() -> None:
    rng = torch.Generator().manual_seed(0)
    translated, real = torch.randn(50, 6, generator=rng), torch.randn(50, 6, generator=rng)
    at_length = translated * (real.norm(dim=1) / translated.norm(dim=1)).unsqueeze(1)
    expected = squared_error(at_length, real)
    # The length's floor of 0.1 takes about 0.01 / (2 |t|^2) of the cosine: under 2 % at lengths above 0.5.
    torch.testing.assert_close(cosine_error(translated, real), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(cosine_error(10 * translated, real), expected, rtol=1e-3, atol=2e-3)


def test_the_cosine_error_has_a_bounded_gradient_where_the_translation_is_zero() -> None:
    translated = torch.zeros(1, 6, requires_grad=True)
    real = torch.ones(1, 6)
    cosine_error(translated, real).sum().backward()
    assert translated.grad is not None
    assert 0 < translated.grad.norm() <= 2 * real.square().sum() / 0.1 * 1.001


def logits_with_one_translated(model: MultimodalModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """What the head makes of the real features, and of them with one a translation, for each pair: [B, L] each."""
    features = {name: value.detach() for name, value in model.encode(batch).items()}
    translated = ({**features, to: model.translate(of, to, features[of])} for of, to in BOTH)
    return model.classify(features), [model.classify(imputed) for imputed in translated]


def test_the_logits_error_is_what_a_translation_does_to_the_classifiers_logits() -> None:
    model = model_of(fin(), TWO, [EVERYTHING])
    batch = complete_batch(model)
    real, imputed = logits_with_one_translated(model, batch)
    expected = torch.stack([squared_error(logits, real) for logits in imputed]).sum(dim=0)
    loss = translation_loss(model, batch, BOTH, "logits")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"parts"}


def test_the_labels_error_is_the_heads_with_the_translation_in_the_features_place() -> None:
    """Records without both cost nothing."""
    model = model_of(fin(), TWO, [EVERYTHING])
    batch = complete_batch(model)
    _, imputed = logits_with_one_translated(model, batch)
    expected = torch.stack([masked_bce(logits, batch.labels, batch.label_mask) for logits in imputed]).sum(dim=0)
    loss = translation_loss(model, batch, BOTH, "labels")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert not translation_loss(model, batch.without({"labs"}), BOTH, "labels").any()


# -- what a translator reads ------------------------------------------------------------------------------


def test_translators_fed_inputs_read_what_the_sources_encoder_reads() -> None:
    method = fin(source="inputs")
    model = model_of(method, TWO, [EVERYTHING])
    batch = complete_batch(model)
    features = model.encode(batch)
    imputed = method.impute(model, batch.without({"labs"}), features)["labs"].mean
    torch.testing.assert_close(imputed, model.translator("vitals", "labs")(batch.inputs["vitals"]))
    assert model.component_sizes()["translator.vitals_to_labs"] == 6 * (4 + 1)
    loss = translation_loss(model, batch, (("vitals", "labs"),), source="inputs")
    torch.testing.assert_close(loss, squared_error(imputed, features["labs"]))


def test_inputs_of_every_flat_kind_give_translators_of_that_width() -> None:
    schema = Schema(
        (
            ModalitySpec("image", "image", (1, 64, 64)),
            ModalitySpec("text", "text", ()),
            ModalitySpec("vitals", "tabular", (5,), tuple("abcde")),
        ),
        ("ill",),
    )
    method = fin(source="inputs")
    model = model_of(method, schema, [frozenset(schema.names)])
    raw = {
        "image": np.zeros((1, 1, 64, 64), dtype=np.float32),
        "text": np.array(["no effusion"], dtype=object),
        "vitals": np.zeros((1, 5), dtype=np.float32),
    }
    for source, target in (("image", "text"), ("text", "image"), ("vitals", "image")):
        width = model.encoder(source).prepare(raw[source]).shape[1]
        assert model.component_sizes()[f"translator.{source}_to_{target}"] == 6 * (width + 1)
    for kind, encoder in (("image", "small_cnn"), ("text", "bert_small")):
        config = ModelConfig.model_validate({kind: {"name": encoder}})
        with pytest.raises(ConfigError, match=f"{encoder} of {kind}"):
            method.parts(schema, [("image", "text"), ("text", "image")], config)


# -- schedules --------------------------------------------------------------------------------------------


def phases(rounds: int, **options) -> list[tuple[str, tuple[str, ...], int, int]]:
    found = fin(**options).phases(TWO, shared_pairs(TWO, [EVERYTHING]), rounds, 6)
    return [(phase.name, phase.components, phase.start, phase.stop) for phase in found]


CLASSIFIER = ("encoder.vitals", "encoder.labs", "fusion")
TRANSLATORS = ("translator.vitals_to_labs", "translator.labs_to_vitals")


@pytest.mark.parametrize(
    ("rounds", "options", "expected"),
    [
        (30, {}, [("classify", CLASSIFIER, 0, 25), ("translate", TRANSLATORS, 25, 30)]),
        (2, {}, [("classify", CLASSIFIER, 0, 1), ("translate", TRANSLATORS, 1, 2)]),
        (
            30,
            {"schedule": "every_round"},
            [("classify", CLASSIFIER, 0, 30), ("translate", TRANSLATORS, 0, 30)],
        ),
        (
            20,
            {"refit_share": 0.1},
            [("classify", CLASSIFIER, 0, 15), ("translate", TRANSLATORS, 15, 18), ("refit", ("fusion",), 18, 20)],
        ),
    ],
)
def test_what_trains_when(rounds, options, expected) -> None:
    assert phases(rounds, **options) == expected


def test_a_schedule_without_a_round_for_every_phase_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds=1 leaves"):
        phases(1)
    with pytest.raises(ConfigError, match=r"refit_share=0\.5"):
        phases(3, refit_share=0.5)


def test_the_refit_sees_imputed_features_and_the_classifier_before_it_sees_zeros() -> None:
    method = fin(refit_share=0.1)
    model = model_of(method, TWO, [EVERYTHING])
    batch = complete_batch(model).without({"labs"})
    classify, _, refit = method.phases(TWO, BOTH, 20, 6)
    imputed = in_context(refit.loss, None)(model, batch)
    for pair in BOTH:
        size = model.component_sizes()[translator_name(pair)]
        model.set_component(translator_name(pair), np.zeros(size, dtype=np.float32))
    zero = build(ZeroFillConfig(name="zero_fill", classify=TRAINING["classify"]))
    torch.testing.assert_close(
        in_context(classify.loss, None)(model, batch), zero.classification_loss(model, batch, None)
    )
    assert not torch.allclose(imputed, in_context(classify.loss, None)(model, batch))


def test_modality_dropout_in_training_hides_and_then_imputes_and_the_preflights_loss_hides_nothing() -> None:
    method = fin(train_with_modality_dropout=0.5)
    model = model_of(method, TWO, [EVERYTHING])
    batch = complete_batch(model, n=200)
    classify = method.phases(TWO, BOTH, 20, 6)[0]
    whole = method.still_classification_loss(model, batch, None)
    without = {name: method.still_classification_loss(model, batch.without({name}), None) for name in TWO.names}
    torch.manual_seed(0)
    found = classify.loss(model, batch, None)
    same = {name: (found - loss).abs() < 1e-5 for name, loss in {**without, "neither": whole}.items()}
    assert torch.stack(list(same.values())).any(dim=0).all()
    # Each of two is hidden alone with chance 1/4; both would go with 1/4, and then nothing does.
    assert all(abs(float(same[name].float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 200) ** 0.5 for name in TWO.names)
    torch.testing.assert_close(classify.still_loss(model, batch, None), whole)


# -- privacy ----------------------------------------------------------------------------------------------


SMALL_DECODER = {
    "name": "transformer",
    "depth": 1,
    "width": 8,
    "heads": 2,
    "feed_forward": 8,
    "memory_tokens": 3,
    "dropout": 0.1,
}


@pytest.mark.parametrize(
    ("options", "translator", "back_end", "phase"),
    [
        ({"source": "inputs"}, {"name": "linear"}, "hooks", "translate"),
        ({"refit_share": 0.2, "train_with_modality_dropout": 0.3}, {"name": "linear"}, "hooks", "refit"),
        ({"loss": "logits"}, {"name": "linear"}, "hooks", "translate"),
        ({"loss": "labels"}, {"name": "linear"}, "hooks", "translate"),
        pytest.param({"loss": "logits"}, {"name": "linear"}, "ghost", "translate", marks=pytest.mark.slow),
        pytest.param({"loss": "cosine"}, {"name": "mlp"}, "ghost", "translate", marks=pytest.mark.slow),
        pytest.param({}, SMALL_DECODER, "hooks", "translate", marks=pytest.mark.slow),
        pytest.param({}, SMALL_DECODER, "ghost", "translate", marks=pytest.mark.slow),
        pytest.param({"train_with_modality_dropout": 0.3}, SMALL_DECODER, "hooks", "classify", marks=pytest.mark.slow),
    ],
)
def test_every_phase_passes_the_preflight(options, translator, back_end, phase) -> None:
    """Dropout in the decoder is the translator's own random draw, which the preflight switches off."""
    method = fin(**options)
    model = model_of(method, TWO, [EVERYTHING], {"translator": translator})
    found = {found.name: found for found in method.phases(TWO, BOTH, 20, 6)}[phase]
    loss = in_context(found.still_loss or found.loss, None)
    preflight(model, found.components, loss, PLAN, ReproducibleNoise(0), back_end=back_end)
