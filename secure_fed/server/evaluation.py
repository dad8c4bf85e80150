"""Macro AUROC on the coordinator's public hold-out, with every modality and with each one missing.

Nothing here touches a site's records; metrics on private data would be releases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

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
    """AUROC per label over the records where it is known, and the mean over labels with both classes."""
    per_label: dict[str, float] = {}
    left_out: list[str] = []
    for column, label in enumerate(labels):
        known = batch.label_mask[:, column].numpy() > 0
        truth = batch.labels[known, column].numpy()
        if len(np.unique(truth)) < 2:
            left_out.append(label)
        else:
            per_label[label] = float(roc_auc_score(truth, probabilities[known, column]))
    macro = float(np.mean(list(per_label.values()))) if per_label else float("nan")
    return Scores(macro, per_label, tuple(left_out))


def evaluate(method: Method, model: MultimodalModel, holdout: Batch, labels: tuple[str, ...]) -> dict[str, Scores]:
    """Scores by the modality that is taken away; `none` is the view with everything."""
    views = {ALL_PRESENT: holdout} | {name: holdout.without({name}) for name in holdout.inputs}
    return {name: score(labels, view, predict(method, model, view)) for name, view in views.items()}
