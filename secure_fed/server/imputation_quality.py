"""How near imputed features come to the real ones, on records of the public hold-out that have every modality.

Cosine alone misleads: a constant mean already has .7 to .8. So its figures stand beside, and error over variance and
retrieval ranks say what a method knows of the single record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from secure_fed.methods import Method
from secure_fed.methods.base import PublicContext
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.evaluation import repeatable_draws
from secure_fed.server.ranking import FloatArray

TOP = 10
_MOST = 4096
"""Records that are compared: ranks cost the square of their number."""
_SEED = 20_140_614
_INDISTINCT = 1e-6
"""Squared distances that differ by less, relative to the longest feature, are tied: features are float32."""


@dataclass(frozen=True)
class Likeness:
    """Imputed against real features of n records.

    cosine: mean over the records where neither is zero; None without any. mse: mean over records and features.
    mse_over_variance: over the real features' own variance, so that their constant mean has 1 and less is better; None
    where they do not vary. rank: mean of (rank - 1) / (n - 1), the rank of a record's real feature among all n by
    distance to the imputed one; 0 is best, 0.5 chance. recall_at_10: how often it is among the ten nearest; chance is
    10 / n. Ties are shared. Both None for a single record.
    """

    cosine: float | None
    mse: float
    mse_over_variance: float | None
    rank: float | None
    recall_at_10: float | None


@dataclass(frozen=True)
class ImputationQuality:
    """A modality imputed from all the others. `constant_mean`: what the mean of the real features scores.

    calibration: mean squared error over the variance that the method states, per feature; 1 is as large as it says.
    None where it states none.
    """

    records: int
    imputed: Likeness
    constant_mean: Likeness
    calibration: float | None


def imputation_quality(
    method: Method, model: MultimodalModel, holdout: Batch, context: PublicContext | None = None
) -> dict[str, ImputationQuality]:
    """By imputed modality; empty with a single modality, or where no record has them all."""
    complete = _complete(holdout)
    if len(holdout.inputs) < 2 or not len(complete):
        return {}
    model.eval()
    found = {}
    with torch.no_grad(), repeatable_draws():
        real = _encoded(method, model, complete, context)
        for target in complete.inputs:
            imputed, variance = _imputed(method, model, complete.without({target}), target, context)
            found[target] = quality(imputed, real[target], variance)
    return found


def quality(imputed: FloatArray, real: FloatArray, variance: FloatArray | None = None) -> ImputationQuality:
    """Figures of imputed against real features, float64 [n, F] each, and of the variance that is claimed."""
    mean = np.broadcast_to(real.mean(axis=0), real.shape)
    return ImputationQuality(
        len(real), likeness(imputed, real), likeness(mean, real), _calibration(imputed, real, variance)
    )


def likeness(imputed: FloatArray, real: FloatArray) -> Likeness:
    """Figures of imputed against real features, float64 [n, F] each."""
    lengths = np.linalg.norm(imputed, axis=1) * np.linalg.norm(real, axis=1)
    defined = lengths > 0
    cosines = np.einsum("nf,nf->n", imputed, real)[defined] / lengths[defined]
    mse = float(np.square(imputed - real).mean())
    variance = float(np.square(real - real.mean(axis=0)).mean())
    varies = variance > _INDISTINCT**2 * float(np.square(real).mean())
    nearer, tied = _neighbours(imputed, real)
    others = len(real) - 1
    return Likeness(
        cosine=float(cosines.mean()) if defined.any() else None,
        mse=mse,
        mse_over_variance=mse / variance if varies else None,
        rank=float((nearer + tied / 2).mean() / others) if others else None,
        recall_at_10=float(np.clip((TOP - nearer) / (1 + tied), 0, 1).mean()) if others else None,
    )


def _neighbours(imputed: FloatArray, real: FloatArray, rows: int = 512) -> tuple[FloatArray, FloatArray]:
    """How many other real features lie nearer to each imputed one than its own, and how many as near: [n] each."""
    squared = np.square(real).sum(axis=1)
    margin = _INDISTINCT * squared.max()
    nearer, tied = np.empty(len(real)), np.empty(len(real))
    for start in range(0, len(real), rows):
        part = slice(start, start + rows)
        distances = squared - 2 * imputed[part] @ real.T  # squared, less what all of a row have in common
        excess = distances - distances[np.arange(len(distances)), start + np.arange(len(distances))][:, None]
        nearer[part] = (excess < -margin).sum(axis=1)
        tied[part] = (np.abs(excess) <= margin).sum(axis=1) - 1  # itself
    return nearer, tied


def _calibration(imputed: FloatArray, real: FloatArray, variance: FloatArray | None) -> float | None:
    if variance is None or not (stated := variance > 0).any():
        return None
    return float((np.square(imputed - real)[stated] / variance[stated]).mean())


def _complete(holdout: Batch) -> Batch:
    """Records that have every modality, without labels; of more than can be compared a fixed choice."""
    rows = torch.stack(list(holdout.presence.values())).all(dim=0).nonzero().squeeze(1)
    if len(rows) > _MOST:
        chosen = np.random.default_rng(_SEED).choice(len(rows), _MOST, replace=False)
        rows = rows[torch.from_numpy(np.sort(chosen))]
    return holdout.select(rows).unlabelled()


def _encoded(
    method: Method, model: MultimodalModel, batch: Batch, context: PublicContext | None
) -> dict[str, FloatArray]:
    parts = [model.encode(method.complete_inputs(model, part, context)) for part in _chunks(batch)]
    return {name: torch.cat([part[name] for part in parts]).double().numpy() for name in batch.inputs}


def _imputed(
    method: Method, model: MultimodalModel, batch: Batch, target: str, context: PublicContext | None
) -> tuple[FloatArray, FloatArray | None]:
    """Mean and variance [n, F] that the method gives for `target`, which the batch lacks."""
    found = []
    for part in _chunks(batch):
        completed = method.complete_inputs(model, part, context)
        found.append(method.impute(model, completed, model.encode(completed), context)[target])
    variances = [one.variance for one in found if one.variance is not None]
    mean = torch.cat([one.mean for one in found]).double().numpy()
    return mean, torch.cat(variances).double().numpy() if len(variances) == len(found) else None


def _chunks(batch: Batch, size: int = 512) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        yield batch.select(torch.arange(start, min(start + size, len(batch))))
