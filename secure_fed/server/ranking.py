"""AUROC and average precision of one label's scores, for as many weightings of the records as are wanted.

The scores are sorted once; a weighting, such as a bootstrap draw's counts, costs a few sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Areas:
    """Areas under a label's two curves, float64 [D] for D weightings; NaN where only one class has weight."""

    auroc: FloatArray
    auprc: FloatArray


class RankedLabel:
    """The order of one label's scores, over the records where the label is known.

    scores float64 [n] without NaN; truth and known bool [n]. Only scores of positives are thresholds that matter: what
    lies between two of them is summed as one run.
    """

    def __init__(self, scores: FloatArray, truth: BoolArray, known: BoolArray) -> None:
        rows = np.flatnonzero(known)
        descending, positive = -scores[rows], truth[rows]
        thresholds = np.unique(descending[positive])
        # The best threshold that a record does not lie above, and whether it lies on it.
        place = np.searchsorted(thresholds, descending)
        tied = np.append(thresholds, np.nan)[place] == descending
        # Three runs for each threshold: negatives above it and below the one before, negatives on it, positives on it.
        run = 3 * place + tied + positive
        runs = 3 * len(thresholds) + 1  # and the negatives below the last
        ends = np.cumsum(np.bincount(run, minlength=runs))
        members = rows[np.argsort(run, kind="stable")]
        self._sums = csr_array((np.ones(len(rows)), members, np.append(0, ends)), shape=(runs, len(scores)))

    def areas(self, weights: FloatArray) -> Areas:
        """Both areas under each weighting, `weights` float64 [n, D] and not below 0.

        AUROC is Mann and Whitney's U over all pairs, ties shared. The other is average precision, sum over thresholds
        of (R_k - R_{k-1}) P_k, as scikit-learn has it: no interpolation, tied scores are one threshold.
        """
        sums = self._sums @ weights
        above, tied, positive = (sums[first:-1:3] for first in range(3))
        negatives_to = np.cumsum(above + tied, axis=0)
        positives_to = np.cumsum(positive, axis=0)
        positives = positive.sum(axis=0)
        negatives = sums[-1] + (above + tied).sum(axis=0)
        won = np.einsum("kd,kd->d", positive, negatives - negatives_to + tied / 2)
        reached = positives_to + negatives_to
        precision = np.divide(positives_to, reached, out=np.zeros_like(reached), where=reached > 0)
        both = (positives > 0) & (negatives > 0)
        return Areas(
            auroc=_ratio(won, positives * negatives, both),
            auprc=_ratio(np.einsum("kd,kd->d", positive, precision), positives, both),
        )


def _ratio(above: FloatArray, below: FloatArray, where: BoolArray) -> FloatArray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=where)
