"""Macro AUROC on the coordinator's public hold-out, with every modality and with each one missing.

Nothing here touches a site's records; metrics on private data would be releases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from secure_fed.methods import Method
from secure_fed.methods.base import Artifact
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel

ALL_PRESENT = "none"
"""The view in which no modality is taken away."""


@dataclass(frozen=True)
class Scores:
    """Macro AUROC of one view; labels with only one class are left out of the mean and named."""

    auroc_macro: float
    per_label: dict[str, float]
    left_out: tuple[str, ...]


def predict(
    method: Method, model: MultimodalModel, batch: Batch, context: Artifact | None = None, chunk: int = 512
) -> npt.NDArray[np.float64]:
    """Probabilities [n, L], float64."""
    model.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(batch), chunk):
            rows = torch.arange(start, min(start + chunk, len(batch)))
            parts.append(torch.sigmoid(method.logits(model, batch.select(rows), context)).numpy())
    return np.concatenate(parts).astype(np.float64)


def score(labels: tuple[str, ...], batch: Batch, probabilities: npt.NDArray[np.float64]) -> Scores:
    """AUROC per label over the records where it is known, and the mean over labels with both classes.

    `probabilities` are float64 [n, L], labels 0 or 1. Raises ValueError where a probability is NaN.
    """
    if np.isnan(probabilities).any():
        raise ValueError("the model's probabilities contain NaN: there is no order to score")
    known = batch.label_mask.numpy() > 0
    truth = (batch.labels.numpy() > 0) & known
    positives, negatives = truth.sum(axis=0), (known & ~truth).sum(axis=0)
    # Mann and Whitney's U: the average ranks of the positives, ties shared. What is unknown ranks behind all the rest.
    ranks = rankdata(np.where(known, probabilities, np.inf), axis=0)
    excess = np.where(truth, ranks, 0.0).sum(axis=0) - positives * (positives + 1) / 2
    per_label: dict[str, float] = {}
    left_out: list[str] = []
    for column, label in enumerate(labels):
        pairs = positives[column] * negatives[column]
        if pairs:
            per_label[label] = float(excess[column] / pairs)
        else:
            left_out.append(label)
    macro = float(np.mean(list(per_label.values()))) if per_label else float("nan")
    return Scores(macro, per_label, tuple(left_out))


def evaluate(method: Method, model: MultimodalModel, holdout: Batch, labels: tuple[str, ...]) -> dict[str, Scores]:
    """Scores by the modality that is taken away; `none` is the view with everything."""
    views = {ALL_PRESENT: holdout} | {name: holdout.without({name}) for name in holdout.inputs}
    return {name: score(labels, view, predict(method, model, view)) for name, view in views.items()}
