"""DP-SGD: per-record gradients against a loop, sensitivity, Poisson batches, noise, and a model left clean."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from dp_fixtures import (
    ENCODERS_AND_FUSION,
    TRANSLATORS,
    SilentNoise,
    classification_loss,
    clipped,
    flat,
    make_batch,
    make_model,
    model_with_a_layer_of_no_known_gradient,
    plan,
    reference_gradients,
    translation_loss,
)
from torch import nn

from secure_fed.errors import ConfigError, PrivacyError
from secure_fed.privacy.dpsgd import clipped_gradient_sum, dp_sgd, own_torch_generator, plain_sgd
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise
from secure_fed.privacy.plan import SamplingPlan, TrainingOptions

SGD = TrainingOptions(learning_rate=0.5)


def test_without_noise_steps_equal_clipped_sgd_over_the_same_samples():
    model = make_model()
    batch = make_batch(model, n=8)
    settings = plan(sample_rate=0.5, steps=4, declared_n=10, max_grad_norm=0.3)
    by_hand = copy.deepcopy(model)
    dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, settings, SGD, SilentNoise(3))
    samples = SilentNoise(3)
    samples.seed()
    for _ in range(4):
        index = torch.from_numpy(np.flatnonzero(samples.poisson_mask(8, 0.5)))
        rows = reference_gradients(by_hand, ENCODERS_AND_FUSION, classification_loss, batch.select(index))
        step = clipped(rows, 0.3) / (0.5 * 10)
        start = 0
        for component in ENCODERS_AND_FUSION:
            before = by_hand.get_component(component)
            part = step[start : start + before.size].numpy()
            by_hand.set_component(component, before - 0.5 * part)
            start += before.size
    torch.testing.assert_close(
        flat(model, ENCODERS_AND_FUSION), flat(by_hand, ENCODERS_AND_FUSION), rtol=1e-4, atol=1e-6
    )


def test_splitting_a_batch_physically_changes_nothing():
    models = [make_model() for _ in range(2)]
    batch = make_batch(models[0], n=20)
    for model, size in zip(models, (100, 3), strict=True):
        training = TrainingOptions(max_physical_batch=size)
        settings = plan(steps=3, sample_rate=0.8, declared_n=20)
        dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, settings, training, ReproducibleNoise(1))
    torch.testing.assert_close(*(flat(m, ENCODERS_AND_FUSION) for m in models), rtol=1e-4, atol=1e-5)


def released(batch, noise, **changes):
    """What one step of learning rate 1 moves the fusion head by: minus the released gradient."""
    model = make_model()
    before = flat(model, ["fusion"])
    dp_sgd(model, ["fusion"], classification_loss, batch, plan(**changes), TrainingOptions(), noise)
    return before - flat(model, ["fusion"])


def test_an_empty_batch_still_releases_noise_of_the_planned_deviation():
    batch = make_batch(make_model()).select(torch.zeros(0, dtype=torch.int64))
    moves = torch.cat(
        [released(batch, ReproducibleNoise(i), max_grad_norm=2.0, noise_multiplier=1.5) for i in range(20)]
    )
    # The denominator is the declared 6, though nobody is there; 20 x 291 draws: 4 standard errors.
    expected = 2.0 * 1.5 / 6
    assert abs(moves.std().item() / expected - 1) < 4 / np.sqrt(2 * moves.numel())


@pytest.mark.parametrize("n", [1, 40])
def test_the_deviation_of_the_noise_does_not_depend_on_how_many_records_there_are(n):
    batch = make_batch(make_model(), n=n)
    noise = torch.cat([released(batch, ReproducibleNoise(i)) - released(batch, SilentNoise(i)) for i in range(20)])
    assert abs(noise.std().item() * 6 - 1) < 4 / np.sqrt(2 * noise.numel())


def test_exactly_the_planned_steps_are_taken():
    class Counting(SilentNoise):
        drawn = 0

        def noised(self, total, std):
            Counting.drawn += 1
            return super().noised(total, std)

    model = make_model()
    dp_sgd(model, ["fusion"], classification_loss, make_batch(model), plan(steps=7, sample_rate=0.05), SGD, Counting(0))
    assert Counting.drawn == 7


@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero_and_hurts_nobody(poison):
    model = make_model()
    batch = make_batch(model)
    healthy = torch.tensor([0, 1, 3, 4, 5])
    expected = clipped_gradient_sum(model, ENCODERS_AND_FUSION, classification_loss, batch.select(healthy), 1.0)
    batch.inputs["vitals"][2] = poison
    batch.presence["vitals"][2] = True
    found = clipped_gradient_sum(model, ENCODERS_AND_FUSION, classification_loss, batch, 1.0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_only_the_named_components_move():
    model = make_model()
    before = {name: model.get_component(name) for name in model.components()}
    dp_sgd(model, ["encoder.report", "fusion"], classification_loss, make_batch(model), plan(steps=2), SGD, OsNoise())
    for name, values in before.items():
        assert np.array_equal(values, model.get_component(name)) == (name not in ("encoder.report", "fusion"))


def test_a_component_that_no_record_reaches_still_gets_noise():
    model = make_model()
    batch = make_batch(model)
    batch.presence["image"][:] = False
    before = model.get_component("encoder.image")
    dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, plan(), TrainingOptions(), OsNoise())
    # 15,392 draws of deviation 1 over the declared 6: 4 standard errors.
    moved = model.get_component("encoder.image") - before
    assert abs(moved.std() * 6 - 1) < 4 / np.sqrt(2 * moved.size)


@pytest.mark.parametrize("fails", [False, True], ids=["after a run", "after an error"])
def test_the_model_is_left_as_a_plain_module(fails):
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    model.fusion.weight.requires_grad_(False)
    model.encoders["image"].eval()

    def loss(m, b):
        if fails:
            raise ArithmeticError
        return classification_loss(m, b)

    try:
        dp_sgd(model, ENCODERS_AND_FUSION, loss, make_batch(model), plan(), SGD, OsNoise())
    except ArithmeticError:
        assert fails
    assert [name for name, _ in model.named_parameters()] == names
    assert not model.fusion.weight.requires_grad
    assert model.fusion.bias.requires_grad
    assert model.training
    assert not model.encoders["image"].training
    for parameter in model.parameters():
        assert parameter.grad is None
        leftovers = [a for a in vars(parameter) if a.startswith(("grad_s", "summed", "_forward", "_current"))]
        assert leftovers == []
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not {"activations", "factors", "max_batch_len", "autograd_grad_sample_hooks"} & set(vars(module))


def test_dropout_is_drawn_from_the_sites_own_stream_and_not_from_the_global_one():
    def train(seed):
        torch.manual_seed(seed)
        model = make_model(translator={"name": "transformer", "dropout": 0.5})
        noise = ReproducibleNoise(0)
        dp_sgd(model, TRANSLATORS, translation_loss, make_batch(model), plan(steps=2), SGD, noise)
        return model.digest(), torch.rand(1).item()

    (one, after_one), (two, _) = train(1), train(2)
    torch.manual_seed(1)
    assert one == two
    assert after_one == torch.rand(1).item()


def test_what_losses_and_layers_draw_cannot_be_found_by_trying_every_seed_of_torchs_generator():
    """A draw follows from a record's place: who knows the seed sees all others move when one record is left out."""

    class OneSeed(ReproducibleNoise):
        def seed(self):
            return 7

    def draws(key):
        with own_torch_generator(OneSeed(key)):
            return torch.rand(2000)

    torch.manual_seed(7)
    assert torch.equal(draws(0), draws(0))
    assert torch.isin(draws(0), torch.cat([draws(1), torch.rand(2000)])).float().mean() < 0.01
    assert abs(draws(0).mean() - 0.5) < 4 / math.sqrt(12 * 2000)


class WithBatchNorm(nn.Module):
    """An encoder's front end that is batch-normalised, its affine weights frozen or absent."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner
        self.out_features = 32

    def forward(self, x):
        return self.inner(self.norm(x))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False), nn.InstanceNorm1d(5, track_running_stats=True)],
    ids=["trained", "without affine weights", "instance statistics"],
)
def test_layers_that_keep_statistics_are_refused_even_without_weights(norm):
    model = make_model()
    batch = make_batch(model)
    model.encoders["vitals"].layers = nn.Sequential(norm, *model.encoders["vitals"].layers)
    with pytest.raises(PrivacyError, match="Norm1d"):
        dp_sgd(model, ["fusion"], classification_loss, batch, plan(), SGD, OsNoise())


def test_a_trained_layer_without_a_known_per_record_gradient_is_refused():
    model = model_with_a_layer_of_no_known_gradient()
    with pytest.raises(PrivacyError, match=r"fusion\.1.*Scale"):
        dp_sgd(model, ["fusion"], classification_loss, make_batch(model), plan(), SGD, OsNoise())


def test_a_buffer_that_moves_is_put_back_and_refused():
    model = make_model()
    model.encoders["vitals"].register_buffer("seen", torch.zeros(()))

    def counting(m, b):
        m.encoders["vitals"].seen += len(b)
        return classification_loss(m, b)

    with pytest.raises(PrivacyError, match="seen"):
        dp_sgd(model, ["fusion"], counting, make_batch(model), plan(), SGD, OsNoise())
    assert model.encoders["vitals"].seen == 0


def test_a_loss_reduced_over_the_batch_is_refused():
    model = make_model()
    with pytest.raises(PrivacyError, match="one value per record"):
        dp_sgd(
            model, ["fusion"], lambda m, b: classification_loss(m, b).mean(), make_batch(model), plan(), SGD, OsNoise()
        )


def test_a_layer_applied_twice_is_clipped_right_and_one_whose_result_is_dropped_is_refused():
    model = make_model()
    batch = make_batch(model)

    def twice(m, b):
        features = m.encode(b)
        halved = {name: value * 0.5 for name, value in features.items()}
        return m.classify(features).sum(dim=1) + m.classify(halved).square().sum(dim=1)

    rows = reference_gradients(model, ENCODERS_AND_FUSION, twice, batch)
    bound = float(rows.norm(dim=1).median())
    found = clipped_gradient_sum(model, ENCODERS_AND_FUSION, twice, batch, bound)
    torch.testing.assert_close(found, clipped(rows, bound), rtol=1e-4, atol=1e-4 * bound)

    def dropped(m, b):
        m.classify({name: torch.zeros(len(b), 32) for name in m.schema.names})
        return classification_loss(m, b)

    with pytest.raises(PrivacyError, match="Linear"):
        clipped_gradient_sum(model, ["fusion"], dropped, batch, 1.0)


@pytest.mark.parametrize("components", [[], ["fusion", "fusion"]])
def test_components_must_be_named_once(components):
    model = make_model()
    with pytest.raises(PrivacyError, match="components"):
        dp_sgd(model, components, classification_loss, make_batch(model), plan(), SGD, OsNoise())
    with pytest.raises(ConfigError, match=r"encoder\.sound"):
        dp_sgd(model, ["encoder.sound"], classification_loss, make_batch(model), plan(), SGD, OsNoise())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_seed_repeats_a_run_bit_by_bit_and_another_does_not(optimizer):
    def train(seed):
        model = make_model()
        training = TrainingOptions(optimizer=optimizer, learning_rate=0.01)
        settings = plan(steps=3, sample_rate=0.5)
        dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, make_batch(model), settings, training, seed)
        return model.digest()

    assert train(ReproducibleNoise(0)) == train(ReproducibleNoise(0))
    assert train(ReproducibleNoise(0)) != train(ReproducibleNoise(1))
    assert train(OsNoise()) != train(OsNoise())


def test_plain_sgd_takes_the_same_samples_and_neither_clips_nor_noises():
    model = make_model()
    batch = make_batch(model, n=8)
    private = copy.deepcopy(model)
    sampling = SamplingPlan(phase="plain", sample_rate=0.5, steps=3, declared_n=8)
    plain_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, sampling, SGD, ReproducibleNoise(2))
    loose = plan(sample_rate=0.5, steps=3, declared_n=8, max_grad_norm=1e6)
    dp_sgd(private, ENCODERS_AND_FUSION, classification_loss, batch, loose, SGD, SilentNoise(2))
    torch.testing.assert_close(
        flat(model, ENCODERS_AND_FUSION), flat(private, ENCODERS_AND_FUSION), rtol=1e-4, atol=1e-6
    )


def test_training_under_dp_lowers_the_loss_of_an_easy_task():
    model = make_model()
    batch = make_batch(model, n=64)
    batch.labels[:] = (batch.inputs["vitals"][:, :3] > 0).float()
    before = classification_loss(model, batch).mean()
    settings = plan(steps=40, declared_n=64, noise_multiplier=1.0)
    dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, batch, settings, TrainingOptions(), ReproducibleNoise(0))
    assert classification_loss(model, batch).mean() < 0.8 * before


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_resnet_trains_a_step_under_dp(name):
    model = make_model(side=32, image={"name": name})
    before = model.get_component("encoder.image")
    dp_sgd(model, ["encoder.image", "fusion"], classification_loss, make_batch(model, n=2), plan(), SGD, OsNoise())
    after = model.get_component("encoder.image")
    assert np.isfinite(after).all()
    assert (after != before).mean() > 0.99
