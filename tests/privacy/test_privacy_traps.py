"""Twelve ways in which DP-SGD over Opacus silently leaks (A1 to A12), each built on purpose from Opacus 1.6.

First the fault is shown, so that no test passes for want of one; then that ours refuses it, naming the cause, or
that the same records do no harm on our path.
"""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from dp_fixtures import classification_loss, make_batch, make_model, plan, sensitivity
from opacus import PrivacyEngine
from opacus.data_loader import DPDataLoader
from opacus.schedulers import StepGradClip
from opacus.utils.adaptive_clipping.adaptive_clipping_utils import PrivacyEngineAdaptiveClipping
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from opacus.validators import ModuleValidator
from opacus_traps import (
    ghost_sum,
    gradient,
    hooks_sum,
    nothing,
    private,
    private_ghost,
    summed,
    target,
    vitals,
    vitals_logits,
    vitals_loss,
    vitals_net,
)
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from secure_fed.accounting import Mechanism, epsilon
from secure_fed.errors import PrivacyError
from secure_fed.privacy.dpsgd import ClippedNoisyOptimizer, clipped_gradient_sum, dp_sgd
from secure_fed.privacy.made_up import with_non_finite, with_outliers
from secure_fed.privacy.noise import OsNoise, refuse_shared_streams
from secure_fed.privacy.plan import TrainingOptions
from secure_fed.privacy.preflight import preflight
from secure_fed.privacy.record_gradients import record_gradients
from secure_fed.privacy.sensitivity import (
    TOLERANCE,
    Construction,
    effective_noise_multiplier,
    leave_one_out_sensitivity,
    refuse_unsound,
)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:Secure RNG turned off")

VITALS = ("encoder.vitals", "fusion")
BACK_ENDS = ("hooks", "ghost")


def records(n=16):
    """Every record has vitals; every third is 1,000 times, and every other third 1,000,000 times too large."""
    batch = make_batch(make_model(), n=n)
    batch.presence["vitals"][:] = True
    batch.inputs["vitals"][:] = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    return with_outliers(batch)


def cross_entropy(net, batch, **options):
    return F.cross_entropy(vitals_logits(net, batch), target(batch), **options)


def refused(clipped_sum, batch, clip, match):
    """The sensitivity test, given this construction with sound noise, refuses it."""
    noise = OsNoise()
    construction = Construction(clipped_sum, lambda b: noise.noised(clipped_sum(b).double(), clip))
    with pytest.raises(PrivacyError, match=match):
        refuse_unsound(construction, {"made-up records": batch}, clip, noise_multiplier=1.0)


def harmless(batch, clip, loss=vitals_loss):
    """On our path no unit of the same batch moves the sum by more than the clip, with either back end."""
    for back_end in BACK_ENDS:
        assert sensitivity(make_model(), VITALS, loss, batch, clip, back_end) <= 1 + TOLERANCE


@pytest.mark.parametrize("mode", BACK_ENDS)
def test_opacus_used_as_it_should_be_passes_the_test_that_finds_the_traps(mode):
    batch, net = records(), vitals_net()
    if mode == "hooks":
        clipped_sum = hooks_sum(net, lambda n, b: cross_entropy(n, b, reduction="sum"), 1.0)
    else:
        clipped_sum = ghost_sum(net, vitals_logits, 1.0)
    noise = OsNoise()
    construction = Construction(clipped_sum, lambda b: noise.noised(clipped_sum(b).double(), 1.5))
    refuse_unsound(construction, {"made-up records": batch}, 1.0, noise_multiplier=1.5)


# -- A1 to A12 -------------------------------------------------------------------------------------------------


def test_a1_adaptive_clipping_over_a_mean_loss_does_not_clip_and_is_refused():
    batch = records()
    bounds = {"min_clipbound": 1.0, "max_clipbound": 1.0}  # its own schedule held still: the fault is elsewhere
    adaptive = ghost_sum(vitals_net(), vitals_logits, 1.0, engine=PrivacyEngineAdaptiveClipping(), **bounds)
    assert leave_one_out_sensitivity(adaptive, batch, 1.0) > 1e4
    refused(adaptive, batch, 1.0, "pass the clipping by")
    harmless(batch, 1.0)


def test_a2_a_clip_schedule_under_ghost_clipping_draws_a_hundredth_of_the_noise_and_is_refused():
    batch, net = records(), vitals_net()
    wrapped, optimizer, criterion = private_ghost(net, clip=1.0, sigma=1.0)
    StepGradClip(optimizer, step_size=1, gamma=0.01).step()

    def clipped_sum(b):
        net.zero_grad()
        if len(b):
            criterion(vitals_logits(wrapped, b), target(b)).backward()
        return gradient(net)

    def release(b):
        parts = torch.split(clipped_sum(b), [p.numel() for p in net.parameters()])
        for parameter, part in zip(net.parameters(), parts, strict=True):
            parameter.summed_grad = part.view_as(parameter).clone()
        optimizer.add_noise()
        return gradient(net)

    construction = Construction(clipped_sum, release)
    # 4,000 draws: a standard error of 1.1 %.
    assert effective_noise_multiplier(construction, batch, 1.0) == pytest.approx(0.01, rel=0.1)
    with pytest.raises(PrivacyError, match=r"deviation 0\.0.*the plan says 1 .*one and the same plan"):
        refuse_unsound(construction, {"made-up records": batch}, 1.0, noise_multiplier=1.0)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a2_our_clip_and_our_noise_read_one_plan_that_no_schedule_moves(back_end):
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().max_grad_norm = 0.01
    model, batch = make_model(), records()
    with record_gradients(model, VITALS, vitals_loss, back_end) as gradients:
        inner = torch.optim.SGD(gradients.trained, lr=1.0)
        optimizer = ClippedNoisyOptimizer(inner, gradients, plan(), OsNoise())
        StepGradClip(optimizer, step_size=1, gamma=0.01).step()

        def clipped_sum(b):
            optimizer.zero_grad()
            if len(b):
                gradients.backward(b)
            optimizer.clip_and_accumulate()
            return summed(optimizer).clone()

        def release(b):
            clipped_sum(b)
            optimizer.add_noise()
            return torch.cat([p.grad.flatten() for p in gradients.trained])

        assert optimizer.max_grad_norm == 0.01
        # The outliers' gradients are clipped, so they change the sum by the clip itself, still 1; 5 standard errors.
        found = effective_noise_multiplier(Construction(clipped_sum, release), batch, 1.0)
        assert found == pytest.approx(1.0, abs=0.06)


class TiedNet(nn.Module):
    """Words in, words out, over one matrix: the second use goes past the layer that the hooks watch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle = nn.Embedding(8, 4), nn.Linear(4, 4)
        with torch.no_grad():
            self.embedding.weight.mul_(0.01)
            self.middle.bias.fill_(20.0)

    def forward(self, words):
        return F.linear(self.middle(self.embedding(words).mean(dim=1)), self.embedding.weight)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a3_functional_weight_tying_goes_uncounted_and_is_refused(back_end):
    batch = records()
    tied = ghost_sum(TiedNet(), lambda net, b: net((vitals(b).abs() * 10).long() % 8), 0.1)
    assert leave_one_out_sensitivity(tied, batch, 0.1) > 20
    refused(tied, batch, 0.1, "pass the clipping by")

    def ours(model, b):
        return vitals_loss(model, b) + F.linear(vitals(b), model.fusion.weight[:, :5]).square().sum(dim=1)

    with pytest.raises(PrivacyError, match="tied weights"):
        preflight(make_model(), VITALS, ours, plan(), OsNoise(), back_end=back_end)


def test_a3_two_components_that_share_a_weight_are_refused():
    model = make_model()
    model.parts["translator"]["report_to_image"] = model.parts["translator"]["image_to_report"]
    with pytest.raises(PrivacyError, match="two components share"):
        preflight(model, VITALS, vitals_loss, plan(), OsNoise())


def test_a4_a_random_record_in_an_empty_batch_breaks_the_bound_and_ours_adds_nothing_to_it():
    batch, net = records(), vitals_net()
    wrapped, optimizer, _ = private(net, clip=0.1, loss_reduction="sum")
    data = TensorDataset(vitals(batch), target(batch))
    loader = DPDataLoader(data, sample_rate=0.5, rand_on_empty=True)
    loader.collate_fn([data[0]])  # it learns the shapes from the first batch that is not empty

    def clipped_sum(b):
        torch.manual_seed(3)
        x, y = loader.collate_fn(list(zip(vitals(b), target(b), strict=True)))
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        optimizer.clip_and_accumulate()
        return summed(optimizer)

    alone = [batch.select(torch.tensor([i])) for i in range(len(batch))]
    # The invented record is clipped, too: the bound is broken by up to its own norm, depending on the direction.
    assert max(leave_one_out_sensitivity(clipped_sum, one, 0.1) for one in alone) > 1.4
    refused(clipped_sum, batch, 0.1, "one unit alone")
    for one in alone:
        harmless(one, 0.1)
    nobody = batch.select(torch.zeros(0, dtype=torch.int64))
    for back_end in BACK_ENDS:
        assert not clipped_gradient_sum(make_model(), VITALS, vitals_loss, nobody, 0.1, back_end).any()


def test_a5_the_raw_criterion_under_ghost_clipping_passes_the_clipping_by():
    batch, net = records(), vitals_net()
    wrapped, _, _ = private_ghost(net, clip=1.0)

    def clipped_sum(b):
        net.zero_grad()
        if not len(b):
            return nothing(net)
        cross_entropy(wrapped, b, reduction="sum").backward()
        return gradient(net)

    assert leave_one_out_sensitivity(clipped_sum, batch, 1.0) > 1e4
    refused(clipped_sum, batch, 1.0, "pass the clipping by")
    # Ours hands out no criterion: whoever gives a loss gives one value a record, and dp_sgd does the rest.
    harmless(batch, 1.0)


def frozen_batch_norm():
    norm = nn.BatchNorm1d(5)
    norm.requires_grad_(False)
    return norm


def test_a6_a_frozen_batch_norm_passes_opacus_validator_moves_its_statistics_and_is_refused():
    batch, net = records(), nn.Sequential(frozen_batch_norm(), vitals_net())
    assert ModuleValidator.validate(net) == []
    normalised = hooks_sum(net, lambda n, b: cross_entropy(n, b, reduction="sum"), 0.1)
    # Not of one record alone: Opacus is spared BatchNorm's own complaint about a single value.
    assert leave_one_out_sensitivity(normalised, batch, 0.1) > 1.2
    assert net[0].running_mean.abs().max() > 1  # un-noised, and part of the state dict
    model = make_model()
    model.encoders["vitals"].layers = nn.Sequential(frozen_batch_norm(), *model.encoders["vitals"].layers)
    for components in (VITALS, ("fusion",)):
        with pytest.raises(PrivacyError, match="BatchNorm1d: it mixes the records"):
            preflight(model, components, vitals_loss, plan(), OsNoise())


WEIGHTS = torch.tensor([1.0, 10.0, 100.0])


def test_a7_a_class_weighted_mean_couples_records_and_is_refused_reduced_or_spelt_out():
    batch = make_batch(make_model(), n=16)
    batch.labels[:] = torch.tensor([1.0, 0.0, 0.0])
    batch.labels[0] = torch.tensor([0.0, 0.0, 1.0])  # one record of the rare class weighs down all others
    weighted = hooks_sum(vitals_net(), lambda n, b: cross_entropy(n, b, weight=WEIGHTS), 1.0, "mean")
    assert leave_one_out_sensitivity(weighted, batch, 1.0) > 3
    refused(weighted, batch, 1.0, "influence each other")

    def losses(model, b):
        return vitals_loss(model, b) * WEIGHTS[target(b)]

    def spelt_out(model, b):
        return losses(model, b) / WEIGHTS[target(b)].sum()

    with pytest.raises(PrivacyError, match="one value for each"):
        preflight(make_model(), VITALS, lambda m, b: spelt_out(m, b).sum(), plan(), OsNoise())
    with pytest.raises(PrivacyError, match="averaged over the batch"):
        preflight(make_model(), VITALS, spelt_out, plan(), OsNoise())
    preflight(make_model(), VITALS, losses, plan(), OsNoise())  # weights alone are no harm
    harmless(batch, 0.1, losses)


def contrast(feature):
    return -torch.log_softmax(feature @ feature.T, dim=1).diagonal()


def spread(feature):
    return (feature - feature.mean(dim=0)).square().sum(dim=1)


@pytest.mark.parametrize("coupled", [contrast, spread], ids=["contrastive", "batch statistics"])
def test_a8_a_loss_over_the_batch_breaks_the_bound_and_is_refused(coupled):
    batch = records()
    opacus = hooks_sum(vitals_net(), lambda n, b: coupled(vitals_logits(n, b)).sum(), 1.0)
    assert leave_one_out_sensitivity(opacus, batch, 1.0) > 3
    refused(opacus, batch, 1.0, "influence each other")

    def ours(model, b):
        return coupled(model.encode_one(b, "vitals")) + vitals_loss(model, b)

    for back_end in BACK_ENDS:
        with pytest.raises(PrivacyError, match="changes with the company it is in"):
            preflight(make_model(), VITALS, ours, plan(), OsNoise(), back_end=back_end)


def test_a9_a_batch_that_was_left_early_lives_on_in_opacus_sum():
    batch, net = records(), vitals_net()
    wrapped, optimizer, loader = private(net, clip=1.0, loss_reduction="sum")

    def backward(rows):
        cross_entropy(wrapped, batch.select(rows), reduction="sum").backward()

    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as memory:
        for part, _ in enumerate(islice(memory.batch_sampler, 2)):  # of a batch of more than 4: left early
            backward(torch.arange(2 * part, 2 * part + 2))
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer._is_last_step_skipped
    optimizer.signal_skip_step(do_skip=False)
    optimizer.zero_grad()
    backward(torch.tensor([5]))
    optimizer.step()  # noise is off: what it releases is the sum
    assert gradient(net).norm() > 1.5  # of one record, at a clip of 1


def test_a9_ours_forgets_an_abandoned_batch_and_a_failed_run():
    batch, model = records(), make_model()
    with record_gradients(model, VITALS, vitals_loss) as gradients:
        optimizer = ClippedNoisyOptimizer(torch.optim.SGD(gradients.trained, lr=1.0), gradients, plan(), OsNoise())
        optimizer._is_last_step_skipped = True  # as a memory manager leaves it
        for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
            gradients.backward(batch.select(rows))
            optimizer.clip_and_accumulate()
        optimizer.zero_grad()
        gradients.backward(batch.select(torch.tensor([5])))
        optimizer.clip_and_accumulate()
        found = summed(optimizer)
    expected = clipped_gradient_sum(model, VITALS, vitals_loss, batch.select(torch.tensor([5])), 1.0)
    assert torch.equal(found, expected)
    assert found.norm() <= 1 + TOLERANCE

    def fails(m, b):
        if len(b) < 4:
            raise ArithmeticError
        return vitals_loss(m, b)

    with pytest.raises(ArithmeticError):  # in the last physical part of the batch
        dp_sgd(model, VITALS, fails, records(7), plan(declared_n=7), TrainingOptions(max_physical_batch=4), OsNoise())
    assert torch.equal(clipped_gradient_sum(model, VITALS, vitals_loss, batch.select(torch.tensor([5])), 1.0), expected)


class TorchNoise(OsNoise):
    """What a site would have that draws from torch's global generator and calls it secure."""

    def derive(self, label):
        return TorchNoise()

    def normal(self, shape, std, dtype=torch.float32):
        return torch.normal(0.0, 1.0, tuple(shape), dtype=dtype) * std


def test_a10_one_seed_at_two_sites_makes_noise_that_cancels():
    def opacus_site(value):
        net = vitals_net()
        wrapped, optimizer, _ = private(net, clip=1e6, sigma=1e-3, loss_reduction="sum")  # noise of deviation 1,000
        torch.manual_seed(0)
        wrapped(torch.full((1, 5), value)).sum().backward()
        optimizer.step()
        return gradient(net)

    # The noise is 1,000 times the signal, and the difference of two sites is the signal to its rounding.
    assert opacus_site(1.0).norm() > 1e3
    exact = torch.cat([torch.ones(15), torch.zeros(3)])
    assert torch.allclose(opacus_site(2.0) - opacus_site(1.0), exact, atol=1e-3)


def test_a10_seeded_noise_and_one_source_at_two_sites_are_refused_and_ours_knows_no_seed():
    with pytest.raises(PrivacyError, match="'site01' and of 'site02' is the same stream"):
        refuse_shared_streams({"site01": TorchNoise(), "site02": TorchNoise()})
    with pytest.raises(PrivacyError, match="same stream"):
        preflight(make_model(), VITALS, vitals_loss, plan(), TorchNoise())
    shared = OsNoise()
    with pytest.raises(PrivacyError, match="same stream"):
        refuse_shared_streams({"site01": shared, "site02": shared})
    refuse_shared_streams({f"site{i:02}": OsNoise() for i in range(10)})


def test_a10_noise_that_repeats_from_step_to_step_is_refused():
    class Repeating(OsNoise):
        def noised(self, total, std):
            torch.manual_seed(0)
            return total + torch.normal(0.0, std, total.shape, dtype=torch.float64)

        def derive(self, label):
            return Repeating()

    with pytest.raises(PrivacyError, match="two releases carry the same noise"):
        preflight(make_model(), VITALS, vitals_loss, plan(), Repeating())


def test_a11_an_engine_for_each_round_starts_from_zero_and_our_accounting_does_not():
    sigma, rate, steps, delta = 1.0, 1 / 8, 40, 1e-5
    reported = []
    for _ in range(5):
        engine = PrivacyEngine(accountant="prv")
        private(vitals_net(), clip=1.0, sigma=sigma, engine=engine)
        engine.accountant.history = [(sigma, rate, steps)]
        reported.append(engine.get_epsilon(delta))
    assert len(set(reported)) == 1
    whole = PrivacyEngine(accountant="prv")
    whole.accountant.history = [(sigma, rate, 5 * steps)]
    truth = whole.get_epsilon(delta)
    assert truth > 1.9 * reported[0]
    one_round = Mechanism("poisson_gaussian", sigma, rate, steps)
    # Two accountants: they agree to 1 % and 0.005 where both are sound.
    assert epsilon([one_round] * 5, delta) == pytest.approx(truth, rel=0.01, abs=0.005)
    assert epsilon([one_round], delta) == pytest.approx(reported[0], rel=0.01, abs=0.005)


def test_a12_one_infinity_makes_opacus_release_nan_and_counts_as_zero_in_ours():
    batch = records()
    poisoned = with_non_finite(batch)
    opacus = hooks_sum(vitals_net(), lambda n, b: cross_entropy(n, b, reduction="sum"), 1.0)
    assert torch.isnan(opacus(poisoned)).any()
    refused(opacus, poisoned, 1.0, "not finite")
    harmless(poisoned, 1.0)
    rest = batch.select(torch.arange(1, len(batch)))
    for back_end in BACK_ENDS:
        found = clipped_gradient_sum(make_model(), VITALS, vitals_loss, poisoned, 1.0, back_end)
        expected = clipped_gradient_sum(make_model(), VITALS, vitals_loss, rest, 1.0, back_end)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- failures that are loud in Opacus ----------------------------------------------------------------------------


def test_rate_to_steps_by_division_loses_a_step_and_ours_takes_the_planned_number():
    assert UniformWithReplacementSampler(num_samples=930, sample_rate=1 / 93).steps == 92

    class Counting(OsNoise):
        drawn = 0

        def normal(self, shape, std, dtype=torch.float32):
            Counting.drawn += 1
            return super().normal(shape, std, dtype)

    settings = plan(sample_rate=1 / 93, steps=93)
    dp_sgd(make_model(), VITALS, vitals_loss, records(4), settings, TrainingOptions(), Counting())
    assert Counting.drawn == 93


def test_a_weighted_sampler_is_replaced_silently_in_opacus_and_cannot_be_given_to_ours():
    data = TensorDataset(torch.arange(10))
    loader = DataLoader(data, batch_size=5, sampler=WeightedRandomSampler([1.0] + [0.0] * 9, 10))
    assert isinstance(DPDataLoader.from_data_loader(loader).batch_sampler, UniformWithReplacementSampler)
    with pytest.raises(ValidationError, match="sampler"):
        TrainingOptions(sampler=WeightedRandomSampler([1.0], 1))
    with pytest.raises(TypeError, match="sampler"):
        plan(sampler="weighted")


def test_a_first_batch_that_is_empty_breaks_opacus_dictionaries_and_ours_takes_it_as_any_other():
    class Dictionaries(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"vitals": torch.zeros(5)}

    with pytest.raises(TypeError):
        DPDataLoader(Dictionaries(), sample_rate=1e-9)[0]
    model = make_model()
    before = model.get_component("fusion")
    settings = plan(sample_rate=1e-9, declared_n=10**9)
    dp_sgd(model, ["fusion"], classification_loss, make_batch(model), settings, TrainingOptions(), OsNoise())
    # 291 draws of deviation 1: 4 standard errors.
    assert abs((model.get_component("fusion") - before).std() - 1) < 4 / np.sqrt(2 * 291)


def test_a_bert_with_its_default_positions_fails_in_opacus_and_the_shipped_one_gives_its_own():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    bert = BertModel(config, add_pooling_layer=False).train()
    words = torch.ones(3, 4, dtype=torch.int64)
    opacus = hooks_sum(bert, lambda net, b: net(words).last_hidden_state.sum(), 1.0)
    with pytest.raises((ValueError, RuntimeError)):
        opacus(records(3))
    text = {"name": "bert_small", "hidden": 16, "max_tokens": 12, "hash_buckets": 8}
    preflight(make_model(text=text), ("encoder.report", "fusion"), classification_loss, plan(), OsNoise())
