"""The least noise that keeps a plan within its epsilon, by PLD or by a home's filter, never above the target.

A plan is a list of shapes: what will be released, but for the noise that all of them scale with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from secure_fed.accounting.compose import (
    COARSE_GRID,
    FINE_GRID,
    Relation,
    check_delta,
    check_relation,
    pld_epsilons,
)
from secure_fed.accounting.filter import filter_epsilon
from secure_fed.accounting.mechanisms import (
    Kind,
    Mechanism,
    accounted,
    check_cap,
    check_kind,
    check_steps,
    joint_noise_multiplier,
)
from secure_fed.errors import AccountingError

# Below the least noise an epsilon runs into thousands and means nothing; above the most, nothing is learnt.
LEAST_NOISE = 0.1
MOST_NOISE = 1e5
# Scales are rounded up to a millionth, so that a ledger shows numbers that a person can compare.
_PER_UNIT = 1e6


@dataclass(frozen=True)
class MechanismShape:
    """A mechanism without its noise: it will get `scale * relative_noise` once the scale is solved.

    With `component_noise` each component gets that times its own factor, and the mechanism their joint noise.
    """

    kind: Kind
    sample_rate: float
    steps: int
    relative_noise: float = 1.0
    batch_cap: int | None = None
    population: int | None = None
    component_noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_kind(self.kind, self.sample_rate)
        check_steps(self.steps)
        check_cap(self.kind, self.batch_cap, self.population)
        if not (math.isfinite(self.relative_noise) and self.relative_noise > 0):
            raise AccountingError(f"relative_noise={self.relative_noise!r} is not a finite number > 0.")
        if self.component_noise:
            joint_noise_multiplier(self.component_noise)  # refuses what is no noise

    def at(self, scale: float) -> Mechanism:
        """The mechanism at a common noise scale."""
        noise = scale * self.relative_noise
        parts = tuple(noise * factor for factor in self.component_noise)
        return Mechanism(
            self.kind,
            joint_noise_multiplier(parts) if parts else noise,
            self.sample_rate,
            self.steps,
            self.batch_cap,
            self.population,
            parts,
        )


def calibrate(
    shape: Sequence[MechanismShape],
    epsilon: float,
    delta: float,
    *,
    past: Sequence[Mechanism] = (),
    relation: Relation = "add_or_remove_one",
    tolerance: float = 1e-3,
    order: float | None = None,
) -> float:
    """The smallest common noise scale at which `past` and `shape` together stay within (epsilon, delta).

    Epsilon is PLD's, or with `order` the filter's at that order: for a plan that is chosen after seeing what
    `past` released. The epsilon reached is never above the target and at most `tolerance` (relative) below
    it, unless the least noise (LEAST_NOISE) suffices already. Raises AccountingError where no noise reaches
    the target.
    """
    check_delta(delta)
    check_relation(relation)
    if not math.isfinite(epsilon) or epsilon <= 0:
        raise AccountingError(f"epsilon={epsilon!r} is not a finite number > 0: no noise reaches it.")
    if not 0 < tolerance < 1:
        raise AccountingError(f"tolerance={tolerance!r} is not in (0, 1).")
    if not shape:
        raise AccountingError("There is nothing to calibrate: the plan holds no mechanism.")
    return _calibrate(tuple(shape), epsilon, delta, accounted(past), relation, tolerance, order)


@lru_cache(maxsize=256)
def _calibrate(
    shape: tuple[MechanismShape, ...],
    target: float,
    delta: float,
    past: tuple[Mechanism, ...],
    relation: Relation,
    tolerance: float,
    order: float | None,
) -> float:
    def figure(mechanisms: tuple[Mechanism, ...], grid: int) -> float:
        if order is not None:
            return filter_epsilon(mechanisms, delta, order, relation=relation)
        return pld_epsilons(accounted(mechanisms), (delta,), relation, grid)[0]

    def spent(scale: float, grid: int) -> float:
        return figure((*past, *(s.at(scale) for s in shape)), grid)

    by = "" if order is None else f" by the filter at order {order:g}"
    spent_before = figure(past, FINE_GRID)
    if spent_before >= target:
        raise AccountingError(
            f"epsilon={target:g} at delta={delta:g} cannot be reached by any noise: {spent_before:.4g} is "
            f"spent already{by}. Only a larger epsilon helps."
        )
    if spent(MOST_NOISE, FINE_GRID) > target:
        raise AccountingError(
            f"epsilon={target:g} at delta={delta:g} cannot be reached{by} even with a noise multiplier of "
            f"{MOST_NOISE:g} ({spent_before:.4g} is spent already). A larger epsilon, fewer rounds or steps, "
            "or a smaller sampling rate helps."
        )
    if spent(LEAST_NOISE, COARSE_GRID) <= target:
        return LEAST_NOISE
    guess = _solve(lambda scale: spent(scale, COARSE_GRID), target, 1.0, tolerance)
    if order is not None:  # the filter has no grid to refine
        return guess
    return _solve(lambda scale: spent(scale, FINE_GRID), target, guess, tolerance)


def _solve(spent: Callable[[float], float], target: float, start: float, tolerance: float) -> float:
    """A scale with spent(scale) in [target (1 - tolerance), target], between LEAST_NOISE and MOST_NOISE.

    Epsilon is nearly a power of the scale, so secants between logarithms meet within a few steps; every
    fourth step halves the bracket, whatever the curve does.
    """
    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    goal = math.log(target * (1 - tolerance / 2))
    slope = -1.2  # a first guess only
    last: tuple[float, float] | None = None
    best, scale = MOST_NOISE, _rounded_up(start)
    for attempt in count(1):
        value = spent(scale)
        if target * (1 - tolerance) <= value <= target:
            return scale
        x, y = math.log(scale), math.log(min(max(value, 1e-12), 1e12))
        if value > target:
            low = max(low, x)
        elif scale < best:
            best, high = scale, x
        if best - math.exp(low) < 2 / _PER_UNIT:
            break
        if last is not None and last[0] != x:
            slope = (y - last[1]) / (x - last[0])
        last = (x, y)
        candidate = x + (goal - y) / slope if slope < 0 else math.inf
        if attempt % 4 == 0 or not low < candidate < high:
            candidate = (low + high) / 2
        scale = _rounded_up(math.exp(candidate))
    return best


def _rounded_up(scale: float) -> float:
    return math.ceil(scale * _PER_UNIT) / _PER_UNIT
