"""How often a sample is cut to its largest size: what a capped batch costs stands on this probability.

A cut makes a unit's coming in put another one out, so that two units' contributions change at once.
"""

from __future__ import annotations

from scipy.stats import binom

from secure_fed.accounting.mechanisms import Mechanism


def cut_probability(mechanism: Mechanism, records: int = 1) -> float:
    """The most likely that a step of `mechanism` is cut where `records` of its units are in doubt.

    The probability that the others' sample leaves no room for all `records` of them, in a data set of
    `population` units. It only falls for smaller data sets, so a figure that grows with it holds for all of
    them: Ganesh, McMahan and Thakurta 2025, arXiv 2508.15089, has the case of exactly `population`. 0.0 where
    nothing is cut.
    """
    if mechanism.batch_cap is None or mechanism.population is None:
        return 0.0
    others = max(mechanism.population - records, 0)
    return float(binom.sf(mechanism.batch_cap - records, others, mechanism.sample_rate))
