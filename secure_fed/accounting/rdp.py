"""Renyi epsilon, the looser bound that keeps the PLD figure honest: dp-accounting's under add-or-remove-one.

Its RDP knows no Poisson sampling under replace-one and no doubled sensitivity: that relation is done here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import dp_accounting
import numpy as np
import numpy.typing as npt
from dp_accounting import rdp

from secure_fed.accounting.mechanisms import Mechanism, event

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
    if any(m.noise_multiplier == 0 for m in merged):
        return math.inf
    if relation == "replace_one":
        curve = np.sum([m.steps * _replace_one_divergence(m) for m in merged], axis=0)
        return float(rdp.compute_epsilon(np.array(_ORDERS), curve, delta)[0])
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    with _without_convergence_notes():
        accountant.compose(event(merged))
    return float(accountant.get_epsilon(delta))


def _replace_one_divergence(mechanism: Mechanism) -> npt.NDArray[np.float64]:
    """Renyi divergence of one step at every order [len(_ORDERS)], sensitivity 2 between the replaced units.

    The dominating pair is (1-q) N(0, s^2) + q N(+1, s^2) against (1-q) N(0, s^2) + q N(-1, s^2), see Zhu,
    Dong and Wang 2022, "Optimal accounting of differential privacy via characteristic function"; its mirror
    is the same. Without sampling this is alpha (2/s)^2 / 2, Mironov 2017, "Renyi differential privacy",
    Corollary 3.
    """
    s, q = mechanism.noise_multiplier, mechanism.sample_rate
    if q == 1:
        return np.array([2 * alpha / s**2 for alpha in _ORDERS])
    return np.array([_mixture_divergence(alpha, s, q) for alpha in _ORDERS])


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
