"""Scores on the public hold-out where a share of its records lacks a modality at test: from nobody to everybody.

A record's prediction depends on what it has and on nobody else, so predictions of two views, mixed record by record,
are those of the mixed hold-out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_fed.models.batch import Batch
from secure_fed.server.evaluation import ALL_PRESENT, score
from secure_fed.server.ranking import FloatArray

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
ANY = "any"
"""Stands for a modality where each record that loses one loses whichever the lot says."""
SUBSETS = 5
"""Between nobody and everybody, scores are means over so many choices of who loses it."""
_SEED = 20_160_915


@dataclass(frozen=True)
class RateScore:
    """Macro scores where a share `rate` of all records lacks `modality`, or one of theirs (`any`)."""

    modality: str
    rate: float
    auroc_macro: float
    auprc_macro: float


def missing_rates(
    labels: tuple[str, ...], holdout: Batch, predictions: Mapping[str, FloatArray], seed: int = _SEED
) -> tuple[RateScore, ...]:
    """Scores by modality and rate, from the `predictions` [n, L] of the views that `evaluation.views_of` has.

    Who loses it is drawn from `seed` and the number of records alone: the same for every method on one hold-out. At a
    higher rate the same records lose it, and others too.
    """
    modalities = [name for name in predictions if name != ALL_PRESENT]
    lots = _lots(len(holdout), len(modalities), seed)
    found = []
    for name in [*modalities, *([ANY] if len(modalities) > 1 else [])]:
        for rate in RATES:
            # With nobody there is no choice, and with everybody none but for which modality a record loses.
            drawn = 0 < rate < 1 or (rate and name == ANY)
            scored = []
            for places, losses in lots if drawn else lots[:1]:
                mixed = predictions[ALL_PRESENT].copy()
                chosen = places < round(rate * len(holdout))
                for index, modality in enumerate(modalities):
                    lost = chosen & (losses == index) if name == ANY else chosen & (modality == name)
                    mixed[lost] = predictions[modality][lost]
                scored.append(score(labels, holdout, mixed))
            auroc = float(np.mean([scores.auroc_macro for scores in scored]))
            auprc = float(np.mean([scores.auprc_macro for scores in scored]))
            found.append(RateScore(name, rate, auroc, auprc))
    return tuple(found)


def _lots(records: int, modalities: int, seed: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Each record's place in the order in which records lose something, and which modality it is, for each subset."""
    rng = np.random.default_rng(seed)
    return [(rng.permutation(records), rng.integers(0, modalities, records)) for _ in range(SUBSETS)]
