"""The autoencoders learn what one feature says of another, record by record, and impute without random numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fin_example import model_of, records_of, schema_of
from shipped_methods import VAE
from torch.distributions import Normal, kl_divergence

from secure_fed.errors import ConfigError
from secure_fed.methods import build
from secure_fed.methods.vae import negative_elbo, vae_name, vae_of
from secure_fed.models.batch import Batch
from secure_fed.models.cross_modal_vae import CrossModalVae, divergence

SCHEMA = schema_of(3)
EVERYTHING = frozenset(SCHEMA.names)
METHOD = build(VAE)
PAIRS = METHOD.pairs(SCHEMA, [EVERYTHING])
N = 60
EVERYWHERE = {name: [True] * N for name in SCHEMA.names}
MODEL = model_of(METHOD, SCHEMA, [EVERYTHING])
BATCH = MODEL.prepare(records_of(SCHEMA, EVERYWHERE))


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, log_variance = torch.randn(9, 4), torch.randn(9, 4)
    prior = Normal(torch.zeros(9, 4), torch.ones(9, 4))
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), prior).sum(dim=1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_untrained_it_is_zero_filling() -> None:
    vae = CrossModalVae(6, 5, 3)
    mean, variance = vae.imputed(torch.randn(4, 6))
    assert not mean.any()
    assert not variance.any()


def test_imputation_repeats_itself_and_has_the_posteriors_mean_where_the_decoder_is_linear() -> None:
    vae = CrossModalVae(6, 5, 3)
    vae.decoder = torch.nn.Identity()  # type: ignore[assignment]
    vae.last = torch.nn.Linear(3, 6)
    source = torch.randn(8, 6)
    mean, variance = vae.imputed(source)
    again, _ = vae.imputed(source)
    assert torch.equal(mean, again)
    latent, _ = vae.posterior(source)
    torch.testing.assert_close(mean, vae.decode(latent))
    assert (variance > 0).all()


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_latents_variance_is_bounded_whatever_the_weights(size) -> None:
    vae = CrossModalVae(6, 5, 3)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=size)
    _, log_variance = vae.posterior(torch.randn(8, 6))
    assert float(log_variance.detach().abs().max()) <= 4.0


def test_records_without_both_sides_teach_an_autoencoder_nothing() -> None:
    half = torch.arange(N) % 2 == 0
    lacking = Batch(BATCH.inputs, {**BATCH.presence, "labs": half}, BATCH.labels, BATCH.label_mask)
    loss = negative_elbo(MODEL, lacking, None, [("vitals", "labs")], beta=0.1)
    assert (loss[~half] == 0).all()
    assert (loss[half] > 0).all()


def test_the_loss_leaves_the_encoders_alone_and_draws_anew_but_for_its_still_form() -> None:
    _, phase = METHOD.phases(SCHEMA, PAIRS, 10, 6)
    assert (phase.start, phase.stop, set(phase.components)) == (8, 10, set(map(vae_name, PAIRS)))
    assert not torch.equal(phase.loss(MODEL, BATCH, None), phase.loss(MODEL, BATCH, None))
    assert torch.equal(phase.still_loss(MODEL, BATCH, None), phase.still_loss(MODEL, BATCH, None))
    phase.loss(MODEL, BATCH, None).sum().backward()
    assert {name.split(".")[0] for name, p in MODEL.named_parameters() if p.grad is not None} == {"parts"}
    MODEL.zero_grad()


def test_training_brings_imputed_features_nearer_than_their_mean_is() -> None:
    torch.manual_seed(0)
    model = model_of(METHOD, SCHEMA, [EVERYTHING])
    batch = model.prepare(records_of(SCHEMA, EVERYWHERE))
    batch.inputs["labs"] = batch.inputs["vitals"]  # what is to be imputed follows from what is there
    loss = partial(negative_elbo, pairs=[("vitals", "labs")], beta=0.1)
    optimizer = torch.optim.Adam(vae_of(model, ("vitals", "labs")).parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model, batch, None).mean().backward()
        optimizer.step()
    with torch.no_grad():
        features = model.encode(batch)
        seen = batch.without({"labs", "notes"})
        imputed = METHOD.impute(model, seen, features)["labs"]
    error = (imputed.mean - features["labs"]).square().mean()
    assert error < 0.2 * features["labs"].var(dim=0, unbiased=False).mean()
    assert imputed.variance is not None
    assert 0.2 < float(error / imputed.variance.mean()) < 5, "the variance is of the error's size"


def test_several_sources_are_mixed_and_absent_ones_do_not_count() -> None:
    features = {name: value.detach() for name, value in MODEL.encode(BATCH).items()}
    both = METHOD.impute(MODEL, BATCH.without({"labs"}), features)["labs"]
    (m1, v1), (m2, v2) = (vae_of(MODEL, (s, "labs")).imputed(features[s]) for s in ("vitals", "notes"))
    torch.testing.assert_close(both.mean, (m1 + m2) / 2)
    expected = (v1 + v2 + 2 * VAE.beta / 2) / 2 + ((m1 - m2) / 2).square()
    torch.testing.assert_close(both.variance, expected, rtol=1e-4, atol=1e-4)
    one = METHOD.impute(MODEL, BATCH.without({"labs", "notes"}), features)["labs"]
    torch.testing.assert_close(one.mean, m1)
    none = METHOD.impute(MODEL, BATCH.without(set(SCHEMA.names)), features)["labs"]
    assert not none.mean.any()


def test_it_is_refused_where_nobody_has_two_modalities_or_there_is_one_round() -> None:
    with pytest.raises(ConfigError, match="owns two modalities"):
        METHOD.pairs(SCHEMA, [frozenset({"labs"})])
    with pytest.raises(ConfigError, match="no round for both classifier and autoencoders"):
        METHOD.phases(SCHEMA, PAIRS, 1, 6)
