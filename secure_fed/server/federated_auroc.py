"""AUROC from the noised, summed histograms of held-out scores, with intervals that include the noise.

Post-processing of what was released and charged already: nothing here touches a record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_fed.federation.evaluation import NEGATIVE, POSITIVE, view_of
from secure_fed.federation.facts import Federation
from secure_fed.server.round import RoundResult

# Below so many deviations of its own noise a total is no denominator: the quotient would be anything.
RELIABLE = 2.0
_NORMAL_95 = 1.959964

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, within [0, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, variance: float) -> Interval:
        """Normal, cut to [0, 1]: noise can push an estimate out of it."""
        half = _NORMAL_95 * math.sqrt(variance)
        low, middle, high = (min(1.0, max(0.0, x)) for x in (value - half, value, value + half))
        return cls(middle, low, high)


@dataclass(frozen=True)
class LabelScore:
    """One label: AUROC, and the noised numbers of positives and negatives that it stands on."""

    auroc: Interval
    positives: float
    negatives: float


@dataclass(frozen=True)
class ViewScore:
    """One view. `macro` is the mean over `labels`, None where all were left out; `suppressed` names those.

    noise_deviation: of the noise on one summed count. binning: how far the mean may lie from that of the scores
    before they were put into bins, either way, as far as the noise lets one tell.
    """

    macro: Interval | None
    labels: Mapping[str, LabelScore]
    suppressed: tuple[str, ...]
    contributors: tuple[str, ...]
    noise_deviation: float
    binning: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as summary.json and metrics.jsonl hold them."""
        labels = {
            name: {**_figures(score.auroc), "positives": score.positives, "negatives": score.negatives}
            for name, score in self.labels.items()
        }
        return {
            "macro": None if self.macro is None else _figures(self.macro),
            "labels": labels,
            "suppressed": list(self.suppressed),
            "contributors": list(self.contributors),
            "noise_deviation": round(self.noise_deviation, 6),
            "binning": None if self.binning is None else round(self.binning, 6),
        }


NoiseOf = Callable[[Federation, str], float]
"""(federation, site) -> deviation of the noise on one count of that site; 0 where its counts are exact."""


def score_counts(federation: Federation, result: RoundResult, noise_of: NoiseOf) -> dict[str, dict[str, Any]]:
    """View -> its figures and the summed counts that they follow from, as plain values; empty without an evaluation.

    A view whose sum was not opened, for want of contributors, is not there.
    """
    config = federation.config.evaluation
    if config.name != "federated":
        return {}
    scored: dict[str, dict[str, Any]] = {}
    for name, counts in result.counts.items():
        sites = result.contributors[name]
        deviations = [noise_of(federation, site) for site in sites]
        score = score_view(counts, federation.schema.labels, sites, deviations, config.min_count)
        scored[view_of(name)] = {**score.to_json(), "counts": counts.tolist()}
    return scored


def score_view(
    counts: npt.NDArray[np.int64],
    labels: Sequence[str],
    contributors: Sequence[str],
    deviations: Sequence[float],
    min_count: int,
) -> ViewScore:
    """AUROC per label and their mean, from the summed counts of one view.

    counts: int64 [L * 2 * bins], by label, truth (negatives first) and bin. deviations: of each contributor's noise
    on one count; 0 where there was none. A label is suppressed whose noised positives or negatives are fewer than
    `min_count` or than RELIABLE deviations of that total's noise.
    """
    histograms = counts.astype(np.float64).reshape(len(labels), 2, -1)
    # Rounding to whole numbers adds a uniform error of variance 1/12 at each site that draws noise.
    variance = sum(deviation**2 + 1 / 12 for deviation in deviations if deviation > 0)
    least = max(float(min_count), RELIABLE * math.sqrt(variance * histograms.shape[2]))
    found: dict[str, _Label] = {}
    for name, histogram in zip(labels, histograms, strict=True):
        if histogram.sum(axis=1).min() >= least:
            found[name] = _label(histogram, variance)
    return ViewScore(
        macro=_macro(list(found.values())),
        labels={
            name: LabelScore(Interval.of(label.value, label.sampling + label.noise), label.positives, label.negatives)
            for name, label in found.items()
        },
        suppressed=tuple(name for name in labels if name not in found),
        contributors=tuple(contributors),
        noise_deviation=math.sqrt(variance),
        binning=float(np.mean([label.ties for label in found.values()])) if found else None,
    )


@dataclass(frozen=True)
class _Label:
    value: float
    sampling: float
    noise: float
    ties: float
    positives: float
    negatives: float


def _label(histogram: FloatArray, variance: float) -> _Label:
    """AUROC and its two variances from one label's histogram [2, bins] with noise of `variance` on each count.

    Of positives p and negatives n, P and N in all: A = sum_ij k(i, j) p_i n_j / (P N), k = 1 for i > j, 1/2 for
    i = j. Negative counts stay as they are: without bias, while cutting them at zero would fill empty bins and pull A
    to the middle. To first order dA = sum_i (F(i) - A) dp_i / P + sum_j (G(j) - A) dn_j / N with F(i) the share of
    negatives below bin i and G(j) that of positives above bin j, ties half; that F and G are noisy themselves makes
    their squares larger, by no less than the second order adds. Sampling: Hanley and McNeil 1982, equation 1.
    """
    negatives, positives = histogram[NEGATIVE], histogram[POSITIVE]
    total_n, total_p = float(negatives.sum()), float(positives.sum())
    below = (np.cumsum(negatives) - negatives / 2) / total_n
    above = (np.cumsum(positives[::-1])[::-1] - positives / 2) / total_p
    value = float(positives @ below) / total_p
    noise = variance * float(np.square(below - value).sum() / total_p**2 + np.square(above - value).sum() / total_n**2)
    ties = float(positives @ negatives) / (2 * total_p * total_n)
    sampling = _hanley_mcneil(value, total_p, total_n)
    return _Label(value, sampling, noise, max(0.0, ties), total_p, total_n)


def _hanley_mcneil(value: float, positives: float, negatives: float) -> float:
    """Variance of an AUROC by the draw of the records, at least as large as at the same distance above 1/2."""
    a = min(0.999, max(value, 1 - value, 0.5))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    return (a * (1 - a) + (positives - 1) * (q1 - a * a) + (negatives - 1) * (q2 - a * a)) / (positives * negatives)


def _macro(labels: Sequence[_Label]) -> Interval | None:
    """The mean over labels. Their noise is independent; their records are the same, so sampling errors add up."""
    if not labels:
        return None
    value = float(np.mean([label.value for label in labels]))
    sampling = float(np.mean([math.sqrt(label.sampling) for label in labels])) ** 2
    noise = float(np.sum([label.noise for label in labels])) / len(labels) ** 2
    return Interval.of(value, sampling + noise)


def _figures(interval: Interval) -> dict[str, float]:
    return {"auroc": round(interval.value, 6), "low": round(interval.low, 6), "high": round(interval.high, 6)}
