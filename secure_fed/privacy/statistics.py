"""Noisy sums over units, for methods that need a statistic rather than a gradient (ridge, means).

The Gaussian mechanism without sampling: every unit takes part once in each release.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.privacy.noise import NoiseSource
from secure_fed.privacy.plan import StatisticPlan


def noisy_sum(per_record: Tensor, records: Batch, plan: StatisticPlan, noise: NoiseSource) -> npt.NDArray[np.float64]:
    """Sum over units of each unit's vector, clipped to L2 norm `plan.bound`, noised: float64 [P].

    `per_record` [n, P] has one row for each of `records`; a unit's vector is the sum of its first
    `plan.max_records_per_unit` rows. The noise is N(0, (noise_multiplier * bound)^2), also where there is no unit.
    A unit with a row that is not finite counts as zero. Raises PrivacyError where the rows are not the records', or
    `records` are grouped by another unit than the plan's.
    """
    if per_record.ndim != 2 or len(per_record) != len(records):
        raise PrivacyError(
            f"phase {plan.phase!r}: expected one row for each of the records, got shape {tuple(per_record.shape)}"
        )
    if records.unit != plan.unit:
        raise PrivacyError(
            f"phase {plan.phase!r}: the plan's unit={plan.unit!r}, the records are grouped by {records.unit!r}: "
            f"prepare them with unit={plan.unit!r}"
        )
    kept = records.unit_rows().first(plan.max_records_per_unit)
    summed = clipped_sum(per_record[kept], records.units[kept], plan.bound)
    released: npt.NDArray[np.float64] = noise.noised(summed, plan.noise_multiplier * plan.bound).numpy()
    return released


def clipped_sum(per_record: Tensor, units: Tensor, bound: float) -> Tensor:
    """Sum [P] in float64 over units of the sum of a unit's rows, scaled to L2 norm at most `bound`.

    per_record: [n, P]; units: int64 [n], equal for rows of one unit.
    """
    _, of_row = torch.unique(units, return_inverse=True)
    count = int(of_row.max()) + 1 if len(of_row) else 0
    rows = torch.zeros(count, per_record.shape[1], dtype=torch.float64)
    rows.index_add_(0, of_row, per_record.detach().to(torch.float64))
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    # Divided by a hair more than its norm: rounding must not leave a row longer than the bound.
    factors = (bound / (norms[finite] * (1 + 1e-12) + 1e-300)).clamp(max=1.0)
    summed: Tensor = factors @ rows[finite]
    return summed
