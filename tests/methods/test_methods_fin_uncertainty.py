"""FIN with uncertainty: what a source that is unsure counts for, what the gate does, and what the variance means."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fin_example import NAMES, PLAN, TRAINING, complete_batch, model_of, records_of, schema_of
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.errors import ConfigError
from secure_fed.methods import build
from secure_fed.methods.base import in_context
from secure_fed.methods.fin_uncertainty import (
    FinUncertaintyConfig,
    gated,
    gaussian_translator,
    likelihood_loss,
)
from secure_fed.models.config import ModelConfig
from secure_fed.models.translators import LOG_VARIANCE_REACH, translator_parts
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.preflight import preflight

EVERYTHING = frozenset(NAMES)
METHOD = build(FinUncertaintyConfig(name="fin_uncertainty", **TRAINING))
BOTH = (("vitals", "labs"), ("labs", "vitals"))
PRIOR = 9 / 6
"""scale^2 / F of fin_example's models."""

means = st.floats(-5, 5)
variances = st.floats(0.01, 100)
sources = st.lists(st.tuples(means, variances), min_size=1, max_size=4)


def imputed_from(said: list[tuple[float, float]]) -> tuple[float, float]:
    """What the gate makes of one number, given each source's (mean, variance)."""
    precision = torch.tensor([[sum(1 / v for _, v in said)]])
    weighted = torch.tensor([[sum(m / v for m, v in said)]])
    found = gated(precision, weighted, PRIOR)
    return float(found.mean), float(found.variance)


@given(sources)
def test_an_imputation_is_the_posterior_mean_under_the_prior(said) -> None:
    """Gate times inverse-variance mean: v0 sum(m / v) / (1 + v0 sum(1 / v)), in numpy's float64."""
    precision = sum(1 / v for _, v in said)
    expected = sum(m / v for m, v in said) / (1 / PRIOR + precision)
    assert imputed_from(said)[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(means)
def test_a_source_without_any_idea_gives_zero_filling_and_one_without_doubt_gives_its_word(mean) -> None:
    assert imputed_from([(mean, 1e9)])[0] == pytest.approx(0, abs=1e-7)
    assert imputed_from([(mean, 1e-9)])[0] == pytest.approx(mean, rel=1e-5, abs=1e-6)


@given(sources, means)
def test_a_source_counts_the_less_the_less_sure_it_is(said, mean) -> None:
    apart = [abs(imputed_from([*said, (mean, v)])[0] - imputed_from(said)[0]) for v in (0.1, 1.0, 10.0, 100.0)]
    assert all(after <= before + 1e-4 for before, after in itertools.pairwise(apart))


def test_the_gate_is_a_sigmoid_of_the_log_variance() -> None:
    for variance in (0.05, 1.0, PRIOR, 20.0):
        gate = 1 / (1 + math.exp(-(math.log(PRIOR) - math.log(variance))))
        assert imputed_from([(2.0, variance)])[0] == pytest.approx(2 * gate, rel=1e-5)


@pytest.mark.parametrize("said", [[(1.0, 0.5)], [(1.0, 4.0)], [(-2.0, 1.0), (0.5, 2.0)]])
def test_the_variance_is_the_squared_error_to_expect_of_the_gated_mean(said) -> None:
    """Draws of the feature from N(m, v), the sources combined: 10^6 of them give a mean square to under 1 %."""
    precision = sum(1 / v for _, v in said)
    combined = sum(m / v for m, v in said) / precision
    real = np.random.default_rng(0).normal(combined, precision**-0.5, 1_000_000)
    mean, variance = imputed_from(said)
    assert np.square(real - mean).mean() == pytest.approx(variance, rel=0.01)


def test_a_record_without_a_source_gets_zeros_and_the_priors_variance() -> None:
    schema = schema_of(3)
    model = model_of(METHOD, schema, [EVERYTHING])
    nothing = {name: [name == "notes", False] for name in schema.names}
    batch = model.prepare(records_of(schema, nothing))
    found = METHOD.impute(model, batch, model.encode(batch))["vitals"]
    assert found.variance is not None
    assert not found.mean[1].any()
    torch.testing.assert_close(found.variance[1], torch.full((6,), PRIOR))
    assert found.mean[0].any()
    assert (found.variance > 0).all()


def test_several_sources_are_combined_by_inverse_variance_and_absent_ones_do_not_count() -> None:
    schema = schema_of(3)
    model = model_of(METHOD, schema, [EVERYTHING])
    batch = complete_batch(model)
    features = model.encode(batch)
    said = {
        source: gaussian_translator(model, (source, "labs")).distribution(features[source])
        for source in ("vitals", "notes")
    }
    for hidden, present in (({"labs"}, ("vitals", "notes")), ({"labs", "notes"}, ("vitals",))):
        found = METHOD.impute(model, batch.without(hidden), features)["labs"].mean
        precision = sum(1 / said[source][1] for source in present)
        weighted = sum(said[source][0] / said[source][1] for source in present)
        torch.testing.assert_close(found, weighted / (1 / PRIOR + precision))


def test_untrained_it_is_zero_filling_and_knows_no_more_than_the_prior() -> None:
    schema = schema_of(2)
    config = ModelConfig.model_validate({"feature_width": 6, "translator": {"name": "mlp"}})
    translator = METHOD.parts(schema, BOTH, config)["translator.vitals_to_labs"]()
    mean, variance = translator.distribution(torch.randn(5, 6))
    assert not mean.any()
    torch.testing.assert_close(variance, torch.full((5, 6), PRIOR))


def test_the_log_variance_stays_within_its_reach_whatever_the_input() -> None:
    model = model_of(METHOD, schema_of(2), [EVERYTHING])
    translator = gaussian_translator(model, BOTH[0])
    _, variance = translator.distribution(torch.tensor([[1e6], [-1e6]]).expand(2, 6).contiguous())
    assert (torch.log(variance / PRIOR).abs() <= LOG_VARIANCE_REACH * (1 + 1e-6)).all()


def test_the_loss_is_the_gaussian_negative_log_likelihood_of_the_paired_records() -> None:
    schema = schema_of(2)
    model = model_of(METHOD, schema, [EVERYTHING])
    batch = model.prepare(records_of(schema, {"vitals": [True] * 4, "labs": [True, True, False, True]}))
    features = {name: value.detach() for name, value in model.encode(batch).items()}
    expected = torch.zeros(4)
    for source, target in BOTH:
        mean, variance = gaussian_translator(model, (source, target)).distribution(features[source])
        density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(features[target])
        expected = expected - density.sum(dim=1) * batch.presence["labs"]
    loss = likelihood_loss(model, batch, BOTH)
    torch.testing.assert_close(loss, expected)
    assert loss[2] == 0
    loss.sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"parts"}


def test_training_teaches_it_which_numbers_it_can_tell() -> None:
    """Half of the target is a linear function of the source, the other half is noise: their variances part."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"feature_width": 6, "translator": {"name": "linear"}})
    translator = METHOD.parts(schema_of(2), BOTH, config)["translator.vitals_to_labs"]()
    source = torch.randn(400, 6)
    real = torch.cat([source[:, :3] * 0.8, torch.randn(400, 3)], dim=1)
    optimizer = torch.optim.SGD(translator.parameters(), lr=0.1)
    for _ in range(120):
        mean, variance = translator.distribution(source)
        loss = ((real - mean).square() / variance + torch.log(variance)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, variance = translator.distribution(source)
    assert variance[:, :3].mean() < 0.2
    assert 0.8 < variance[:, 3:].mean() < 1.2


def test_a_normalised_output_and_a_translator_without_a_variance_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be able to shrink"):
        METHOD.check_model(ModelConfig.model_validate({"translator": {"name": "mlp", "normalise_output": True}}))
    METHOD.check_model(ModelConfig.model_validate({"translator": {"name": "mlp"}}))
    model = model_of(METHOD, schema_of(2), [EVERYTHING])
    plain = translator_parts(ModelConfig.model_validate({"feature_width": 6}), BOTH)["translator.vitals_to_labs"]()
    model.parts["translator"]["vitals_to_labs"] = plain
    with pytest.raises(ConfigError, match="vitals_to_labs gives no variance"):
        gaussian_translator(model, BOTH[0])


@pytest.mark.parametrize(
    ("translator", "back_end"),
    [("linear", "hooks"), pytest.param("mlp", "ghost", marks=pytest.mark.slow)],
)
def test_the_likelihood_passes_the_preflight(translator, back_end) -> None:
    model = model_of(METHOD, schema_of(2), [EVERYTHING], {"translator": {"name": translator}})
    translate = METHOD.phases(schema_of(2), BOTH, 20, 6)[1]
    loss = in_context(translate.loss, None)
    preflight(model, translate.components, loss, PLAN, ReproducibleNoise(0), back_end=back_end)
