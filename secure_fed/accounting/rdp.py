"""Renyi divergences and their epsilon: the looser bound that keeps the PLD figure honest, and the filter's.

dp-accounting's RDP knows no Poisson sampling under replace-one, no doubled sensitivity and no cut samples:
those are done here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import dp_accounting
import numpy as np
import numpy.typing as npt
from dp_accounting import rdp

from secure_fed.accounting.mechanisms import Mechanism
from secure_fed.accounting.truncation import cut_probability
from secure_fed.errors import AccountingError

Orders = npt.NDArray[np.float64]

# The orders that are tried where dp-accounting does not do it all.
_ORDERS = (
    1.1,
    1.25,
    1.5,
    1.75,
    2.0,
    2.5,
    3.0,
    3.5,
    *map(float, range(4, 33)),
    40.0,
    48.0,
    64.0,
    96.0,
    128.0,
    256.0,
)
# An order whose integral needs more points than this belongs to little noise, where low orders decide.
_MOST_POINTS = 200_000


@lru_cache(maxsize=4096)
def epsilon(merged: tuple[Mechanism, ...], delta: float, relation: str) -> float:
    """Epsilon at `delta` over merged mechanisms by Renyi composition; 0.0 for none, inf without noise."""
    if not merged:
        return 0.0
    orders = orders_for(merged, relation)
    return best_epsilon(orders, curve(merged, orders, relation), delta)


def orders_for(mechanisms: Iterable[Mechanism], relation: str = "add_or_remove_one") -> Orders:
    """The orders at which these mechanisms are compared and composed."""
    ours = relation == "replace_one" or any(m.batch_cap is not None for m in mechanisms)
    return np.array(_ORDERS if ours else rdp.RdpAccountant().orders, dtype=np.float64)


def curve(merged: tuple[Mechanism, ...], orders: Orders, relation: str = "add_or_remove_one") -> Orders:
    """Renyi divergence of merged mechanisms at every order [len(orders)]: an upper bound, in both directions."""
    parts = [m.steps * _divergence(m, orders, relation) for m in merged]
    return np.asarray(np.sum([np.zeros(len(orders)), *parts], axis=0), dtype=np.float64)


def best_epsilon(orders: Orders, divergences: Orders, delta: float) -> float:
    """Epsilon at `delta` at the order that gives the least; inf where no divergence is finite."""
    return float(rdp.compute_epsilon(orders, divergences, delta)[0])


def divergence(merged: tuple[Mechanism, ...], order: float, relation: str) -> float:
    """Renyi divergence of merged mechanisms at one order: additive, and so what a privacy filter adds up."""
    orders = np.array([order], dtype=np.float64)
    return math.fsum(m.steps * float(_divergence(m, orders, relation)[0]) for m in merged)


def to_epsilon(order: float, total: float, delta: float) -> float:
    """Epsilon at `delta` of a divergence `total` at `order`: 0 for next to none, else with `conversion_cost`."""
    return float(rdp.compute_epsilon([order], [total], delta)[0])


def conversion_cost(order: float, delta: float) -> float:
    """What turning a divergence at `order` into epsilon at `delta` adds to it, in dp-accounting's conversion.

    Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy", Proposition 12:
    log(1 - 1/order) - log(delta * order) / (order - 1).
    """
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _divergence(mechanism: Mechanism, orders: Orders, relation: str) -> Orders:
    """Renyi divergence of one step at every order [len(orders)]: an upper bound, in both directions.

    A step that may be cut is, by the size of the others' sample, one of two: cut (sensitivity 2, since a unit
    that comes in puts another out) or not. Which of them is independent of the unit in question, so the joint
    convexity of exp((order - 1) * divergence) bounds their mixture: van Erven and Harremoes 2014, "Renyi
    divergence and Kullback-Leibler divergence", section III. The cut one is charged as dp-accounting's PLD
    does, under replace-one, and at the full sampling rate.
    """
    s, q = mechanism.noise_multiplier, mechanism.sample_rate
    if s == 0:
        return np.full(len(orders), math.inf)
    whole = _replaced(s, q, orders) if relation == "replace_one" else _added_or_removed(s, q, orders)
    cut = cut_probability(mechanism)
    if cut == 0:
        return whole
    parts = [math.log(cut) + (orders - 1) * _replaced(s / 2, q, orders)]
    if cut < 1:
        parts.append(math.log1p(-cut) + (orders - 1) * whole)
    return np.asarray(np.logaddexp.reduce(parts, axis=0) / (orders - 1), dtype=np.float64)


def _added_or_removed(s: float, q: float, orders: Orders) -> Orders:
    """dp-accounting's own: Mironov, Talwar and Zhang 2019, "Renyi differential privacy of the sampled Gaussian"."""
    accountant = rdp.RdpAccountant(orders, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(s))
    if not accountant.supports(step):
        raise AccountingError(f"dp-accounting's RDP accountant does not support {step}: install dp-accounting>=0.4.4.")
    with _without_convergence_notes():
        accountant.compose(step)
    return np.asarray(accountant.rdp, dtype=np.float64)


def _replaced(s: float, q: float, orders: Orders) -> Orders:
    """Renyi divergence of one step under replace-one: sensitivity 2 between the replaced units.

    The dominating pair is (1-q) N(0, s^2) + q N(+1, s^2) against (1-q) N(0, s^2) + q N(-1, s^2), see Zhu,
    Dong and Wang 2022, "Optimal accounting of differential privacy via characteristic function"; its mirror
    is the same. Without sampling this is alpha (2/s)^2 / 2, Mironov 2017, "Renyi differential privacy",
    Corollary 3.
    """
    if q == 1:
        return np.array([2 * alpha / s**2 for alpha in orders])
    return np.array([_mixture_divergence(float(alpha), s, q) for alpha in orders])


@lru_cache(maxsize=4096)
def _mixture_divergence(alpha: float, s: float, q: float) -> float:
    # Trapezoids converge exponentially: the integrand is analytic up to pi * min(s, s^2) off the real line.
    step = min(s, s * s) / 8
    low, high = -(1 + 15 * s), 2 * alpha + 15 * s
    points = int((high - low) / step) + 2
    if points > _MOST_POINTS:
        return math.inf
    x = np.linspace(low, high, points)
    # log density over N(0, s^2); the common factor is put back once.
    toward = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * s * s))
    away = np.logaddexp(math.log1p(-q), math.log(q) + (-2 * x - 1) / (2 * s * s))
    base = -(x**2) / (2 * s * s) - math.log(s * math.sqrt(2 * math.pi))
    log_terms = base + alpha * toward + (1 - alpha) * away
    top = float(np.max(log_terms))
    log_integral = top + math.log(float(np.sum(np.exp(log_terms - top))) * (x[1] - x[0]))
    return max(0.0, log_integral / (alpha - 1))


class _ConvergenceNotes(logging.Filter):
    """Drops dp-accounting's note on orders that it leaves out: leaving one out only loosens the bound."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()


@contextmanager
def _without_convergence_notes() -> Iterator[None]:
    notes = _ConvergenceNotes()
    logger = logging.getLogger("absl")
    logger.addFilter(notes)
    try:
        yield
    finally:
        logger.removeFilter(notes)
