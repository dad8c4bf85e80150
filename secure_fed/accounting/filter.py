"""The privacy filter of a home: Renyi epsilon at one order, fixed for the life of the data.

Plans of later runs are chosen after seeing results. PLD composition is not proven for that; a sum of Renyi
divergences at one fixed order is: Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter",
Theorem 4.3. Runs that overlap are covered by Haney et al. 2023, "Concurrent composition for interactive
differential privacy with adaptive privacy-loss parameters".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from secure_fed.accounting import rdp
from secure_fed.accounting.compose import Relation, check_delta, check_relation
from secure_fed.accounting.mechanisms import Mechanism, accounted
from secure_fed.errors import AccountingError

# Whole numbers: there the divergence of sampled Gaussians is a finite sum, at fractions dp-accounting's series
# may not converge. Coarse: two libraries of mathematics that differ in a last bit still agree on the order.
ORDERS: tuple[float, ...] = tuple(
    map(float, (*range(2, 16), *range(16, 64, 4), *range(64, 257, 32), *range(320, 1025, 64)))
)
_MOST_ORDER = 2048  # larger ones cost dp-accounting a second for every mechanism


def filter_order(epsilon: float, delta: float) -> float:
    """The order of a home's filter: the one at which Gaussian releases may add up to most within the limit.

    Public and deterministic: a function of the owner's epsilon and delta alone. At order a, Gaussian releases
    have divergence a * rho in sum, so the largest rho is (epsilon - c(a)) / a, where c is the cost of the
    conversion to (epsilon, delta); the maximum over ORDERS is taken. Raises AccountingError.
    """
    check_delta(delta)
    if not math.isfinite(epsilon) or epsilon <= 0:
        raise AccountingError(f"epsilon={epsilon!r} is not a finite number > 0: a filter needs a limit.")
    return max(ORDERS, key=lambda order: (epsilon - rdp.conversion_cost(order, delta)) / order)


def filter_epsilon(
    mechanisms: Iterable[Mechanism],
    delta: float,
    order: float,
    *,
    relation: Relation = "add_or_remove_one",
) -> float:
    """Epsilon at `delta` of all mechanisms by their Renyi divergence at the one `order`; cached.

    A home whose filter_epsilon over everything that it has committed to stays within its limit is (limit,
    delta)-DP, however the next plan was chosen. Never below PLD's figure. 0.0 for no mechanisms, inf without
    noise. Raises AccountingError on a delta outside (0, 1), an order that is no whole number from 2 to 2048,
    an unknown relation.
    """
    check_delta(delta)
    check_relation(relation)
    if not (2 <= order <= _MOST_ORDER and float(order).is_integer()):
        raise AccountingError(
            f"order={order!r} is not a whole number from 2 to {_MOST_ORDER}: take filter_order(epsilon, delta)."
        )
    return _filter_epsilon(accounted(mechanisms), delta, float(order), relation)


@lru_cache(maxsize=8192)
def _filter_epsilon(merged: tuple[Mechanism, ...], delta: float, order: float, relation: str) -> float:
    return rdp.to_epsilon(order, rdp.divergence(merged, order, relation), delta)
