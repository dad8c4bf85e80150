"""Confidence intervals of scores on the public hold-out: its patients are drawn again, with replacement.

A percentile bootstrap (Efron 1979). What varies is who happens to be in the hold-out, not how the model was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_fed.server.ranking import BoolArray, FloatArray, RankedLabel

LEVEL = 0.95
DRAWS = 1000
_SEED = 20_230_711
_LARGEST = 2**22
"""Weights that are held at a time: 32 MiB."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class ViewIntervals:
    """Percentile intervals of one view: of the macro scores, and label by label. None where no draw has a score."""

    auroc_macro: Interval | None
    auprc_macro: Interval | None
    auroc_per_label: dict[str, Interval]
    auprc_per_label: dict[str, Interval]


def intervals(
    labels: Sequence[str],
    views: Mapping[str, FloatArray],
    truth: BoolArray,
    known: BoolArray,
    patients: npt.NDArray[np.int64],
    draws: int = DRAWS,
    seed: int = _SEED,
) -> dict[str, ViewIntervals]:
    """The intervals of every view over the same draws of patients.

    views: name -> probabilities float64 [n, L]; truth, known: bool [n, L]; patients: int64 [n], each record's patient
    from 0 on. As in the score itself, a label that has one class in a draw is left out of that draw's macro score.
    """
    ranked = {
        name: [RankedLabel(scores[:, i], truth[:, i], known[:, i]) for i in range(len(labels))]
        for name, scores in views.items()
    }
    auroc = {name: np.empty((len(labels), draws)) for name in views}
    auprc = {name: np.empty((len(labels), draws)) for name in views}
    rng = np.random.default_rng(seed)
    at_once = max(1, _LARGEST // max(1, len(patients)))
    for start in range(0, draws, at_once):
        part = slice(start, min(start + at_once, draws))
        weights = draw_patients(rng, patients, part.stop - part.start)
        for name, of_labels in ranked.items():
            for row, label in enumerate(of_labels):
                areas = label.areas(weights)
                auroc[name][row, part], auprc[name][row, part] = areas.auroc, areas.auprc
    return {name: _view(labels, auroc[name], auprc[name]) for name in views}


def draw_patients(rng: np.random.Generator, patients: npt.NDArray[np.int64], draws: int) -> FloatArray:
    """How often each record is in each draw of as many patients as there are: float64 [n, draws]."""
    count = int(patients.max()) + 1
    drawn = rng.integers(0, count, size=(draws, count)) * draws + np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=count * draws).reshape(count, draws)
    counts: FloatArray = times.astype(np.float64)[patients]
    return counts


def _view(labels: Sequence[str], auroc: FloatArray, auprc: FloatArray) -> ViewIntervals:
    return ViewIntervals(
        auroc_macro=_macro(auroc),
        auprc_macro=_macro(auprc),
        auroc_per_label=_per_label(labels, auroc),
        auprc_per_label=_per_label(labels, auprc),
    )


def _macro(values: FloatArray) -> Interval | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # draws in which no label has both classes: they are NaN
        return _percentiles(np.nanmean(values, axis=0))


def _per_label(labels: Sequence[str], values: FloatArray) -> dict[str, Interval]:
    found = {label: _percentiles(values[row]) for row, label in enumerate(labels)}
    return {label: interval for label, interval in found.items() if interval is not None}


def _percentiles(values: FloatArray) -> Interval | None:
    scored = values[~np.isnan(values)]
    if not len(scored):
        return None
    low, high = np.quantile(scored, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
