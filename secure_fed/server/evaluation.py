"""Macro AUROC and AUPRC on the coordinator's public hold-out, with every modality and with each one missing.

Nothing here touches a site's records; metrics on private data would be releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from secure_fed.methods import Method
from secure_fed.methods.base import PublicContext
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.ranking import BoolArray, RankedLabel

ALL_PRESENT = "none"
"""The view in which no modality is taken away."""
_DRAWS_SEED = 20_250_520


@dataclass(frozen=True)
class Scores:
    """Macro AUROC and AUPRC of one view; labels with only one class are left out of the means and named.

    AUPRC is average precision; its chance level is a label's `prevalence`, the share of positives among the known.
    """

    auroc_macro: float
    auprc_macro: float
    auroc_per_label: dict[str, float]
    auprc_per_label: dict[str, float]
    prevalence: dict[str, float]
    left_out: tuple[str, ...]


@contextmanager
def repeatable_draws() -> Iterator[None]:
    """torch's global generator from a fixed state, put back afterwards: a method may draw what it fills in."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_DRAWS_SEED)
        yield


def predict(
    method: Method, model: MultimodalModel, batch: Batch, context: PublicContext | None = None, chunk: int = 512
) -> npt.NDArray[np.float64]:
    """Probabilities [n, L], float64; the same at every call, also where the method draws random numbers."""
    model.eval()
    batch = batch.unlabelled()
    parts = []
    with torch.no_grad(), repeatable_draws():
        for start in range(0, len(batch), chunk):
            rows = torch.arange(start, min(start + chunk, len(batch)))
            parts.append(torch.sigmoid(method.logits(model, batch.select(rows), context)).numpy())
    return np.concatenate(parts).astype(np.float64)


def truth_of(batch: Batch) -> tuple[BoolArray, BoolArray]:
    """Which labels are positive, and which are known: bool [n, L] each."""
    known = batch.label_mask.numpy() > 0
    return (batch.labels.numpy() > 0) & known, known


def score(labels: tuple[str, ...], batch: Batch, probabilities: npt.NDArray[np.float64]) -> Scores:
    """AUROC and average precision per label over the records where it is known, and their means over the labels.

    `probabilities` are float64 [n, L], labels 0 or 1. Raises ValueError where a probability is NaN.
    """
    if np.isnan(probabilities).any():
        raise ValueError("the model's probabilities contain NaN: there is no order to score")
    truth, known = truth_of(batch)
    once = np.ones((len(batch), 1))
    auroc: dict[str, float] = {}
    auprc: dict[str, float] = {}
    prevalence: dict[str, float] = {}
    for column, label in enumerate(labels):
        positives, counted = int(truth[:, column].sum()), int(known[:, column].sum())
        if 0 < positives < counted:
            areas = RankedLabel(probabilities[:, column], truth[:, column], known[:, column]).areas(once)
            auroc[label], auprc[label] = float(areas.auroc[0]), float(areas.auprc[0])
            prevalence[label] = positives / counted
    left_out = tuple(label for label in labels if label not in auroc)
    return Scores(mean_of(auroc), mean_of(auprc), auroc, auprc, prevalence, left_out)


def mean_of(per_label: dict[str, float]) -> float:
    """The mean over labels; NaN without any."""
    return float(np.mean(list(per_label.values()))) if per_label else float("nan")


def views_of(holdout: Batch) -> dict[str, Batch]:
    """What is taken away -> the hold-out without it; `none` is the view with everything."""
    return {ALL_PRESENT: holdout} | {name: holdout.without({name}) for name in holdout.inputs}


def evaluate(
    method: Method,
    model: MultimodalModel,
    holdout: Batch,
    labels: tuple[str, ...],
    context: PublicContext | None = None,
) -> dict[str, Scores]:
    """Scores by the modality that is taken away; `none` is the view with everything."""
    return {
        name: score(labels, view, predict(method, model, view, context)) for name, view in views_of(holdout).items()
    }
