"""Methods fill what is missing, keep what is there, and train what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shipped_methods import FIN, RIDGE, SHIPPED, context_for

from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.errors import ConfigError
from secure_fed.methods import Method, build
from secure_fed.methods.base import GradientPhase, component_modalities, in_context, owns, shared_pairs, translator_name
from secure_fed.methods.exact_linalg import project_psd
from secure_fed.methods.fin import translation_loss
from secure_fed.methods.modality_dropout import hide_some
from secure_fed.methods.ridge import moments, unpack_moments
from secure_fed.models.batch import Batch
from secure_fed.models.config import LinearTranslatorConfig, ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.models.translators import translator_parts

NAMES = ("vitals", "labs", "notes")
SCHEMA = Schema(
    tuple(ModalitySpec(name, "tabular", (4,), tuple(f"{name}{i}" for i in range(4))) for name in NAMES), ("dead",)
)
EVERYTHING = frozenset(NAMES)


def model_and_batch(
    pairs: tuple[tuple[str, str], ...], n: int = 40, width: int = 6, method: Method | None = None
) -> tuple[MultimodalModel, Batch]:
    rng = np.random.default_rng(1)
    config = ModelConfig(feature_width=width, translator=LinearTranslatorConfig())
    parts = translator_parts(config, pairs) if method is None else method.parts(SCHEMA, pairs, config)
    model = build_model(SCHEMA, config, parts, seed=3)
    records = Records(
        schema=SCHEMA,
        values={name: rng.normal(size=(n, 4)).astype(np.float32) for name in NAMES},
        presence={name: np.ones(n, dtype=bool) for name in NAMES},
        labels=rng.integers(0, 2, size=(n, 1)).astype(np.float32),
        unit_ids=np.array([f"p{i}" for i in range(n)]),
        groups=None,
    )
    return model, model.prepare(records)


@pytest.mark.parametrize("config", SHIPPED.values(), ids=lambda config: config.name)
def test_an_observed_feature_is_never_replaced(config) -> None:
    method = build(config)
    pairs = method.pairs(SCHEMA, [EVERYTHING])
    model, batch = model_and_batch(pairs, method=method)
    features = model.encode(batch)
    filled = method.fill(model, batch, features, context_for(method, model))
    for name in NAMES:
        torch.testing.assert_close(filled[name], features[name], rtol=0, atol=0)


@pytest.mark.parametrize("config", SHIPPED.values(), ids=lambda config: config.name)
def test_losses_do_not_couple_records(config) -> None:
    """Each record's loss is the same alone as in the batch: else per-record clipping bounds nothing."""
    method = build(config)
    pairs = method.pairs(SCHEMA, [EVERYTHING])
    model, batch = model_and_batch(pairs, method=method)
    rng = np.random.default_rng(5)
    for component, size in model.component_sizes().items():  # what is imputed does not show behind a zero fusion
        model.set_component(component, rng.normal(scale=0.3, size=size).astype(np.float32))
    lacking = {name: torch.from_numpy(rng.random(len(batch)) < 0.7) for name in NAMES}
    batch = replace(batch, presence=lacking)
    context = context_for(method, model)
    for phase in method.phases(SCHEMA, pairs, 6, 6):
        if not isinstance(phase, GradientPhase):
            continue
        loss = in_context(phase.still_loss or phase.loss, context)
        together = loss(model, batch)
        alone = torch.cat([loss(model, batch.select(torch.tensor([i]))) for i in range(len(batch))])
        assert together.shape == (len(batch),)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # other BLAS kernels for one row


def test_modality_dropout_never_hides_everything_and_never_shows_what_is_absent() -> None:
    presence = {
        "vitals": torch.tensor([True, True, False] * 200),
        "labs": torch.tensor([True, False, False] * 200),
        "notes": torch.tensor([True, False, True] * 200),
    }
    torch.manual_seed(0)
    hidden = hide_some(presence, 0.5)
    kept = torch.stack(list(hidden.values()), dim=1)
    assert kept.any(dim=1).all()
    for name in NAMES:
        assert not (hidden[name] & ~presence[name]).any()
    # Three present with p = .5: all kept 1/8 of the time, or 1/8 more where all would have gone.
    share = kept[0::3].all(dim=1).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 200) ** 0.5


def test_zero_translators_begin_as_zero_filling() -> None:
    method = build(FIN)
    pairs = method.pairs(SCHEMA, [EVERYTHING])
    model, batch = model_and_batch(pairs)
    filled = method.fill(model, batch.without({"labs"}), model.encode(batch))
    assert torch.count_nonzero(filled["labs"]) == 0


def test_several_sources_are_averaged_and_absent_sources_do_not_count() -> None:
    method = build(FIN)
    pairs = method.pairs(SCHEMA, [EVERYTHING])
    model, batch = model_and_batch(pairs)
    for pair in pairs:
        size = model.component_sizes()[translator_name(pair)]
        model.set_component(translator_name(pair), np.random.default_rng(len(pair[0])).normal(size=size).astype("f4"))
    features = model.encode(batch)
    both = method.impute(model, batch.without({"labs"}), features)["labs"].mean
    from_vitals = model.translate("vitals", "labs", features["vitals"])
    from_notes = model.translate("notes", "labs", features["notes"])
    torch.testing.assert_close(both, (from_vitals + from_notes) / 2)
    one = method.impute(model, batch.without({"labs", "notes"}), features)
    torch.testing.assert_close(one["labs"].mean, from_vitals)


def test_records_without_both_sides_teach_a_translator_nothing() -> None:
    pairs = (("vitals", "labs"),)
    model, batch = model_and_batch(pairs)
    half = torch.arange(len(batch)) % 2 == 0
    lacking = Batch(batch.inputs, {**batch.presence, "labs": half}, batch.labels, batch.label_mask)
    loss = translation_loss(model, lacking, pairs)
    assert (loss[~half] == 0).all()
    assert (loss[half] > 0).all()


def test_translator_loss_leaves_the_encoders_alone() -> None:
    pairs = (("vitals", "labs"), ("labs", "vitals"))
    model, batch = model_and_batch(pairs)
    translation_loss(model, batch, pairs).sum().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"parts"}


def test_fin_trains_translators_in_the_last_sixth_on_encoders_that_no_longer_move() -> None:
    method = build(FIN)
    pairs = shared_pairs(SCHEMA, [EVERYTHING])
    classify, translate = method.phases(SCHEMA, pairs, 30, 6)
    assert (classify.start, classify.stop, translate.start, translate.stop) == (0, 25, 25, 30)
    every_round = build(FIN.model_copy(update={"schedule": "every_round"})).phases(SCHEMA, pairs, 30, 6)
    assert [(phase.start, phase.stop) for phase in every_round] == [(0, 30), (0, 30)]


def test_ridge_without_noise_solves_the_least_squares_translators() -> None:
    pair = ("labs", "vitals")
    pairs = (pair, pair[::-1])
    method = build(RIDGE.model_copy(update={"penalty": 1e-9}))
    model, batch = model_and_batch(pairs, n=400, width=3)  # fewer features than inputs: a Gram matrix of full rank
    (statistic,) = method.phases(SCHEMA, pairs, 3, 3)[1:]
    rows = statistic.map(model, batch, None)
    assert rows.shape == (400, statistic.size)
    statistic.solve(model, rows.double().sum(dim=0).numpy() / 123.0)  # any positive scale
    features = {name: value.detach().double() for name, value in model.encode(batch).items()}
    for source, target in pairs:
        x = torch.cat([torch.ones(400, 1, dtype=torch.float64), features[source]], dim=1)
        expected = x @ torch.linalg.lstsq(x, features[target]).solution
        found = model.translate(source, target, features[source].float()).double()
        # Weights are float32 and the features of norm 3: errors of 1e-6 relative, a thousandth is far above.
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)


def test_a_records_moments_have_the_norm_that_the_bound_is_stated_for() -> None:
    model, batch = model_and_batch((("labs", "vitals"),))
    features = model.encode(batch)
    z_norm = 1 + features["labs"].square().sum(1) + features["vitals"].square().sum(1)
    torch.testing.assert_close(moments(model, batch, None, ("labs", "vitals")).norm(dim=1), z_norm)


def test_projection_makes_a_noised_moment_matrix_positive_semidefinite() -> None:
    packed = np.random.default_rng(0).normal(size=13 * 14 // 2)
    matrix = unpack_moments(packed)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() < 0
    assert np.linalg.eigvalsh(project_psd(matrix)).min() > -1e-12


def test_who_owns_what_follows_from_the_component_names() -> None:
    assert component_modalities("translator.vitals_to_labs") == {"vitals", "labs"}
    assert component_modalities("encoder.vitals") == {"vitals"}
    assert component_modalities("fusion") == frozenset()
    assert owns("fusion", frozenset({"labs"}))
    assert not owns("fusion", frozenset())
    assert not owns("translator.vitals_to_labs", frozenset({"labs"}))


@pytest.mark.parametrize("config", [FIN, RIDGE], ids=lambda config: config.name)
def test_imputing_methods_refuse_a_federation_in_which_nobody_has_two_modalities(config) -> None:
    with pytest.raises(ConfigError, match="owns two modalities"):
        build(config).pairs(SCHEMA, [frozenset({"labs"}), frozenset({"vitals"})])
