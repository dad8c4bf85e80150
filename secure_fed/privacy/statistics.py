"""Noisy sums over records, for methods that need a statistic rather than a gradient (ridge, means).

The Gaussian mechanism without sampling: every record takes part once in each release.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secure_fed.errors import PrivacyError
from secure_fed.privacy.noise import NoiseSource
from secure_fed.privacy.plan import StatisticPlan


def noisy_sum(per_record: Tensor, plan: StatisticPlan, noise: NoiseSource) -> npt.NDArray[np.float64]:
    """Sum of the rows of `per_record` [n, P], each clipped to L2 norm `plan.bound`, noised: float64 [P].

    The noise is N(0, (noise_multiplier * bound)^2), also where there is no record. A row that is not finite
    counts as zero. Raises PrivacyError where the rows are not rows.
    """
    if per_record.ndim != 2:
        raise PrivacyError(f"phase {plan.phase!r}: expected one row per record, got shape {tuple(per_record.shape)}")
    summed = clipped_sum(per_record, plan.bound)
    released: npt.NDArray[np.float64] = (
        summed + noise.normal(summed.shape, plan.noise_multiplier * plan.bound, dtype=torch.float64)
    ).numpy()
    return released


def clipped_sum(per_record: Tensor, bound: float) -> Tensor:
    """Sum [P] in float64 of the rows of `per_record` [n, P], each scaled to L2 norm at most `bound`."""
    rows = per_record.detach().to(torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    # Divided by a hair more than its norm: rounding must not leave a row longer than the bound.
    factors = (bound / (norms[finite] * (1 + 1e-12) + 1e-300)).clamp(max=1.0)
    summed: Tensor = factors @ rows[finite]
    return summed
