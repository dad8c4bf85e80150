"""Is this model and loss what DP-SGD takes it for? Asked on made-up records, before any real one is read.

A refusal on private records would itself be an answer about them, so the check never sees any.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel, component_of
from secure_fed.privacy.contributions import row_norms
from secure_fed.privacy.dpsgd import clipped_gradient_sum, dp_sgd
from secure_fed.privacy.made_up import made_up_batch, with_non_finite, with_outliers
from secure_fed.privacy.noise import NoiseSource, refuse_shared_streams
from secure_fed.privacy.plan import BackEnd, GaussianPlan, StatisticPlan, TrainingOptions
from secure_fed.privacy.record_gradients import Loss, flat, only_trained, refuse_unsupported_layers
from secure_fed.privacy.sensitivity import Construction, refuse_unsound
from secure_fed.privacy.statistics import clipped_sum, noisy_sum

_UNITS = 5
_SEED = 2012
_AGREEMENT = 1e-3
# In a larger batch a sum is rounded otherwise, and now and then an activation of a deep network that lies at the kink
# of its ReLU falls to the other side: 5e-3 of a ResNet-18's gradient. With weights moved by so much it is another one.
_MOVED = 1e-3
_TRIALS = 3

StatisticMap = Callable[[MultimodalModel, Batch], Tensor]
"""(model, batch of B records) -> [B, P], a row for each record that depends on that record alone."""

_PASSED: set[tuple[object, ...]] = set()  # of this process; see `preflight_once`


def preflight(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    plan: GaussianPlan,
    noise: NoiseSource,
    *,
    back_end: BackEnd = "hooks",
) -> None:
    """Raise PrivacyError, naming the cause, where training `components` by `loss` is not the mechanism of `plan`.

    On made-up units, outliers up to 1e6 and an infinite number among them: a unit moves the clipped sum by at most
    the clip; the per-unit gradients are those of plain autograd; an empty batch adds nothing but noise; the noise
    has the planned deviation and is never the same twice; no buffer moves. `loss` makes no random draws of its own
    (`GradientPhase.still_loss`); dropout is switched off. The model is a copy with weights away from zero.
    """
    refuse_shared_streams({name: noise.derive(f"preflight/{name}") for name in ("one purpose", "another")})
    model = _trial_copy(model)
    _refuse_shared_parameters(model)
    batch = made_up_batch(model, _UNITS, _SEED, plan.unit, plan.max_records_per_unit)
    with only_trained(model, components):
        refuse_unsupported_layers(model)
        _refuse_coupling(lambda records: loss(model, records), batch, "loss", 1)

    def unnoised(records: Batch) -> Tensor:
        return clipped_gradient_sum(model, components, loss, records, plan.max_grad_norm, back_end)

    stream = noise.derive("preflight/steps")

    def noised(records: Batch) -> Tensor:
        return _released(model, components, loss, records, plan, stream, back_end)

    _refuse_other_gradients(model, components, loss, batch, back_end)
    construction = Construction(unnoised, noised)
    refuse_unsound(construction, _trials(batch), plan.max_grad_norm, plan.noise_multiplier)


def preflight_statistic(
    model: MultimodalModel, statistic: StatisticMap, plan: StatisticPlan, noise: NoiseSource
) -> None:
    """`preflight` for a noisy sum over units: raise PrivacyError where it is not the mechanism of `plan`."""
    refuse_shared_streams({name: noise.derive(f"preflight/{name}") for name in ("one purpose", "another")})
    model = _trial_copy(model).eval()
    batch = made_up_batch(model, _UNITS, _SEED, plan.unit, plan.max_records_per_unit)
    with torch.no_grad():
        _refuse_coupling(lambda records: statistic(model, records), batch, "statistic", 2)
    width = statistic(model, batch).shape[1]
    stream = noise.derive("preflight/sums")

    def rows(records: Batch) -> Tensor:
        return statistic(model, records) if len(records) else torch.zeros(0, width)

    construction = Construction(
        lambda records: clipped_sum(rows(records), records.units, plan.bound),
        lambda records: torch.from_numpy(noisy_sum(rows(records), records, plan, stream)),
    )
    refuse_unsound(construction, _trials(batch), plan.bound, plan.noise_multiplier)


def _trials(batch: Batch) -> dict[str, Batch]:
    """What every construction is tried on: made-up units, outliers of them, and one of those not finite."""
    outliers = with_outliers(batch)
    return {"made-up records": batch, "outliers": outliers, "a record that is not finite": with_non_finite(outliers)}


def preflight_once(
    method: str,
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    plan: GaussianPlan,
    noise: NoiseSource,
    *,
    back_end: BackEnd = "hooks",
) -> None:
    """`preflight`, unless this process passed it for the same subject: sites and rounds share the answer.

    The subject is `method` (whatever decides the loss beside the phase: the method's configuration, written out),
    phase, components, clip, unit, back end, source of noise, and the model's structure; not its weights.
    """
    subject = (method, tuple(components), back_end, plan.max_grad_norm, *_subject(model, plan, noise))
    if subject not in _PASSED:
        preflight(model, components, loss, plan, noise, back_end=back_end)
        _PASSED.add(subject)


def preflight_statistic_once(
    method: str, model: MultimodalModel, statistic: StatisticMap, plan: StatisticPlan, noise: NoiseSource
) -> None:
    """`preflight_statistic`, unless this process passed it for the same subject; see `preflight_once`."""
    subject = (method, plan.bound, *_subject(model, plan, noise))
    if subject not in _PASSED:
        preflight_statistic(model, statistic, plan, noise)
        _PASSED.add(subject)


def _subject(model: MultimodalModel, plan: GaussianPlan | StatisticPlan, noise: NoiseSource) -> tuple[object, ...]:
    return type(plan), plan.phase, plan.unit, plan.max_records_per_unit, type(noise), structure_digest(model)


def structure_digest(model: nn.Module) -> bytes:
    """SHA-256 over all that a model is but its weights: layers with their settings, parameters and buffers by shape."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in named]
    return hashlib.sha256("\n".join([repr(model), *tensors]).encode()).digest()


def _trial_copy(model: MultimodalModel) -> MultimodalModel:
    """A copy without dropout, whose draws would look like coupling, and away from zero.

    A model fresh from its seed has zero layers, behind which no gradient would be seen.
    """
    trial = copy.deepcopy(model)
    for module in trial.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trial


def _refuse_shared_parameters(model: MultimodalModel) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = owners.setdefault(id(parameter), component_of(name))
        if owner != component_of(name):
            raise PrivacyError(
                f"{name!r} is also a weight of {owner!r}: a weight that two components share is clipped, noised and "
                "uploaded as part of one of them only; give each its own"
            )


def _refuse_coupling(values: Callable[[Batch], Tensor], batch: Batch, what: str, ndim: int) -> None:
    together = values(batch)
    if together.ndim != ndim or len(together) != len(batch):
        raise PrivacyError(
            f"the {what} returned shape {tuple(together.shape)} for {len(batch)} records: return one value "
            "for each of them" + (" (reduction='none')" if what == "loss" else ", in a row of its own")
        )
    alone = torch.cat([values(batch.select(torch.tensor([i]))) for i in range(len(batch))])
    if not torch.allclose(together, alone, rtol=_AGREEMENT, atol=_AGREEMENT):
        raise PrivacyError(
            f"a record's {what} changes with the company it is in: compute it from that record alone (no contrast "
            "over the batch, no batch statistics, no weights that are averaged over the batch)"
        )


def _refuse_other_gradients(
    model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch, back_end: BackEnd
) -> None:
    """What is clipped must be the units' gradients as autograd finds them, one unit after another.

    Where a whole batch's sum differs, weights are moved a little: a coupling shows again in the same direction, an
    activation at a kink does not.
    """
    found: list[Tensor] = []
    for trial in range(_TRIALS):
        moved = model if trial == 0 else _moved(model, trial)
        found.append(_difference_together(moved, components, loss, batch, back_end))
        if any(float(found[-1] @ other) <= _AGREEMENT**2 for other in found):
            return
    raise _other_gradients(back_end)


def _difference_together(
    model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch, back_end: BackEnd
) -> Tensor:
    """The clipped sum of all units less that of the gradients that autograd finds for each alone, over its size: [P].

    Raises PrivacyError where a unit's own clipped gradient is not what autograd finds.
    """
    units = [batch.select_units(torch.tensor([i])) for i in range(batch.unit_count)]
    gradients = _plain_gradients(model, components, loss, units)
    norms = torch.cat([row_norms(gradient.unsqueeze(0)) for gradient in gradients])
    expected = torch.zeros_like(gradients[0])
    if not norms.any():
        return expected  # no loss reaches a weight, so no unit changes any
    bound = float(norms.median()) or float(norms.max())  # some are clipped, some are not
    for unit, gradient, norm in zip(units, gradients, norms, strict=True):
        part = gradient * (bound / norm.clamp(min=bound))
        alone = clipped_gradient_sum(model, components, loss, unit, bound, back_end)
        if not float((alone - part).norm()) <= _AGREEMENT * (bound + float(part.norm())):
            raise _other_gradients(back_end)
        expected += part
    together = clipped_gradient_sum(model, components, loss, batch, bound, back_end)
    return (together - expected) / (bound + float(expected.norm()))


def _moved(model: MultimodalModel, trial: int) -> MultimodalModel:
    """A copy whose weights are each off by about a thousandth."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(_SEED + trial)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1 + _MOVED * torch.randn(parameter.shape, generator=generator))
    return moved


def _plain_gradients(
    model: MultimodalModel, components: Sequence[str], loss: Loss, units: Sequence[Batch]
) -> list[Tensor]:
    """Each unit's gradient, flat [P], by autograd."""
    gradients = []
    with only_trained(model, components) as trained:
        for unit in units:
            value = loss(model, unit).sum()
            found = (
                torch.autograd.grad(value, trained, allow_unused=True) if value.requires_grad else [None] * len(trained)
            )
            gradients.append(
                flat([torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)])
            )
    return gradients


def _other_gradients(back_end: BackEnd) -> PrivacyError:
    return PrivacyError(
        f"what back_end={back_end} clips is not what autograd finds unit by unit: the loss uses a layer's weights "
        "without calling the layer (tied weights, say), or a unit's gradient changes with the company it is in, so "
        "part of a unit's influence would go uncounted"
    )


def _released(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    batch: Batch,
    plan: GaussianPlan,
    noise: NoiseSource,
    back_end: BackEnd,
) -> Tensor:
    """What one step of `dp_sgd` over all of `batch` moves the weights by, back on the scale of the clipped sum."""
    before = {name: model.get_component(name) for name in components}
    single = replace(plan, sample_rate=1.0, steps=1)
    dp_sgd(model, components, loss, batch, single, TrainingOptions(back_end=back_end), noise)
    moved = [torch.from_numpy(before[name] - model.get_component(name)) for name in components]
    for name, values in before.items():
        model.set_component(name, values)
    return torch.cat(moved) * single.expected_batch
