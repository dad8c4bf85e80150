"""How much one unit changes, and how much noise is really drawn: measured on any construction that is put to the test.

Nothing is believed: a construction is two callables, and what they return is all that is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch

# float32 sums of a few clipped gradients: the sensitivity may exceed the bound by rounding, never by more.
TOLERANCE = 1e-5
_VALUES = 4000  # of noise, at the least, to read a deviation off: a standard error of 1.1 %
_ERRORS = 6.0  # standard errors that are tolerated: one false alarm in 5e8


@dataclass(frozen=True)
class Construction:
    """A way to compute and to noise a clipped sum: ours, or one on trial.

    clipped_sum: batch -> flat [P], what the noise is added to. release: batch -> flat [P], on the same scale. Both
    take a batch of no unit.
    """

    clipped_sum: Callable[[Batch], Tensor]
    release: Callable[[Batch], Tensor]


def leave_one_out_sensitivity(clipped_sum: Callable[[Batch], Tensor], batch: Batch, max_grad_norm: float) -> float:
    """max over units u of |clipped_sum(D) - clipped_sum(D without u)| / C, un-noised; at most 1 if sound.

    `batch` has at least one unit. Infinite where a sum is not finite: no noise hides that.
    """
    whole = clipped_sum(batch).double()
    changes = [(whole - clipped_sum(rest).double()).norm() / max_grad_norm for rest in _left_out(batch)]
    return float(torch.stack(changes).nan_to_num(nan=math.inf).max())


def noise_deviation(construction: Construction, batch: Batch) -> tuple[float, int]:
    """Standard deviation of release(D) - clipped_sum(D), and over how many values; its error is 1 / sqrt(2 values)."""
    exact = construction.clipped_sum(batch).double()
    repeats = math.ceil(_VALUES / exact.numel())
    noise = torch.stack([construction.release(batch).double() - exact for _ in range(repeats)])
    return float(noise.square().mean().sqrt()), noise.numel()


def effective_noise_multiplier(construction: Construction, batch: Batch, max_grad_norm: float) -> float:
    """The noise that is drawn over the most that one unit was seen to change: what an accountant ought to be told."""
    sensitivity = leave_one_out_sensitivity(construction.clipped_sum, batch, max_grad_norm) * max_grad_norm
    deviation, _ = noise_deviation(construction, batch)
    return deviation / sensitivity if sensitivity > 0 else math.inf


def refuse_unsound(
    construction: Construction, batches: dict[str, Batch], max_grad_norm: float, noise_multiplier: float
) -> None:
    """Raise PrivacyError where a unit counts for more than the clip bound, or the noise is not the plan's.

    `batches` are made up; their names go into the error. Beside them the first unit of the first is tried alone, and
    nobody at all.
    """
    name, first = next(iter(batches.items()))
    # Against nobody: a construction may put something of its own into an empty batch.
    alone = {"one unit alone": first.select_units(torch.tensor([0]))}
    for title, batch in {**batches, **alone}.items():
        _refuse_sensitivity(construction, title, batch, max_grad_norm)
    nobody = first.select(torch.zeros(0, dtype=torch.int64))
    for title, batch in (("no unit at all", nobody), (name, first)):
        _refuse_deviation(construction, title, batch, max_grad_norm * noise_multiplier)
    _refuse_repeated_noise(construction, nobody)


def _left_out(batch: Batch) -> Iterator[Batch]:
    """The batch without its first unit, without its second ..."""
    count = batch.unit_count
    for left_out in range(count):
        kept = torch.ones(count, dtype=torch.bool)
        kept[left_out] = False
        yield batch.select_units(kept)


def _refuse_sensitivity(construction: Construction, name: str, batch: Batch, max_grad_norm: float) -> None:
    ratio = leave_one_out_sensitivity(construction.clipped_sum, batch, max_grad_norm)
    if ratio == math.inf:
        raise PrivacyError(
            f"on {name} the clipped sum is not finite: one unit can make the release NaN or infinite, which no noise "
            "hides; a unit that is not finite must count as zero"
        )
    if ratio > 1.0 + TOLERANCE:
        raise PrivacyError(
            f"on {name} one unit changes the clipped sum by {ratio:.3g} times max_grad_norm={max_grad_norm:g}: the "
            "loss or a layer lets units influence each other, or gradients pass the clipping by"
        )


def _refuse_deviation(construction: Construction, name: str, batch: Batch, planned: float) -> None:
    found, values = noise_deviation(construction, batch)
    if not abs(found / planned - 1.0) <= _ERRORS / math.sqrt(2 * values):
        raise PrivacyError(
            f"on {name} the noise that is drawn has deviation {found:.3g}, the plan says {planned:.3g} (noise "
            "multiplier times clip): whoever clips and whoever draws the noise must read one and the same plan"
        )


def _refuse_repeated_noise(construction: Construction, nobody: Batch) -> None:
    one, two = (construction.release(nobody) for _ in range(2))
    if torch.equal(one, two):
        raise PrivacyError("two releases carry the same noise: it cancels in their difference; never seed the noise")
