"""DP-SGD on one phase: Poisson batches, per-record gradients clipped and summed, noise, a step; over Opacus.

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

from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.noise import NoiseSource
from secure_fed.privacy.plan import GaussianPlan, SamplingPlan, TrainingOptions
from secure_fed.privacy.record_gradients import (
    Loss,
    PerRecordLoss,
    RecordGradients,
    flat,
    only_trained,
    record_gradients,
)


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

    An empty Poisson batch still adds noise and steps. A record whose gradient is not finite counts as zero and
    is never an error. Gradient sums are divided by the plan's public expected batch. Raises PrivacyError for a
    model or loss that has no per-record gradient, ConfigError for an unknown component.
    """
    with _own_torch_generator(noise), record_gradients(model, components, loss) as gradients:
        optimizer = ClippedNoisyOptimizer(_optimizer(gradients.trained, training), gradients, plan, noise)
        for _ in range(plan.steps):
            optimizer.zero_grad(set_to_none=True)
            for part in _poisson_parts(len(records), plan, training, noise):
                gradients.backward(records.select(part))
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
    with _own_torch_generator(noise), only_trained(model, components) as trained:
        module = PerRecordLoss(model, loss)
        optimizer = _optimizer(trained, training)
        for _ in range(sampling.steps):
            optimizer.zero_grad(set_to_none=False)
            for part in _poisson_parts(len(records), sampling, training, noise):
                losses = module(records.select(part))
                if losses.requires_grad:
                    (losses.sum() / sampling.expected_batch).backward()
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


class ClippedNoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Opacus' optimizer with our noise, our treatment of non-finite records and a public denominator.

    Clipping is flat: one L2 norm over all trained parameters. `clip_and_accumulate` may be called any number
    of times (physical parts of one Poisson batch) before `release`; no call at all is an empty batch.
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
        self._source = noise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, per-record gradients and, unlike Opacus, always the accumulated sum."""
        self._is_last_step_skipped = False
        super().zero_grad(set_to_none)

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the last backward pass to each parameter's `summed_grad`."""
        clipped = self._gradients.clipped_sums(self.max_grad_norm)
        for parameter, part in zip(self._gradients.trained, clipped, strict=True):
            summed = parameter.summed_grad  # type: ignore[attr-defined]  # Opacus' own attribute
            parameter.summed_grad = part if summed is None else summed + part  # type: ignore[attr-defined]

    def add_noise(self) -> None:
        """grad = summed_grad + N(0, (noise_multiplier * max_grad_norm)^2), added in float64."""
        params = self.params
        sizes = [p.numel() for p in params]
        deviation = self.noise_multiplier * self.max_grad_norm
        noise = self._source.normal((sum(sizes),), deviation, dtype=torch.float64)
        for parameter, part in zip(params, torch.split(noise, sizes), strict=True):
            part = part.view_as(parameter)
            summed = parameter.summed_grad
            parameter.grad = (part if summed is None else part + summed).to(parameter.dtype)

    def scale_grad(self) -> None:
        """Divide by the public expected batch, whatever the batch really held."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size

    def release(self) -> None:
        """Noise, scale and step: the only place where anything of the records reaches the model."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()


def clipped_gradient_sum(
    model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch, max_grad_norm: float
) -> Tensor:
    """What one step over all of `batch` would noise: float32 [P]. PRIVATE, for preflight and tests."""
    with record_gradients(model, components, loss) as gradients:
        gradients.backward(batch)
        return flat(gradients.clipped_sums(max_grad_norm))


def _poisson_parts(
    count: int, sampling: SamplingPlan, training: TrainingOptions, noise: NoiseSource
) -> Iterator[Tensor]:
    """One Poisson sample as physical parts of bounded size: int64 index tensors, none of them empty."""
    chosen = torch.from_numpy(np.flatnonzero(noise.poisson_mask(count, sampling.sample_rate)))
    if len(chosen):
        yield from torch.split(chosen, training.max_physical_batch)


def _optimizer(parameters: list[nn.Parameter], training: TrainingOptions) -> torch.optim.Optimizer:
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )


@contextmanager
def _own_torch_generator(noise: NoiseSource) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it from the site's own stream, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(noise.seed())
        yield
