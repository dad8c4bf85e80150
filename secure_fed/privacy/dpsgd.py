"""DP-SGD on one phase: Poisson batches, each unit's gradient clipped, summed and noised, a step; over Opacus.

Abadi et al., "Deep Learning with Differential Privacy", arXiv 1607.00133. Beside it, the same loop without
clipping and noise, for runs that say `privacy=off`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch, bounded
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.models.units import UnitRows
from secure_fed.privacy.back_end import RecordGradients
from secure_fed.privacy.ghost import PATIENT_REFUSAL
from secure_fed.privacy.noise import NoiseSource, set_torch_generator
from secure_fed.privacy.plan import BackEnd, GaussianPlan, SamplingPlan, TrainingOptions
from secure_fed.privacy.record_gradients import Loss, PerRecordLoss, flat, only_trained, record_gradients


def dp_sgd(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    records: Batch,
    plan: GaussianPlan,
    training: TrainingOptions,
    noise: NoiseSource,
) -> None:
    """Train `components` of `model` in place by exactly `plan.steps` noisy steps; all else stays as it is.

    The plan's unit is what is sampled, clipped and noised for: all records of a patient, or none, and of those the
    first `plan.max_records_per_unit` (`bounded`). An empty Poisson batch still adds noise and steps. A unit with a
    record whose gradient is not finite counts as zero and is never an error. Gradient sums are divided by the
    plan's public expected batch. Raises PrivacyError for records grouped by another unit than the plan's, a model
    or loss that has no per-record gradient, or a back end that does not serve the unit; ConfigError for an unknown
    component.
    """
    if training.back_end == "ghost" and plan.unit != "record":
        raise PrivacyError(f"phase {plan.phase!r}: {PATIENT_REFUSAL}")
    sampler = _UnitSampler(records, plan, training, noise)
    with own_torch_generator(noise), record_gradients(model, components, loss, training.back_end) as gradients:
        optimizer = ClippedNoisyOptimizer(_optimizer(gradients.trained, training), gradients, plan, noise)
        for _ in range(plan.steps):
            optimizer.zero_grad(set_to_none=True)
            for part in sampler.parts():
                gradients.backward(part)
                optimizer.clip_and_accumulate()
            optimizer.release()


def plain_sgd(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    records: Batch,
    sampling: SamplingPlan,
    training: TrainingOptions,
    noise: NoiseSource,
) -> None:
    """`dp_sgd` without clipping and noise: NO PRIVACY. The same samples, denominators and steps."""
    sampler = _UnitSampler(records, sampling, training, noise)
    with own_torch_generator(noise), only_trained(model, components) as trained:
        module = PerRecordLoss(model, loss)
        optimizer = _optimizer(trained, training)
        for _ in range(sampling.steps):
            optimizer.zero_grad(set_to_none=False)
            for part in sampler.parts():
                losses = module(part)
                if losses.requires_grad:
                    (losses.sum() / sampling.expected_batch).backward()
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


class ClippedNoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Opacus' optimizer with our noise, our treatment of non-finite units and a public denominator.

    Clipping is flat: one L2 norm over all trained parameters, of a unit's gradient. `clip_and_accumulate` may be
    called any number of times (physical parts of one Poisson batch) before `release`; no call at all is an empty
    batch. Clip, noise and denominator are read from the frozen plan alone: Opacus' attributes of the same meaning
    can be set by a scheduler between clipping and noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: RecordGradients,
        plan: GaussianPlan,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch,
            loss_reduction="sum",
        )
        self._gradients = gradients
        self._plan = plan
        self._source = noise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients of records and sums and, unlike Opacus, always the accumulated sum."""
        self._is_last_step_skipped = False
        super().zero_grad(set_to_none)

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the last backward pass to each parameter's `summed_grad`."""
        clipped = self._gradients.clipped_sums(self._plan.max_grad_norm)
        for parameter, part in zip(self._gradients.trained, clipped, strict=True):
            summed = parameter.summed_grad  # type: ignore[attr-defined]  # Opacus' own attribute
            parameter.summed_grad = part if summed is None else summed + part  # type: ignore[attr-defined]

    def add_noise(self) -> None:
        """grad = summed_grad + N(0, (noise_multiplier * max_grad_norm)^2), added and rounded in float64."""
        params = self.params
        sums = [torch.zeros_like(p) if p.summed_grad is None else p.summed_grad for p in params]
        noised = self._source.noised(flat(sums).double(), self._plan.noise_multiplier * self._plan.max_grad_norm)
        for parameter, part in zip(params, torch.split(noised, [p.numel() for p in params]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def scale_grad(self) -> None:
        """Divide by the public expected batch, whatever the batch really held."""
        for parameter in self.params:
            parameter.grad /= self._plan.expected_batch

    def release(self) -> None:
        """Noise, scale and step: the only place where anything of the records reaches the model."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()


def clipped_gradient_sum(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    batch: Batch,
    max_grad_norm: float,
    back_end: BackEnd = "hooks",
) -> Tensor:
    """What one step over all units of `batch` would noise: float32 [P]. PRIVATE, for preflight and tests."""
    with record_gradients(model, components, loss, back_end) as gradients:
        if len(batch):
            gradients.backward(batch)
        return flat(gradients.clipped_sums(max_grad_norm))


class _UnitSampler:
    """Poisson samples of whole units, each as physical parts of bounded size."""

    def __init__(self, records: Batch, sampling: SamplingPlan, training: TrainingOptions, noise: NoiseSource) -> None:
        if records.unit != sampling.unit:
            raise PrivacyError(
                f"phase {sampling.phase!r}: the plan's unit={sampling.unit!r}, the records are grouped by "
                f"{records.unit!r}: prepare them with unit={sampling.unit!r}"
            )
        if sampling.max_records_per_unit > training.max_physical_batch:
            raise PrivacyError(
                f"phase {sampling.phase!r}: max_records_per_unit={sampling.max_records_per_unit} is more than "
                f"max_physical_batch={training.max_physical_batch}, and a unit is never split: raise the second or "
                "lower the first"
            )
        self._records = bounded(records, sampling.max_records_per_unit)
        self._units = self._records.unit_rows()
        self._rate = sampling.sample_rate
        self._most = training.max_physical_batch
        self._noise = noise

    def parts(self) -> Iterator[Batch]:
        """One sample: every unit with all its records or with none. No part is empty; an empty sample has none."""
        chosen = torch.from_numpy(np.flatnonzero(self._noise.poisson_mask(len(self._units), self._rate)))
        for part in _whole_units(chosen, self._units, self._most):
            yield self._records.select(self._units.rows(part))


def _whole_units(chosen: Tensor, units: UnitRows, most: int) -> Iterator[Tensor]:
    """`chosen` units (int64) in order, as runs of at most `most` rows; no unit has more rows than that."""
    rows_until = torch.cumsum(units.sizes[chosen], dim=0)
    start = before = 0
    while start < len(chosen):
        stop = int(torch.searchsorted(rows_until, before + most, right=True))
        yield chosen[start:stop]
        start, before = stop, int(rows_until[stop - 1])


def _optimizer(parameters: list[nn.Parameter], training: TrainingOptions) -> torch.optim.Optimizer:
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )


@contextmanager
def own_torch_generator(noise: NoiseSource) -> Iterator[None]:
    """Dropout draws from torch's global generator: set it from the site's own stream, and put it back."""
    with torch.random.fork_rng(devices=[]):
        set_torch_generator(noise)
        yield
