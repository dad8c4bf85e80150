"""Privacy loss distributions of what dp-accounting's accountant has no event for, from its own parts.

Data sets smaller than the declared one under a cap, and several records of one patient. Pessimistic throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.stats import binom

from secure_fed.accounting.mechanisms import Mechanism
from secure_fed.accounting.truncation import cut_probability

RELATIONS = {
    "add_or_remove_one": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}


def composed(
    mechanisms: Sequence[Mechanism], relation: str, interval: float, records: int = 1
) -> pld.PrivacyLossDistribution:
    """The loss of all mechanisms together when `records` of their units come and go at once.

    More than one record only under add_or_remove_one. Losses are rounded up to multiples of `interval`.
    """
    total = pld.identity(interval)
    for mechanism in mechanisms:
        total = total.compose(_of(mechanism, relation, interval, records))
    return total


def _of(mechanism: Mechanism, relation: str, interval: float, records: int) -> pld.PrivacyLossDistribution:
    """All steps of one mechanism.

    Given how many others were sampled, a step is either never cut or of twice the sensitivity: each record
    that comes in puts at most one other out. The second dominates the first, so the mixture's cost grows with
    `cut_probability`, which is the largest at the declared population.
    """
    s, q, steps = mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps
    if q == 1 and mechanism.batch_cap is None:
        return _gaussian(s / (records * math.sqrt(steps)), 1.0, relation, interval)
    whole = _sampled(s, q, relation, interval, records)
    cut = cut_probability(mechanism, records)
    if cut > 0:
        whole = _sampled(s / 2, q, relation, interval, records).compute_mixture(whole, cut)
    return whole.self_compose(steps)


def _sampled(s: float, q: float, relation: str, interval: float, records: int) -> pld.PrivacyLossDistribution:
    """One step that samples each of `records` units with probability q; the contributions of those sampled add.

    The shift is binomial: a mixture of Gaussians, see Choquette-Choo, Ganesh, Steinke and Thakurta 2024,
    "Privacy amplification for matrix mechanisms", Corollary 4.7 (shifts of vectors are dominated by norms).
    """
    if records == 1 or q == 1:
        return _gaussian(s / records, q, relation, interval)
    shifts = np.arange(records + 1)
    return pld.from_mixture_gaussian_mechanism(
        s, shifts.astype(np.float64), binom.pmf(shifts, records, q), value_discretization_interval=interval
    )


def _gaussian(s: float, q: float, relation: str, interval: float) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
        s, value_discretization_interval=interval, sampling_prob=q, neighboring_relation=RELATIONS[relation]
    )
