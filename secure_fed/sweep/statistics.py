"""Means over seeds with their intervals, and paired tests between two settings over the seeds that both ran.

Few seeds carry little: every figure comes with the number of seeds that it stands on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from secure_fed.errors import DataError

_K = TypeVar("_K", bound=Hashable)

MOST_FLIPPED = 20
"""Pairs up to which all 2^n signs are tried; beyond, Student's t has data enough."""

# Scores that agree to so many digits are one number: what is left between them is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds with its sample standard deviation and interval, which a single seed does not have."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """`second - first` over the `n` keys that both have: mean, standard error, interval and two-sided p-values.

    t_p: Student's t over the differences; None for one pair, and where all differences are one number other than 0,
    as then nothing says how they scatter. permutation_p: the share of all sign flips whose mean is at least as far
    from 0; it assumes only that a difference is as likely to be negative, and cannot be below 2^(1-n). None above
    MOST_FLIPPED pairs.
    """

    n: int
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    t_p: float | None
    permutation_p: float | None


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """The mean with Student's t interval, mean +- t_{n-1} sd / sqrt(n); raises DataError on no or non-finite values."""
    if not len(values) or not all(map(math.isfinite, values)):
        raise DataError(
            f"values={list(values)!r} are not finite numbers, at least one: leave out cells without a score."
        )
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = _t_quantile(n - 1, confidence) * sd / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, sd, n)


def paired(first: Mapping[_K, float], second: Mapping[_K, float], confidence: float = 0.95) -> Paired | None:
    """Compare two settings by key (a seed), over the keys that both have; None where there are none.

    Raises DataError on values that are not finite.
    """
    differences = [second[key] - first[key] for key in first if key in second]
    if not differences:
        return None
    scale = max(max(abs(first[key]), abs(second[key])) for key in first if key in second)
    interval = mean_interval(differences, confidence)
    n = interval.n
    error = None if interval.sd is None else interval.sd / math.sqrt(n)
    return Paired(
        n=n,
        difference=interval.mean,
        standard_error=error,
        low=interval.low,
        high=interval.high,
        t_p=_t_test(differences, error, _ROUNDING * scale),
        permutation_p=sign_flip_p(differences),
    )


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Fisher's exact randomisation test of a mean of 0, two-sided, by all 2^n sign flips; None above MOST_FLIPPED.

    The signs of the first difference need not be tried: flipping all of them changes no distance from 0.
    """
    if len(differences) > MOST_FLIPPED:
        return None
    sums = np.array([differences[0]], dtype=np.float64)
    for difference in differences[1:]:
        sums = np.concatenate((sums + difference, sums - difference))
    observed = abs(math.fsum(differences))
    slack = _ROUNDING * math.fsum(map(abs, differences))
    return float(np.mean(np.abs(sums) >= observed - slack))


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """p-values adjusted for their number, in the order given (Holm 1979, "A simple sequentially rejective multiple
    test procedure"): the chance of any false alarm in the family stays below the level. None is no test.
    """
    order = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[place] = largest
    return tuple(adjusted)


def _t_test(differences: Sequence[float], error: float | None, rounding: float) -> float | None:
    """`rounding`: what the two scores of a difference may have lost; less than that is no scatter."""
    if error is None:
        return None
    mean = math.fsum(differences) / len(differences)
    if error == 0 or max(differences) - min(differences) <= rounding:
        return 1.0 if abs(mean) <= rounding else None
    from scipy.special import stdtr

    return float(2 * stdtr(len(differences) - 1, -abs(mean) / error))


def _t_quantile(freedom: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))
