"""Epsilon of composed mechanisms: Google's PLD accountant is what is reported, RDP its sanity bound.

Every figure is an upper bound: losses are discretised pessimistically, a coarse grid is loose, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from dp_accounting import pld

from secure_fed.accounting import rdp
from secure_fed.accounting.distributions import RELATIONS, composed
from secure_fed.accounting.mechanisms import Mechanism, accounted, event
from secure_fed.errors import AccountingError

Accountant = Literal["pld", "rdp"]
Relation = Literal["add_or_remove_one", "replace_one"]

# Points across one step's privacy loss. 20000 lies within 5e-5 of the grid of 1e-4 (dp-accounting's default)
# from epsilon 0.01 to 300 and takes a tenth of its time; 2000 lies within 1e-3 and serves curves and first
# guesses.
FINE_GRID = 20_000
COARSE_GRID = 2_000
# dp-accounting cuts the noise's tails at a mass of e^-50, about ten standard deviations.
_TAIL = 10.0
_SMALLEST_INTERVAL = 1e-4
_POINTS_A_DEVIATION = 8


def epsilon(
    mechanisms: Iterable[Mechanism],
    delta: float,
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove_one",
) -> float:
    """The smallest epsilon found at which the composition is (epsilon, delta)-DP: an upper bound, cached.

    No mechanisms cost 0.0; a mechanism without noise costs inf. Raises AccountingError on a delta outside (0,
    1), an unknown accountant or relation.
    """
    check_delta(delta)
    check_relation(relation)
    merged = accounted(mechanisms)
    if accountant == "pld":
        return pld_epsilons(merged, (delta,), relation, FINE_GRID)[0]
    if accountant == "rdp":
        return rdp.epsilon(merged, delta, relation)
    raise AccountingError(
        f"accountant={accountant!r} is not offered: use 'pld' (reported) or 'rdp' (sanity bound). "
        "GDP's central limit is a lower estimate, not a bound; PRV is a cross-check only (privacy/prv.py)."
    )


def epsilon_curve(
    mechanisms: Iterable[Mechanism], deltas: Sequence[float], *, relation: Relation = "add_or_remove_one"
) -> tuple[float, ...]:
    """PLD epsilon at each delta, from one composition."""
    for delta in deltas:
        check_delta(delta)
    check_relation(relation)
    return pld_epsilons(accounted(mechanisms), tuple(deltas), relation, FINE_GRID)


def epsilon_by_round(
    rounds: Sequence[Sequence[Mechanism]], delta: float, *, relation: Relation = "add_or_remove_one"
) -> tuple[float, ...]:
    """PLD epsilon spent after each round; `rounds[i]` holds what round i released. The last is `epsilon`'s.

    The ones before stand on a coarse grid, cut at the last (spending never falls): upper bounds within 2e-3.
    """
    check_delta(delta)
    check_relation(relation)
    if not rounds:
        return ()
    spent: tuple[Mechanism, ...] = ()
    curve: list[float] = []
    for released in rounds[:-1]:
        spent = accounted((*spent, *released))
        curve.append(pld_epsilons(spent, (delta,), relation, COARSE_GRID)[0])
    total = epsilon((*spent, *rounds[-1]), delta, relation=relation)
    return (*(min(value, total) for value in curve), total)


def check_delta(delta: float) -> None:
    """Refuse a delta that is no probability strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise AccountingError(f"delta={delta!r} is not in (0, 1): choose one well below 1 / N, such as 1e-5.")


def check_relation(relation: str) -> None:
    """Refuse a neighbouring relation that is not accounted."""
    if relation not in RELATIONS:
        raise AccountingError(f"relation={relation!r} is not accounted: use one of {', '.join(RELATIONS)}.")


@lru_cache(maxsize=8192)
def pld_epsilons(
    merged: tuple[Mechanism, ...], deltas: tuple[float, ...], relation: Relation, grid: int
) -> tuple[float, ...]:
    """PLD epsilon of merged mechanisms at each delta on a grid of `grid` points a step."""
    if not merged:
        return (0.0,) * len(deltas)
    if any(m.noise_multiplier == 0 for m in merged):
        return (math.inf,) * len(deltas)
    interval = max(_interval(m, relation, grid) for m in merged)
    accountant = pld.PLDAccountant(RELATIONS[relation], interval)
    _charge(accountant, merged)
    with np.errstate(over="ignore"):  # a mass that underflows in the far tail costs nothing
        figures = tuple(float(accountant.get_epsilon(delta)) for delta in deltas)
        if all(m.batch_cap is None for m in merged):
            return figures
        # dp-accounting's figure is of exactly `population` units; a smaller data set may cost more under a cap.
        smaller = composed(merged, relation, interval)
        return tuple(
            max(figure, float(smaller.get_epsilon_for_delta(delta)))
            for figure, delta in zip(figures, deltas, strict=True)
        )


def _charge(accountant: pld.PLDAccountant, merged: tuple[Mechanism, ...]) -> None:
    whole = event(merged)
    if not accountant.supports(whole):
        raise AccountingError(f"dp-accounting's PLD accountant does not support {whole}: install dp-accounting>=0.6.")
    accountant.compose(whole)


def _interval(mechanism: Mechanism, relation: Relation, grid: int) -> float:
    sensitivity = (2.0 if relation == "replace_one" else 1.0) * (1.0 if mechanism.batch_cap is None else 2.0)
    return step_interval(sensitivity / mechanism.noise_multiplier, mechanism.sample_rate, grid)


def step_interval(ratio: float, sample_rate: float, grid: int) -> float:
    """The distance of `grid` points across the loss of one step whose sensitivity is `ratio` deviations.

    The loss ranges over about ratio^2 / 2 + 10 ratio. Its deviation is at least sample_rate * ratio: where
    sampling is rare, points further apart than that would round most steps up to the same loss.
    """
    across = max(_SMALLEST_INTERVAL, (ratio**2 / 2 + _TAIL * ratio) / grid)
    return max(_SMALLEST_INTERVAL / 10, min(across, sample_rate * ratio / _POINTS_A_DEVIATION))
