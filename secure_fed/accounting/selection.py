"""What choosing the best of many runs costs: composition over all of them, and selection among a random number.

A person is at one site, which one differs from run to run: the plans of a run's sites are its alternatives.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting import rdp as dp_rdp

from secure_fed.accounting import rdp
from secure_fed.accounting.compose import Accountant, check_delta, epsilon
from secure_fed.accounting.mechanisms import Mechanism, accounted
from secure_fed.errors import AccountingError

Alternatives = Sequence[Sequence[Mechanism]]
"""One run: what each group of its sites releases in all. A unit is in one of the groups."""

_Merged = tuple[Mechanism, ...]
# Uniform numbers and probabilities to so many bits and digits: what is left of the law is below 2^-240.
_BITS, _DIGITS = 256, 100


@dataclass(frozen=True)
class Composed:
    """Epsilon of several runs together, and the accountant whose figure it is."""

    epsilon: float
    basis: Accountant


def composed_epsilon(runs: Sequence[Alternatives], delta: float) -> Composed:
    """Epsilon of everything that `runs` released, under add-or-remove-one; 0.0 for no runs, inf without noise.

    Whichever of a run's alternatives a unit is in. By PLD where one alternative of each run costs at least what
    the others do, whatever it is composed with; else by RDP with the largest divergence at each order: divergences
    add up under composition, so that the largest of each run bounds every choice. What the runs release must be
    fixed before the first of them. Raises AccountingError on a delta outside (0, 1).
    """
    check_delta(delta)
    counted = Counter(_distinct(run) for run in runs)
    worst = {run: _dominating(run) for run in counted}
    if all(found is not None for found in worst.values()):
        released = [m.repeated(times) for run, times in counted.items() for m in worst[run] or ()]
        return Composed(epsilon(_joined(released), delta), "pld")
    orders = rdp.orders_for(m for run in counted for merged in run for m in merged)
    total = np.sum([times * _largest(run, orders) for run, times in counted.items()], axis=0)
    return Composed(rdp.best_epsilon(orders, total, delta), "rdp")


def repeat_select_epsilon(candidates: Sequence[Alternatives], delta: float, mean: float, shape: float) -> float:
    """Epsilon by RDP of the best of K runs, each of a candidate drawn uniformly; nothing else leaves, K neither.

    K is drawn as `draw_repetitions` does, whatever the data hold, and the best is told by what a run releases:
    Papernot and Steinke 2022, "Hyperparameter tuning with Renyi differential privacy", Theorems 2 and 6, as
    dp-accounting's RepeatAndSelectDpEvent has them. One draw is a uniform mixture of the candidates: at each order
    the mean of exp((order - 1) * divergence) bounds it (joint convexity: van Erven and Harremoes 2014, section
    III), and is exact where the candidate is told. inf where a candidate has no noise. Raises AccountingError
    without candidates, on a delta outside (0, 1), a mean below 1 or a shape below 0.
    """
    check_delta(delta)
    check_law(mean, shape)
    if not candidates:
        raise AccountingError("There is nothing to select from: repeat_select needs at least one candidate.")
    counted = Counter(_distinct(run) for run in candidates)
    orders = rdp.orders_for(m for run in counted for merged in run for m in merged)
    parts = [math.log(times / len(candidates)) + (orders - 1) * _largest(run, orders) for run, times in counted.items()]
    one = np.logaddexp.reduce(parts, axis=0) / (orders - 1)
    if not np.any(np.isfinite(one)):
        return math.inf
    accountant = _DrawAccountant(orders, np.maximum(one, 0.0))
    accountant.compose(dp_accounting.dp_event.RepeatAndSelectDpEvent(_Draw(), mean, shape))
    return float(accountant.get_epsilon(delta))


def covers(plan: Alternatives, charged: Alternatives) -> bool:
    """Whether `plan` costs at least what was `charged`, at every Renyi order and whichever group a unit is in."""
    planned, spent = _distinct(plan), _distinct(charged)
    orders = rdp.orders_for(m for run in (planned, spent) for merged in run for m in merged)
    allowed, found = _largest(planned, orders), _largest(spent, orders)
    return bool(np.all((found <= allowed * (1 + 1e-9)) | np.isinf(allowed)))


def draw_repetitions(mean: float, shape: float, random_bits: Callable[[int], int] = secrets.randbits) -> int:
    """A number of repetitions by `repetition_law`, from the operating system's randomness.

    The law's cumulative probability is compared with a uniform number of 256 bits: the distance to the law in
    total variation is below 2^-240, far under any delta. Raises AccountingError as `check_law`.
    """
    check_law(mean, shape)
    with localcontext() as context:
        context.prec = _DIGITS
        uniform = Decimal(random_bits(_BITS)) / Decimal(2) ** _BITS
        reached = Decimal(0)
        for count, probability in repetition_law(mean, shape):
            reached += probability
            if uniform < reached:
                return count
    raise AssertionError("a law's probabilities add up to one")


def repetition_law(mean: float, shape: float) -> Iterator[tuple[int, Decimal]]:
    """(K, its probability) in order, without end: Poisson for shape inf, else truncated negative binomial.

    Papernot and Steinke 2022, Definition 1: P[K=k] is proportional to (1 - gamma)^k times the product over
    l < k of (l + shape) / (l + 1), for k >= 1, and gamma gives the mean. Shape 1 is the geometric law, shape 0 the
    logarithmic. Only Poisson can give 0. Probabilities have as many digits as the caller's decimal context.
    """
    check_law(mean, shape)
    expected = Decimal(mean)
    if math.isinf(shape):
        probability, count = (-expected).exp(), 0
        while True:
            yield count, probability
            count += 1
            probability *= expected / count
    if expected == 1:  # the law's limit at gamma 1
        yield 1, Decimal(1)
        return
    size = Decimal(shape)
    gamma = _gamma(expected, size)
    probability = (1 - gamma) * (size / (_power(gamma, -size) - 1) if size else -1 / gamma.ln())
    count = 1
    while True:
        yield count, probability
        probability *= (1 - gamma) * (count + size) / (count + 1)
        count += 1


def check_law(mean: float, shape: float) -> None:
    """Refuse a law of repetitions that the theorems do not cover."""
    if not (math.isfinite(mean) and mean >= 1):
        raise AccountingError(f"mean={mean!r} is not a finite number >= 1: repeat_select runs once on average or more.")
    if math.isnan(shape) or shape < 0:
        raise AccountingError(
            f"shape={shape!r} is not a number >= 0: inf is Poisson, 1 the geometric law, 0 the logarithmic."
        )


@lru_cache(maxsize=32)
def _gamma(mean: Decimal, shape: Decimal) -> Decimal:
    """The gamma in (0, 1) whose truncated negative binomial has this mean; the mean falls as gamma grows."""
    low, high = Decimal(0), Decimal(1)
    with localcontext() as context:
        context.prec = _DIGITS
        for _ in range(4 * _DIGITS):  # a bit each, and a digit is 3.3 of them
            gamma = (low + high) / 2
            spread = 1 / gamma - 1
            found = shape * spread / (1 - _power(gamma, shape)) if shape else -spread / gamma.ln()
            low, high = (gamma, high) if found > mean else (low, gamma)
        return (low + high) / 2


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    return (base.ln() * exponent).exp()


def _distinct(run: Alternatives) -> tuple[_Merged, ...]:
    """A run's different alternatives, in a fixed order."""
    return tuple(sorted({accounted(mechanisms) for mechanisms in run}))


def _largest(run: Sequence[_Merged], orders: rdp.Orders) -> rdp.Orders:
    """The largest divergence over a run's alternatives at each order [len(orders)]; 0 where it released nothing."""
    curves = [rdp.curve(merged, orders) for merged in run]
    return np.asarray(np.max([np.zeros(len(orders)), *curves], axis=0), dtype=np.float64)


def _dominating(run: Sequence[_Merged]) -> _Merged | None:
    """The alternative that costs at least what each other does under any composition; None where none is proven to."""
    if not run:
        return ()
    return next((one for one in run if all(_dominates(one, other) for other in run)), None)


def _dominates(one: _Merged, other: _Merged) -> bool:
    """Whether `other`'s releases are some post-processing of `one`'s, so that they never cost more.

    Gaussian releases of every unit are together one release with the sum of their steps / noise_multiplier^2: more
    noise can be added. Of sampled ones, each needs its own with as many steps, no more noise and no smaller rate:
    steps can be dropped, noise added, and a smaller rate had by drawing the output anew, without the unit, now and
    then.
    """
    if _whole(one) < _whole(other):
        return False
    free = [m for m in one if not _is_whole(m)]
    for m in (m for m in other if not _is_whole(m)):
        match = next((candidate for candidate in free if _at_least(candidate, m)), None)
        if match is None:
            return False
        free.remove(match)
    return True


def _joined(released: Sequence[Mechanism]) -> list[Mechanism]:
    """The same with all Gaussian releases of every unit as one, which costs the same and is composed at once."""
    rest, total = [m for m in released if not _is_whole(m)], _whole(released)
    if total == 0 or math.isinf(total):
        return list(released)
    return [Mechanism("gaussian", 1 / math.sqrt(total), 1.0, 1), *rest]


def _is_whole(m: Mechanism) -> bool:
    return m.sample_rate == 1 and m.batch_cap is None


def _whole(mechanisms: Sequence[Mechanism]) -> float:
    terms = [m.steps / m.noise_multiplier**2 if m.noise_multiplier else math.inf for m in mechanisms if _is_whole(m)]
    return math.fsum(terms)


def _at_least(one: Mechanism, other: Mechanism) -> bool:
    if (one.kind, one.batch_cap, one.population) != (other.kind, other.batch_cap, other.population):
        return False
    if one.batch_cap is not None and one.sample_rate != other.sample_rate:  # how often a batch is cut is in it
        return False
    return (
        one.sample_rate >= other.sample_rate
        and one.noise_multiplier <= other.noise_multiplier
        and one.steps >= other.steps
    )


class _Draw(dp_accounting.DpEvent):  # type: ignore[misc]
    """One run of a drawn candidate. dp-accounting has no event for a mixture."""


class _DrawAccountant(dp_rdp.RdpAccountant):  # type: ignore[misc]
    """dp-accounting's own, which also takes a `_Draw`, whose divergence at each order it is told."""

    def __init__(self, orders: rdp.Orders, draw: rdp.Orders) -> None:
        super().__init__(orders)
        self._draw = draw

    def _maybe_compose(self, event: Any, count: int, do_compose: bool) -> Any:
        if not isinstance(event, _Draw):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            self._rdp += count * self._draw
        return None
