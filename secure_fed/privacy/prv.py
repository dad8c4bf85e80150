"""Opacus's PRV accountant as a second opinion on epsilon, only inside the range where it was found sound.

It lives here, not in accounting/, because Opacus imports torch: `verify --cross-check` asks for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant

from secure_fed.accounting import Mechanism, epsilon, merge

# Measured against PLD, see tests/privacy/test_privacy_prv.py. Above an epsilon of about 700 its exponentials
# overflow and it answers inf; a million steps need a grid of gigabytes.
LEAST_NOISE = 0.3
MOST_STEPS = 50_000
MOST_EPSILON = 500.0
# Its error is asked to be well within the 1 % + 0.005 that a cross-check forgives, and below Gopi et al.'s 1.
_RELATIVE_ERROR, _LEAST_ERROR, _MOST_ERROR = 0.002, 0.002, 0.5


def prv_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float | None:
    """Opacus's upper bound on epsilon under add-or-remove-one, or None outside its sound range; cached.

    Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy". Inside the range it lies
    within 1 % + 0.005 of PLD. The range: `poisson_gaussian` and `gaussian` mechanisms (components joined), a
    noise multiplier of at least LEAST_NOISE, at most MOST_STEPS steps in all, an epsilon of at most
    MOST_EPSILON. No mechanisms cost 0.0. Raises AccountingError on a delta outside (0, 1).
    """
    return _prv_epsilon(merge(m.joint() for m in mechanisms), delta)


@lru_cache(maxsize=1024)
def _prv_epsilon(merged: tuple[Mechanism, ...], delta: float) -> float | None:
    reported = epsilon(merged, delta)  # decides how fine the grid must be, and nothing else
    if not merged:
        return reported
    within = all(m.batch_cap is None and m.noise_multiplier >= LEAST_NOISE for m in merged)
    if not within or sum(m.steps for m in merged) > MOST_STEPS or reported > MOST_EPSILON:
        return None
    accountant = PRVAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in merged]
    error = min(max(_RELATIVE_ERROR * reported, _LEAST_ERROR), _MOST_ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError):  # it gives up loudly where its grid or its floats do not suffice
        return None
    return value if math.isfinite(value) and 0 <= value <= MOST_EPSILON else None
