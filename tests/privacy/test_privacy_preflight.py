"""Preflight: what silently breaks DP-SGD is found on made-up records, and what is sound passes.

The traps that Opacus itself sets are in test_privacy_traps.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dp_fixtures import (
    ENCODERS_AND_FUSION,
    PAIRS,
    TRANSLATORS,
    classification_loss,
    make_batch,
    make_model,
    model_with_a_layer_of_no_known_gradient,
    plan,
    translation_loss,
)
from shipped_methods import SHIPPED, context_for
from torch.nn import functional as F

from secure_fed.errors import PrivacyError
from secure_fed.methods import build
from secure_fed.methods.base import StatisticPhase, in_context
from secure_fed.models.batch import Batch
from secure_fed.privacy import preflight as module
from secure_fed.privacy.dpsgd import clipped_gradient_sum
from secure_fed.privacy.made_up import made_up_batch, with_non_finite, with_outliers
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise
from secure_fed.privacy.plan import StatisticPlan
from secure_fed.privacy.preflight import (
    preflight,
    preflight_once,
    preflight_statistic,
    preflight_statistic_once,
    structure_digest,
)
from secure_fed.privacy.sensitivity import leave_one_out_sensitivity

PATIENTS = {"unit": "patient", "max_records_per_unit": 3}
STATISTIC = StatisticPlan(phase="ridge", bound=2.0, noise_multiplier=1.5)


@pytest.mark.parametrize(
    ("translator", "unit", "back_end"),
    [("mlp", {}, "ghost"), ("mlp", PATIENTS, "hooks"), ("transformer", {}, "hooks")],
)
def test_the_houses_own_losses_pass_and_the_model_is_left_alone(translator, unit, back_end):
    model = make_model(translator={"name": translator, **({"dropout": 0.1} if translator == "transformer" else {})})
    before = model.digest()
    settings = plan(max_grad_norm=2.0, noise_multiplier=1.3, **unit)
    preflight(model, ENCODERS_AND_FUSION, classification_loss, settings, OsNoise(), back_end=back_end)
    preflight(model, TRANSLATORS, translation_loss, settings, ReproducibleNoise(0), back_end=back_end)
    assert model.digest() == before
    assert model.training
    assert not [name for name, p in model.named_parameters() if p.grad is not None]


@pytest.mark.parametrize("unit", [{}, PATIENTS], ids=["record", "patient"])
@pytest.mark.parametrize("method", SHIPPED.values(), ids=lambda method: method.name)
def test_every_phase_of_every_shipped_method_passes(method, unit):
    built = build(method)
    model = make_model(translator={"name": "linear"}, method=built)
    context = context_for(built, model)
    for phase in built.phases(model.schema, PAIRS, 5, 32):
        if isinstance(phase, StatisticPhase):
            settings = StatisticPlan(phase=phase.name, bound=phase.bound, noise_multiplier=1.5, **unit)
            preflight_statistic(model, in_context(phase.map, context), settings, OsNoise())
        else:
            loss = in_context(phase.still_loss or phase.loss, context)
            preflight(model, phase.components, loss, plan(**unit), OsNoise())


def test_a_model_fresh_from_its_seed_is_tried_away_from_its_zeros():
    model = make_model()
    for name, size in model.component_sizes().items():
        model.set_component(name, torch.zeros(size).numpy())

    def coupled(m, batch):  # behind zero weights all features are zero, and no company shows
        feature = m.encode_one(batch, "vitals")
        return classification_loss(m, batch) + (feature - feature.mean(dim=0)).square().sum(dim=1)

    batch = made_up_batch(model, 5, 0)
    alone = torch.cat([coupled(model, batch.select(torch.tensor([i]))) for i in range(5)])
    assert torch.allclose(coupled(model, batch), alone)
    with pytest.raises(PrivacyError, match="company"):
        preflight(model, ENCODERS_AND_FUSION, coupled, plan(), OsNoise())


@pytest.mark.parametrize("strength", [0.001, 0.003, 0.1])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_gradient_that_changes_a_little_with_its_company_is_refused_though_no_loss_does(strength, sign):
    """Beside five records it is under a hundredth of the sum; beside hundreds it would be most of it."""

    def coupled(m, batch):
        loss = classification_loss(m, batch)
        unseen = (loss.sum() - loss) - (loss.sum() - loss).detach()
        return loss + sign * strength * unseen

    with pytest.raises(PrivacyError, match="company it is in"):
        preflight(make_model(), ENCODERS_AND_FUSION, coupled, plan(max_grad_norm=1.0), OsNoise())


def test_a_gradient_that_now_and_then_falls_to_the_other_side_of_a_kink_is_no_coupling(monkeypatch):
    """A deep network's does where a larger batch is rounded otherwise: another one each time."""
    generator, exact = torch.Generator().manual_seed(0), clipped_gradient_sum

    def at_a_kink(model, components, loss, batch, bound, back_end="hooks"):
        summed = exact(model, components, loss, batch, bound, back_end)
        noise = torch.randn(summed.shape, generator=generator) * (len(batch) > 1)
        return summed + 0.02 * bound * noise / noise.norm().clamp(min=1e-9)

    monkeypatch.setattr(module, "clipped_gradient_sum", at_a_kink)
    model = make_model()
    batch = made_up_batch(model, 5, 0)
    module._refuse_other_gradients(model, ENCODERS_AND_FUSION, classification_loss, batch, "hooks")


@pytest.mark.parametrize("back_end", ["hooks", "ghost"])
def test_weights_used_past_their_layer_are_refused(back_end):
    def tied(model, batch):
        feature = model.encode_one(batch, "report")
        weight = model.parts["translator"]["image_to_report"].body[0].weight  # used without calling its layer
        return model.translate("image", "report", feature).sum(dim=1) + F.linear(feature, weight).square().sum(dim=1)

    with pytest.raises(PrivacyError, match="tied weights"):
        preflight(make_model(), ["translator.image_to_report"], tied, plan(), OsNoise(), back_end=back_end)


def test_a_layer_that_is_called_twice_passes_under_hooks_and_is_refused_under_ghost():
    def twice(model, batch):
        features = model.encode(batch)
        halved = {name: value * 0.5 for name, value in features.items()}
        return model.classify(features).sum(dim=1) + model.classify(halved).square().sum(dim=1)

    preflight(make_model(), ["fusion"], twice, plan(), OsNoise())
    with pytest.raises(PrivacyError, match="call each layer once"):
        preflight(make_model(), ["fusion"], twice, plan(), OsNoise(), back_end="ghost")


def test_a_reduced_loss_is_refused():
    with pytest.raises(PrivacyError, match=r"one value for each of them \(reduction='none'\)"):
        preflight(make_model(), ["fusion"], lambda m, b: classification_loss(m, b).mean(), plan(), OsNoise())


def test_a_buffer_that_moves_is_refused():
    model = make_model()
    model.encoders["vitals"].register_buffer("seen", torch.zeros(()))

    def counting(m, batch):
        m.encoders["vitals"].seen += len(batch)
        return classification_loss(m, batch)

    with pytest.raises(PrivacyError, match=r"buffer 'encoders\.vitals\.seen' moved"):
        preflight(model, ["fusion"], counting, plan(), OsNoise())


def test_a_layer_without_a_known_gradient_is_refused():
    model = model_with_a_layer_of_no_known_gradient()
    with pytest.raises(PrivacyError, match="Scale, whose per-record gradient is not known"):
        preflight(model, ["fusion"], classification_loss, plan(), OsNoise())


def test_ghost_norms_for_patients_are_refused():
    with pytest.raises(PrivacyError, match="back_end='hooks'"):
        preflight(make_model(), ["fusion"], classification_loss, plan(**PATIENTS), OsNoise(), back_end="ghost")


class Quieter(OsNoise):
    """Noise of less than the deviation that it was asked for."""

    share = 0.8

    def derive(self, label):
        return Quieter()

    def normal(self, shape, std, dtype=torch.float32):
        return super().normal(shape, self.share * std, dtype)


def test_four_fifths_of_the_planned_noise_are_found_and_the_planned_noise_is_not_a_false_alarm():
    with pytest.raises(PrivacyError, match="noise that is drawn has deviation"):
        preflight(make_model(), ENCODERS_AND_FUSION, classification_loss, plan(), Quieter())
    for sigma in (0.01, 10.0):  # at 6 standard errors one false alarm in 5e8; small noise shows a model not put back
        preflight(make_model(), ["fusion"], classification_loss, plan(noise_multiplier=sigma), OsNoise())


def test_noise_only_where_somebody_is_there_is_found():
    class Shy(OsNoise):
        def derive(self, label):
            return Shy()

        def noised(self, total, std):
            return super().noised(total, std) if total.any() else total

    with pytest.raises(PrivacyError, match="no unit at all"):
        preflight(make_model(), ["fusion"], classification_loss, plan(), Shy())


# -- statistics ------------------------------------------------------------------------------------------------


def rows(model, batch):
    return model.encode_one(batch, "vitals") * 100


@pytest.mark.parametrize("unit", [{}, PATIENTS])
def test_a_statistic_of_each_record_passes(unit):
    preflight_statistic(make_model(), rows, replace(STATISTIC, **unit), OsNoise())


@pytest.mark.parametrize(
    ("statistic", "match"),
    [
        (lambda m, b: rows(m, b) - rows(m, b).mean(dim=0), "statistic changes with the company"),
        (lambda m, b: rows(m, b).sum(dim=0), "a row of its own"),
        (lambda m, b: rows(m, b).sum(dim=1), "a row of its own"),
    ],
    ids=["centred", "summed", "a number"],
)
def test_a_statistic_that_couples_records_or_has_no_rows_is_refused(statistic, match):
    with pytest.raises(PrivacyError, match=match):
        preflight_statistic(make_model(), statistic, STATISTIC, OsNoise())


def test_a_statistic_with_less_noise_than_planned_is_refused():
    with pytest.raises(PrivacyError, match="noise that is drawn"):
        preflight_statistic(make_model(), rows, STATISTIC, Quieter())


# -- once in a process ------------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch):
    """Which subjects are really tried, in a process that has passed none."""
    monkeypatch.setattr(module, "_PASSED", set())
    calls = []

    def count(real):
        def counting(*args, **options):
            calls.append(args)
            return real(*args, **options)

        return counting

    for name in ("preflight", "preflight_statistic"):
        monkeypatch.setattr(module, name, count(getattr(module, name)))
    return calls


def test_a_subject_is_tried_once_and_again_when_anything_of_it_differs(tried):
    def once(method="a", loss=classification_loss, components=("fusion",), back_end="hooks", model=None, **changes):
        model = make_model() if model is None else model
        preflight_once(method, model, components, loss, plan(**changes), OsNoise(), back_end=back_end)

    once()
    once()
    once(model=make_model(seed=7), noise_multiplier=2.0, declared_n=70)  # weights, noise and N decide nothing here
    assert len(tried) == 1
    once(method="b")
    once(components=("encoder.vitals", "fusion"))
    once(back_end="ghost")
    once(max_grad_norm=2.0)
    once(phase="another")
    once(**PATIENTS)
    once(model=make_model(tabular={"name": "mlp"}))
    assert len(tried) == 8
    preflight_statistic_once("a", make_model(), rows, STATISTIC, OsNoise())
    preflight_statistic_once("a", make_model(), rows, STATISTIC, OsNoise())
    assert len(tried) == 9


def test_what_was_refused_is_tried_again(tried):
    for _ in range(2):
        with pytest.raises(PrivacyError, match="noise"):
            preflight_once("a", make_model(), ("fusion",), classification_loss, plan(), Quieter())
    assert len(tried) == 2


def test_a_models_structure_is_its_layers_and_settings_and_not_its_weights():
    assert structure_digest(make_model(seed=0)) == structure_digest(make_model(seed=1))
    transformers = [make_model(translator={"name": "transformer", "dropout": rate}) for rate in (0.1, 0.2)]
    assert structure_digest(transformers[0]) != structure_digest(transformers[1])  # no shape differs


# -- the measure itself ------------------------------------------------------------------------------------------


def by_hand(batch: Batch, bound: float) -> torch.Tensor:
    """Rows of vitals, clipped one by one."""
    norms = batch.inputs["vitals"].norm(dim=1, keepdim=True).clamp(min=bound)
    return (batch.inputs["vitals"] * (bound / norms)).sum(dim=0)


def test_the_sensitivity_of_a_sum_that_is_known_is_its_longest_summand():
    batch = make_batch(make_model())
    batch.inputs["vitals"][:] = torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0, 0.6]))[:, :5]
    assert leave_one_out_sensitivity(lambda b: by_hand(b, 1.0), batch, 1.0) == pytest.approx(1.0)
    assert leave_one_out_sensitivity(lambda b: by_hand(b, 0.5), batch, 1.0) == pytest.approx(0.5)


def test_it_leaves_out_patients_not_records_and_so_finds_clipping_by_record():
    model = make_model()
    batch = make_batch(model, patients=[0, 0, 0, 1, 1, 2])
    records = replace(batch, unit="record", units=torch.arange(6))
    as_patients = leave_one_out_sensitivity(
        lambda b: clipped_gradient_sum(model, ["fusion"], classification_loss, b, 0.01), batch, 0.01
    )
    assert as_patients <= 1 + 1e-5

    def record_by_record(b):
        return clipped_gradient_sum(
            model, ["fusion"], classification_loss, replace(b, unit="record", units=torch.arange(len(b))), 0.01
        )

    assert leave_one_out_sensitivity(record_by_record, records, 0.01) <= 1 + 1e-5
    assert leave_one_out_sensitivity(record_by_record, batch, 0.01) > 1.9


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_sum_that_is_not_finite_is_never_taken_for_sound(broken):
    batch = make_batch(make_model())
    assert leave_one_out_sensitivity(lambda b: torch.full((3,), broken), batch, 1.0) == float("inf")


# -- the made-up records -----------------------------------------------------------------------------------------


def test_the_made_up_records_fill_every_modality_and_miss_some():
    batch = made_up_batch(make_model(), count=40, seed=0)
    for present in batch.presence.values():
        assert present[0]
        assert 0 < present.sum() < 40
    assert batch.inputs["report"].abs().sum() > 0
    assert 0 < batch.label_mask.mean() < 1


def test_made_up_patients_have_one_to_the_most_records():
    batch = made_up_batch(make_model(), count=5, seed=0, unit="patient", max_records_per_unit=3)
    assert batch.unit == "patient"
    assert batch.unit_rows().sizes.tolist() == [1, 2, 3, 1, 2]


def test_outliers_are_of_several_magnitudes_and_one_number_is_infinite():
    batch = made_up_batch(make_model(), count=6, seed=0)
    ratios = (with_outliers(batch).inputs["vitals"] / batch.inputs["vitals"]).nan_to_num().amax(dim=1)
    assert {round(ratio) for ratio in ratios.tolist() if ratio} == {1, 1_000, 1_000_000}
    spoilt = with_non_finite(batch)
    for name, values in spoilt.inputs.items():
        assert torch.isinf(values).sum() == 1
        assert torch.isfinite(batch.inputs[name]).all()
