"""Epsilon of a patient whose records are the units: several of them come and go at once.

Reported beside the record's epsilon where the unit is `record`; where the unit is `patient` the two are one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from secure_fed.accounting.compose import COARSE_GRID, check_delta, epsilon, step_interval
from secure_fed.accounting.distributions import composed
from secure_fed.accounting.mechanisms import Mechanism, accounted
from secure_fed.errors import AccountingError

# More records than this make a figure that means nothing, at a cost of seconds.
MOST_RECORDS = 256


def patient_epsilon(mechanisms: Iterable[Mechanism], delta: float, records: int) -> float:
    """PLD epsilon of adding or removing a patient with `records` records, when a unit is one record; cached.

    Each record is sampled by itself and the contributions of those sampled add up in the worst case: a shift
    of Binomial(records, sample_rate) units a step, of all `records` units where nothing is sampled. An upper
    bound. 0.0 for no mechanisms; inf without noise and above MOST_RECORDS records, where it is not computed.
    Raises AccountingError on a delta outside (0, 1) or fewer than one record.
    """
    check_delta(delta)
    if not isinstance(records, int) or isinstance(records, bool) or records < 1:
        raise AccountingError(f"records={records!r} is not a whole number >= 1: a patient has at least one record.")
    merged = accounted(mechanisms)
    if records == 1 or not merged:
        return epsilon(merged, delta)
    if records > MOST_RECORDS or any(m.noise_multiplier == 0 for m in merged):
        return math.inf
    return _patient_epsilon(merged, delta, records)


@lru_cache(maxsize=1024)
def _patient_epsilon(merged: tuple[Mechanism, ...], delta: float, records: int) -> float:
    interval = max(
        step_interval(_most_shift(m, records) / m.noise_multiplier, m.sample_rate, COARSE_GRID) for m in merged
    )
    with np.errstate(over="ignore"):  # a mass that underflows in the far tail costs nothing
        return float(composed(merged, "add_or_remove_one", interval, records).get_epsilon_for_delta(delta))


def _most_shift(mechanism: Mechanism, records: int) -> float:
    return float(records) if mechanism.batch_cap is None else 2.0 * records
