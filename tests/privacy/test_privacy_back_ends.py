"""Back ends of clipped gradients: equal to a per-record loop on every shipped model; ghost refuses what it cannot."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from dp_fixtures import (
    ENCODERS_AND_FUSION,
    PAIRS,
    SHIPPED,
    TRANSLATORS,
    SilentNoise,
    classification_loss,
    clipped,
    flat,
    make_batch,
    make_model,
    plan,
    reference_gradients,
    sensitivity,
    shipped,
    translation_loss,
)
from opacus.grad_sample.linear import compute_linear_norm_sample
from opacus.optimizers import DPOptimizer
from opacus.schedulers import StepGradClip
from shipped_methods import SHIPPED as METHODS
from shipped_methods import context_for
from torch import nn
from torch.nn import functional as F

from secure_fed.errors import PrivacyError
from secure_fed.methods import build
from secure_fed.methods.base import GradientPhase, in_context
from secure_fed.privacy.contributions import row_norms
from secure_fed.privacy.dpsgd import ClippedNoisyOptimizer, clipped_gradient_sum, dp_sgd
from secure_fed.privacy.ghost import linear_norms
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise
from secure_fed.privacy.plan import TrainingOptions
from secure_fed.privacy.record_gradients import record_gradients
from secure_fed.privacy.sensitivity import TOLERANCE

BACK_ENDS = ("hooks", "ghost")


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_the_clipped_sum_of_every_shipped_component_equals_a_per_record_loop(name, back_end):
    model, components, loss = shipped(name)
    batch = make_batch(model, n=5)
    rows = reference_gradients(model, components, loss, batch)
    # A bound between the norms, so that some records are clipped and some are not.
    bound = float(rows.norm(dim=1).median())
    found = clipped_gradient_sum(model, components, loss, batch, bound, back_end)
    torch.testing.assert_close(found, clipped(rows, bound), rtol=1e-4, atol=1e-4 * bound)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "resnet18" else n for n in SHIPPED])
def test_leaving_one_record_out_moves_the_clipped_sum_by_at_most_the_bound(name, back_end):
    model, components, loss = shipped(name)
    batch = make_batch(model, n=4)
    for bound in (0.01, 1.0):
        assert sensitivity(model, components, loss, batch, bound, back_end) <= 1 + TOLERANCE


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_phase_of_every_shipped_method_equals_a_per_record_loop(method, back_end):
    built = build(METHODS[method])
    model = make_model(translator={"name": "linear"}, method=built)
    context = context_for(built, model)
    batch = make_batch(model, n=5, seed=1)
    phases = built.phases(model.schema, PAIRS, rounds=4, width=32)
    gradient_phases = [phase for phase in phases if isinstance(phase, GradientPhase)]
    assert gradient_phases
    for phase in gradient_phases:
        loss = in_context(phase.still_loss or phase.loss, context)
        rows = reference_gradients(model, phase.components, loss, batch)
        bound = float(rows.norm(dim=1).median())
        found = clipped_gradient_sum(model, phase.components, loss, batch, bound, back_end)
        torch.testing.assert_close(found, clipped(rows, bound), rtol=1e-4, atol=1e-4 * bound)


@pytest.mark.parametrize("translator", ["mlp", "transformer"])
def test_ghost_trains_the_model_that_hooks_train_draws_of_dropout_included(translator):
    options = {"dropout": 0.3} if translator == "transformer" else {}
    model = make_model(translator={"name": translator, **options})
    batch = make_batch(model, n=12)
    models = {}
    for back_end in BACK_ENDS:
        models[back_end] = copy.deepcopy(model)
        training = TrainingOptions(learning_rate=0.5, max_physical_batch=5, back_end=back_end)
        settings = plan(sample_rate=0.7, steps=3, declared_n=12, max_grad_norm=0.3)
        dp_sgd(models[back_end], TRANSLATORS, translation_loss, batch, settings, training, SilentNoise(4))
    hooks, ghost = (flat(models[back_end], TRANSLATORS) for back_end in BACK_ENDS)
    assert not torch.equal(hooks, flat(model, TRANSLATORS))
    torch.testing.assert_close(hooks, ghost, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [float("inf"), float("nan"), 3e38])
def test_ghost_counts_a_record_that_is_not_finite_as_zero_and_hurts_nobody(poison):
    model = make_model()
    batch = make_batch(model)
    healthy = torch.tensor([0, 1, 3, 4, 5])
    arguments = (model, ENCODERS_AND_FUSION, classification_loss)
    expected = clipped_gradient_sum(*arguments, batch.select(healthy), 1.0)
    batch.inputs["vitals"][2] = poison
    batch.presence["vitals"][2] = True
    found = clipped_gradient_sum(*arguments, batch, 1.0, "ghost")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    alone = clipped_gradient_sum(*arguments, batch.select(torch.tensor([2])), 1.0, "ghost")
    assert not alone.any()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_single_outlier_moves_the_clipped_sum_by_at_most_the_bound(back_end):
    model = make_model()
    batch = make_batch(model)
    batch.inputs["vitals"][2] *= 1e6
    found = sensitivity(model, ENCODERS_AND_FUSION, classification_loss, batch, 1.0, back_end)
    assert found <= 1 + TOLERANCE


# -- A2, A3, A5 of the literature: where ghost clipping lets a record through ------------------------------------


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_scheduler_that_moves_the_optimizers_clip_moves_neither_clip_nor_noise(back_end):
    class Recording(ReproducibleNoise):
        deviations: list[float] = []  # noqa: RUF012

        def noised(self, total, std):
            self.deviations.append(std)
            return total.clone()

    model = make_model()
    batch = make_batch(model)
    settings = plan(max_grad_norm=0.5, noise_multiplier=1.5)
    noise = Recording(0)
    expected = clipped_gradient_sum(model, ["fusion"], classification_loss, batch, 0.5)
    with record_gradients(model, ["fusion"], classification_loss, back_end) as gradients:
        optimizer = ClippedNoisyOptimizer(torch.optim.SGD(gradients.trained, lr=1.0), gradients, settings, noise)
        StepGradClip(optimizer, step_size=1, gamma=100.0).step()
        assert isinstance(optimizer, DPOptimizer)
        assert optimizer.max_grad_norm == 50.0
        gradients.backward(batch)
        optimizer.clip_and_accumulate()
        found = torch.cat([p.summed_grad.flatten() for p in gradients.trained])
        optimizer.release()
    assert noise.deviations == [1.5 * 0.5]
    torch.testing.assert_close(found, expected)


def tied(model, batch):
    """The report's feature through a translator's weight, with and without calling its layer."""
    feature = model.encode_one(batch, "report")
    weight = model.parts["translator"]["image_to_report"].body[0].weight
    return model.translate("image", "report", feature).sum(dim=1) + 60 * F.linear(feature, weight).square().sum(dim=1)


def borrowed(model, batch):
    """A translator's weight without any call of its layer."""
    feature = model.encode_one(batch, "report")
    return F.linear(feature, model.parts["translator"]["image_to_report"].body[0].weight).square().sum(dim=1)


def called_and_dropped(model, batch):
    """The layer is called, its result dropped, and the weight used past it."""
    model.parts["translator"]["image_to_report"].body[0](torch.zeros(len(batch), 32))
    return borrowed(model, batch)


def twice(model, batch):
    feature = model.encode_one(batch, "report")
    return (model.translate("image", "report", feature) + model.translate("image", "report", 2 * feature)).sum(dim=1)


@pytest.mark.parametrize("loss", [tied, borrowed, called_and_dropped, twice])
def test_ghost_refuses_a_weight_whose_use_no_norm_covers(loss):
    model = make_model()
    with pytest.raises(PrivacyError, match=r"ghost.*(hooks)"):
        clipped_gradient_sum(model, ["translator.image_to_report"], loss, make_batch(model), 1.0, "ghost")


def test_ghost_refuses_one_parameter_in_two_layers():
    model = make_model()
    translator = model.parts["translator"]["image_to_report"]
    translator.last.weight = nn.Parameter(torch.randn(32, translator.last.in_features))
    translator.body = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
    translator.last = nn.Linear(32, 32)
    translator.last.weight = translator.body[0].weight
    model._components = model._name_components()
    with pytest.raises(PrivacyError, match=r"ghost.*hooks"):
        clipped_gradient_sum(
            model, ["translator.image_to_report"], lambda m, b: translation_loss(m, b), make_batch(model), 1.0, "ghost"
        )


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_loss_that_takes_a_backward_pass_of_its_own_is_refused_or_changes_nothing(back_end):
    def raw(m, b):
        losses = classification_loss(m, b)
        (1e6 * losses.mean()).backward(retain_graph=True)
        return losses

    def raw_beforehand(m, b):
        (1e6 * classification_loss(m, b).mean()).backward()
        return classification_loss(m, b)

    model = make_model()
    batch = make_batch(model)
    with pytest.raises(PrivacyError, match="call"):
        clipped_gradient_sum(model, ENCODERS_AND_FUSION, raw, batch, 0.5, back_end)
    found = clipped_gradient_sum(model, ENCODERS_AND_FUSION, raw_beforehand, batch, 0.5, back_end)
    torch.testing.assert_close(found, clipped_gradient_sum(model, ENCODERS_AND_FUSION, classification_loss, batch, 0.5))


# -- norms that are never too small -----------------------------------------------------------------------------


def token_gradient_norms(inputs, outputs):
    gradients = torch.einsum("bto,bti->boi", outputs.double(), inputs.double())
    return gradients.flatten(start_dim=1).norm(dim=1), outputs.double().sum(dim=1).norm(dim=1)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 7), (3, 2, 5)])
def test_linear_norms_are_those_of_the_written_out_gradients_in_any_number_of_dimensions(shape):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 6)
    inputs, outputs = (torch.randn(*shape, width, generator=generator) for width in (4, 6))
    weights, biases = token_gradient_norms(inputs.reshape(3, -1, 4), outputs.reshape(3, -1, 6))
    found = linear_norms(layer, [inputs], outputs)
    torch.testing.assert_close(found[layer.weight].double(), weights, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found[layer.bias].double(), biases, rtol=1e-5, atol=0.0)


def test_a_record_whose_tokens_nearly_cancel_gets_no_norm_that_is_too_small():
    # Two tokens, opposite but for 1e-5, each with a gradient of length 1e6: what is left of them has length about 10.
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(50, 50)
    a, b = (1e3 * F.normalize(torch.randn(200, 1, 50, generator=generator), dim=2) for _ in range(2))
    inputs = torch.cat([a, a], dim=1)
    outputs = torch.cat([b, -b * (1 + 1e-5)], dim=1)
    exact, _ = token_gradient_norms(inputs, outputs)
    assert (linear_norms(layer, [inputs], outputs)[layer.weight] >= exact * (1 - 1e-6)).all()
    # Opacus' float32 norm is why this back end has its own: it loses such records altogether.
    assert (compute_linear_norm_sample(layer, [inputs], outputs)[layer.weight] < 0.1 * exact).any()


def test_a_record_whose_tokens_nearly_cancel_is_clipped_by_ghost_as_by_hooks():
    def two_tokens(m, b):
        feature = m.encode_one(b, "report").detach()
        last = m.translator("image", "report").last
        first, second = last(torch.stack([feature, feature], dim=1)).unbind(dim=1)
        return 1e6 * (first - (1 + 1e-5) * second).sum(dim=1)

    model = make_model(translator={"name": "linear"})
    batch = make_batch(model).select(torch.tensor([1]))
    assert batch.presence["report"].all()
    for back_end in BACK_ENDS:
        found = clipped_gradient_sum(model, ["translator.image_to_report"], two_tokens, batch, 0.1, back_end)
        # What the second pass may add by rounding where tokens cancel: see ghost._ROUNDING.
        assert found.norm() <= 0.1 * (1 + 2e-4)


def test_factors_that_underflow_leave_no_norm_that_is_too_small():
    layer = nn.Linear(1, 4096, bias=False)
    inputs, outputs = torch.full((1, 1), 1.8e19), torch.full((1, 4096), 2e-23)
    exact = 1.8e19 * 2e-23 * 64
    assert linear_norms(layer, [inputs], outputs)[layer.weight].item() == pytest.approx(exact, rel=1e-5)
    assert compute_linear_norm_sample(layer, [inputs], outputs)[layer.weight].item() == 0.0


def test_a_row_of_millions_of_numbers_gets_no_norm_that_is_too_small():
    rows = torch.randn(2, 4_000_000, generator=torch.Generator().manual_seed(0))
    exact = rows.double().norm(dim=1)
    torch.testing.assert_close(row_norms(rows).double(), exact, rtol=1e-7, atol=0.0)
    # torch's float32 norm is why there is our own: it loses more than the sensitivity's tolerance.
    assert (rows.norm(dim=1).double() < exact * (1 - TOLERANCE)).all()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_one_record_adds_no_more_than_the_bound_to_a_layer_of_millions(back_end):
    model = make_model()
    model.fusion = nn.Sequential(nn.Unflatten(1, (96, 1)), nn.Conv1d(96, 40_000, 1), nn.Flatten())
    model._components = model._name_components()
    record = make_batch(model, n=1)

    def loss(m, b):
        return m.classify(m.encode(b)).square().sum(dim=1)

    found = clipped_gradient_sum(model, ["fusion"], loss, record, 0.5, back_end)
    assert float(found.double().norm()) == pytest.approx(0.5, rel=1e-6)


# -- refusals ---------------------------------------------------------------------------------------------------


def test_ghost_refuses_a_patient_as_unit_before_anything_is_sampled():
    model = make_model()
    batch = make_batch(model, n=4, patients=(0, 0, 1, 2))
    settings = plan(unit="patient", max_records_per_unit=2, sample_rate=1e-12)
    with pytest.raises(PrivacyError, match=r"ghost.*unit='patient'.*back_end='hooks'"):
        dp_sgd(model, ["fusion"], classification_loss, batch, settings, TrainingOptions(back_end="ghost"), OsNoise())
    with pytest.raises(PrivacyError, match=r"ghost.*unit='patient'.*back_end='hooks'"):
        clipped_gradient_sum(model, ["fusion"], classification_loss, batch, 1.0, "ghost")


@pytest.mark.parametrize("change", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("trained", [True, False])
def test_an_embedding_that_changes_or_couples_by_its_inputs_is_refused_even_frozen(change, trained):
    model = make_model(translator={"name": "transformer"})
    model.parts["translator"]["image_to_report"].body.memory = nn.Embedding(4, 16, **change)
    with pytest.raises(PrivacyError, match=f"Embedding.*{next(iter(change))}"):
        clipped_gradient_sum(model, TRANSLATORS if trained else ["fusion"], classification_loss, make_batch(model), 1.0)


def test_a_trained_convolution_that_pads_otherwise_than_with_zeros_is_refused():
    model = make_model(image={"name": "small_cnn"})
    first = model.encoders["image"].convolutions[0]
    model.encoders["image"].convolutions[0] = nn.Conv2d(
        first.in_channels, first.out_channels, 3, stride=2, padding=1, padding_mode="reflect"
    )
    with pytest.raises(PrivacyError, match="padding_mode='reflect'"):
        clipped_gradient_sum(model, ["encoder.image"], classification_loss, make_batch(model), 1.0)
    clipped_gradient_sum(model, ["fusion"], classification_loss, make_batch(model), 1.0)


@pytest.mark.parametrize("fails", [False, True], ids=["after a run", "after an error"])
def test_ghost_leaves_the_model_as_a_plain_module(fails):
    model = make_model(image={"name": "small_cnn"})

    def loss(m, b):
        if fails:
            raise ArithmeticError
        return classification_loss(m, b)

    training = TrainingOptions(back_end="ghost")
    try:
        dp_sgd(model, ENCODERS_AND_FUSION, loss, make_batch(model), plan(), training, OsNoise())
    except ArithmeticError:
        assert fails
    for parameter in model.parameters():
        assert parameter.grad is None
        assert [a for a in vars(parameter) if a.startswith(("grad_s", "summed", "_forward", "_current", "_norm"))] == []
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not {"activations", "factors", "max_batch_len", "autograd_grad_sample_hooks"} & set(vars(module))


def test_numbers_of_units_that_are_far_apart_as_in_a_part_of_a_batch_change_nothing():
    model = make_model()
    batch = make_batch(model)
    spread = replace(batch, units=torch.from_numpy(np.array([50, 3, 99, 12, 7, 1000])))
    arguments = (model, ENCODERS_AND_FUSION, classification_loss)
    for back_end in BACK_ENDS:
        torch.testing.assert_close(
            clipped_gradient_sum(*arguments, spread, 0.3, back_end),
            clipped_gradient_sum(*arguments, batch, 0.3, back_end),
        )
