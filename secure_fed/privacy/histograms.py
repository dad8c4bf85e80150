"""Noised counts of held-out units, for metrics: each unit touches at most one cell in each group of cells.

The bound follows from that alone, noise comes in whole numbers, and every unit takes part once in each release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secure_fed.accounting.mechanisms import Mechanism
from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.units import Unit
from secure_fed.privacy.noise import NoiseSource

# Of a slice's noise, beyond the declared count: it happens to one value in 1e15.
_TAIL = 8.0

Counts = npt.NDArray[np.int32]
CellMap = Callable[[Batch], Tensor]
"""A batch of one record -> int64 [1, groups]: the cell in [0, width) of each group; any other number is none."""


@dataclass(frozen=True, kw_only=True)
class HistogramPlan:
    """One release of `groups` histograms over the units of a site, all noised alike.

    A unit adds 1 to at most one cell in each group, so its L2 norm is at most sqrt(groups): the sensitivity under
    adding or removing one unit. Raises PrivacyError.
    """

    phase: str
    groups: int
    noise_multiplier: float
    unit: Unit = "record"

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise PrivacyError(f"phase {self.phase!r}: Expected groups={self.groups} to be at least 1")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(
                f"phase {self.phase!r}: Expected noise_multiplier={self.noise_multiplier} to be finite and > 0"
            )

    @property
    def bound(self) -> float:
        """The L2 norm of what one unit adds."""
        return math.sqrt(self.groups)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on one count, before it is rounded to a whole number."""
        return self.noise_multiplier * self.bound

    def largest_count(self, declared_n: int) -> int:
        """What a noised count of `declared_n` units stays below, but for once in 1e15 values."""
        return math.ceil(declared_n + _TAIL * self.deviation)

    def mechanism(self) -> Mechanism:
        """What the accountant composes for one release: the Gaussian mechanism, rounded afterwards."""
        return Mechanism(kind="gaussian", noise_multiplier=self.noise_multiplier, sample_rate=1.0, steps=1)


def noisy_counts(
    cells: Mapping[str, CellMap],
    groups: int,
    width: int,
    records: Batch,
    plan: HistogramPlan,
    noise: NoiseSource,
    largest: int,
) -> dict[str, Counts]:
    """`exact_counts` of each slice, plus N(0, plan.deviation^2) rounded to whole numbers, clipped to +-`largest`.

    The counts are whole, so what is released is the Gaussian mechanism's output, rounded and clipped, which costs
    nothing. Noise is drawn for every cell, also where there is no unit. Raises PrivacyError where the slices together
    have more groups than the plan, or `records` are grouped by another unit.
    """
    if groups * len(cells) > plan.groups:
        raise PrivacyError(
            f"phase {plan.phase!r}: {len(cells)} slices of {groups} groups, the plan is for {plan.groups} in all"
        )
    if records.unit != plan.unit:
        raise PrivacyError(
            f"phase {plan.phase!r}: the plan's unit={plan.unit!r}, the records are grouped by {records.unit!r}: "
            f"prepare them with unit={plan.unit!r}"
        )
    exact = exact_counts(cells, groups, width, records)
    released: dict[str, Counts] = {}
    for name in sorted(exact):
        noised = noise.noised(torch.from_numpy(exact[name].astype(np.float64)), plan.deviation)
        released[name] = noised.round().clamp(-largest, largest).numpy().astype(np.int32)
    return released


def exact_counts(cells: Mapping[str, CellMap], groups: int, width: int, records: Batch) -> dict[str, Counts]:
    """Units in each cell: slice -> int32 [groups * width], un-noised.

    Of a unit with several records the first counts, in all slices, and the others do not: scaling a sum of rows to
    the bound would no longer give whole numbers. Each record is put to its map alone, so that not even a rounding
    that depends on a batch's size can move another unit's score over the edge of a bin. Raises PrivacyError where a
    map gives another shape or type.
    """
    first = records.unit_rows().first(1)
    return {name: _counts(name, cell_map, groups, width, records, first) for name, cell_map in cells.items()}


def _counts(name: str, cell_map: CellMap, groups: int, width: int, records: Batch, first: Tensor) -> Counts:
    summed = torch.zeros(groups * width, dtype=torch.int64)
    offsets = width * torch.arange(groups)
    for position in first:
        touched = cell_map(records.select(position.unsqueeze(0)))
        if touched.shape != (1, groups) or touched.dtype != torch.int64:
            raise PrivacyError(
                f"{name}: one record's cells are {touched.dtype} {tuple(touched.shape)}, expected int64 (1, {groups})"
            )
        within = (touched[0] >= 0) & (touched[0] < width)
        summed[(offsets + touched[0])[within]] += 1  # one place a group, so no place comes twice
    return summed.numpy().astype(np.int32)
